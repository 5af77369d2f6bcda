"""Convolutions as matrix products: which rows a window gives, and which convolutions are supported."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.approximate_matmul.learned import window_kernels


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A convolution without groups over zero padding.

    Attributes:
        kernel: height and width of the window.
        stride: of the window.
        padding: zeros on each side.
        dilation: distance of the window's taps.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def windows(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, D, L): column d = (channel, row, column of the window), L output positions."""
        return functional.unfold(x, self.kernel, self.dilation, self.padding, self.stride)

    def rows(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B L, D), one row per output position."""
        return self.windows(x).transpose(1, 2).flatten(0, 1)

    def some_rows(self, x: Tensor, wanted: int) -> Tensor:
        """Every n-th of :meth:`rows`, n as :func:`spread` says, without making the others."""
        windows = self._views(x).permute(0, 4, 5, 1, 2, 3)
        rows, area = len(x) * windows.shape[1] * windows.shape[2], windows.shape[1] * windows.shape[2]
        which = torch.arange(0, rows, spread(rows, wanted), device=x.device)
        inside = which % area
        return windows[which // area, inside // windows.shape[2], inside % windows.shape[2]].flatten(1)

    def sides(self, x: Tensor) -> tuple[int, int]:
        """Height and width of the output for the input ``x``."""
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        high, wide = ((x.shape[2 + i] + 2 * self.padding[i] - reach[i]) // self.stride[i] + 1 for i in (0, 1))
        return high, wide

    def taps(self, x: Tensor, columns: Tensor) -> Tensor:
        """Some columns of :meth:`rows`, (B L, U), stored column after column."""
        picked = self._views(x)[:, *self._places(columns)]
        return picked.transpose(0, 1).reshape(len(columns), -1).T

    def split(self, x: Tensor, columns: Tensor) -> Tensor:
        """Some columns of :meth:`rows`, (B L, U), stored row after row; gradients flow to ``x``."""
        result: Tensor = _Split.apply(x, columns, self)  # type: ignore[no-untyped-call]
        return result

    def _views(self, x: Tensor) -> Tensor:
        """All windows as a view of padded images, (B, channels, *kernel, H', W')."""
        padded = functional.pad(x, (self.padding[1], self.padding[1], self.padding[0], self.padding[0]))
        image, channel, row, column = padded.stride()
        size = (*x.shape[:2], *self.kernel, *self.sides(x))
        steps = (row * self.dilation[0], column * self.dilation[1], row * self.stride[0], column * self.stride[1])
        return padded.as_strided(size, (image, channel, *steps))

    def _places(self, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Channel, row and column of the window."""
        area = self.kernel[0] * self.kernel[1]
        inside = columns % area
        return columns // area, inside // self.kernel[1], inside % self.kernel[1]

    def image(self, rows: Tensor, x: Tensor) -> Tensor:
        """(B L, M) -> (B, M, H', W') for the input ``x`` that the rows came from."""
        high, wide = self.sides(x)
        return rows.view(len(x), high * wide, -1).transpose(1, 2).reshape(len(x), -1, high, wide)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)


class _Split(torch.autograd.Function):
    """Gathers in one step what ``unfold`` would copy image by image; its backward is that of ``unfold``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: Tensor, shape: Geometry) -> Tensor:
        ctx.save_for_backward(columns)
        ctx.shape, ctx.size = shape, x.shape
        ctx.channels_last = x.is_contiguous(memory_format=torch.channels_last)
        if window_kernels.usable(x):
            return window_kernels.gather(x, columns, shape)
        picked = shape._views(x).permute(0, 4, 5, 1, 2, 3)[:, :, :, *shape._places(columns)]
        return picked.flatten(0, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (columns,) = ctx.saved_tensors
        shape, (images, channels, *side) = ctx.shape, ctx.size
        if window_kernels.usable(grads[0]):
            return window_kernels.scatter(grads[0], columns, ctx.size, ctx.channels_last, shape), None, None
        by_column = grads[0].view(images, -1, len(columns)).transpose(1, 2)
        windows = by_column.new_zeros(images, channels * shape.kernel[0] * shape.kernel[1], by_column.shape[2])
        windows.index_add_(1, columns, by_column)
        return functional.fold(windows, side, shape.kernel, shape.dilation, shape.padding, shape.stride), None, None


def spread(rows: int, wanted: int) -> int:
    """Step that takes ``wanted`` of ``rows`` or a few more or less: an odd one meets other places of every image."""
    return max(rows // wanted, 1) | 1


def geometry(conv: nn.Conv2d) -> Geometry:
    """The geometry of a convolution that :func:`unsupported` accepts."""
    padding: Any = conv.padding
    if padding == "valid":
        padding = (0, 0)
    elif padding == "same":
        padding = tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    pairs = {"kernel": conv.kernel_size, "stride": conv.stride, "padding": padding, "dilation": conv.dilation}
    return Geometry(**{key: (int(pair[0]), int(pair[1])) for key, pair in pairs.items()})


def unsupported(layer: nn.Module) -> str | None:
    """Why a layer cannot be replaced; None when it can. For layers that multiply by weights only."""
    if type(layer) is nn.Linear:
        found = None
    elif type(layer) is nn.Conv2d:
        found = _unsupported_convolution(layer)
    else:
        found = f"{type(layer).__name__} is neither nn.Linear nor nn.Conv2d itself"
    weight = getattr(layer, "weight", None)
    if found is None and (not isinstance(weight, Tensor) or weight.dtype not in (torch.float32, torch.float64)):
        found = f"its weight is {getattr(weight, 'dtype', type(weight).__name__)}, not float32 or float64"
    return found


def _unsupported_convolution(conv: nn.Conv2d) -> str | None:
    if conv.groups != 1:
        return f"it has groups={conv.groups}; only groups=1 is one matrix product"
    if conv.padding_mode != "zeros":
        return f"it pads by {conv.padding_mode!r}; only 'zeros' is supported"
    if conv.padding == "same" and any(d * (k - 1) % 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)):
        return "padding 'same' of an even window is not the same on both sides"
    return None
