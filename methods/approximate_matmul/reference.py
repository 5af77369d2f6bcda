"""The plain algorithms: loops and definitions, float64. What every fast path of this folder is compared with.

The factories give the NumPy twins of the methods (the same learned parameters, scanned by NumPy); the functions below
them are slower still and share no code with what they check.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from methods.approximate_matmul import bolt as fast_bolt
from methods.approximate_matmul import maddness as fast
from methods.approximate_matmul import opq as fast_opq
from methods.approximate_matmul import pq as fast_pq
from methods.approximate_matmul.estimator import Estimator
from methods.approximate_matmul.tree import F32, F64, U8


def maddness(**hyper: Any) -> Estimator:
    """``approximate_matmul.maddness`` in NumPy."""
    return fast.make(**{**hyper, "backend": "numpy"})


def maddness_pq(**hyper: Any) -> Estimator:
    """``approximate_matmul.maddness-pq`` in NumPy."""
    return fast.make_pq(**{**hyper, "backend": "numpy"})


def maddness_sparse(**hyper: Any) -> Estimator:
    """``approximate_matmul.maddness-sparse`` in NumPy."""
    return fast.make_sparse(**{**hyper, "backend": "numpy"})


def maddness_direct(**hyper: Any) -> Estimator:
    """``approximate_matmul.maddness-direct`` in NumPy."""
    return fast.make_direct(**{**hyper, "backend": "numpy"})


def maddness_average(**hyper: Any) -> Estimator:
    """``approximate_matmul.maddness-avg`` in NumPy."""
    return fast.make_average(**{**hyper, "backend": "numpy"})


def bolt(**hyper: Any) -> Estimator:
    """``approximate_matmul.bolt`` in NumPy."""
    return fast_bolt.make(**{**hyper, "backend": "numpy"})


def pq(**hyper: Any) -> Estimator:
    """``approximate_matmul.pq`` in NumPy."""
    return fast_pq.make(**{**hyper, "backend": "numpy"})


def opq(**hyper: Any) -> Estimator:
    """``approximate_matmul.opq`` in NumPy."""
    return fast_opq.make(**{**hyper, "backend": "numpy"})


def encode(a: F32, columns: NDArray[np.int32], thresholds: F32) -> U8:
    """Algorithm 1 of arXiv 2106.10860, row by row, codebook by codebook, level by level."""
    codes = np.zeros((len(a), len(columns)), dtype=np.uint8)
    for n in range(len(a)):
        for c in range(len(columns)):
            i = 0
            for level in range(4):
                i = 2 * i + int(a[n, columns[c, level]] >= thresholds[c, 2**level - 1 + i])
            codes[n, c] = i
    return codes


def exact_scan(codes: U8, values: U8) -> list[list[int]]:
    """Sums of table entries in Python's unbounded integers."""
    outputs = values.shape[2]
    return [[sum(int(values[c, k, m]) for c, k in enumerate(row)) for m in range(outputs)] for row in codes]


def average(numbers: list[int]) -> int:
    """(left + right + 1) >> 1 of the two halves' averages; one number is its own."""
    if len(numbers) == 1:
        return numbers[0]
    half = len(numbers) // 2
    return (average(numbers[:half]) + average(numbers[half:]) + 1) >> 1


def averaged_scan(codes: U8, values: U8, upcast: int) -> list[list[int]]:
    """Sums of group means, by the recursive definition."""
    codebooks, _, outputs = values.shape
    return [
        [
            sum(
                average([int(values[c, row[c], m]) for c in range(first, first + upcast)])
                for first in range(0, codebooks, upcast)
            )
            for m in range(outputs)
        ]
        for row in codes
    ]


def one_hot(codes: U8, entries: int = 16) -> F64:
    """G: (N', K C) with C ones a row."""
    rows, codebooks = codes.shape
    g = np.zeros((rows, entries * codebooks))
    for n in range(rows):
        for c in range(codebooks):
            g[n, entries * c + codes[n, c]] = 1.0
    return g


def ridge(a: F64, codes: U8, start: F64, strength: float) -> F64:
    """Prototypes by the normal equations of |A - G P|^2 + lambda |P - P0|^2; (C, K, D)."""
    g = one_hot(codes, start.shape[1])
    flat = start.reshape(g.shape[1], -1)
    system = g.T @ g + strength * np.eye(g.shape[1])
    return np.asarray((flat + np.linalg.solve(system, g.T @ (a - g @ flat))).reshape(start.shape))


def squared_error(x: F64) -> float:
    """Sum of squared distances of rows to their mean."""
    return float(((x - x.mean(axis=0)) ** 2).sum()) if len(x) else 0.0


def best_split(x: F64, column: int, min_leaf: int = 1) -> float:
    """Least squared error of any two-way split of the rows of ``x`` by a threshold on one column; tries them all."""
    best = squared_error(x)
    for threshold in np.unique(x[:, column])[1:]:
        right = x[:, column] >= threshold
        if min(right.sum(), (~right).sum()) >= min_leaf:
            best = min(best, squared_error(x[right]) + squared_error(x[~right]))
    return best


def learn_error(x: F64, candidates: int = 4) -> float:
    """Squared error left by the greedy tree of Algorithm 2, every threshold of every candidate tried."""
    buckets = [x]
    for _ in range(4):
        scores = sum(((b - b.mean(axis=0)) ** 2).sum(axis=0) for b in buckets if len(b))
        chosen = np.argsort(-np.asarray(scores), kind="stable")[:candidates]
        losses = [sum(best_split(b, int(j)) for b in buckets if len(b)) for j in chosen]
        j = int(chosen[int(np.argmin(losses))])
        buckets = [half for b in buckets if len(b) for half in _halves(b, j)]
    return sum(squared_error(b) for b in buckets)


def _halves(x: F64, column: int) -> list[F64]:
    least, where = squared_error(x), None
    for threshold in np.unique(x[:, column])[1:]:
        right = x[:, column] >= threshold
        error = squared_error(x[right]) + squared_error(x[~right])
        if error < least:
            least, where = error, right
    return [x] if where is None else [x[~where], x[where]]
