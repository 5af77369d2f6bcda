"""The look-up as a differentiable function: hard codes and integer tables forward, a soft tree backward.

    forward:   y = (sum_c q[c, code_c]) scale + offset          (exactly what the exported operator computes)
    backward:  dy/dx, dy/dv of  sum_c sum_k p[c, k] T[c, k],    p = products of sigmoids along the path to leaf k
               dy/dT of         sum_c T[c, code_c]

Sources: soft decision trees, Frosst and Hinton, arXiv 1711.09784; straight-through gradients, Bengio, Leonard and
Courville, arXiv 1308.3432; MADDNESS made trainable in this way, Schoenleber et al. (Stella Nera), arXiv 2311.10207.
Departures from the last: the probability of a leaf is the product of its path's sigmoids instead of a softmax over
signed path sums, so it needs no normalisation; the temperature is given instead of learned, since the forward value
does not depend on it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from methods.approximate_matmul.tree import DEPTH, LEAVES

#: Elements of the leaf probabilities that the backward pass keeps at a time (128 MiB in float32).
_CHUNK = 2**25


def leaf_probabilities(x: Tensor, thresholds: Tensor, widths: Tensor) -> Tensor:
    """Probability of every leaf: p_right = sigmoid((x_t - v_node) / w_t) at each node, multiplied along the path.

    Args:
        x: (R, C, 4) values of the split columns.
        thresholds: (C, 15) in heap order; +inf never goes right.
        widths: (C, 4) positive; the limit to 0 is the hard tree.

    Returns:
        (R, C, 16), sums of 1 over the leaves.
    """
    leaves = torch.ones_like(x[..., :1])
    for level in range(DEPTH):
        nodes = thresholds[:, 2**level - 1 : 2 ** (level + 1) - 1]
        right = torch.sigmoid((x[..., level : level + 1] - nodes) / widths[:, level : level + 1])
        leaves = torch.stack((leaves * (1 - right), leaves * right), dim=-1).flatten(-2)
    return leaves


def hard_codes(x: Tensor, thresholds: Tensor) -> Tensor:
    """(R, C) uint8 leaves by the walk i <- 2 i + [x_t >= v_node]; x (R, C, 4), thresholds (C, 15)."""
    node = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
    for level in range(DEPTH):
        right = x[..., level : level + 1] >= thresholds[:, 2**level - 1 : 2 ** (level + 1) - 1]
        node = 2 * node + right.gather(-1, node[..., None]).squeeze(-1)
    return node.to(torch.uint8)


def quantise(tables: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Integers of ``bits`` bits with one scale per output: q = floor((T - low_c) / scale + 1/2).

    Args:
        tables: (C, 16, M).
        bits: 1 to 8.

    Returns:
        q (C, 16, M) in the tables' dtype, scale (M,), offset (M,) = sum of low_c, low (C, 1, M).
    """
    top = 2**bits - 1
    low = tables.amin(1, keepdim=True)
    gap = (tables.amax(1, keepdim=True) - low).amax((0, 1))
    scale = torch.where(gap > 0, gap, torch.ones_like(gap)) / top
    q = torch.floor((tables - low) / scale + 0.5).clamp(0, top)
    return q, scale, low.sum((0, 1)), low


def look_up(codes: Tensor, values: Tensor) -> Tensor:
    """(R, M) sums of values[c, codes[r, c]]; sums of integers below 2^24 are exact in float32."""
    codebooks, entries, outputs = values.shape
    rows = codes.to(torch.int32) + entries * torch.arange(codebooks, dtype=torch.int32, device=codes.device)
    return functional.embedding_bag(rows, values.reshape(-1, outputs), mode="sum")


def lookup_product(x: Tensor, thresholds: Tensor, widths: Tensor, tables: Tensor, bits: int | None) -> Tensor:
    """The hard product with the surrogate's gradients.

    Args:
        x: (R, C, 4) values of the split columns.
        thresholds: (C, 15).
        widths: (C, 4) of the surrogate's sigmoids.
        tables: (C, 16, M).
        bits: of the integer tables (their gradient passes straight through), or None for tables as they are.

    Returns:
        (R, M).
    """
    result: Tensor = _LookupProduct.apply(x, thresholds, widths, tables, bits)  # type: ignore[no-untyped-call]
    return result


def soft_product(x: Tensor, thresholds: Tensor, widths: Tensor, tables: Tensor) -> Tensor:
    """The surrogate itself, (R, M): what the gradients of :func:`lookup_product` belong to."""
    return leaf_probabilities(x, thresholds, widths).flatten(1) @ tables.flatten(0, 1)


class _LookupProduct(torch.autograd.Function):
    """Keeps inputs and codes only; leaf probabilities are computed again, in chunks, when gradients are needed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, thresholds: Tensor, widths: Tensor, tables: Tensor, bits: int | None) -> Tensor:
        codes = hard_codes(x, thresholds)
        ctx.save_for_backward(x, thresholds, widths, tables, codes)
        ctx.bits = bits
        if bits is None:
            return look_up(codes, tables)
        q, scale, offset, _ = quantise(tables, bits)
        return look_up(codes, q) * scale + offset

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, thresholds, widths, tables, codes = ctx.saved_tensors
        wants_x, wants_v, _, wants_t, _ = ctx.needs_input_grad
        used = tables
        if ctx.bits is not None:
            q, scale, _, low = quantise(tables, ctx.bits)
            used = q * scale + low
        into_x = torch.empty_like(x) if wants_x else None
        into_v = torch.zeros_like(thresholds) if wants_v else None
        into_t = torch.zeros_like(tables.flatten(0, 1)) if wants_t else None
        step = max(_CHUNK // (LEAVES * x.shape[1]), 1)
        with torch.autocast(x.device.type, enabled=False):
            for first in range(0, len(x), step):
                rows = slice(first, first + step)
                dy = grads[0][rows].to(tables.dtype)
                if into_t is not None:
                    onehot = functional.one_hot(codes[rows].long(), LEAVES).flatten(1).to(dy.dtype)
                    into_t += onehot.T @ dy
                if wants_x or wants_v:
                    dp = (dy @ used.flatten(0, 1).T).view(-1, x.shape[1], LEAVES)
                    dx, dv = _through_tree(x[rows], thresholds, widths, dp)
                    if into_x is not None:
                        into_x[rows] = dx
                    if into_v is not None:
                        into_v += dv
        return into_x, into_v, None, None if into_t is None else into_t.view_as(tables), None


def _through_tree(x: Tensor, thresholds: Tensor, widths: Tensor, dp: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of sum(dp * p) in x and in the thresholds."""
    with torch.enable_grad():
        x, thresholds = x.detach().requires_grad_(), thresholds.detach().requires_grad_()
        p = leaf_probabilities(x, thresholds, widths)
        dx, dv = torch.autograd.grad(p, (x, thresholds), dp)
    return dx, dv
