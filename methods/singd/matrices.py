"""Gradients of a stack's members as one tensor of matrices, and such a tensor as parts of the parameters' shapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.kfac.layers import Layer
from methods.singd.stacks import Stack


def gradients(stack: Stack, active: Sequence[Layer], dtype: torch.dtype) -> Tensor:
    """Gradients of some members (B, d_out, d_in)."""
    batch, d_out, d_in = stack.shape
    groups, first = stack.layers[0].groups, active[0]
    if len(active) == 1 and first.bias is None and first.weight.grad is not None:
        return first.weight.grad.reshape(groups, d_out, d_in).to(dtype)
    whole = torch.empty(batch // len(stack.layers) * len(active), d_out, d_in, dtype=dtype, device=first.weight.device)
    for i, layer in enumerate(active):
        place = whole[i * groups : (i + 1) * groups]
        for parameter, part in zip(layer.parameters, split(place, layer), strict=True):
            if parameter.grad is None:
                part.zero_()
            else:
                part.copy_(parameter.grad.reshape(part.shape))
    return whole


def split(matrix: Tensor, layer: Layer) -> list[Tensor]:
    """Weight and bias parts of (groups, d_out, d_in), views."""
    return [matrix] if layer.bias is None else [matrix[:, :, :-1], matrix[:, :, -1]]


def views(matrix: Tensor, active: Sequence[Layer], groups: int) -> list[Tensor]:
    """The parts of (B, d_out, d_in) in the parameters' shapes, views where the strides allow."""
    found = []
    for i, layer in enumerate(active):
        parts = split(matrix[i * groups : (i + 1) * groups], layer)
        found += [part.reshape(p.shape) for p, part in zip(layer.parameters, parts, strict=True)]
    return found
