"""Small Triton kernels around the products: rescaling, and the reductions of AOL and Schatten-4.

Each is what a compiler would fuse from the element-wise form: one pass over its operand. Reductions run in float32 in a
fixed order, so that results repeat bit for bit. Comparisons are written so that NaN passes through.
"""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rescale_kernel(
    X: tl.tensor,
    Y: tl.tensor,
    S: tl.tensor,
    rows: tl.tensor,
    cols: tl.tensor,
    x_batch: tl.tensor,
    x_row: tl.tensor,
    x_col: tl.tensor,
    y_batch: tl.tensor,
    y_row: tl.tensor,
    y_col: tl.tensor,
    s_batch: tl.tensor,
    s_row: tl.tensor,
    floor: tl.tensor,
    MODE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
) -> None:
    """``Y_ij = f(X_ij)``; f multiplies by S_i ("rows"), by S_i S_j ("both") or divides by max(S_i, floor) ("divide").

    S is float32 [batch, rows]; a row stride of 0 makes it one scalar a matrix. X may be Y. Dividing by an infinite
    (overflowed) norm gives NaN, never a silent zero.
    """
    tiles_n = tl.cdiv(cols, BN)
    tiles = tl.cdiv(rows, BM) * tiles_n
    pid = tl.program_id(0)
    batch = (pid // tiles).to(tl.int64)
    tile = pid % tiles
    i = (tile // tiles_n).to(tl.int64) * BM + tl.arange(0, BM)
    j = (tile % tiles_n).to(tl.int64) * BN + tl.arange(0, BN)
    inside = (i[:, None] < rows) & (j[None, :] < cols)
    x = tl.load(X + batch * x_batch + i[:, None] * x_row + j[None, :] * x_col, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(S + batch * s_batch + i * s_row, mask=i < rows, other=0.0)
    if MODE == "divide":
        s = tl.where(s < floor, floor, s) + (s - s)
        s = 1.0 / s
    y = x * s[:, None]
    if MODE == "both":
        t = tl.load(S + batch * s_batch + j * s_row, mask=j < cols, other=0.0)
        y = y * t[None, :]
    target = Y + batch * y_batch + i[:, None] * y_row + j[None, :] * y_col
    tl.store(target, y.to(Y.dtype.element_ty), mask=inside)


@triton.jit
def aol_scale_kernel(
    A: tl.tensor, S: tl.tensor, n: tl.tensor, floor: tl.tensor, BM: tl.constexpr, BN: tl.constexpr
) -> None:
    """``S_i = max(sum_j |A_ij|, floor)^(-1/2)``: A contiguous [batch, n, n], S float32 [batch, n]."""
    blocks = tl.cdiv(n, BM)
    pid = tl.program_id(0)
    batch = (pid // blocks).to(tl.int64)
    i = (pid % blocks).to(tl.int64) * BM + tl.arange(0, BM)
    js = tl.arange(0, BN)
    row = A + (batch * n + i[:, None]) * n
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, n, BN):
        j = start + js
        total += tl.abs(tl.load(row + j[None, :], mask=(i[:, None] < n) & (j[None, :] < n), other=0.0).to(tl.float32))
    sums = tl.sum(total, axis=1)
    tl.store(S + batch * n + i, 1.0 / tl.sqrt(tl.where(sums < floor, floor, sums)), mask=i < n)


@triton.jit
def squares_kernel(A: tl.tensor, R: tl.tensor, T: tl.tensor, n: tl.tensor, BM: tl.constexpr, BN: tl.constexpr) -> None:
    """``T_i = max_j |A_ij|`` and ``R_i = sum_j (A_ij / T_i)²``: the row parts of a Frobenius norm that cannot overflow.

    A contiguous [batch, n, n]; R, T float32 [batch, n]. A zero row gives T = 1, R = 0.
    """
    blocks = tl.cdiv(n, BM)
    pid = tl.program_id(0)
    batch = (pid // blocks).to(tl.int64)
    i = (pid % blocks).to(tl.int64) * BM + tl.arange(0, BM)
    js = tl.arange(0, BN)
    row = A + (batch * n + i[:, None]) * n
    highest = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, n, BN):
        j = start + js
        a = tl.load(row + j[None, :], mask=(i[:, None] < n) & (j[None, :] < n), other=0.0).to(tl.float32)
        highest = tl.maximum(highest, tl.abs(a))
    top = tl.max(highest, axis=1)
    top = tl.where(top == 0.0, 1.0, top)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, n, BN):
        j = start + js
        a = tl.load(row + j[None, :], mask=(i[:, None] < n) & (j[None, :] < n), other=0.0).to(tl.float32) / top[:, None]
        total += a * a
    tl.store(R + batch * n + i, tl.sum(total, axis=1), mask=i < n)
    tl.store(T + batch * n + i, top, mask=i < n)


@triton.jit
def schatten4_scale_kernel(
    R: tl.tensor, T: tl.tensor, S: tl.tensor, n: tl.tensor, floor: tl.tensor, BN: tl.constexpr
) -> None:
    """``S = ||A||_F^(-1/2)`` from the row parts of :func:`squares_kernel`; one program a matrix, S float32 [batch].

    Rows with R = 0 do not count towards the maximum; an all-zero A gives S = floor^(-1/2).
    """
    batch = tl.program_id(0).to(tl.int64)
    js = tl.arange(0, BN)
    highest = tl.zeros((BN,), dtype=tl.float32)
    for start in range(0, n, BN):
        j = start + js
        r = tl.load(R + batch * n + j, mask=j < n, other=0.0)
        highest = tl.maximum(highest, tl.where(r == 0.0, 0.0, tl.load(T + batch * n + j, mask=j < n, other=0.0)))
    top = tl.max(highest, axis=0)
    top = tl.where(top < floor, floor, top)
    total = tl.zeros((BN,), dtype=tl.float32)
    for start in range(0, n, BN):
        j = start + js
        ratio = tl.load(T + batch * n + j, mask=j < n, other=0.0) / top
        r = tl.load(R + batch * n + j, mask=j < n, other=0.0)
        total += tl.where(r == 0.0, 0.0, r * ratio * ratio)
    norm = tl.sum(total, axis=0)
    norm = tl.where(norm == 0.0, 1.0, norm)
    tl.store(S + batch, 1.0 / (tl.sqrt(top) * tl.sqrt(tl.sqrt(norm))))
