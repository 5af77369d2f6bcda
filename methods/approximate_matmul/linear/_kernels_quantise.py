"""Triton kernels around a one-byte product on a GPU: quantisation of rows in one pass, scaling of the sums in one pass.

Both are bound by memory; eager PyTorch reads and writes the rows seven times for the same result. Own design.
"""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def quantise_kernel(
    A: tl.tensor,
    Q: tl.tensor,
    S: tl.tensor,
    inverse: tl.tensor,
    d: tl.tensor,
    width: tl.tensor,
    a_row: tl.tensor,
    a_col: tl.tensor,
    inverse_step: tl.tensor,
    TOP: tl.constexpr,
    FLOOR: tl.constexpr,
    STATIC: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One row of A [n, d] a program: q = A inv, in Q [., width], zero beyond d; the row's scale in S unless STATIC.

    inv = TOP (1 / max|row|), or the given inverse with STATIC. WHOLE rounds to integers (nearest even by adding
    1.5 * 2**23) for int8; otherwise the store rounds to Q's dtype. A NaN in the row makes its scale NaN.
    """
    row = tl.program_id(0).to(tl.int64)
    base = A + row * a_row
    cols = tl.arange(0, BLOCK)
    inv = 0.0
    if not STATIC:
        largest = tl.zeros([BLOCK], dtype=tl.float32)
        broken = tl.zeros([BLOCK], dtype=tl.int32)
        for start in range(0, d, BLOCK):
            x = tl.load(base + (start + cols).to(tl.int64) * a_col, mask=start + cols < d, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.abs(x))
            broken += (x != x).to(tl.int32)
        top = tl.maximum(tl.max(largest, axis=0), FLOOR)
        inv = tl.div_rn(1.0, top) * TOP
        scale = tl.div_rn(top, TOP)
        tl.store(S + row, tl.where(tl.sum(broken, axis=0) > 0, float("nan"), scale))
    for start in range(0, width, BLOCK):
        inside = start + cols < d
        x = tl.load(base + (start + cols).to(tl.int64) * a_col, mask=inside, other=0.0).to(tl.float32)
        x *= tl.load(inverse + (start + cols) * inverse_step, mask=inside, other=0.0) if STATIC else inv
        x = tl.minimum(tl.maximum(x, -TOP), TOP)
        if WHOLE:
            x = (x + 12582912.0) - 12582912.0
        tl.store(Q + row * width + start + cols, x.to(Q.dtype.element_ty), mask=start + cols < width)


@triton.jit
def scale_kernel(
    C: tl.tensor,
    S: tl.tensor,
    T: tl.tensor,
    Y: tl.tensor,
    size: tl.tensor,
    m: tl.tensor,
    c_row: tl.tensor,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Y [n, m] = C s t, entry by entry in float32; without ROWS there are no row scales s."""
    entries = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = entries < size
    row = entries // m
    column = entries % m
    y = tl.load(C + row * c_row + column, mask=inside, other=0).to(tl.float32)
    if ROWS:
        y = y * tl.load(S + row, mask=inside, other=0.0)
    y = y * tl.load(T + column, mask=inside, other=0.0)
    tl.store(Y + entries, y.to(Y.dtype.element_ty), mask=inside)
