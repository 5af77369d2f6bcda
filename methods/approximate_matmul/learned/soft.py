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

from methods.approximate_matmul.learned import tree_kernels
from methods.approximate_matmul.tree import DEPTH, LEAVES

#: Elements of the leaf probabilities that the backward pass keeps at a time (256 MiB in float32).
_CHUNK = 2**26
#: The same on a CPU, where larger chunks leave its caches.
_CPU_CHUNK = 2**20


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
    if tree_kernels.usable(x):
        return tree_kernels.codes(x, thresholds)
    # In heap order a node's children are 2 i + 1 and 2 i + 2.
    nodes, flat = thresholds.shape[1], thresholds.reshape(-1)
    first = nodes * torch.arange(len(thresholds), dtype=torch.int32, device=x.device)
    codes = torch.empty(x.shape[:-1], dtype=torch.uint8, device=x.device)
    for rows in _blocks(x):
        part = x[rows]
        node = torch.zeros(part.shape[:-1], dtype=torch.int32, device=x.device)
        for level in range(DEPTH):
            own = flat.index_select(0, (node + first).view(-1)).view_as(part[..., level])
            node = 2 * node + 1 + (part[..., level] >= own)
        codes[rows] = (node - nodes).to(torch.uint8)
    return codes


def _blocks(x: Tensor) -> list[slice]:
    """Rows of x (R, C, 4) to work on together."""
    step = max((_CPU_CHUNK if x.device.type == "cpu" else _CHUNK) // (LEAVES * x.shape[1]), 1)
    return [slice(first, first + step) for first in range(0, len(x), step)]


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
        if tree_kernels.usable(x):
            return tree_kernels.sums(codes, q, scale, offset)
        return look_up(codes, q) * scale + offset

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, thresholds, widths, tables, codes = ctx.saved_tensors
        wants_x, wants_v, _, wants_t, _ = ctx.needs_input_grad
        used = tables
        if ctx.bits is not None:
            q, scale, _, low = quantise(tables, ctx.bits)
            used = q * scale + low
        by_leaf = used.transpose(0, 1).flatten(0, 1).T
        into_x = torch.empty_like(x) if wants_x else None
        into_v = torch.zeros_like(thresholds) if wants_v else None
        into_t = torch.zeros_like(tables) if wants_t else None
        kernels = tree_kernels.usable(x)
        through = tree_kernels.gradients if kernels else _through_tree
        with torch.autocast(x.device.type, enabled=False):
            whole = grads[0].to(tables.dtype)
            if wants_t and kernels:
                into_t = tree_kernels.table_gradient(codes, whole)
            for rows in _blocks(x):
                dy = whole[rows]
                if into_t is not None and not kernels:
                    into_t += _into_tables(codes[rows], dy)
                if wants_x or wants_v:
                    dp = (dy @ by_leaf).view(-1, LEAVES, x.shape[1])
                    dx, dv = through(x[rows], thresholds, widths, dp)
                    if into_x is not None:
                        into_x[rows] = dx
                    if into_v is not None:
                        into_v += dv
        return into_x, into_v, None, into_t, None


def _into_tables(codes: Tensor, dy: Tensor) -> Tensor:
    """(C, 16, M) sums of dy (R, M) by code (R, C)."""
    onehot = dy.new_zeros((*codes.shape, LEAVES))
    onehot.scatter_(2, codes.long()[..., None], 1)
    return (onehot.flatten(1).T @ dy).view(codes.shape[1], LEAVES, -1)


def _through_tree(x: Tensor, thresholds: Tensor, widths: Tensor, dp: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of sum(dp * p) in x (R, C, 4) and in the thresholds; dp is (R, 16, C), so that codebooks lie together.

    The sum is the tree's expectation of dp. With E(node) = E(left) + s (E(right) - E(left)), s the probability of going
    right, its derivative in s is the probability of reaching the node times E(right) - E(left).
    """
    by_level, nodes, widths = x.transpose(1, 2).contiguous(), thresholds.T.contiguous(), widths.T.contiguous()
    rights, differences, expected = [], [], dp
    for level in reversed(range(DEPTH)):
        own = nodes[2**level - 1 : 2 ** (level + 1) - 1]
        rights.append(((by_level[:, level : level + 1] - own) / widths[level]).sigmoid_())
        differences.append(expected[:, 1::2] - expected[:, ::2])
        expected = torch.addcmul(expected[:, ::2], rights[-1], differences[-1])
    reached, into_x, into_v = torch.ones_like(expected), [], []
    for level, (right, difference) in enumerate(zip(reversed(rights), reversed(differences), strict=True)):
        going_right = reached * right
        going_left = reached - going_right
        dz = difference.mul_(going_left).mul_(right).div_(widths[level])
        into_x.append(dz.sum(1))
        into_v.append(-dz.sum(0))
        if level < DEPTH - 1:
            reached = torch.stack((going_left, going_right), dim=2).flatten(1, 2)
    return torch.stack(into_x, dim=-1), torch.cat(into_v).T
