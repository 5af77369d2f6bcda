"""Typed doors to tensor methods that torch leaves untyped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def split(tensor: Tensor, sizes: Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """``tensor.split``."""
    return torch.split(tensor, list(sizes), dim)  # type: ignore[no-any-return, no-untyped-call]


def unflatten(tensor: Tensor, dim: int, shape: Sequence[int]) -> Tensor:
    """``tensor.unflatten``."""
    return tensor.unflatten(dim, tuple(shape))  # type: ignore[no-any-return, no-untyped-call]


def unpadded(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The first entries along every dimension."""
    for dim, size in enumerate(shape):
        if tensor.shape[dim] != size:
            tensor = tensor.narrow(dim, 0, size)
    return tensor
