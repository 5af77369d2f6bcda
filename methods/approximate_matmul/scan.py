"""Scans in NumPy: sums of table entries, exactly in 16 bits or by the paper's averages of bytes.

They are the oracle of every other scan and the ``numpy`` back-end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from methods.approximate_matmul.tables import Tables, bias
from methods.approximate_matmul.tree import F32, U8


def exact(codes: U8, values: U8) -> NDArray[np.uint16]:
    """(N, M) sums of uint8 entries, modulo nothing: the caller keeps C at 257 or less.

    Args:
        codes: (N, C).
        values: (C, K, M) uint8.
    """
    total = np.zeros((len(codes), values.shape[2]), dtype=np.uint16)
    for c, table in enumerate(values):
        total += table[codes[:, c]]
    return total


def averaged(codes: U8, values: U8, upcast: int) -> NDArray[np.uint16]:
    """(N, M) sums of group means: avg(a, b) = (a + b + 1) >> 1 in a balanced tree over ``upcast`` codebooks.

    The result is in units of ``upcast`` table units and is too large by C log2(U) / (4 U) in expectation.
    """
    total = np.zeros((len(codes), values.shape[2]), dtype=np.uint16)
    for first in range(0, len(values), upcast):
        means = [values[c][codes[:, c]].astype(np.uint16) for c in range(first, first + upcast)]
        while len(means) > 1:
            means = [(left + right + 1) >> 1 for left, right in zip(means[::2], means[1::2], strict=True)]
        total += means[0]
    return total


def scan(codes: U8, tables: Tables, upcast: int | None = None) -> F32:
    """(N, M) float32 outputs; ``upcast`` chooses averages over groups of that many codebooks."""
    if not tables.quantised:
        total = np.zeros((len(codes), tables.values.shape[2]), dtype=np.float32)
        for c, table in enumerate(tables.values):
            total += table[codes[:, c]]
        return total
    values: U8 = tables.values.astype(np.uint8, copy=False)
    if upcast is None:
        integers = exact(codes, values).astype(np.float32)
    else:
        excess = np.float32(bias(len(values), upcast))
        integers = np.float32(upcast) * averaged(codes, values, upcast).astype(np.float32) - excess
    return np.asarray(integers * tables.scale + tables.offset, dtype=np.float32)
