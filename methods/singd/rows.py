"""The rows of a batch as structures ask for them: in pieces, their sums of squares, and their moment times a matrix.

With X (d, n) the rows as columns, a structure needs X X^T only through ``pieces`` (all of X), ``squares`` (the diagonal
of X X^T) or ``times`` (X X^T W for a thin W). ``slabs`` are pieces as columns, as they lie in images. A convolution's
patches are copied out for these two alone: the squares are window sums of squared inputs, and X (X^T W) is a
convolution with W and a weight gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.kfac.layers import _mode, _padding, _pair, input_positions, patches
from methods.singd.tensors import unflatten

#: Bytes of rows that are copied out at once.
_PIECE = 1 << 27
#: Formats that rows are scaled for.
HALF = (torch.bfloat16, torch.float16)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def scaled(tensor: Tensor, scale: float | Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` times ``scale`` in ``dtype``, multiplied in at least float32."""
    if one(scale):
        return tensor.to(dtype)
    if dtype in HALF:
        return (tensor.float() * scale).to(dtype)
    return tensor.to(dtype) * scale


def one(scale: float | Tensor) -> bool:
    """Whether a scale is known to change nothing."""
    return not isinstance(scale, Tensor) and scale == 1.0


def samples(limit: int, one_sample: int, most: int) -> int:
    """Samples of a piece of at most ``limit`` bytes: all, or a power of two, which can be split evenly."""
    count = max(1, limit // max(1, one_sample))
    return most if count >= most else 1 << (count.bit_length() - 1)


def divisor(count: int, most: int) -> int:
    """The largest divisor of ``count`` of at most ``most``."""
    return next(n for n in range(min(count, most), 0, -1) if count % n == 0)


class Rows(ABC):
    """n rows of width d for each of B groups, each multiplied with ``scale``; products run in ``dtype``.

    Attributes:
        batch: B.
        count: n.
        d: width, the bias' column of ones counted.
        dtype: of products.
    """

    def __init__(self, shape: tuple[int, int, int], bias: bool, scale: float | Tensor, dtype: torch.dtype) -> None:
        self.batch, self.count, self.d = shape
        self.bias, self.scale, self.dtype = bias, scale, dtype

    @abstractmethod
    def pieces(self, limit: int = _PIECE, room: int = 0) -> Iterator[Tensor]:
        """All rows, in pieces (B, n, d) of at most ``limit`` bytes, or one sample; with zeros up to ``room`` > d."""

    @abstractmethod
    def _grids(self, limit: int, dtype: torch.dtype, room: int) -> Iterator[tuple[Tensor, int]]:
        """Parts of all samples as (N', B, columns..., positions...), scaled, no ones; how many dims are columns."""

    def slabs(
        self, room: int = 0, slices: int = 1, limit: int = _PIECE, dtype: torch.dtype | None = None
    ) -> Iterator[Tensor]:
        """X in pieces (s, B, room, m) of at most ``limit`` bytes, or one sample: s groups of columns side by side.

        Args:
            room: at least d; what lies behind d is zero. 0 for d.
            slices: the largest s wanted; it divides the samples of a piece.
            limit: bytes.
            dtype: of the pieces, None for that of products.
        """
        kind, room = dtype or self.dtype, room or self.d
        for part, dims in self._grids(limit, kind, room):
            s, ends = divisor(part.shape[0], slices), 2 + dims
            positions = part.shape[ends:]
            whole = torch.empty(s, self.batch, room, part.shape[0] // s, *positions, dtype=kind, device=part.device)
            split = unflatten(part, 0, (s, -1)).movedim(1, ends)
            width = self.d - self.bias
            mine = whole if width == room else whole.narrow(2, 0, width)
            (mine if dims == 1 else unflatten(mine, 2, part.shape[2:ends])).copy_(split)
            if self.bias and isinstance(self.scale, Tensor):
                whole.select(2, width).copy_(self.scale)
            elif self.bias:
                whole.select(2, width).fill_(self.scale)
            if room > self.d:
                whole[:, :, self.d :].zero_()
            yield whole.flatten(3)

    @abstractmethod
    def squares(self) -> Tensor:
        """diag(X X^T): (B, d), in the dtype of sums."""

    @abstractmethod
    def times(self, w: Tensor) -> Tensor:
        """X X^T W for W (B, d, k): (B, d, k), in the dtype of sums."""

    def _with_ones(self, piece: Tensor) -> Tensor:
        if not self.bias:
            return piece
        unit = torch.ones((), dtype=piece.dtype, device=piece.device) * self.scale
        return torch.cat([piece, unit.to(piece.dtype).expand(*piece.shape[:-1], 1)], dim=-1)

    def _with_room(self, piece: Tensor, room: int) -> Tensor:
        """Rows without the bias' 1 -> with it and zeros."""
        whole = piece.new_empty(*piece.shape[:2], room)
        whole[..., : self.d - self.bias].copy_(piece)
        return self._ended(whole)

    def _ended(self, whole: Tensor) -> Tensor:
        """Write the bias' 1 and the zeros behind it."""
        if whole.shape[-1] > self.d:
            whole[..., self.d :].zero_()
        if self.bias:
            whole[..., self.d - 1].fill_(self.scale)
        return whole

    def _squared(self, norms: Tensor) -> Tensor:
        """Squares of norms that are scaled first; in place."""
        return (norms if one(self.scale) else norms.mul_(self.scale)).square_()

    def _with_count(self, found: Tensor) -> Tensor:
        """Append the sum of squares of the bias' column."""
        if not self.bias:
            return found
        if isinstance(self.scale, Tensor):
            return torch.cat([found, torch.full_like(found[:, :1], self.count) * self.scale**2], dim=1)
        return functional.pad(found, (0, 1), value=self.count * self.scale**2)


class PlainRows(Rows):
    """Rows that lie there as (B, N, S, d), any strides.

    Args:
        x: the rows without the bias' 1.
        bias: append a 1.
        scale: factor on every row.
        dtype: of products.
    """

    def __init__(self, x: Tensor, bias: bool, scale: float | Tensor, dtype: torch.dtype) -> None:
        super().__init__((x.shape[0], x.shape[1] * x.shape[2], x.shape[3] + bias), bias, scale, dtype)
        self.x = x

    def pieces(self, limit: int = _PIECE, room: int = 0) -> Iterator[Tensor]:
        """See :class:`Rows`."""
        one_sample = self.batch * self.x.shape[2] * max(room, self.d) * self.dtype.itemsize
        count = max(1, limit // max(1, one_sample))
        for start in range(0, self.x.shape[1], count):
            piece = scaled(self.x[:, start : start + count], self.scale, self.dtype).flatten(1, 2)
            yield self._with_room(piece, room) if room > self.d else self._with_ones(piece)

    def _grids(self, limit: int, dtype: torch.dtype, room: int) -> Iterator[tuple[Tensor, int]]:
        """See :class:`Rows`."""
        one_sample = self.batch * self.x.shape[2] * room * dtype.itemsize
        count = samples(limit, one_sample, self.x.shape[1])
        for start in range(0, self.x.shape[1], count):
            part = self.x[:, start : start + count]
            yield (part if one(self.scale) else scaled(part, self.scale, dtype)).permute(1, 0, 3, 2), 1

    def squares(self) -> Tensor:
        """See :class:`Rows`."""
        norms: Tensor = torch.linalg.vector_norm(self.x, dim=(1, 2), dtype=wide(self.dtype))
        return self._with_count(self._squared(norms))

    def times(self, w: Tensor) -> Tensor:
        """See :class:`Rows`."""
        total: Tensor | None = None
        ready = one(self.scale) and not self.bias and self.x.dtype == self.dtype and self.x.is_contiguous()
        for x in [self.x.flatten(1, 2).mT] if ready else (slab[0] for slab in self.slabs()):
            part = torch.bmm(x, torch.bmm(x.mT, w.to(x.dtype))).to(wide(self.dtype))
            total = part if total is None else total.add_(part)
        assert total is not None
        return total


class PatchRows(Rows):
    """The patches of a convolution's inputs (N, C, H, W); the groups are the convolution's.

    Args:
        module: the convolution.
        inputs: its inputs.
        bias: append a 1.
        scale: factor on every row.
        dtype: of products.
    """

    def __init__(
        self, module: nn.Conv2d, inputs: Tensor, bias: bool, scale: float | Tensor, dtype: torch.dtype
    ) -> None:
        self.module, self.inputs = module, inputs if inputs.ndim == 4 else inputs[None]
        self.positions = input_positions(module, self.inputs)[1]
        count = self.inputs.shape[0] * self.positions
        super().__init__((module.groups, count, module.weight[0].numel() + bias), bias, scale, dtype)

    def pieces(self, limit: int = _PIECE, room: int = 0) -> Iterator[Tensor]:
        """See :class:`Rows`."""
        room = max(room, self.d)
        one = self.batch * self.positions * room * self.dtype.itemsize
        count = max(1, limit // one)
        for start in range(0, self.inputs.shape[0], count):
            part = scaled(self.inputs[start : start + count], self.scale, self.dtype)
            found = patches(self.module, part)
            grouped = unflatten(found, 3, (self.batch, -1)).permute(3, 0, 1, 2, 4, 5, 6)
            whole = torch.empty(*grouped.shape[:4], room, dtype=self.dtype, device=part.device)
            unflatten(whole[..., : self.d - self.bias], 4, grouped.shape[4:]).copy_(grouped)
            yield self._ended(whole.flatten(1, 3))

    def _grids(self, limit: int, dtype: torch.dtype, room: int) -> Iterator[tuple[Tensor, int]]:
        """See :class:`Rows`."""
        one_sample = self.batch * self.positions * room * dtype.itemsize
        count = samples(limit, one_sample, self.inputs.shape[0])
        for start in range(0, self.inputs.shape[0], count):
            part = self.inputs[start : start + count]
            found = patches(self.module, part if one(self.scale) else scaled(part, self.scale, dtype))
            yield unflatten(found, 3, (self.batch, -1)).permute(0, 3, 4, 5, 6, 1, 2), 3

    def squares(self) -> Tensor:
        """See :class:`Rows`."""
        norms: Tensor = torch.linalg.vector_norm(self.inputs, dim=0, dtype=wide(self.dtype))
        found = patches(self.module, self._squared(norms)[None]).sum((0, 1, 2)).reshape(self.batch, -1)
        return self._with_count(found)

    def times(self, w: Tensor) -> Tensor:
        """See :class:`Rows`."""
        module, k, bias = self.module, w.shape[2], None
        step, gap, sides = _pair(module.stride), _pair(module.dilation), _padding(module)
        kernel = (module.weight.shape[1], *_pair(module.kernel_size))
        x = scaled(self.inputs, self.scale, self.dtype)
        if module.padding_mode != "zeros" or sides[0] != sides[1] or sides[2] != sides[3]:
            x, sides = functional.pad(x, sides, mode=_mode(module)), [0] * 4
        around = [sides[2], sides[0]]
        weight = (w[:, :-1] if self.bias else w).to(self.dtype).mT.reshape(self.batch * k, *kernel)
        if self.bias:
            bias = scaled(w[:, -1].reshape(-1), self.scale, self.dtype)
        z = functional.conv2d(x, weight, bias, step, around, gap, self.batch)
        # With the weight's gradient comes the bias', the sums of z; but in z's dtype.
        both = self.bias and self.dtype not in HALF
        mask, ops = [False, True, both], torch.ops.aten
        sizes = [len(weight)] if both else None
        arguments: Any = (z, x, weight, sizes, step, around, gap, False, [0, 0], self.batch, mask)
        _, found, last = ops.convolution_backward(*arguments)
        whole: Tensor = found.reshape(self.batch, k, -1).mT.to(wide(self.dtype))
        if self.bias:
            ends = last if both else z.sum((0, 2, 3), dtype=wide(self.dtype))
            ends = ends.reshape(self.batch, 1, k)
            whole = torch.cat([whole, ends if one(self.scale) else ends * self.scale], dim=1)
        return whole
