"""Block-diagonal matrices."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from methods.singd.rows import Rows, wide
from methods.singd.structures.base import Sizes, Structure
from methods.singd.tensors import split, unflatten

#: Fewest sums that run side by side: fewer blocks are split along the rows (an H100 has 132 multiprocessors).
_SPLIT = 256


def _full(big: Tensor, whole: Structure) -> Tensor:
    """Numbers or kept blocks of a matrix of full blocks as (B, blocks, b, b)."""
    assert isinstance(whole, Block)
    return big.view(len(big), whole.blocks, whole.size, whole.size)


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
        """See :class:`Structure`: full blocks, the last one padded with zeros."""
        blocks, total = self.room // self.size, None
        slices = max(1, min(rows.count // 64, _SPLIT // (blocks * rows.batch)))
        for slab in rows.slabs(self.room, slices):
            first = slab.view(-1, self.size, slab.shape[3])
            found = torch.bmm(first, first.mT).view(len(slab), rows.batch, -1)
            part = found[0].to(wide(found.dtype)) if len(slab) == 1 else found.sum(0, dtype=wide(found.dtype))
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def inner(self, k: Tensor, sums: Tensor) -> Tensor:
        """See :class:`Structure`."""
        full = sums.to(k.dtype).view(len(k), -1, self.size, self.size)
        parts = [full[:, : self.blocks].reshape(-1, self.size, self.size)]
        if self.rest:
            parts.append(full[:, self.blocks, : self.rest, : self.rest])
        pairs = zip(self._squares(k), parts, strict=True)
        return self._joined([torch.bmm(a.mT, torch.bmm(s, a)) for a, s in pairs], len(k))

    # -- padded --------------------------------------------------------------------------------------------------------

    @property
    def alike(self) -> Hashable:
        """See :class:`Structure`."""
        return self.name

    def covering(self, d: int, sizes: Tensor) -> Structure:
        """See :class:`Structure`: whole blocks."""
        size = min(d, self.sizes.block)
        return Block(-(-d // size) * size, self.sizes)

    def parts(self, k: Tensor) -> list[Tensor]:
        """See :class:`Structure`."""
        first, last = self._views(k)
        return [first, last] if self.rest else [first]

    def within(self, big: Tensor, whole: Structure) -> list[Tensor]:
        """See :class:`Structure`."""
        full = _full(big, whole)
        first = full[:, : self.blocks, : self.size, : self.size]
        return [first, full[:, self.blocks, : self.rest, : self.rest]] if self.rest else [first]

    def sum_parts(self, sums: Tensor) -> list[Tensor]:
        """See :class:`Structure`."""
        return [sums.view(len(sums), -1, self.size, self.size)]

    def sums_within(self, big: Tensor, whole: Structure) -> list[Tensor]:
        """See :class:`Structure`."""
        return [_full(big, whole)[:, : self.room // self.size, : self.size, : self.size]]

    def keeps_within(self, whole: Structure) -> bool:
        """See :class:`Structure`."""
        return True

    def kept_within(self, big: Tensor, whole: Structure) -> list[Tensor]:
        """See :class:`Structure`."""
        return [big] if whole is self else self.sums_within(big, whole)

    # ------------------------------------------------------------------------------------------------------------------

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
