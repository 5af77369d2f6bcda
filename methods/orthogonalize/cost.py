"""Executed work of each algorithm on one problem: ``f(shape, itemsize_bytes) -> Cost``.

n <= m are a matrix's sides, a multiply-add counts two. Bytes are the least that any arrangement of the algorithm must
move: read the input once, write the output once. What the eager kernels move in between depends on what stays in a
cache, so it may not enter a physical floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from harness.catalogue.method import Cost
from harness.errors import UserError


def plain(shape: Sequence[int], itemsize: int, steps: int) -> Cost:
    """Full products: X Xᵀ (2n²m), A A (2n³) and B X (2n²m) per step."""
    batch, n, m = _sides(shape)
    return _cost(batch * steps * (4.0 * n * n * m + 2.0 * n**3), shape, itemsize)


def symmetric(shape: Sequence[int], itemsize: int, steps: int) -> Cost:
    """X Xᵀ and A A computed on one triangle of tiles (half the work): n²m + n³ + 2n²m per step."""
    batch, n, m = _sides(shape)
    return _cost(batch * steps * (3.0 * n * n * m + n**3), shape, itemsize)


def gram(shape: Sequence[int], itemsize: int, steps: int, restart: int | None, triangles: bool = False) -> Cost:
    """Gram iteration with full products (or triangles); square matrices take the standard iteration.

    A segment of k steps forms X Xᵀ and Q X once, k squares R², k - 1 products Q Z, and 2(k - 1) for the next R.
    """
    batch, n, m = _sides(shape)
    if n == m:
        return symmetric(shape, itemsize, steps) if triangles else plain(shape, itemsize, steps)
    segments = (steps,) if restart is None else (restart, steps - restart)
    outer = (3.0 if triangles else 4.0) * len(segments)
    inner = (1.0 if triangles else 2.0) * sum(4 * length - 3 for length in segments)
    return _cost(batch * (outer * n * n * m + inner * n**3), shape, itemsize)


def svd(shape: Sequence[int], itemsize: int) -> Cost:
    """At least the bidiagonalisation, 4n²m - 4n³/3, and the product U Vᵀ, 2n²m (Golub and Van Loan, 5.4)."""
    batch, n, m = _sides(shape)
    return _cost(batch * (6.0 * n * n * m - 4.0 * n**3 / 3.0), shape, itemsize)


def plain5(shape: Sequence[int], itemsize: int) -> Cost:
    """Five plain steps."""
    return plain(shape, itemsize, 5)


def plain5_bfloat16(shape: Sequence[int], itemsize: int) -> Cost:
    """Five plain steps in bfloat16, whatever the input's dtype (torch.optim.Muon)."""
    return replace(plain5(shape, itemsize), dtype="bfloat16")


def gram5_float16(shape: Sequence[int], itemsize: int) -> Cost:
    """Five Gram steps on triangles in float16, whatever the input's dtype (gram-newton-schulz)."""
    return replace(gram5_symmetric(shape, itemsize), dtype="float16")


def plain4(shape: Sequence[int], itemsize: int) -> Cost:
    """Four plain steps; AOL's and Schatten-4's own work is of order n² and left out."""
    return plain(shape, itemsize, 4)


def symmetric5(shape: Sequence[int], itemsize: int) -> Cost:
    """Five steps with symmetric products."""
    return symmetric(shape, itemsize, 5)


def symmetric4(shape: Sequence[int], itemsize: int) -> Cost:
    """Four steps with symmetric products."""
    return symmetric(shape, itemsize, 4)


def gram5(shape: Sequence[int], itemsize: int) -> Cost:
    """Five Gram steps, restart before the third."""
    return gram(shape, itemsize, 5, 2)


def gram5_symmetric(shape: Sequence[int], itemsize: int) -> Cost:
    """Five Gram steps with symmetric products, restart before the third."""
    return gram(shape, itemsize, 5, 2, triangles=True)


def gram4(shape: Sequence[int], itemsize: int) -> Cost:
    """Four Gram steps, restart before the third."""
    return gram(shape, itemsize, 4, 2)


def scale_only(shape: Sequence[int], itemsize: int) -> Cost:
    """A norm (multiply and add) and a multiplication per entry."""
    return _cost(3.0 * math.prod(shape), shape, itemsize)


def aol_only(shape: Sequence[int], itemsize: int) -> Cost:
    """One full Gram product and one multiplication per entry."""
    batch, n, m = _sides(shape)
    return _cost(batch * (2.0 * n * n * m + n * m), shape, itemsize)


def _sides(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) < 2:
        raise UserError(f"a matrix or a batch of matrices has at least two dimensions; got shape {tuple(shape)}.")
    *batch, rows, columns = shape
    return math.prod(batch), min(rows, columns), max(rows, columns)


def _cost(flops: float, shape: Sequence[int], itemsize: int) -> Cost:
    return Cost(flops=flops, bytes=2.0 * itemsize * math.prod(shape))
