"""Triton kernels of our own symmetric Newton-Schulz design; see :mod:`methods.orthogonalize.triton_fast`.

Against the published kernels: only the tiles that are needed are launched, in an order that keeps a group of rows in
the L2 cache; both operands are read along their contiguous dimension and transposed on chip, by tensor descriptors
(TMA) where the layout allows it; the AOL row sums leave with the Gram matrix; scales enter the epilogues.

Tiles: a supertile is a square of side max(BM, BN). The supertiles on and below the diagonal are numbered; each holds
``PARTS`` tiles. Below the diagonal a tile is stored twice, on it every tile is computed, so each entry of the output
is written exactly once.
"""

# mypy: disallow-untyped-decorators=False
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def triangle_root(t: tl.tensor) -> tl.tensor:
    """Largest r with r (r + 1) / 2 <= t; the float32 estimate is off by at most one for t < 2**22."""
    r = ((tl.sqrt(8.0 * t.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    r = tl.where(r * (r + 1) // 2 > t, r - 1, r)
    return tl.where((r + 1) * (r + 2) // 2 <= t, r + 1, r)


@triton.jit
def triangle_tile(t: tl.tensor, size: tl.tensor, GROUP: tl.constexpr) -> tl.tensor:
    """Row and column of the t-th tile on or below the diagonal of a size x size grid, in groups of GROUP rows.

    Inside a group the full columns come first, column by column, then the small triangle at the diagonal.
    """
    first = triangle_root(t) // GROUP * GROUP
    local = t - first * (first + 1) // 2
    height = tl.minimum(GROUP, size - first)
    full = (first + 1) * height
    rest = tl.maximum(local - full, 0)
    small = triangle_root(rest)
    row = tl.where(local < full, first + local % height, first + 1 + small)
    col = tl.where(local < full, local // height, first + 1 + rest - small * (small + 1) // 2)
    return row, col


@triton.jit
def load_rows(
    X: tl.tensor,
    batch: tl.tensor,
    first: tl.tensor,
    start: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    x_batch: tl.tensor,
    x_row: tl.tensor,
    x_col: tl.tensor,
    TMA: tl.constexpr,
    ROWS_CONTIGUOUS: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
) -> tl.tensor:
    """Tile [BM, BK] of X [batch, n, k] at row ``first`` and column ``start``; zero outside X.

    With TMA, X is a descriptor of blocks [1, BM, BK], or [1, BK, BM] of the transposed storage if ROWS_CONTIGUOUS.
    """
    if TMA:
        if ROWS_CONTIGUOUS:
            tile = tl.trans(tl.reshape(X.load([batch, start, first]), (BK, BM)))
        else:
            tile = tl.reshape(X.load([batch, first, start]), (BM, BK))
    else:
        rows = tl.arange(0, BM)[:, None]
        ks = tl.arange(0, BK)[None, :]
        here = X + (rows.to(tl.int64) * x_row + ks.to(tl.int64) * x_col)  # leaves the loop; only scalars change
        here += tl.cast(batch, tl.int64) * x_batch + tl.cast(first, tl.int64) * x_row + tl.cast(start, tl.int64) * x_col
        tile = tl.load(here, mask=(rows < n - first) & (ks < k - start), other=0.0)
    return tile


@triton.jit(do_not_specialize=["size"])
def symmetric_fast_kernel(
    XM: tl.tensor,
    XN: tl.tensor,
    A: tl.tensor,
    C: tl.tensor,
    P: tl.tensor,
    S: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    size: tl.tensor,
    x_batch: tl.tensor,
    x_row: tl.tensor,
    x_col: tl.tensor,
    alpha: tl.tensor,
    beta: tl.tensor,
    TMA: tl.constexpr,
    ROWS_CONTIGUOUS: tl.constexpr,
    ADDEND: tl.constexpr,
    SUMS: tl.constexpr,
    SCALE_COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    """``C = X Xᵀ``, or with ADDEND ``C = (alpha X Xᵀ + beta A)`` (X = A symmetric), with SCALE_COLUMNS times diag(S).

    X [batch, n, k] by any strides (XM and XN: the same pointer, or descriptors for BM and BN rows), A and C contiguous
    [batch, n, n], S float32 [batch, n]. ``size`` is the number of supertiles a side.
    With SUMS, P float32 [batch, size * PARTS, n] receives the sums of |C| over each tile's width: of a tile's rows in
    the slot of its column, and of its mirror's rows in the slot of its row; :func:`aol_reduce_kernel` knows which
    slots are written.
    """
    SIDE: tl.constexpr = BM if BM > BN else BN
    PARTS_M: tl.constexpr = SIDE // BM
    PARTS_N: tl.constexpr = SIDE // BN
    PARTS: tl.constexpr = PARTS_M * PARTS_N
    tiles = size * (size + 1) // 2 * PARTS
    pid = tl.program_id(0)
    batch = pid // tiles
    tile = pid % tiles
    super_row, super_col = triangle_tile(tile // PARTS, size, GROUP)
    part = tile % PARTS
    tile_m = super_row * PARTS_M + part // PARTS_N
    tile_n = super_col * PARTS_N + part % PARTS_N
    row0 = tile_m * BM
    col0 = tile_n * BN
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, k, BK):
        left = load_rows(XM, batch, row0, start, n, k, x_batch, x_row, x_col, TMA, ROWS_CONTIGUOUS, BM, BK)
        right = load_rows(XN, batch, col0, start, n, k, x_batch, x_row, x_col, TMA, ROWS_CONTIGUOUS, BN, BK)
        acc = tl.dot(left, tl.trans(right), acc, input_precision=PRECISION)
    rows = row0.to(tl.int64) + tl.arange(0, BM)
    cols = col0.to(tl.int64) + tl.arange(0, BN)
    inside = (rows[:, None] < n) & (cols[None, :] < n)
    wide = batch.to(tl.int64)
    direct = wide * n * n + rows[:, None] * n + cols[None, :]
    mirror = wide * n * n + cols[None, :] * n + rows[:, None]
    if ADDEND:
        acc = acc * alpha + beta * tl.load(A + direct, mask=inside, other=0.0).to(tl.float32)
    if SUMS:
        slots = wide * (size * PARTS)
        sums = tl.sum(tl.abs(acc), axis=1)
        tl.store(P + (slots + super_col * PARTS + part % PARTS_N) * n + rows, sums, mask=rows < n)
        if super_row != super_col:
            mirrored = tl.sum(tl.abs(acc), axis=0)
            tl.store(P + (slots + super_row * PARTS + part // PARTS_N) * n + cols, mirrored, mask=cols < n)
    if SCALE_COLUMNS:
        scale = tl.load(S + wide * n + cols, mask=cols < n, other=0.0)
        tl.store(C + direct, (acc * scale[None, :]).to(C.dtype.element_ty), mask=inside)
    else:
        tl.store(C + direct, acc.to(C.dtype.element_ty), mask=inside)
    if super_row != super_col:
        if SCALE_COLUMNS:
            acc = acc * tl.load(S + wide * n + rows, mask=rows < n, other=0.0)[:, None]
        tl.store(C + mirror, acc.to(C.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["slots"])
def aol_reduce_kernel(
    P: tl.tensor,
    S: tl.tensor,
    n: tl.tensor,
    slots: tl.tensor,
    floor: tl.tensor,
    SIDE: tl.constexpr,
    PARTS: tl.constexpr,
    WIDE: tl.constexpr,
    BM: tl.constexpr,
) -> None:
    """``S_i = max(sum of row i's written slots, floor)^(-1/2)``; P float32 [batch, slots, n], S float32 [batch, n].

    A row of supertile I gets, from supertile J <= I, the PARTS_N sums of its own tiles and, from J > I, the PARTS_M
    sums of mirrored tiles. WIDE says that tiles are wider than high: then the former is 1 and the latter PARTS.
    """
    blocks = tl.cdiv(n, BM)
    pid = tl.program_id(0)
    batch = (pid // blocks).to(tl.int64)
    i = (pid % blocks) * BM + tl.arange(0, BM)
    own = i // SIDE
    total = tl.zeros((BM,), dtype=tl.float32)
    for slot in range(slots):
        before = slot // PARTS <= own
        first = slot % PARTS == 0
        written = first | (before != WIDE)
        total += tl.load(P + (batch * slots + slot) * n + i, mask=(i < n) & written, other=0.0)
    tl.store(S + batch * n + i, 1.0 / tl.sqrt(tl.where(total < floor, floor, total)), mask=i < n)


@triton.jit
def apply_fast_kernel(
    BT: tl.tensor,
    XT: tl.tensor,
    B: tl.tensor,
    X: tl.tensor,
    Y: tl.tensor,
    S: tl.tensor,
    n: tl.tensor,
    m: tl.tensor,
    b_batch: tl.tensor,
    x_batch: tl.tensor,
    x_row: tl.tensor,
    x_col: tl.tensor,
    y_batch: tl.tensor,
    y_row: tl.tensor,
    y_col: tl.tensor,
    a: tl.tensor,
    TMA: tl.constexpr,
    ROWS_CONTIGUOUS: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    """``Y = a X + B X``, or with SCALE_ROWS ``Y = a diag(S) X + B X``; the addend joins in float32 after the loop.

    B contiguous [batch, n, n], X and Y [batch, n, m] by any strides, S float32 [batch, n]. With TMA, BT and XT are
    descriptors of B (blocks [1, BM, BK]) and X ([1, BK, BN], or [1, BN, BK] if ROWS_CONTIGUOUS).
    """
    tiles_m = tl.cdiv(n, BM)
    tiles_n = tl.cdiv(m, BN)
    pid = tl.program_id(0)
    batch = pid // (tiles_m * tiles_n)
    tile = pid % (tiles_m * tiles_n)
    first = tile // (GROUP * tiles_n) * GROUP
    height = tl.minimum(GROUP, tiles_m - first)
    local = tile % (GROUP * tiles_n)
    row0 = (first + local % height) * BM
    col0 = local // height * BN
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, n, BK):
        left = load_rows(BT, batch, row0, start, n, n, b_batch, n, 1, TMA, False, BM, BK)
        right = load_rows(XT, batch, start, col0, n, m, x_batch, x_row, x_col, TMA, ROWS_CONTIGUOUS, BK, BN)
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
    rows = row0.to(tl.int64) + tl.arange(0, BM)
    cols = col0.to(tl.int64) + tl.arange(0, BN)
    inside = (rows[:, None] < n) & (cols[None, :] < m)
    wide = batch.to(tl.int64)
    x = tl.load(X + wide * x_batch + rows[:, None] * x_row + cols[None, :] * x_col, mask=inside, other=0.0)
    x = x.to(tl.float32) * a
    if SCALE_ROWS:
        x = x * tl.load(S + wide * n + rows, mask=rows < n, other=0.0)[:, None]
    target = Y + wide * y_batch + rows[:, None] * y_row + cols[None, :] * y_col
    tl.store(target, (acc + x).to(Y.dtype.element_ty), mask=inside)
