"""Triton kernels of Muon's two elementwise passes over many weights at once: no gather, no separate cast.

The weights and gradients stay where they are; a kernel gets a table of their addresses and one program per block of one
weight. Sums are taken in float32 and rounded once.
"""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def advance(
    gradients: tl.tensor,
    momentum: tl.tensor,
    out: tl.tensor,
    size: tl.tensor,
    mu: tl.tensor,
    NESTEROV: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Set M <- g + mu (M - g), out <- g + mu (M - g) with Nesterov, M without; row i of both belongs to gradient i."""
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    base = tl.load(gradients + row).to(tl.pointer_type(momentum.dtype.element_ty))
    source = tl.multiple_of(base + at, 16)
    g = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    held = momentum + row * size + at
    m = tl.load(held, mask=inside, other=0.0).to(tl.float32)
    rounded = (g + mu * (m - g)).to(momentum.dtype.element_ty)
    tl.store(held, rounded, mask=inside)
    u = rounded.to(tl.float32)
    if NESTEROV:
        u = g + mu * (u - g)
    tl.store(out + row * size + at, u.to(out.dtype.element_ty), mask=inside)


@triton.jit
def apply(
    weights: tl.tensor,
    like: tl.tensor,
    update: tl.tensor,
    size: tl.tensor,
    keep: tl.tensor,
    rate: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Set w <- keep w - rate o, row i of o = ``update`` for weight i; ``like`` only tells the weights' dtype."""
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    base = tl.load(weights + row).to(tl.pointer_type(like.dtype.element_ty))
    target = tl.multiple_of(base + at, 16)
    w = tl.load(target, mask=inside, other=0.0).to(tl.float32)
    o = tl.load(update + row * size + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(target, (keep * w - rate * o).to(like.dtype.element_ty), mask=inside)
