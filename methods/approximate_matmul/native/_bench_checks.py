"""Answers of one level of the C++ kernels against NumPy, and the seconds of training, for ``bench``.

As a program, ``python -m … LEVEL``, it prints the answers: a fault then ends that level alone, and no torch is loaded.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from methods.approximate_matmul import scan, tree
from methods.approximate_matmul.native import binding
from methods.approximate_matmul.tree import F32, U8

#: N, D, M, C: one of everything, odd in every way, whole blocks, the most codebooks.
SHAPES = ((1, 7, 1, 1), (33, 129, 13, 5), (1000, 512, 100, 64), (4096, 512, 10, 16), (300, 1100, 9, 257))
#: Averages are checked where the codebooks are a multiple of it.
UPCAST = 16


def parameters(d: int, m: int, codebooks: int) -> tuple[Any, Any, Any]:
    """Random columns, thresholds and byte tables."""
    rng = np.random.default_rng(0)
    width = d // codebooks
    columns = np.stack([width * c + rng.choice(width, 4, replace=width < 4) for c in range(codebooks)]).astype(np.int32)
    thresholds = rng.standard_normal((codebooks, 15)).astype(np.float32)
    return columns, thresholds, rng.integers(0, 256, (codebooks, 16, m)).astype(np.uint8)


def answers(level: str) -> Iterator[str]:
    """A line for each comparison on a level, ``right`` or ``WRONG``."""
    for n, d, m, codebooks in SHAPES:
        columns, thresholds, q = parameters(d, m, codebooks)
        a = np.random.default_rng(1).standard_normal((n, d)).astype(np.float32)
        a[0, 0], a[-1, -1], a[n // 2, columns[:, 0]] = np.nan, np.inf, thresholds[:, 0]
        trees = tree.Trees(columns=columns, thresholds=thresholds, starts=np.zeros(1, np.int32))
        codes = tree.encode(a, trees)
        for order, given in (("rows", a), ("columns", np.asfortranarray(a))):
            for threads in (1, 3):
                label = f"{n} x {d} x {m} C={codebooks} {order} {threads} threads"
                yield from _one(label, level, given, trees, codes, q, threads)


def _one(label: str, level: str, a: F32, trees: tree.Trees, codes: U8, q: U8, threads: int) -> Iterator[str]:
    tables = binding.prepare(q, 0.5, -3.0)
    packed = binding.encode(a, trees.columns, trees.thresholds, threads=threads, level=level)
    yield _judged(f"{label} encode", binding.unpack(packed), codes)
    whole = scan.exact(codes, q)
    yield _judged(f"{label} sums", binding.scan(packed, tables, "uint16", threads=threads, level=level), whole)
    wanted = np.float32(0.5) * whole.astype(np.float32) - np.float32(3.0)
    made = binding.matmul(a, trees.columns, trees.thresholds, tables, threads=threads, level=level)
    yield _judged(f"{label} product", made, wanted)
    columns = binding.scan(packed, tables, "uint16", order="column", threads=threads, level=level)
    yield _judged(f"{label} columns", columns, whole)
    bytes_ = binding.scan(packed, tables, "uint8", threads=threads, level=level)
    yield _judged(f"{label} bytes", bytes_, np.minimum(whole, 255))
    if len(q) % UPCAST == 0:
        average = binding.prepare(q, aggregation="average", upcast=UPCAST)
        got = binding.scan(packed, average, "uint16", threads=threads, level=level)
        yield _judged(f"{label} averages", got, scan.averaged(codes, q, UPCAST))


def _judged(label: str, got: np.ndarray, wanted: np.ndarray) -> str:
    if np.array_equal(got, wanted):
        return f"right  {label}"
    return f"WRONG  {label}: {int((got != wanted).sum())} of {wanted.size} entries differ"


def training_seconds(n: int, d: int, codebooks: int) -> float:
    """Learn the trees of correlated rows."""
    from methods.approximate_matmul.maddness import learn_trees  # loads torch

    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n, 16), np.float32) @ rng.standard_normal((16, d), np.float32)
    rows += np.float32(0.1) * rng.standard_normal((n, d), np.float32)
    begin = time.perf_counter()
    learn_trees(rows, codebooks, tree.CANDIDATES, 1, ">=", "float")
    return time.perf_counter() - begin


if __name__ == "__main__":
    for told in answers(sys.argv[1]):
        print(told, flush=True)
