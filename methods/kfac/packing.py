"""Symmetric matrices by panels of their lower triangle in one flat tensor: 9 / 16 of the memory.

Panel i of eight holds the rows of its block up to and with the block on the diagonal, so every panel is a plain matrix
for copies and products, which a triangle packed number by number would not be.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

PANELS = 8
#: Narrower matrices are not worth it: all of VGG16's below it together have 1 % of its factors' memory.
PACKED_FROM = 512


def bounds(size: int) -> Iterator[tuple[int, int]]:
    """First and last row of each panel."""
    height = -(-size // PANELS)
    for start in range(0, size, height):
        yield start, min(start + height, size)


def pack(full: Tensor) -> Tensor:
    """(k, d, d) -> flat."""
    k = len(full)
    flat = full.new_empty(length(k, full.shape[1]))
    for panel, (start, end) in zip(_panels(flat, k, full.shape[1]), bounds(full.shape[1]), strict=True):
        panel.copy_(full[:, start:end, :end])
    return flat


def unpack(flat: Tensor, k: int, size: int) -> Tensor:
    """Flat -> (k, d, d); exactly symmetric outside the diagonal blocks."""
    full = flat.new_empty(k, size, size)
    for panel, (start, end) in zip(_panels(flat, k, size), bounds(size), strict=True):
        full[:, start:end, :end] = panel
        full[:, :start, start:end] = panel[:, :, :start].mT
    return full


def _panels(flat: Tensor, k: int, size: int) -> Iterator[Tensor]:
    begin = 0
    for start, end in bounds(size):
        count = k * (end - start) * end
        yield flat[begin : begin + count].view(k, end - start, end)
        begin += count


def trace(tensor: Tensor, k: int, size: int) -> Tensor:
    """Sum of all diagonals of a stack, packed or not, 0-d."""
    if tensor.ndim == 3:
        return tensor.diagonal(dim1=1, dim2=2).sum()
    return tensor[_diagonal(k, size, tensor.device)].sum()


@lru_cache(maxsize=64)
def _diagonal(k: int, size: int, device: torch.device) -> Tensor:
    places, begin = [], 0
    for start, end in bounds(size):
        for matrix in range(k):
            first = begin + matrix * (end - start) * end
            places += [first + row * end + start + row for row in range(end - start)]
        begin += k * (end - start) * end
    return torch.tensor(places, device=device)


def add_to_diagonal(flat: Tensor, k: int, size: int, value: float) -> Tensor:
    """Flat + value I, in place."""
    flat[_diagonal(k, size, flat.device)] += value
    return flat


def length(k: int, size: int) -> int:
    """Numbers in the flat tensor."""
    return k * sum((end - start) * end for start, end in bounds(size))
