"""Answers of the GPU kernels against NumPy, for ``_bench``: codes, integers and outputs must be equal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from methods.approximate_matmul import scan, tree
from methods.approximate_matmul.gpu import _launch as launch
from methods.approximate_matmul.gpu._configs import Kind
from methods.approximate_matmul.tables import Tables
from methods.approximate_matmul.tree import F32, U8

DEVICE = "cuda"
#: Rows of a timed shape that are compared, from its beginning and its end.
_ROWS = 200


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Random trees and tables of a shape; the arithmetic does not care whether they were learned."""

    columns: NDArray[np.int32]
    thresholds: F32
    tables: Tables

    def prepared(self) -> launch.Prepared:
        """On the GPU."""
        tables = self.tables
        values: U8 = tables.values.astype(np.uint8, copy=False)
        device = torch.empty(0, device=DEVICE).device
        return launch.prepare(self.columns, self.thresholds, values, tables.scale, tables.offset, device)

    def codes(self, a: Tensor) -> U8:
        """(N, C) codes by NumPy."""
        starts = np.zeros(1, dtype=np.int32)
        trees = tree.Trees(columns=self.columns, thresholds=self.thresholds, starts=starts)
        return tree.encode(a.float().cpu().numpy(), trees)


def learned(d: int, m: int, codebooks: int, seed: int = 0) -> Learned:
    """Four columns of each codebook's own range, thresholds that split normal data into leaves of all sizes."""
    rng = np.random.default_rng(seed)
    starts = tree.subspaces(d, codebooks)
    columns = np.stack([rng.integers(starts[c], starts[c + 1], 4) for c in range(codebooks)]).astype(np.int32)
    thresholds = rng.normal(scale=0.4, size=(codebooks, 15)).astype(np.float32)
    thresholds[0, 5] = np.inf
    return Learned(
        columns=columns,
        thresholds=thresholds,
        tables=Tables(
            values=rng.integers(0, 256, (codebooks, 16, m)).astype(np.uint8),
            scale=rng.uniform(0.01, 0.1, m).astype(np.float32),
            offset=rng.normal(size=m).astype(np.float32),
        ),
    )


def rows(n: int, d: int, dtype: torch.dtype, layout: str = "row", seed: int = 0) -> Tensor:
    """Normal rows on the GPU; ``feature`` stores columns beside each other."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    a = torch.randn(n, d, generator=generator, device=DEVICE).to(dtype)
    return a.T.contiguous().T if layout == "feature" else a


#: N, D, M, C: one of everything; odd in every way; several tiles of everything; the most codebooks. The last has the
#: tiles of the second, so that most of its kernels are compiled already.
ODD = [(1, 7, 1, 1), (333, 129, 77, 13), (4097, 300, 270, 33), (515, 600, 70, 257)]


def odd(shape: tuple[int, int, int, int], dtype: torch.dtype, layout: str) -> list[str]:
    """Every kernel on one odd shape with NaN, infinities and ties among the rows."""
    n, d, m, codebooks = shape
    model = learned(d, m, codebooks)
    prepared = model.prepared()
    a = rows(n, d, torch.float32)
    a[0, 0], a[-1, -1] = torch.nan, torch.inf
    thresholds = torch.from_numpy(model.thresholds[:, 0]).to(DEVICE)
    a[n // 2, torch.from_numpy(model.columns[:, 0]).long().to(DEVICE)] = thresholds
    a = a.to(dtype)
    a = a.T.contiguous().T if layout == "feature" else a
    codes = model.codes(a)
    integers = torch.from_numpy(scan.exact(codes, model.tables.values.astype(np.uint8)).astype(np.int32))
    outputs = torch.from_numpy(scan.scan(codes, model.tables))
    given, packed = torch.from_numpy(codes).to(DEVICE), torch.from_numpy(_pack(codes)).to(DEVICE)
    calls: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
        "encode": (lambda: launch.encode(a, prepared), torch.from_numpy(codes)),
        "encode packed": (lambda: launch.encode(a, prepared, packed=True), packed),
        "lut": (lambda: launch.lookup(given, prepared, torch.int32), integers),
        "lut packed": (lambda: launch.lookup(packed, prepared, torch.int32, packed=True), integers),
        "lut float32": (lambda: launch.lookup(given, prepared), outputs),
        "onehot packed": (lambda: launch.onehot(packed, prepared, torch.int32, packed=True), integers),
        "onehot bfloat16 out": (lambda: launch.onehot(given, prepared, torch.bfloat16), outputs.bfloat16()),
        "fused float32": (lambda: launch.fused(a, prepared), outputs),
    }
    kinds: tuple[Kind, ...] = ("int8", "bfloat16", "float8")
    for kind in kinds:
        calls[f"onehot {kind}"] = (lambda k=kind: launch.onehot(given, prepared, torch.int32, kind=k), integers)  # type: ignore[misc]
        calls[f"fused {kind}"] = (lambda k=kind: launch.fused(a, prepared, torch.int32, kind=k), integers)  # type: ignore[misc]
    label = f"{shape} {str(dtype).removeprefix('torch.')} {layout}"
    return [_judged(f"{label} {name}", call, want) for name, (call, want) in calls.items()]


def timed_shape(calls: dict[str, Callable[[], Tensor]], model: Learned, a: Tensor) -> list[str]:
    """The first and last rows of outputs at full size; also compiles what will be timed."""
    at = torch.cat([torch.arange(min(_ROWS, len(a))), torch.arange(max(len(a) - _ROWS, 0), len(a))]).to(DEVICE)
    codes = model.codes(a[at])
    want = torch.from_numpy(scan.scan(codes, model.tables)).bfloat16()
    found = []
    for name, call in calls.items():
        expected = torch.from_numpy(codes) if name.startswith("encode") else want
        shape = f"{tuple(a.shape)} C={len(model.columns)}"
        found.append(_judged(f"{shape} | {name}", lambda call=call: call()[at], expected))  # type: ignore[misc]
    return found


def _judged(label: str, call: Callable[[], Tensor], want: Tensor) -> str:
    begin = time.perf_counter()
    try:
        got = call().cpu()
    except Exception as error:  # a kernel that does not compile must not hide the others' answers
        return f"FAILED {label}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if torch.equal(got, want.cpu()):
        return f"right  {label} ({time.perf_counter() - begin:.1f} s)"
    wrong = int((got != want.cpu()).sum())
    return f"WRONG  {label}: {wrong} of {want.numel()} entries differ"


def _pack(codes: U8) -> U8:
    even, odd = codes[:, ::2], codes[:, 1::2]
    return np.asarray(even | np.pad(odd << 4, [(0, 0), (0, even.shape[1] - odd.shape[1])]), dtype=np.uint8)
