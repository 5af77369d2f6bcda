"""Second moments of rows and of a convolution's patches, in pieces: no whole unfolded input is ever in memory.

A piece of patches is copied once, channel innermost where the layer's columns run so, into rows that are padded to
whole vectors and carry the bias' 1, so that one aligned product gives the moment with its bias row and column. Wide
moments are computed in panels of their lower triangle and mirrored.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from methods.kfac import shifts
from methods.kfac.layers import channels_last, output_rows, patches
from methods.kfac.stacks import padded

#: Most numbers in one piece of rows: 128 MiB in float32, small beside a net's activations, large for a product.
PIECE = 2**25
#: Output tiles of 128 x 128 that keep every multiprocessor of a large GPU busy twice over (132 on an H100).
TILES = 264
#: Fewest rows in one of several products that are summed afterwards.
ROWS = 1024
#: From this width on the moment is computed in four panels of its lower triangle: 5 / 8 of the multiply-adds.
PANELS_FROM = 2048
PANELS = 4
#: From this width on moments and their running means keep their padding: sums in one piece need no copy, and it is at
#: most 3 % of their memory.
ROOM_FROM = 512


def room(size: int) -> int:
    """Width in which a moment of true width ``size`` is kept."""
    return padded(size) if size >= ROOM_FROM else size


def gram(rows: Tensor, half: torch.dtype | None, splits: int | None = None) -> Tensor:
    """sum_n r r^T of rows (groups, n, d) -> (groups, d, d), summed in the rows' own dtype.

    Args:
        rows: the rows; with ``half`` they are rounded to it and the result is float32.
        half: operands' dtype or None.
        splits: the rows' sum is taken in so many products at once; None: as many as fill a GPU.
    """
    groups, count, width = rows.shape
    parts = _splits(rows) if splits is None else splits
    if width >= PANELS_FROM:
        return _panels(rows, half)
    cut = rows if parts == 1 else rows.reshape(groups * parts, count // parts, width)
    found = product(cut.mT, cut, half)
    return found if parts == 1 else found.reshape(groups, parts, width, width).sum(1)


def product(left: Tensor, right: Tensor, half: torch.dtype | None) -> Tensor:
    """Batched product with operands rounded to ``half`` and a float32 (or wider) result."""
    if half is None:
        return torch.bmm(left, right)
    left, right = left.to(half), right.to(half)
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=torch.float32)  # type: ignore[call-overload,no-any-return]
    return torch.bmm(left.float(), right.float())


def _splits(rows: Tensor) -> int:
    if not rows.is_cuda:
        return 1
    groups, count, width = rows.shape
    tiles, parts = groups * (-(-width // 128)) ** 2, 1
    while 2 * parts * tiles <= TILES and count % (2 * parts) == 0 and count // (2 * parts) >= ROWS:
        parts *= 2
    return parts


def _panels(rows: Tensor, half: torch.dtype | None) -> Tensor:
    groups, _, width = rows.shape
    rows = rows if half is None else rows.to(half)
    dtype = rows.dtype if half is None else torch.float32
    found = torch.empty(groups, width, width, dtype=dtype, device=rows.device)
    height = padded(-(-width // PANELS))
    for start in range(0, width, height):
        end = min(start + height, width)
        found[:, start:end, :end] = product(rows[:, :, start:end].mT, rows[:, :, :end], half)
        if start:
            found[:, :start, start:end] = found[:, start:end, :start].mT
    return found


def input_moment(module: nn.Linear | nn.Conv2d, inputs: Tensor, bias: bool, dtype: torch.dtype, half: Any) -> Tensor:
    """The sum a a^T over all rows a of a layer's inputs (and positions), a with a 1 appended if ``bias``.

    Returns:
        (groups, d_in, d_in) in ``dtype``, maybe a view of a padded tensor.
    """
    found, width = padded_moment(module, inputs, bias, dtype, half)
    return found[:, :width, :width]


def padded_moment(
    module: nn.Linear | nn.Conv2d, inputs: Tensor, bias: bool, dtype: torch.dtype, half: Any
) -> tuple[Tensor, int]:
    """As :func:`input_moment`, with all padding (zeros): in one piece, at least :func:`room` wide; and d_in."""
    ieee = half is None and not (dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32)
    if shifts.chosen(module, inputs.shape, inputs.device.type, ieee):
        width = 9 * inputs.shape[1] + bias
        return shifts.moment(inputs, bias, dtype, half, channels_last(module.weight), room(width)), width
    total: Tensor | None = None
    width = 0
    for rows, columns in _pieces(module, inputs, bias, dtype if half is None else half):
        width = columns
        new = gram(rows, half).to(dtype)
        total = new if total is None else total.add_(new)
    assert total is not None
    return total, width


def _pieces(module: nn.Linear | nn.Conv2d, inputs: Tensor, bias: bool, dtype: torch.dtype) -> Any:
    """Padded rows (groups, n, width) of successive samples, and their true width."""
    view = _patches(module, inputs)
    groups, samples, height, across, *rest = view.shape
    columns = 1
    for size in rest:
        columns *= size
    width = columns + bias
    wide = padded(width)
    positions = height * across
    count = max(1, min(samples, PIECE // (groups * positions * wide)))
    rows = torch.empty(groups, count * positions, wide, dtype=dtype, device=inputs.device)
    if wide > columns:
        rows[:, :, columns:] = _tail(bias, wide - columns, dtype, inputs.device)
    sizes, strides = _dense_rows((height, across, *rest), wide)
    for start in range(0, samples, count):
        taken = min(count, samples - start)
        part = rows if taken == count else rows[:, : taken * positions]
        piece = view if taken == samples else view[:, start : start + taken]
        part.as_strided((groups, taken, *sizes), (count * positions * wide, positions * wide, *strides)).copy_(piece)
        yield part, width


@lru_cache(maxsize=32)
def _tail(bias: bool, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What follows the columns in a padded row: the bias' 1 and zeros."""
    return torch.tensor([float(bias), *[0.0] * (length - 1)], dtype=dtype, device=device)


def _dense_rows(sizes: Sequence[int], wide: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes (height, across, columns...) and their strides in rows of ``wide`` numbers."""
    height, across, *rest = sizes
    return (height, across, *rest), (across * wide, wide, *_dense(list(rest)))


def _dense(sizes: list[int]) -> list[int]:
    """Strides of a contiguous tensor."""
    found = [1]
    for size in reversed(sizes[1:]):
        found.insert(0, found[0] * size)
    return found


def _patches(module: nn.Linear | nn.Conv2d, inputs: Tensor) -> Tensor:
    """(groups, N, H, W, columns...) as a view; a linear layer has W = 1."""
    if isinstance(module, nn.Linear):
        flat = inputs.reshape(1, -1) if inputs.ndim == 1 else inputs
        return flat.reshape(1, flat.shape[0], -1, 1, flat.shape[-1])
    found = patches(module, inputs if inputs.ndim == 4 else inputs[None])
    # One view instead of a reshape and a permutation.
    sizes, strides = list(found.shape), list(found.stride())
    channels = sizes[3] // module.groups
    order = (4, 5, 3) if channels_last(module.weight) else (3, 4, 5)
    sizes[3] = channels
    return found.as_strided(
        (module.groups, *sizes[:3], *[sizes[i] for i in order]),
        (strides[3] * channels, *strides[:3], *[strides[i] for i in order]),
    )


def output_moment(module: nn.Linear | nn.Conv2d, gradients: Tensor, dtype: torch.dtype, half: Any) -> Tensor:
    """The sum b b^T over all rows b of the gradient at a layer's outputs: (groups, d_out, d_out) in ``dtype``."""
    rows = output_rows(module, gradients)
    rows = rows.reshape(rows.shape[0], -1, rows.shape[-1])
    return gram(rows if half is not None and rows.dtype == half else rows.to(dtype), half).to(dtype)
