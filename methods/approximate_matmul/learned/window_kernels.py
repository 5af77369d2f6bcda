"""Launching the kernels that gather columns of windows, on CUDA tensors where Triton is installed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from methods.approximate_matmul.learned.tree_kernels import installed

if TYPE_CHECKING:
    from methods.approximate_matmul.learned.geometry import Geometry

#: Elements of a tile, and its columns or channels at most.
_TILE, _WIDE = 1024, 128
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def usable(x: Tensor) -> bool:
    """Whether the kernels take this image: a GPU's, of at most float32."""
    return x.is_cuda and x.dtype in _DTYPES and installed()


def gather(x: Tensor, columns: Tensor, shape: Geometry) -> Tensor:
    """(B L, U) columns (channel, row, column of the window) of ``x`` (B, channels, H, W), of any strides."""
    high, wide = shape.sides(x)
    rows, used = len(x) * high * wide, len(columns)
    made = torch.empty(rows, used, dtype=x.dtype, device=x.device)
    if made.numel():
        tall, across = _tile(used)
        _kernels().gather_kernel[-(-rows // tall), -(-used // across)](
            x, columns, made, rows, used, *x.shape[2:], wide, high * wide, *x.stride(),
            **_constants(shape), BR=tall, BU=across,
        )  # fmt: skip
    return made


def scatter(into: Tensor, columns: Tensor, size: torch.Size, channels_last: bool, shape: Geometry) -> Tensor:
    """Gradient in the image (B, channels, H, W) of :func:`gather`, from the one in its result, ``into`` (B L, U)."""
    form = torch.channels_last if channels_last else torch.contiguous_format
    made = torch.empty(size, dtype=into.dtype, device=into.device, memory_format=form)
    if made.numel():
        taps = shape.kernel[0] * shape.kernel[1]
        channels, order = torch.sort(columns // taps, stable=True)
        first = torch.searchsorted(channels, torch.arange(size[1] + 1, device=columns.device))
        by_channel = order * taps + columns[order] % taps
        pixels = size[0] * size[2] * size[3]
        tall, across = _tile(size[1])
        _kernels().scatter_kernel[-(-pixels // tall), -(-size[1] // across)](
            into.contiguous(), by_channel, first, made, pixels, size[1], len(columns), *size[2:],
            *shape.sides(made), *made.stride(), **_constants(shape), BR=tall, BC=across,
        )  # fmt: skip
    return made


def _kernels() -> Any:
    return importlib.import_module("methods.approximate_matmul.learned._window_kernels")


def _constants(shape: Geometry) -> dict[str, int]:
    pairs = (("S", shape.stride), ("P", shape.padding), ("D", shape.dilation))
    sides = {f"{name}{side}": pair[at] for name, pair in pairs for at, side in enumerate("HW")}
    return {**sides, "KW": shape.kernel[1], "TAPS": shape.kernel[0] * shape.kernel[1]}


def _tile(width: int) -> tuple[int, int]:
    """Rows and columns of a tile."""
    across = min(1 << max(width - 1, 0).bit_length(), _WIDE)
    return _TILE // across, across
