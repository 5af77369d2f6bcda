"""Triton kernels of the trainable look-up: codes, and gradients in one pass over the leaves and of the tables.

A tile is (rows, codebooks) with codebooks innermost, so that neighbouring threads read neighbouring words. The tree of
four levels is a tree of two levels whose leaves are trees of two levels: three nodes at a time fit in registers.
"""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _threshold(
    V: tl.tensor, node: tl.constexpr, books: tl.tensor, inside: tl.tensor, codebooks: tl.tensor
) -> tl.tensor:
    return tl.load(V + node * codebooks + books, mask=inside, other=0.0)[None, :]


@triton.jit
def codes_kernel(
    X: tl.tensor,
    V: tl.tensor,
    OUT: tl.tensor,
    n: tl.tensor,
    codebooks: tl.tensor,
    BR: tl.constexpr,
    BC: tl.constexpr,
) -> None:
    """OUT [R, C] uint8, i <- 2 i + [x >= v_i] four times; X [R, C, 4]; V [15, C] in heap order; NaN compares false."""
    rows = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    books = tl.program_id(1) * BC + tl.arange(0, BC)
    both = (rows < n)[:, None] & (books < codebooks)[None, :]
    place = rows[:, None] * codebooks + books[None, :]
    node = tl.zeros((BR, BC), tl.int32)
    for level in tl.static_range(4):
        x = tl.load(X + place * 4 + level, mask=both, other=0.0)
        v = tl.load(V + node * codebooks + books[None, :], mask=both, other=0.0)
        node = 2 * node + 1 + (x >= v).to(tl.int32)
    tl.store(OUT + place, (node - 15).to(tl.uint8), mask=both)


@triton.jit
def _right(x: tl.tensor, v: tl.tensor, w: tl.tensor) -> tl.tensor:
    """Probability of going right."""
    return 1.0 / (1.0 + tl.exp((v - x) / w))


@triton.jit
def _up(
    e0: tl.tensor, e1: tl.tensor, e2: tl.tensor, e3: tl.tensor, s0: tl.tensor, s1: tl.tensor, s2: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Expectation over four leaves, and E(right) - E(left) at the root and its children."""
    d1, d2 = e1 - e0, e3 - e2
    left, right = e0 + s1 * d1, e2 + s2 * d2
    d0 = right - left
    return left + s0 * d0, d0, d1, d2


@triton.jit
def _subtree(
    E: tl.tensor,
    V: tl.tensor,
    x2: tl.tensor,
    x3: tl.tensor,
    w2: tl.tensor,
    w3: tl.tensor,
    quarter: tl.constexpr,
    books: tl.tensor,
    inside: tl.tensor,
    both: tl.tensor,
    codebooks: tl.tensor,
) -> tuple[tl.tensor, ...]:
    """The two lower levels of a quarter: expectation, differences and probabilities of its three nodes."""
    first = E + 4 * quarter * codebooks
    e0 = tl.load(first, mask=both, other=0.0)
    e1 = tl.load(first + codebooks, mask=both, other=0.0)
    e2 = tl.load(first + 2 * codebooks, mask=both, other=0.0)
    e3 = tl.load(first + 3 * codebooks, mask=both, other=0.0)
    s0 = _right(x2, _threshold(V, 3 + quarter, books, inside, codebooks), w2)
    s1 = _right(x3, _threshold(V, 7 + 2 * quarter, books, inside, codebooks), w3)
    s2 = _right(x3, _threshold(V, 8 + 2 * quarter, books, inside, codebooks), w3)
    e, d0, d1, d2 = _up(e0, e1, e2, e3, s0, s1, s2)
    return e, d0, d1, d2, s0, s1, s2


@triton.jit
def _down(
    reached: tl.tensor, d0: tl.tensor, d1: tl.tensor, d2: tl.tensor, s0: tl.tensor, s1: tl.tensor, s2: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Derivatives in the three nodes' arguments, before the widths, and the probabilities of reaching the children."""
    right = reached * s0
    left = reached - right
    z0 = d0 * left * s0
    z1 = d1 * (left - left * s1) * s1
    z2 = d2 * (right - right * s2) * s2
    return z0, z1, z2, left, right


@triton.jit
def gradient_kernel(
    X: tl.tensor,
    V: tl.tensor,
    W: tl.tensor,
    E: tl.tensor,
    DX: tl.tensor,
    DV: tl.tensor,
    n: tl.tensor,
    codebooks: tl.tensor,
    BR: tl.constexpr,
    BC: tl.constexpr,
) -> None:
    """Gradients of sum(e * p) in x and in the thresholds.

    X, DX [R, C, 4]; V [15, C] in heap order; W [4, C]; E [R, 16, C]; DV [programs, 15, C], sums over the rows of each
    program of the grid's first axis.
    """
    books = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = books < codebooks
    w0 = tl.load(W + books, mask=inside, other=1.0)[None, :]
    w1 = tl.load(W + codebooks + books, mask=inside, other=1.0)[None, :]
    w2 = tl.load(W + 2 * codebooks + books, mask=inside, other=1.0)[None, :]
    w3 = tl.load(W + 3 * codebooks + books, mask=inside, other=1.0)[None, :]
    v0 = _threshold(V, 0, books, inside, codebooks)
    v1 = _threshold(V, 1, books, inside, codebooks)
    v2 = _threshold(V, 2, books, inside, codebooks)
    zero = tl.zeros((BR, BC), tl.float32)
    a0, a1, a2, a3, a4 = zero, zero, zero, zero, zero
    a5, a6, a7, a8, a9 = zero, zero, zero, zero, zero
    a10, a11, a12, a13, a14 = zero, zero, zero, zero, zero
    for start in range(tl.program_id(0) * BR, n, tl.num_programs(0) * BR):
        rows = start + tl.arange(0, BR).to(tl.int64)
        both = (rows < n)[:, None] & inside[None, :]
        place = (rows[:, None] * codebooks + books[None, :]) * 4
        x0 = tl.load(X + place, mask=both, other=0.0)
        x1 = tl.load(X + place + 1, mask=both, other=0.0)
        x2 = tl.load(X + place + 2, mask=both, other=0.0)
        x3 = tl.load(X + place + 3, mask=both, other=0.0)
        leaf = E + rows[:, None] * 16 * codebooks + books[None, :]
        ea, da0, da1, da2, sa0, sa1, sa2 = _subtree(leaf, V, x2, x3, w2, w3, 0, books, inside, both, codebooks)
        eb, db0, db1, db2, sb0, sb1, sb2 = _subtree(leaf, V, x2, x3, w2, w3, 1, books, inside, both, codebooks)
        ec, dc0, dc1, dc2, sc0, sc1, sc2 = _subtree(leaf, V, x2, x3, w2, w3, 2, books, inside, both, codebooks)
        ed, dd0, dd1, dd2, sd0, sd1, sd2 = _subtree(leaf, V, x2, x3, w2, w3, 3, books, inside, both, codebooks)
        s0, s1, s2 = _right(x0, v0, w0), _right(x1, v1, w1), _right(x1, v2, w1)
        _, d0, d1, d2 = _up(ea, eb, ec, ed, s0, s1, s2)
        z0, z1, z2, left, right = _down(zero + 1.0, d0, d1, d2, s0, s1, s2)
        into_b, into_d = left * s1, right * s2
        za0, za1, za2, _, _ = _down(left - into_b, da0, da1, da2, sa0, sa1, sa2)
        zb0, zb1, zb2, _, _ = _down(into_b, db0, db1, db2, sb0, sb1, sb2)
        zc0, zc1, zc2, _, _ = _down(right - into_d, dc0, dc1, dc2, sc0, sc1, sc2)
        zd0, zd1, zd2, _, _ = _down(into_d, dd0, dd1, dd2, sd0, sd1, sd2)
        tl.store(DX + place, z0 / w0, mask=both)
        tl.store(DX + place + 1, (z1 + z2) / w1, mask=both)
        tl.store(DX + place + 2, (za0 + zb0 + zc0 + zd0) / w2, mask=both)
        tl.store(DX + place + 3, (za1 + za2 + zb1 + zb2 + zc1 + zc2 + zd1 + zd2) / w3, mask=both)
        # Rows beyond the last have e = 0, so they add nothing.
        a0, a1, a2 = a0 + z0, a1 + z1, a2 + z2
        a3, a4, a5, a6 = a3 + za0, a4 + zb0, a5 + zc0, a6 + zd0
        a7, a8, a9, a10 = a7 + za1, a8 + za2, a9 + zb1, a10 + zb2
        a11, a12, a13, a14 = a11 + zc1, a12 + zc2, a13 + zd1, a14 + zd2
    out = DV + tl.program_id(0) * 15 * codebooks + books
    _sum(out, a0, w0, inside)
    _sum(out + codebooks, a1, w1, inside)
    _sum(out + 2 * codebooks, a2, w1, inside)
    _sum(out + 3 * codebooks, a3, w2, inside)
    _sum(out + 4 * codebooks, a4, w2, inside)
    _sum(out + 5 * codebooks, a5, w2, inside)
    _sum(out + 6 * codebooks, a6, w2, inside)
    _sum(out + 7 * codebooks, a7, w3, inside)
    _sum(out + 8 * codebooks, a8, w3, inside)
    _sum(out + 9 * codebooks, a9, w3, inside)
    _sum(out + 10 * codebooks, a10, w3, inside)
    _sum(out + 11 * codebooks, a11, w3, inside)
    _sum(out + 12 * codebooks, a12, w3, inside)
    _sum(out + 13 * codebooks, a13, w3, inside)
    _sum(out + 14 * codebooks, a14, w3, inside)


@triton.jit
def _sum(OUT: tl.tensor, values: tl.tensor, width: tl.tensor, inside: tl.tensor) -> None:
    tl.store(OUT, -tl.sum(values / width, 0), mask=inside)


@triton.jit
def _codes(CODES: tl.tensor, rows: tl.tensor, books: tl.tensor, n: tl.tensor, codebooks: tl.tensor) -> tl.tensor:
    """[BC, BR] int32 codes; 16, which is none, beyond the last row or codebook."""
    both = (books < codebooks)[:, None] & (rows < n)[None, :]
    return tl.load(CODES + rows[None, :] * codebooks + books[:, None], mask=both, other=16).to(tl.int32)


@triton.jit
def table_kernel(
    CODES: tl.tensor,
    DY: tl.tensor,
    OUT: tl.tensor,
    n: tl.tensor,
    codebooks: tl.tensor,
    m: tl.tensor,
    share: tl.tensor,
    PRECISION: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    BN: tl.constexpr,
) -> None:
    """OUT [programs, C, 16, M], sums of DY [R, M] by code over ``share`` rows a program; CODES [R, C] uint8.

    A product with one-hot rows that exist in registers only.
    """
    books = tl.program_id(0) * BC + tl.arange(0, BC)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    begin = tl.program_id(2).to(tl.int64) * share
    leaves = tl.arange(0, 16)
    total = tl.zeros((16 * BC, BN), tl.float32)
    code = _codes(CODES, begin + tl.arange(0, BR), books, n, codebooks)
    for start in range(begin, tl.minimum(begin + share, n), BR):
        rows = start + tl.arange(0, BR)
        inside = rows < n
        # A step ahead: bytes are too narrow for asynchronous copies, so nothing else hides their latency.
        ahead = _codes(CODES, rows + BR, books, n, codebooks)
        hot = tl.reshape((code[:, None, :] == leaves[None, :, None]).to(tl.float32), (16 * BC, BR))
        dy = tl.load(DY + rows[:, None] * m + cols[None, :], mask=inside[:, None] & (cols < m)[None, :], other=0.0)
        total = tl.dot(hot, dy, total, input_precision=PRECISION)
        code = ahead
    entries = tl.program_id(0) * 16 * BC + tl.arange(0, 16 * BC)
    out = OUT + tl.program_id(2).to(tl.int64) * 16 * codebooks * m + entries[:, None] * m + cols[None, :]
    tl.store(out, total, mask=(entries < 16 * codebooks)[:, None] & (cols < m)[None, :])
