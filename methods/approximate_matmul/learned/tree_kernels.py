"""Launching the trainable look-up's kernels on CUDA tensors, where Triton is installed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

#: Elements of a tile: what a thread holds of some sixty values each stays in registers.
_TILE = 256
#: Programs over the rows: enough for every multiprocessor, few enough that their sums cost nothing.
_PROGRAMS = 1024
#: Tile of the tables' gradient, (rows, codebooks, outputs), and programs of it that fill a GPU.
_ROWS, _BOOKS, _OUTPUTS = 32, 16, 128
_FILL = 264
#: Bytes of the tables are stored less this, as int8.
_SHIFT = 128


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


def sums(codes: Tensor, q: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """(R, M) float32 ``(sum_c q[c, code_c]) scale + offset`` by one-hot products with bytes, whose sums are exact.

    Args:
        codes: (R, C) uint8.
        q: (C, 16, M) float32 integers of 0 to 255.
        scale: (M,) float32.
        offset: (M,) float32.
    """
    products = importlib.import_module("methods.approximate_matmul.gpu._launch")
    _, _, outputs = q.shape
    flat = (q.flatten(0, 1) - _SHIFT).to(torch.int8).T.contiguous()
    high, wide = products.padded_sides(*flat.shape)
    table = functional.pad(flat, (0, wide - flat.shape[1], 0, high - outputs))
    made: Tensor = products.onehot_of(codes, table, scale, offset)
    return made


def table_gradient(codes: Tensor, dy: Tensor) -> Tensor:
    """(C, 16, M) sums of ``dy`` (R, M) float32 by code (R, C); in TF32 where torch's products are."""
    (rows, books), outputs = codes.shape, dy.shape[1]
    across = min(_OUTPUTS, max(16, 1 << max(outputs - 1, 0).bit_length()))
    grid = (-(-books // _BOOKS), -(-outputs // across))
    programs = max(min(-(-_FILL // (grid[0] * grid[1])), -(-rows // _ROWS)), 1)
    share = -(-rows // (programs * _ROWS)) * _ROWS
    partial = torch.empty(programs, books, 16, outputs, dtype=torch.float32, device=dy.device)
    precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"
    _kernels().table_kernel[*grid, programs](
        codes, dy.contiguous(), partial, rows, books, outputs, share, precision,
        BR=_ROWS, BC=_BOOKS, BN=across, num_warps=8, num_stages=2,
    )  # fmt: skip
    return partial.sum(0)
