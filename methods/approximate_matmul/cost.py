"""Executed work of a look-up product: ``f((N, D, M), itemsize_bytes) -> Cost``.

The number of codebooks is an option that the cost does not see, so these are bounds for a single one: the physical
floor must lie under every honest time. ``op.bytes_read`` and ``op.multiplies`` give a fitted operator's own figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.catalogue.method import Cost
from harness.errors import UserError
from methods.approximate_matmul.tree import DEPTH

#: How A lies in memory: row by row, as frameworks hold it, or column by column, as the paper's programs do.
Layout = Literal["rows", "columns"]
#: Bytes that one access brings along: a cache line of x86 and 64-bit Arm CPUs; a sector, the unit of an NVIDIA GPU's
#: device memory (CUDA C++ Best Practices Guide, section "Coalesced access to global memory").
LINE, SECTOR = 64, 32


def bytes_of_a(
    columns: NDArray[Any], n: int, width: int, layout: Layout, item_bytes: int = 4, line_bytes: int = LINE
) -> float:
    """Bytes of A (n, width) that come from memory when only ``columns`` of it are read.

    Column by column: those columns. Row by row: every different line that holds one of their entries, each once; A
    begins at a line's beginning. A narrow A, or one of many touched columns, is then read whole.
    """
    if layout == "columns":
        return float(n) * len(columns) * item_bytes
    if layout != "rows":
        raise UserError(f"layout must be rows or columns (how A lies in memory), got {layout!r}.")
    row = width * item_bytes
    # After so many rows the lines begin anew at a row's beginning.
    period = line_bytes // math.gcd(row, line_bytes)

    def lines(rows: int) -> int:
        first = (np.arange(rows)[:, None] * row + np.asarray(columns, dtype=np.int64) * item_bytes).ravel()
        return len(np.unique(first // line_bytes))

    whole, rest = divmod(n, period)
    return float(line_bytes) * (whole * lines(period) + lines(rest))


def tree(shape: Sequence[int], itemsize: int) -> Cost:
    """Four columns of A read, the output written, no multiplication."""
    n, _, m = _sides(shape)
    return Cost(flops=0.0, bytes=float(itemsize) * n * (DEPTH + m))


def centroids(shape: Sequence[int], itemsize: int) -> Cost:
    """A read once, the output written, 16 distances to D-wide rows (at least 16 centroids)."""
    n, d, m = _sides(shape)
    return Cost(flops=2.0 * 16 * n * d, bytes=float(itemsize) * n * (d + m))


def rotated(shape: Sequence[int], itemsize: int) -> Cost:
    """As :func:`centroids` after a product with a D x D rotation."""
    n, d, _ = _sides(shape)
    plain = centroids(shape, itemsize)
    return Cost(flops=plain.flops + 2.0 * n * d * d, bytes=plain.bytes)


def _sides(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise UserError(f"a product has the shape (N, D, M); got {tuple(shape)}.")
    return int(shape[0]), int(shape[1]), int(shape[2])
