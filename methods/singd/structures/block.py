"""Block-diagonal matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.singd.rows import Rows, wide
from methods.singd.structures.base import Sizes, Structure
from methods.singd.tensors import split, unflatten

#: Fewest sums that run side by side: fewer blocks are split along the rows (an H100 has 132 multiprocessors).
_SPLIT = 256


class Block(Structure):
    """d // b blocks of size b and one of the rest: about b d numbers; Pi keeps the blocks.

    Pi(K^T S K) has the blocks K_b^T S_b K_b, so only the blocks of S are summed and no row is multiplied with K.
    """

    name = "block"

    def __init__(self, d: int, sizes: Sizes | None = None) -> None:
        super().__init__(d, sizes)
        self.size = min(d, self.sizes.block)
        self.blocks, self.rest = divmod(d, self.size)
        self.count = self.blocks * self.size**2 + self.rest**2

    def _views(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """(B, blocks, b, b) and (B, rest, rest)."""
        first, last = split(k, [self.blocks * self.size**2, self.rest**2], dim=1)
        return unflatten(first, 1, (self.blocks, self.size, self.size)), unflatten(last, 1, (self.rest, self.rest))

    def _join(self, first: Tensor, last: Tensor) -> Tensor:
        return torch.cat([first.flatten(1), last.flatten(1)], dim=1) if self.rest else first.flatten(1)

    def _squares(self, k: Tensor) -> list[Tensor]:
        """All blocks of one size (B blocks, b, b), and the rests (B, rest, rest) if there are any."""
        if not self.rest:
            return [k.reshape(-1, self.size, self.size)]
        first, last = self._views(k)
        return [first.reshape(-1, self.size, self.size), last]

    def _joined(self, parts: Sequence[Tensor], batch: int) -> Tensor:
        flat = [part.view(batch, -1) for part in parts]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)

    def _each(self, k: tuple[Tensor, Tensor], m: Tensor) -> Tensor:
        """Blocks times the matching rows of M (B, d, n)."""
        cut = self.blocks * self.size
        top = k[0] @ unflatten(m[:, :cut], 1, (self.blocks, self.size))
        if not self.rest:
            return top.flatten(1, 2)
        return torch.cat([top.flatten(1, 2), k[1] @ m[:, cut:]], dim=1)

    def identity(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """See :class:`Structure`."""
        eye = torch.eye(self.size, dtype=dtype, device=device).repeat(batch, self.blocks, 1, 1)
        return self._join(eye, torch.eye(self.rest, dtype=dtype, device=device).repeat(batch, 1, 1))

    def to_dense(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        first, last = self._views(k)
        pairs = zip(first, last, strict=True)
        return torch.stack([torch.block_diag(*one, rest) for one, rest in pairs])  # type: ignore[no-untyped-call]

    def matmul(self, k: Tensor, m: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return self._each(self._views(k), m)

    def t_matmul(self, k: Tensor, m: Tensor) -> Tensor:
        """See :class:`Structure`."""
        first, last = self._views(k)
        return self._each((first.mT, last.mT), m)

    def compose(self, k: Tensor, other: Tensor) -> Tensor:
        """See :class:`Structure`."""
        pairs = zip(self._squares(k), self._squares(other), strict=True)
        return self._joined([torch.bmm(a, b) for a, b in pairs], len(k))

    @property
    def room(self) -> int:
        """See :class:`Structure`: full blocks."""
        return self.size * (self.blocks + (self.rest > 0))

    def keeps(self, dtype: torch.dtype) -> bool:
        """See :class:`Structure`."""
        return True

    def kept_numbers(self) -> int:
        """See :class:`Structure`."""
        return self.room * self.size

    def keep(self, k: Tensor) -> Tensor:
        """See :class:`Structure`: full blocks (B, room / b, b, b), the last one padded with zeros."""
        parts = [torch.bmm(a, a.mT) for a in self._squares(k)]
        first = parts[0].view(len(k), self.blocks, self.size, self.size)
        if not self.rest:
            return first
        gap = self.size - self.rest
        return torch.cat([first, torch.nn.functional.pad(parts[1], (0, gap, 0, gap))[:, None]], dim=1)

    def right(self, kept: Tensor, x: Tensor, out: torch.dtype) -> Tensor:
        """See :class:`Structure`."""
        batch, n = x.shape[:2]
        blocks = kept.view(-1, self.size, self.size)
        parts = x.to(kept.dtype).view(batch, n, -1, self.size).transpose(1, 2).reshape(len(blocks), n, self.size)
        found = torch.bmm(parts, blocks).view(batch, -1, n, self.size)
        return found.transpose(1, 2).reshape(x.shape).to(out)

    def left(self, kept: Tensor, y: Tensor, out: torch.dtype) -> Tensor:
        """See :class:`Structure`."""
        blocks = kept.view(-1, self.size, self.size)
        return torch.bmm(blocks, y.to(kept.dtype).reshape(len(blocks), self.size, -1)).view(y.shape).to(out)

    def gram(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return self._joined([torch.bmm(a.mT, a) for a in self._squares(k)], len(k))

    def gather(self, k: Tensor, rows: Rows) -> Tensor:
        """See :class:`Structure`."""
        cut, total = self.blocks * self.size, None
        for piece in rows.pieces():
            n = piece.shape[1]
            slices = max(1, min(n // 64, _SPLIT // self.blocks))
            even = n // slices * slices
            first = self._blocks(piece[:, :even, :cut], slices)
            if even < n:
                first = first + self._blocks(piece[:, even:, :cut], 1)
            tail = piece[:, :, cut:]
            part = self._join(first, (tail.mT @ tail).to(first.dtype))
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def _blocks(self, piece: Tensor, slices: int) -> Tensor:
        """Blocks (B, blocks, b, b) of the moment of (B, n, blocks b), n a multiple of ``slices``."""
        parts = unflatten(unflatten(piece, 2, (self.blocks, self.size)), 1, (slices, -1)).permute(0, 1, 3, 4, 2)
        return (parts @ parts.mT).sum(1, dtype=wide(piece.dtype))

    def inner(self, k: Tensor, sums: Tensor) -> Tensor:
        """See :class:`Structure`."""
        pairs = zip(self._squares(k), self._squares(sums.to(k.dtype)), strict=True)
        return self._joined([torch.bmm(a.mT, torch.bmm(s, a)) for a, s in pairs], len(k))

    def add_identity(self, k: Tensor, amount: float) -> Tensor:
        """See :class:`Structure`."""
        first, last = self._views(k)
        first.diagonal(dim1=2, dim2=3).add_(amount)
        if self.rest:
            last.diagonal(dim1=1, dim2=2).add_(amount)
        return k

    def trace(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        first, last = self._views(k)
        kind = wide(k.dtype)
        whole = first.diagonal(dim1=2, dim2=3).sum((1, 2), dtype=kind)
        if not self.rest:
            return whole
        return whole + last.diagonal(dim1=1, dim2=2).sum(1, dtype=kind)
