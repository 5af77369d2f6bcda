"""Convolutions by look-ups without gathering windows: rows that overlap in memory (CPU).

An image with its channels innermost holds the window of output position p from a fixed offset on; the windows of
neighbouring positions start ``stride`` pixels later and overlap. So one matrix view of the padded images, (positions,
reach) with strides (stride * channels, 1), has every window as a row, and a split column (channel, row, column) is the
entry (row * width + column) * channels + channel of it. Padding is the only copy; positions whose windows cross an
image's edge are computed and dropped.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from methods.approximate_matmul.encoders import TreeEncoder
from methods.approximate_matmul.learned.geometry import Geometry
from methods.approximate_matmul.operator import LookupProduct
from methods.approximate_matmul.tree import Trees


class Overlapping:
    """The product of a convolution's windows, for images of any size.

    Args:
        op: over whole windows, D = channels x kernel.
        shape: the convolution's.
    """

    def __init__(self, op: LookupProduct, shape: Geometry) -> None:
        assert isinstance(op.encoder, TreeEncoder)
        self._op, self._trees, self._shape = op, op.encoder.trees, shape
        self._by_width: dict[tuple[int, int], LookupProduct] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, M, H', W') with M innermost in memory."""
        high, wide = self._shape.sides(x)
        (down, right), (top, left) = self._shape.stride, self._shape.padding
        batch, channels, tall, broad = x.shape
        height, width = tall + 2 * top, _up(broad + 2 * left, right)
        op = self._for(width, channels)
        pixels = batch * height * width * channels
        # The last windows reach beyond the last image.
        memory = torch.zeros(pixels + op.inner, dtype=torch.float32)
        padded = memory[:pixels].view(batch, height, width, channels)
        padded[:, top : top + tall, left : left + broad].copy_(x.permute(0, 2, 3, 1))
        rows = memory.as_strided((batch * height * width // right, op.inner), (right * channels, 1))
        y = op(rows).view(batch, height, width // right, op.outer)
        return y[:, ::down][:, :high, :wide].permute(0, 3, 1, 2).to(x.dtype)

    def _for(self, width: int, channels: int) -> LookupProduct:
        """The product over rows of padded images of this width."""
        if (width, channels) not in self._by_width:
            kernel, dilation = self._shape.kernel, self._shape.dilation
            channel, inside = np.divmod(self._trees.columns.astype(np.int64), kernel[0] * kernel[1])
            row, column = np.divmod(inside, kernel[1])
            places = (row * dilation[0] * width + column * dilation[1]) * channels + channel
            reach = int(places.max()) + 1
            starts = np.full(len(places) + 1, reach, np.int32)
            trees = Trees(columns=places.astype(np.int32), thresholds=self._trees.thresholds, starts=starts)
            op = self._op
            encoder = TreeEncoder(trees=trees)
            made = LookupProduct(op.name, op.hyper, encoder, op.tables, op.upcast, op.device, op.times)
            self._by_width[width, channels] = made
        return self._by_width[width, channels]


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
