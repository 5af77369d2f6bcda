"""Triton kernels that gather some columns of a convolution's windows, and bring their gradients back to the image.

Columns or channels are innermost in a tile, so that neighbouring threads read neighbouring words of images stored
channels last. The way back reads every gradient once, in a fixed order: its sums are the same in every run.
"""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gather_kernel(
    X: tl.tensor,
    COLUMNS: tl.tensor,
    OUT: tl.tensor,
    rows: tl.tensor,
    used: tl.tensor,
    high: tl.tensor,
    wide: tl.tensor,
    out_wide: tl.tensor,
    area: tl.tensor,
    x_image: tl.tensor,
    x_channel: tl.tensor,
    x_row: tl.tensor,
    x_column: tl.tensor,
    KW: tl.constexpr,
    TAPS: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    BR: tl.constexpr,
    BU: tl.constexpr,
) -> None:
    """OUT [R, U]: column COLUMNS[u] of window r; a column is (channel, row, column of the window); area is H' W'."""
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    u = tl.program_id(1) * BU + tl.arange(0, BU)
    column = tl.load(COLUMNS + u, mask=u < used, other=0)
    tap = column % TAPS
    inside = row % area
    i = (inside // out_wide * SH - PH)[:, None] + (tap // KW * DH)[None, :]
    j = (inside % out_wide * SW - PW)[:, None] + (tap % KW * DW)[None, :]
    both = (row < rows)[:, None] & (u < used)[None, :]
    real = both & (i >= 0) & (i < high) & (j >= 0) & (j < wide)
    at = (row // area * x_image)[:, None] + (column // TAPS * x_channel)[None, :] + i * x_row + j * x_column
    value = tl.load(X + at, mask=real, other=0.0)
    tl.store(OUT + row[:, None] * used + u[None, :], value, mask=both)


@triton.jit
def scatter_kernel(
    G: tl.tensor,
    BY_CHANNEL: tl.tensor,
    FIRST: tl.tensor,
    DX: tl.tensor,
    pixels: tl.tensor,
    channels: tl.tensor,
    used: tl.tensor,
    high: tl.tensor,
    wide: tl.tensor,
    out_high: tl.tensor,
    out_wide: tl.tensor,
    x_image: tl.tensor,
    x_channel: tl.tensor,
    x_row: tl.tensor,
    x_column: tl.tensor,
    KW: tl.constexpr,
    TAPS: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
) -> None:
    """DX at (image, i, j), a pixel, and channel: the sum of G [R, U] over the windows that read it.

    BY_CHANNEL [U] lists the used columns as u TAPS + tap, those of channel k at FIRST[k] to FIRST[k + 1].
    """
    pixel = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    known = channel < channels
    first = tl.load(FIRST + channel, mask=known, other=0).to(tl.int32)
    after = tl.load(FIRST + channel + 1, mask=known, other=0).to(tl.int32)
    image = pixel // (high * wide)
    i = pixel % (high * wide) // wide
    j = pixel % wide
    total = tl.zeros((BR, BC), tl.float32)
    for n in range(tl.max(after - first, 0)):
        place = first + n
        more = place < after
        # Never masked: Triton 3.6 fails to compile a masked load of one axis here.
        packed = tl.load(BY_CHANNEL + tl.minimum(place, used - 1))
        tap = packed % TAPS
        up = (i + PH)[:, None] - (tap // KW * DH)[None, :]
        left = (j + PW)[:, None] - (tap % KW * DW)[None, :]
        real = (pixel < pixels)[:, None] & more[None, :] & (up >= 0) & (left >= 0)
        real = real & (up % SH == 0) & (left % SW == 0) & (up // SH < out_high) & (left // SW < out_wide)
        row = (image[:, None] * out_high + up // SH) * out_wide + left // SW
        total += tl.load(G + row * used + (packed // TAPS)[None, :], mask=real, other=0.0).to(tl.float32)
    at = (image * x_image + i * x_row + j * x_column)[:, None] + (channel * x_channel)[None, :]
    tl.store(DX + at, total.to(DX.dtype.element_ty), mask=(pixel < pixels)[:, None] & known[None, :])
