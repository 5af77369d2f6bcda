"""Second moment of 3 x 3 patches from 13 correlations of the image with itself, exactly and without patches.

Block (u, v) of sum_p a_p a_p^T, a_p the patch at position p, is B(u, v) = sum_p x[p + u] x[p + v]^T. With stride 1 and
zero padding 1 it depends on the shift v - u alone, R(v - u) = sum_q x[q] x[q + v - u]^T over the whole image, but for
what a window leaves out at the border, and that only where u and v lie in one row of the kernel (one row of the image
is left out) or in one column (one column). R(-s) = R(s)^T, so 13 products of C x C replace 81. The image is kept with
two more zero columns and two more zero rows, so a shift is a distance between rows of one tall matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

SHIFTS = [(0, 0), (0, 1), (0, 2), *[(1, x) for x in range(-2, 3)], *[(2, x) for x in range(-2, 3)]]
KERNEL = [(i, j) for i in range(3) for j in range(3)]
#: Kernel row (column) -> which border row (column) of the image its window leaves out: 0 the last, 1 the first.
LEFT_OUT = {0: 0, 2: 1}
#: Fewest channels: below, a product of C x C leaves a tile mostly empty.
CHANNELS_FROM = 16
#: Products that the structure saves must outweigh the padding: of the 81 blocks the other way computes at least 45.
BLOCKS = 45
#: Multiply-adds of one block, N H W C^2, from which shifts are faster on a GPU in IEEE float32; see :func:`chosen`.
GPU_FROM = 2**29


def fits(module: nn.Linear | nn.Conv2d, height: int, width: int) -> bool:
    """Whether the structure holds for this layer, and is less work than patches."""
    if not isinstance(module, nn.Conv2d) or tuple(module.kernel_size) != (3, 3):
        return False
    plain = module.padding == "same" or tuple(module.padding) == (1, 1)
    plain &= module.padding_mode == "zeros" and module.groups == 1
    plain &= tuple(module.stride) == (1, 1) and tuple(module.dilation) == (1, 1)
    more = (height + 2) * (width + 2) * len(SHIFTS)
    return plain and module.in_channels >= CHANNELS_FROM and more < BLOCKS * height * width


def chosen(module: nn.Linear | nn.Conv2d, shape: Sequence[int], device: str, ieee: bool) -> bool:
    """Whether shifts are the faster way for inputs (N, C, H, W): the one place that decides.

    On a CPU wherever they fit. On a GPU they are about seventy launches, 2.1 ms a layer whatever its size, and patches
    are one copy and one product: with TF32 or half-width products patches took 0.5 to 2.0 ms for every layer of VGG16
    at batch 256, in IEEE float32 more than shifts from N H W C^2 = 2^30 on and less at 2^28 and below (one H100, host
    at 20 us an operation, 2026-11-22; a table for each layer and precision is in the README).

    Args:
        module: the layer.
        shape: of its inputs.
        device: type of the device.
        ieee: products are IEEE float32 or wider.
    """
    if len(shape) != 4 or not fits(module, shape[2], shape[3]):
        return False
    samples, channels, height, width = shape
    return device != "cuda" or (ieee and samples * height * width * channels**2 >= GPU_FROM)


def moment(
    inputs: Tensor, bias: bool, dtype: torch.dtype, half: torch.dtype | None, last: bool, room: int | None = None
) -> Tensor:
    """The sum of a a^T over all positions of (N, C, H, W), a with a 1 appended if ``bias``: (1, d, d) in ``dtype``.

    Args:
        inputs: the layer's inputs.
        bias: append a 1.
        dtype: of the result.
        half: operands are rounded to it; None leaves them in ``dtype``.
        last: columns run (kernel row, kernel column, channel) and not (channel, kernel row, kernel column).
        room: the result is padded with zeros to this width.
    """
    samples, channels, height, width = inputs.shape
    parts, rows, step = _cut(inputs)
    flat = inputs.new_zeros(parts * rows + 2 * step + 2, channels, dtype=half or dtype)
    image = flat[: samples * (height + 2) * step].view(samples, height + 2, step, channels)
    image[:, :height, :width].copy_(inputs.permute(0, 2, 3, 1))
    base = flat[: parts * rows].view(parts, rows, channels)
    found = []
    for y, x in SHIFTS:
        other = flat.as_strided(base.shape, base.stride(), (y * step + x) * channels)
        found.append(_product(base, other, half, dtype).sum(0))
    border = _strips(torch.stack([image[:, height - 1], image[:, 0]]))
    sides = _strips(torch.stack([image[:, :, width - 1], image[:, :, 0]]))
    corners = torch.stack([image[:, y, x] for y in (height - 1, 0) for x in (width - 1, 0)])
    blocks = _blocks(torch.stack(found), _along(border, half, dtype), _along(sides, half, dtype), corners, half, dtype)
    width_in = 9 * channels + bias
    wide = width_in if room is None else room
    whole = (inputs.new_empty if wide == width_in else inputs.new_zeros)((1, wide, wide), dtype=dtype)
    inner = whole[0, : 9 * channels, : 9 * channels]
    shape, strides = ((9, channels), (channels, 1)) if last else ((channels, 9), (9, 1))
    place = inner.as_strided((*shape, *shape), (*[s * whole.shape[1] for s in strides], *strides))
    place.copy_(blocks.view(9, 9, channels, channels).permute((0, 2, 1, 3) if last else (2, 0, 3, 1)))
    if bias:
        sums = _sums(flat, border, sides, corners, dtype)
        end = width_in - 1
        whole[0, end, :end] = whole[0, :end, end] = (sums if last else sums.T).reshape(-1)
        whole[0, end, end] = float(samples * height * width)
    return whole


def _cut(inputs: Tensor) -> tuple[int, int, int]:
    """How many products at once sum over the rows, rows of each, and rows from one line of the image to the next."""
    samples, channels, height, width = inputs.shape
    count = samples * (height + 2) * (width + 2)
    parts = 1
    if inputs.is_cuda:
        parts = max(1, min(264 // (-(-channels // 128)) ** 2, count // 1024))
    return parts, -(-count // parts), width + 2


def _product(left: Tensor, right: Tensor, half: torch.dtype | None, dtype: torch.dtype) -> Tensor:
    """left^T right of stacks of rows."""
    if half is None:
        return torch.bmm(left.mT, right) if left.ndim == 3 else left.mT @ right
    if left.is_cuda:
        return torch.bmm(left.mT, right, out_dtype=torch.float32)  # type: ignore[call-overload,no-any-return]
    return left.to(dtype).mT @ right.to(dtype)


def _strips(lines: Tensor) -> Tensor:
    """Lines (2, N, length with two zeros, C) one after another, and two more zeros: (2, rows, C)."""
    sides, samples, length, channels = lines.shape
    found = lines.new_zeros(sides, samples * length + 2, channels)
    found[:, :-2] = lines.reshape(sides, -1, channels)
    return found


def _along(strips: Tensor, half: torch.dtype | None, dtype: torch.dtype) -> Tensor:
    """Correlations of two strips with themselves at the distances -2..2: (2, 5, C, C)."""
    rows = strips.shape[1] - 2
    base = strips[:, :rows]
    ahead = [_product(base, strips[:, shift : shift + rows], half, dtype) for shift in range(3)]
    return torch.stack([ahead[2].mT, ahead[1].mT, *ahead], 1)


def _blocks(
    inner: Tensor, border: Tensor, sides: Tensor, corners: Tensor, half: torch.dtype | None, dtype: torch.dtype
) -> Tensor:
    """The 81 blocks (u, v), in the kernel's order."""
    index = _index(inner.device)
    blocks = torch.cat([inner, inner[1:].mT])[index["shift"]]
    blocks[index["row"]] -= border.flatten(0, 1)[index["row strip"]]
    blocks[index["column"]] -= sides.flatten(0, 1)[index["column strip"]]
    blocks[index["corner"]] += _product(corners, corners, half, dtype)
    return blocks


def _sums(flat: Tensor, border: Tensor, sides: Tensor, corners: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over all positions of x[p + u]: (9, C)."""
    total = flat.sum(0, dtype=dtype)
    lines, columns, points = (one.sum(1, dtype=dtype) for one in (border, sides, corners))
    found = []
    for i, j in KERNEL:
        one = total
        if i in LEFT_OUT:
            one = one - lines[LEFT_OUT[i]]
        if j in LEFT_OUT:
            one = one - columns[LEFT_OUT[j]]
        if i in LEFT_OUT and j in LEFT_OUT:
            one = one + points[2 * LEFT_OUT[i] + LEFT_OUT[j]]
        found.append(one)
    return torch.stack(found)


@lru_cache(maxsize=8)
def _index(device: torch.device) -> dict[str, Tensor]:
    """Where each block's parts are."""
    where = {shift: k for k, shift in enumerate(SHIFTS)}
    where |= {(-y, -x): len(SHIFTS) + k - 1 for k, (y, x) in enumerate(SHIFTS) if k}
    found: dict[str, list[int]] = {k: [] for k in ("shift", "row", "row strip", "column", "column strip", "corner")}
    corners: dict[int, int] = {}
    for a, (i, j) in enumerate(KERNEL):
        for b, (k, m) in enumerate(KERNEL):
            block = 9 * a + b
            found["shift"].append(where[k - i, m - j])
            if i == k and i in LEFT_OUT:
                found["row"].append(block)
                found["row strip"].append(5 * LEFT_OUT[i] + m - j + 2)
            if j == m and j in LEFT_OUT:
                found["column"].append(block)
                found["column strip"].append(5 * LEFT_OUT[j] + k - i + 2)
            if a == b and i in LEFT_OUT and j in LEFT_OUT:
                corners[2 * LEFT_OUT[i] + LEFT_OUT[j]] = block
    found["corner"] = [corners[k] for k in range(4)]
    return {name: torch.tensor(places, device=device) for name, places in found.items()}
