"""The rows of a batch as structures ask for them: in pieces, their sums of squares, and their moment times a matrix.

With X (d, n) the rows as columns, a structure needs X X^T only through ``pieces`` (all of X), ``squares`` (the diagonal
of X X^T) or ``times`` (X X^T W for a thin W). A convolution's patches are copied out for ``pieces`` alone: the squares
are window sums of squared inputs, and X (X^T W) is a convolution with W and a weight gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from methods.kfac.layers import _mode, _padding, _pair, patches
from methods.singd.tensors import unflatten

#: Bytes of rows that are copied out at once.
_PIECE = 1 << 26
_HALF = (torch.bfloat16, torch.float16)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def scaled(tensor: Tensor, scale: float | Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` times ``scale`` in ``dtype``, multiplied in at least float32."""
    if dtype in _HALF:
        return (tensor.float() * scale).to(dtype)
    return tensor.to(dtype) * scale


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
    def pieces(self, limit: int = _PIECE) -> Iterator[Tensor]:
        """All rows, in pieces (B, n, d) of at most ``limit`` bytes, or one sample."""

    @abstractmethod
    def squares(self) -> Tensor:
        """diag(X X^T): (B, d), in the dtype of sums."""

    @abstractmethod
    def times(self, w: Tensor) -> Tensor:
        """X X^T W for W (B, d, k): (B, d, k), in the dtype of sums."""

    def _with_ones(self, piece: Tensor) -> Tensor:
        if not self.bias:
            return piece
        one = torch.ones((), dtype=piece.dtype, device=piece.device) * self.scale
        return torch.cat([piece, one.to(piece.dtype).expand(*piece.shape[:-1], 1)], dim=-1)


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

    def pieces(self, limit: int = _PIECE) -> Iterator[Tensor]:
        """See :class:`Rows`."""
        count = max(1, limit // max(1, self.x[:, :1].numel() * self.dtype.itemsize))
        for start in range(0, self.x.shape[1], count):
            piece = scaled(self.x[:, start : start + count], self.scale, self.dtype)
            yield self._with_ones(piece.flatten(1, 2))

    def squares(self) -> Tensor:
        """See :class:`Rows`."""
        found: Tensor = torch.linalg.vector_norm(self.x, dim=(1, 2), dtype=wide(self.dtype)) * self.scale
        if self.bias:
            one = torch.ones_like(found[:, :1]) * self.scale * self.count**0.5
            found = torch.cat([found, one], dim=1)
        return found.square()

    def times(self, w: Tensor) -> Tensor:
        """See :class:`Rows`."""
        total = torch.zeros(w.shape, dtype=wide(self.dtype), device=w.device)
        for piece in self.pieces():
            total += piece.mT @ (piece @ w)
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
        self.outputs = patches(module, self.inputs[:1]).shape[1:3]
        count = self.inputs.shape[0] * self.outputs.numel()
        super().__init__((module.groups, count, module.weight[0].numel() + bias), bias, scale, dtype)

    def pieces(self, limit: int = _PIECE) -> Iterator[Tensor]:
        """See :class:`Rows`."""
        one = self.batch * self.outputs.numel() * self.d * self.dtype.itemsize
        count = max(1, limit // one)
        for start in range(0, self.inputs.shape[0], count):
            part = scaled(self.inputs[start : start + count], self.scale, self.dtype)
            found = patches(self.module, part)
            grouped = unflatten(found, 3, (self.batch, -1)).permute(3, 0, 1, 2, 4, 5, 6)
            whole = torch.empty(*grouped.shape[:4], self.d, dtype=self.dtype, device=part.device)
            unflatten(whole[..., : self.d - self.bias], 4, grouped.shape[4:]).copy_(grouped)
            if self.bias:
                whole[..., -1] = self.scale
            yield whole.flatten(1, 3)

    def squares(self) -> Tensor:
        """See :class:`Rows`."""
        sums = torch.linalg.vector_norm(self.inputs, dim=0, dtype=wide(self.dtype)).mul(self.scale).square()
        found = patches(self.module, sums[None]).sum((0, 1, 2)).reshape(self.batch, -1)
        if self.bias:
            found = torch.cat([found, torch.full_like(found[:, :1], self.count) * self.scale**2], dim=1)
        return found

    def times(self, w: Tensor) -> Tensor:
        """See :class:`Rows`."""
        module, k = self.module, w.shape[2]
        step, gap = _pair(module.stride), _pair(module.dilation)
        kernel = (module.weight.shape[1], *_pair(module.kernel_size))
        x = scaled(functional.pad(self.inputs, _padding(module), mode=_mode(module)), self.scale, self.dtype)
        weight = (w[:, :-1] if self.bias else w).to(self.dtype).mT.reshape(self.batch * k, *kernel)
        z = functional.conv2d(x, weight, None, step, 0, gap, self.batch)
        if self.bias:
            z = z + (w[:, -1].reshape(-1) * self.scale).to(self.dtype)[:, None, None]
        shape = torch.Size((self.batch * k, *kernel))
        found: Tensor = conv2d_weight(x, shape, z, step, 0, gap, self.batch)  # type: ignore[no-untyped-call]
        whole = found.reshape(self.batch, k, -1).mT.to(wide(self.dtype))
        if self.bias:
            last = z.sum((0, 2, 3), dtype=wide(self.dtype)).reshape(self.batch, 1, k) * self.scale
            whole = torch.cat([whole, last], dim=1)
        return whole
