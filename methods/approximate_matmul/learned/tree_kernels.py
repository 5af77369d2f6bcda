"""Launching the trainable tree's kernels on CUDA tensors, where Triton is installed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

#: Elements of a tile: what a thread holds of some sixty values each stays in registers.
_TILE = 256
#: Programs over the rows: enough for every multiprocessor, few enough that their sums cost nothing.
_PROGRAMS = 1024


@functools.cache
def installed() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def usable(x: Tensor) -> bool:
    """Whether the kernels take this input: float32 on a GPU."""
    return x.is_cuda and x.dtype == torch.float32 and installed()


def _kernels() -> Any:
    return importlib.import_module("methods.approximate_matmul.learned._tree_kernels")


def _tile(codebooks: int) -> tuple[int, int]:
    """Rows and codebooks of a tile."""
    books = 1
    while books < min(codebooks, 64):
        books *= 2
    return _TILE // books, books


def codes(x: Tensor, thresholds: Tensor) -> Tensor:
    """(R, C) uint8 leaves of x (R, C, 4); thresholds (C, 15)."""
    rows, books, _ = x.shape
    made = torch.empty(rows, books, dtype=torch.uint8, device=x.device)
    if made.numel():
        high, wide = _tile(books)
        grid = (-(-rows // high), -(-books // wide))
        _kernels().codes_kernel[grid](x.contiguous(), thresholds.T.contiguous(), made, rows, books, BR=high, BC=wide)
    return made


def gradients(x: Tensor, thresholds: Tensor, widths: Tensor, by_leaf: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of sum(by_leaf * p) in x (R, C, 4) and in the thresholds (C, 15); by_leaf (R, 16, C), widths (C, 4)."""
    rows, books, _ = x.shape
    into_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    if not into_x.numel():
        return into_x, torch.zeros_like(thresholds)
    high, wide = _tile(books)
    programs = min(-(-rows // high), _PROGRAMS)
    partial = torch.empty(programs, thresholds.shape[1], books, dtype=x.dtype, device=x.device)
    _kernels().gradient_kernel[programs, -(-books // wide)](
        x.contiguous(),
        thresholds.T.contiguous(),
        widths.T.contiguous(),
        by_leaf.contiguous(),
        into_x,
        partial,
        rows,
        books,
        BR=high,
        BC=wide,
    )
    return into_x, partial.sum(0).T
