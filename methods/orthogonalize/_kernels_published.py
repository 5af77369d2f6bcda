"""Triton kernels of the published symmetric Newton-Schulz design: two products and nothing tuned beyond tile sizes.

The design is the one that the projects Dion and flash-newton-schulz made known: a full grid of programs in which the
tiles above the diagonal return at once, every computed tile is also stored at its mirrored place, the addend of the
symmetric product joins in float32 after the loop, and the accumulator of the last product starts at ``a X``.
Departures: loads are masked on every edge (no wrapped or unmasked rows) and every offset has 64 bits.
"""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def symmetric_product_kernel(
    A: tl.tensor,
    C: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    a_batch: tl.tensor,
    a_row: tl.tensor,
    a_col: tl.tensor,
    c_batch: tl.tensor,
    c_row: tl.tensor,
    c_col: tl.tensor,
    alpha: tl.tensor,
    beta: tl.tensor,
    ADDEND: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    """Lines 1 and 2: ``C = alpha A Aᵀ (+ beta A)``, A [batch, n, k] and C [batch, n, n] of any strides.

    Without ADDEND alpha and beta are ignored; with it A is square and symmetric. Below the diagonal's tiles C mirrors
    bit for bit.
    """
    tiles_m = tl.cdiv(n, BM)
    tiles_n = tl.cdiv(n, BN)
    pid = tl.program_id(0)
    batch = (pid // (tiles_m * tiles_n)).to(tl.int64)
    tile = pid % (tiles_m * tiles_n)
    tile_m, tile_n = tl.swizzle2d(tile // tiles_n, tile % tiles_n, tiles_m, tiles_n, GROUP)
    if tile_n * BN >= (tile_m + 1) * BM:
        return
    rows = tile_m.to(tl.int64) * BM + tl.arange(0, BM)
    cols = tile_n.to(tl.int64) * BN + tl.arange(0, BN)
    ks = tl.arange(0, BK).to(tl.int64)
    left = A + batch * a_batch + rows[:, None] * a_row + ks[None, :] * a_col
    right = A + batch * a_batch + cols[None, :] * a_row + ks[:, None] * a_col
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, k, BK):
        a = tl.load(left, mask=(rows[:, None] < n) & (ks[None, :] < k - start), other=0.0)
        b = tl.load(right, mask=(cols[None, :] < n) & (ks[:, None] < k - start), other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        left += BK * a_col
        right += BK * a_col
    inside = (rows[:, None] < n) & (cols[None, :] < n)
    if ADDEND:
        addend = A + batch * a_batch + rows[:, None] * a_row + cols[None, :] * a_col
        acc = acc * alpha + beta * tl.load(addend, mask=inside, other=0.0).to(tl.float32)
    out = acc.to(C.dtype.element_ty)
    base = C + batch * c_batch
    tl.store(base + rows[:, None] * c_row + cols[None, :] * c_col, out, mask=inside)
    tl.store(base + cols[None, :] * c_row + rows[:, None] * c_col, out, mask=inside)


@triton.jit
def apply_kernel(
    B: tl.tensor,
    X: tl.tensor,
    Y: tl.tensor,
    n: tl.tensor,
    m: tl.tensor,
    b_batch: tl.tensor,
    b_row: tl.tensor,
    b_col: tl.tensor,
    x_batch: tl.tensor,
    x_row: tl.tensor,
    x_col: tl.tensor,
    y_batch: tl.tensor,
    y_row: tl.tensor,
    y_col: tl.tensor,
    a: tl.tensor,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    """Line 3: ``Y = a X + B X``, B [batch, n, n], X and Y [batch, n, m] of any strides."""
    tiles_m = tl.cdiv(n, BM)
    tiles_n = tl.cdiv(m, BN)
    pid = tl.program_id(0)
    batch = (pid // (tiles_m * tiles_n)).to(tl.int64)
    tile = pid % (tiles_m * tiles_n)
    tile_m, tile_n = tl.swizzle2d(tile // tiles_n, tile % tiles_n, tiles_m, tiles_n, GROUP)
    rows = tile_m.to(tl.int64) * BM + tl.arange(0, BM)
    cols = tile_n.to(tl.int64) * BN + tl.arange(0, BN)
    ks = tl.arange(0, BK).to(tl.int64)
    inside = (rows[:, None] < n) & (cols[None, :] < m)
    start_at = X + batch * x_batch + rows[:, None] * x_row + cols[None, :] * x_col
    acc = tl.load(start_at, mask=inside, other=0.0).to(tl.float32) * a
    left = B + batch * b_batch + rows[:, None] * b_row + ks[None, :] * b_col
    right = X + batch * x_batch + ks[:, None] * x_row + cols[None, :] * x_col
    for start in range(0, n, BK):
        b = tl.load(left, mask=(rows[:, None] < n) & (ks[None, :] < n - start), other=0.0)
        x = tl.load(right, mask=(ks[:, None] < n - start) & (cols[None, :] < m), other=0.0)
        acc = tl.dot(b, x, acc, input_precision=PRECISION)
        left += BK * b_col
        right += BK * x_row
    target = Y + batch * y_batch + rows[:, None] * y_row + cols[None, :] * y_col
    tl.store(target, acc.to(Y.dtype.element_ty), mask=inside)
