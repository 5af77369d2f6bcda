"""Triton kernel of a one-byte product that scales as it writes. Own design after the usual tiled product."""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product_kernel(
    Q: tl.tensor,
    W: tl.tensor,
    S: tl.tensor,
    T: tl.tensor,
    Y: tl.tensor,
    n: tl.tensor,
    m: tl.tensor,
    k: tl.tensor,
    ROWS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    """Y [n, m] = (Q W') s t in float32, rounded to Y's dtype; Q [n, k] and W [., k] int8 with exact int32 sums.

    Without ROWS there are no row scales s. k is a multiple of BK and W has whole tiles of rows; rows of Q beyond n are
    read as the last one and not stored. GROUP rows of tiles run together, so that they share the L2 cache.
    """
    pid = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(n, BM), tl.cdiv(m, BN)
    first = pid // (GROUP * tiles_n) * GROUP
    height = tl.minimum(GROUP, tiles_m - first)
    local = pid % (GROUP * tiles_n)
    row = (first + local % height) * BM + tl.arange(0, BM)
    column = (local // height) * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    q = Q + tl.minimum(row, n - 1).to(tl.int64)[:, None] * k + depth[None, :]
    w = W + column.to(tl.int64)[None, :] * k + depth[:, None]
    total = tl.zeros((BM, BN), dtype=tl.int32)
    for _ in range(0, k, BK):
        total = tl.dot(tl.load(q), tl.load(w), total, out_dtype=tl.int32)
        q += BK
        w += BK
    y = total.to(tl.float32)
    if ROWS:
        y = y * tl.load(S + row, mask=row < n, other=0.0)[:, None]
    y = y * tl.load(T + column, mask=column < m, other=0.0)[None, :]
    target = Y + row.to(tl.int64)[:, None] * m + column[None, :]
    tl.store(target, y.to(Y.dtype.element_ty), mask=(row < n)[:, None] & (column < m)[None, :])
