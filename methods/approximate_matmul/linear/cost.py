"""Executed work of the linear methods on a problem of shape (N, D, M): ``f(shape, itemsize_bytes) -> Cost``.

Bytes are a lower bound: A and B read once, the product written once. Methods with a ``rank`` are counted at rank 1,
because a descriptor's cost does not know the option: it bounds the physical floor from below for every rank.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.catalogue.method import Cost
from harness.errors import UserError


def _sides(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise UserError(f"an approximate product has the shape (N, D, M), got {tuple(shape)}.")
    n, inner, outer = shape
    return n, inner, outer


def exact(shape: Sequence[int], itemsize: int) -> Cost:
    """2 N D M."""
    n, inner, outer = _sides(shape)
    return Cost(flops=2.0 * n * inner * outer, bytes=float(itemsize * (n * inner + inner * outer + n * outer)))


def bfloat16(shape: Sequence[int], itemsize: int) -> Cost:
    """2 N D M in bfloat16; B is stored in two bytes."""
    n, inner, outer = _sides(shape)
    size = float(itemsize * (n * inner + n * outer) + 2 * inner * outer)
    return Cost(flops=2.0 * n * inner * outer, bytes=size, dtype="bfloat16")


def one_byte(shape: Sequence[int], itemsize: int) -> Cost:
    """A quantised product with one-byte operands.

    One-byte units (VNNI, AMX, tensor cores) run at twice their machine's 16-bit rate, so the floor is that of half the
    operations in bfloat16.
    """
    n, inner, outer = _sides(shape)
    size = float(itemsize * (n * inner + n * outer) + inner * outer)
    return Cost(flops=1.0 * n * inner * outer, bytes=size, dtype="bfloat16")


def rank_one(shape: Sequence[int], itemsize: int) -> Cost:
    """(A S)(T) at rank 1: 2 N (D + M)."""
    n, inner, outer = _sides(shape)
    return Cost(flops=2.0 * n * (inner + outer), bytes=float(itemsize * (n * inner + inner + outer + n * outer)))


def touched(shape: Sequence[int], itemsize: int) -> Cost:
    """A sparse loading reads at least one column of A: 2 N (1 + M)."""
    n, _, outer = _sides(shape)
    return Cost(flops=2.0 * n * (1 + outer), bytes=float(itemsize * (n + outer + n * outer)))
