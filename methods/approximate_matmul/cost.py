"""Executed work of a look-up product: ``f((N, D, M), itemsize_bytes) -> Cost``.

The number of codebooks is an option that the cost does not see, so these are bounds for a single one: the physical
floor must lie under every honest time. ``op.bytes_read`` and ``op.multiplies`` give a fitted operator's own figures.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.catalogue.method import Cost
from harness.errors import UserError
from methods.approximate_matmul.tree import DEPTH


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
