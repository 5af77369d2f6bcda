"""Launching the kernels on tensors: layouts of tables, strides, grids and configurations; no learning.

Kernels start on the current stream of A's device without waiting. All but pointers is worked out once for each form
of the operands and kept.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from harness.errors import Unsupported, UserError
from methods.approximate_matmul.gpu import _configs as configs
from methods.approximate_matmul.gpu import _kernels as kernels
from methods.approximate_matmul.gpu._configs import Config, Kind
from methods.orthogonalize._triton_direct import Launch, form, get

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
#: Dtypes of A that the kernels read, and of outputs that they write.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Exact sums of bytes fit 16 bits up to here.
MOST_CODEBOOKS = 257
_TABLE_DTYPES: dict[Kind, torch.dtype] = {
    "int8": torch.int8,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8": torch.float8_e4m3fn,
}
#: float8 e4m3 has four significant bits: integers to 16 are exact.
_FLOAT8_EXACT = 16
#: Padding of the product's tables: every tile that a configuration may choose divides it.
_PAD_OUTPUTS, _PAD_DEPTH = 256, 256


@dataclass(kw_only=True)
class Prepared:
    """A fitted MADDNESS on a device.

    Attributes:
        columns: [4, C] int32, by level.
        thresholds: [C, 16] float32, a tree's 15 and one that is never read.
        scale, offset: [M] float32.
        values: [C, 16, M] uint8, in host memory.
        device: where the kernels run.
    """

    columns: Tensor
    thresholds: Tensor
    scale: Tensor
    offset: Tensor
    values: NDArray[np.uint8]
    device: torch.device
    _tables: dict[str, Tensor] = field(default_factory=dict)

    @property
    def codebooks(self) -> int:
        """C."""
        return int(self.values.shape[0])

    @property
    def outputs(self) -> int:
        """M."""
        return int(self.values.shape[2])

    def split(self, kind: Kind) -> bool:
        """Whether the tables of a kind need two planes of four bits."""
        return kind == "float8" and int(self.values.max(initial=0)) > _FLOAT8_EXACT

    def words(self) -> Tensor:
        """[C, 16, words] int32: four outputs' bytes a word, padded to 16 bytes."""
        if "words" not in self._tables:
            padded = _padded(self.values, (self.codebooks, 16, _up(self.outputs, 16)))
            self._tables["words"] = torch.from_numpy(padded.view(np.int32)).to(self.device)
        return self._tables["words"]

    def rows(self, kind: Kind) -> Tensor:
        """[planes, M', depth]: tables with the depth, 16 C, contiguous, in the dtype of one-hot products."""
        if kind not in self._tables:
            flat = self.values.reshape(16 * self.codebooks, self.outputs).T.astype(np.int16)
            planes = [flat >> 4, flat & 15] if self.split(kind) else [flat - 128 if kind == "int8" else flat]
            sides = (_up(self.outputs, _PAD_OUTPUTS), _up(16 * self.codebooks, _PAD_DEPTH))
            made = torch.from_numpy(np.stack([_padded(plane, sides) for plane in planes]))
            made = made.float().to(_TABLE_DTYPES[kind]) if kind != "int8" else made.to(torch.int8)
            self._tables[kind] = made.to(self.device)
        return self._tables[kind]


def prepare(
    columns: NDArray[np.int32],
    thresholds: NDArray[np.float32],
    values: NDArray[np.uint8],
    scale: NDArray[np.float32],
    offset: NDArray[np.float32],
    device: torch.device,
) -> Prepared:
    """Learned arrays, checked and moved to the device.

    Args:
        columns: [C, 4] columns of A that each level compares.
        thresholds: [C, 15] in heap order.
        values: [C, 16, M] uint8.
        scale: [M].
        offset: [M].
        device: a CUDA device.

    Raises:
        UserError: shapes or dtypes that do not belong together, or sums that overflow 16 bits.
        Unsupported: no CUDA device.
    """
    if device.type != "cuda" and not INTERPRETED:
        raise Unsupported(f"needs CUDA: Triton kernels run on an NVIDIA GPU, the matrices are on {device}")
    codebooks = len(columns)
    if columns.shape != (codebooks, 4) or thresholds.shape != (codebooks, 15) or values.shape[:2] != (codebooks, 16):
        raise UserError(
            "expected columns [C, 4], thresholds [C, 15] and tables [C, 16, M], got "
            f"{columns.shape}, {thresholds.shape} and {values.shape}."
        )
    if values.ndim != 3 or values.dtype != np.uint8:
        raise UserError(f"expected uint8 tables [C, 16, M], got {values.dtype} {values.shape}; use lut_bits of 1 to 8.")
    if not 1 <= codebooks <= MOST_CODEBOOKS:
        raise UserError(f"exact 16-bit sums hold 1 to {MOST_CODEBOOKS} codebooks of bytes, got {codebooks}.")
    outputs = values.shape[2]
    return Prepared(
        columns=_moved(columns.T, np.int32, device),
        thresholds=_moved(_padded(thresholds, (codebooks, 16)), np.float32, device),
        scale=_moved(np.broadcast_to(scale, (outputs,)), np.float32, device),
        offset=_moved(np.broadcast_to(offset, (outputs,)), np.float32, device),
        values=values,
        device=device,
    )


def encode(a: Tensor, prepared: Prepared, *, packed: bool = False, config: Config | None = None) -> Tensor:
    """Codes [N, C] uint8, or [N, ceil(C / 2)] with two a byte, the even codebook low; ``a`` of any strides."""
    codebooks = prepared.codebooks
    width = (codebooks + 1) // 2 if packed else codebooks
    codes = torch.empty(len(a), width, dtype=torch.uint8, device=a.device)

    def build() -> Launch:
        chosen = config or configs.encode(width, a.stride(0) == 1 and a.stride(1) != 1)
        programs = triton.cdiv(len(a), chosen.bm) * triton.cdiv(width, chosen.bn)
        meta = {"PACKED": packed, "BM": chosen.bm, "BC": chosen.bn} | _options(chosen)
        integers = (len(a), codebooks, *a.stride(), *codes.stride())
        return Launch(kernels.encode_kernel, programs, integers, meta)

    key = ("amm encode", packed, codebooks, form(a), form(prepared.columns), form(prepared.thresholds), config)
    with _on(a):
        get(key, build)((a, prepared.columns, prepared.thresholds, codes))
    return codes


def lookup(
    codes: Tensor,
    prepared: Prepared,
    dtype: torch.dtype = torch.float32,
    *,
    packed: bool = False,
    config: Config | None = None,
) -> Tensor:
    """[N, M] outputs by reading tables; ``dtype`` int32 gives the bare sums."""
    table = prepared.words()
    y = torch.empty(len(codes), prepared.outputs, dtype=dtype, device=codes.device)

    def build() -> Launch:
        chosen = config or configs.lookup(len(y), y.shape[1])
        words = chosen.bn // 4
        programs = triton.cdiv(len(y), chosen.bm) * triton.cdiv(table.shape[2], words)
        integers = (*y.shape, prepared.codebooks, table.shape[2], *codes.stride(), y.stride(0))
        meta = {"PACKED": packed, "RAW": dtype == torch.int32, "BM": chosen.bm, "BW": words} | _options(chosen)
        return Launch(kernels.lookup_kernel, programs, integers, meta)

    key = ("amm lookup", packed, form(codes), form(table), form(y), config)
    with _on(codes):
        get(key, build)((codes, table, prepared.scale, prepared.offset, y))
    return y


def onehot(
    codes: Tensor,
    prepared: Prepared,
    dtype: torch.dtype = torch.float32,
    *,
    kind: Kind = "int8",
    packed: bool = False,
    config: Config | None = None,
) -> Tensor:
    """[N, M] outputs by one-hot products on tensor cores; ``dtype`` int32 gives the bare sums."""
    return _product(codes, prepared, dtype, kind, packed, False, config)


def fused(
    a: Tensor,
    prepared: Prepared,
    dtype: torch.dtype = torch.float32,
    *,
    kind: Kind = "int8",
    config: Config | None = None,
) -> Tensor:
    """[N, M] outputs from ``a`` [N, D] of any strides, in one kernel."""
    return _product(a, prepared, dtype, kind, False, True, config)


def padded_sides(outputs: int, depth: int) -> tuple[int, int]:
    """Sides of the tables of a one-hot product, [M', 16 C'], filled with zeros behind [M, 16 C]."""
    return _up(outputs, _PAD_OUTPUTS), _up(depth, _PAD_DEPTH)


def onehot_of(codes: Tensor, table: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """[N, M] float32 from tables that change with every call, as in training; no arrays are prepared.

    Args:
        codes: [N, C] uint8.
        table: int8 entries less 128, of the sides that :func:`padded_sides` gives.
        scale: [M] float32.
        offset: [M] float32.
    """
    outputs, books = len(scale), codes.shape[1]
    y = torch.empty(len(codes), outputs, dtype=torch.float32, device=codes.device)

    def build() -> Launch:
        chosen = configs.onehot(len(y), outputs, "int8", False)
        programs = triton.cdiv(len(y), chosen.bm) * triton.cdiv(outputs, chosen.bn)
        integers = (*y.shape, books, table.stride(0), 0, *codes.stride(), y.stride(0))
        meta = {
            "FUSED": False, "PACKED": False, "SHIFT": 128, "SPLIT": False, "RAW": False,
            "BM": chosen.bm, "BN": chosen.bn, "BC": chosen.bc, "GROUP": chosen.group,
        } | _options(chosen)  # fmt: skip
        return Launch(kernels.onehot_kernel, programs, integers, meta)

    if len(y):
        key = ("amm onehot of", form(codes), form(table), form(scale), form(offset), form(y))
        with _on(codes):
            # The kernel reads neither columns nor thresholds.
            get(key, build)((codes, codes, codes, table, scale, offset, y))
    return y


def _product(
    source: Tensor, prepared: Prepared, dtype: torch.dtype, kind: Kind, packed: bool, fuse: bool, config: Config | None
) -> Tensor:
    table = prepared.rows(kind)
    y = torch.empty(len(source), prepared.outputs, dtype=dtype, device=source.device)

    def build() -> Launch:
        split, m = prepared.split(kind), y.shape[1]
        chosen = config or (configs.fused(m, kind) if fuse else configs.onehot(len(y), m, kind, split))
        if _PAD_OUTPUTS % chosen.bn or _PAD_DEPTH % (16 * chosen.bc):
            raise UserError(f"tiles must divide the tables' padding of {_PAD_OUTPUTS} x {_PAD_DEPTH}, got {chosen}.")
        programs = triton.cdiv(len(y), chosen.bm) * triton.cdiv(m, chosen.bn)
        integers = (
            *y.shape, prepared.codebooks, table.stride(1), table.stride(0), *source.stride(), y.stride(0)
        )  # fmt: skip
        meta = {
            "FUSED": fuse, "PACKED": packed, "SHIFT": 128 if kind == "int8" else 0, "SPLIT": split,
            "RAW": dtype == torch.int32, "BM": chosen.bm, "BN": chosen.bn, "BC": chosen.bc, "GROUP": chosen.group,
        } | _options(chosen)  # fmt: skip
        return Launch(kernels.onehot_kernel, programs, integers, meta)

    key = ("amm onehot", fuse, packed, kind, prepared.codebooks, form(source), form(table), form(y), config)
    pointers = (source, prepared.columns, prepared.thresholds, table, prepared.scale, prepared.offset, y)
    with _on(source):
        get(key, build)(pointers)
    return y


def _options(config: Config) -> dict[str, Any]:
    """Without fused multiply-adds, so that outputs have the bits of the same formula anywhere else."""
    return {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": False}


def _on(a: Tensor) -> contextlib.AbstractContextManager[Any]:
    if not a.is_cuda or a.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(a.device)


def _moved(array: NDArray[Any], dtype: Any, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=dtype, order="C")).to(device)


def _padded(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Zeros behind the end of every axis, in C order (NumPy's pad would keep a transpose's)."""
    grown = np.zeros(shape, dtype=array.dtype)
    grown[tuple(slice(size) for size in array.shape)] = array
    return grown


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
