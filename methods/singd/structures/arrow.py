"""Triangular matrices with a diagonal and k dense columns: rank-k arrows."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from methods.singd.rows import Rows, wide
from methods.singd.structures.base import Sizes, Structure
from methods.singd.tensors import split, unflatten


class TrilArrow(Structure):
    """K = [[A, 0], [B, D]], A (k, k) dense, D diagonal: (k + 1) d - k numbers; Pi doubles B.

    With W = [A; B], the first k columns, Pi(K^T S K) consists of W^T S W, 2 D (S W) below, and D^2 diag(S): a thin
    product of the rows' moment and their squares.
    """

    name = "tril-arrow"
    _first = True

    def __init__(self, d: int, sizes: Sizes | None = None) -> None:
        super().__init__(d, sizes)
        self.rank = min(self.sizes.rank, d)
        self.tail = d - self.rank
        self.count = self.rank * d + self.tail

    def _views(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Dense columns W (B, d, k) and the diagonal (B, d - k)."""
        first, last = split(k, [self.rank * self.d, self.tail], dim=1)
        return unflatten(first, 1, (self.d, self.rank)), last

    def _cut(self, m: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the corner, rows of the diagonal."""
        if self._first:
            corner, diagonal = split(m, [self.rank, self.tail], dim=1)
        else:
            diagonal, corner = split(m, [self.tail, self.rank], dim=1)
        return corner, diagonal

    def _pile(self, corner: Tensor, diagonal: Tensor) -> Tensor:
        return torch.cat([corner, diagonal] if self._first else [diagonal, corner], dim=1)

    def _join(self, w: Tensor, diagonal: Tensor) -> Tensor:
        return torch.cat([w.flatten(1), diagonal], dim=1)

    def identity(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """See :class:`Structure`."""
        eye = torch.eye(self.rank, dtype=dtype, device=device).repeat(batch, 1, 1)
        below = torch.zeros(batch, self.tail, self.rank, dtype=dtype, device=device)
        return self._join(self._pile(eye, below), torch.ones(batch, self.tail, dtype=dtype, device=device))

    def to_dense(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        w, diagonal = self._views(k)
        whole = k.new_zeros(k.shape[0], self.d, self.d)
        columns, rest = slice(0, self.rank), slice(self.rank, None)
        if not self._first:
            columns, rest = slice(self.tail, None), slice(0, self.tail)
        whole[:, :, columns] = w
        whole[:, rest, rest] = diagonal.diag_embed()
        return whole

    def matmul(self, k: Tensor, m: Tensor) -> Tensor:
        """See :class:`Structure`."""
        w, diagonal = self._views(k)
        corner, rest = self._cut(m)
        found = w @ corner
        self._cut(found)[1].addcmul_(diagonal[:, :, None], rest)
        return found

    def t_matmul(self, k: Tensor, m: Tensor) -> Tensor:
        """See :class:`Structure`."""
        w, diagonal = self._views(k)
        return self._pile(w.mT @ m, diagonal[:, :, None] * self._cut(m)[1])

    def compose(self, k: Tensor, other: Tensor) -> Tensor:
        """See :class:`Structure`."""
        w, diagonal = self._views(other)
        return self._join(self.matmul(k, w), self._views(k)[1] * diagonal)

    def keeps(self, dtype: torch.dtype) -> bool:
        """See :class:`Structure`."""
        return True

    def kept_numbers(self) -> int:
        """See :class:`Structure`."""
        return (self.rank + 1) * self.d

    def keep(self, k: Tensor) -> Tensor:
        """See :class:`Structure`: K K^T = W W^T + diag(0, D^2), as rows W^T and the diagonal (B, k + 1, d)."""
        w, diagonal = self._views(k)
        square = diagonal.square()
        corner = square.new_zeros(square.shape[0], self.rank)
        return torch.cat([w.mT, self._pile(corner, square)[:, None]], dim=1)

    def right(self, kept: Tensor, x: Tensor, out: torch.dtype) -> Tensor:
        """See :class:`Structure`."""
        w, x = kept[:, : self.rank], x.to(kept.dtype)
        return (x * kept[:, self.rank :]).baddbmm_(torch.bmm(x, w.mT), w).to(out)

    def left(self, kept: Tensor, y: Tensor, out: torch.dtype) -> Tensor:
        """See :class:`Structure`."""
        w, y = kept[:, : self.rank], y.to(kept.dtype)
        return (y * kept[:, self.rank :].mT).baddbmm_(w.mT, torch.bmm(w, y)).to(out)

    def gather(self, k: Tensor, rows: Rows) -> Tensor:
        """See :class:`Structure`."""
        w, _ = self._views(k)
        return self._join(rows.times(w), self._pile_cut(rows.squares()))

    def _pile_cut(self, squares: Tensor) -> Tensor:
        return self._cut(squares)[1]

    def inner(self, k: Tensor, sums: Tensor) -> Tensor:
        """See :class:`Structure`."""
        w, diagonal = self._views(k)
        sw, squares = self._views(sums.to(k.dtype))
        below = 2 * diagonal[:, :, None] * self._cut(sw)[1]
        return self._join(self._pile(w.mT @ sw, below), diagonal.square() * squares)

    def gram(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        w, diagonal = self._views(k)
        return self.inner(k, self._join(w, torch.ones_like(diagonal)))

    # -- padded --------------------------------------------------------------------------------------------------------

    @property
    def alike(self) -> Hashable:
        """See :class:`Structure`."""
        return self.name

    def _span(self, whole: TrilArrow) -> tuple[slice, slice]:
        """Where the corner and the diagonal lie among the rows of ``whole``."""
        first, tail = (0, whole.rank) if self._first else (whole.tail, 0)
        return slice(first, first + self.rank), slice(tail, tail + self.tail)

    def within(self, big: Tensor, whole: Structure) -> list[Tensor]:
        """See :class:`Structure`."""
        assert isinstance(whole, TrilArrow)
        w, diagonal = whole._views(big)
        found = [*(w[:, rows, : self.rank] for rows in self._span(whole)), diagonal[:, : self.tail]]
        return [part for part in found if part.numel()]

    def keeps_within(self, whole: Structure) -> bool:
        """See :class:`Structure`."""
        assert isinstance(whole, TrilArrow)
        return self.rank == whole.rank

    def kept_within(self, big: Tensor, whole: Structure) -> list[Tensor]:
        """See :class:`Structure`."""
        assert isinstance(whole, TrilArrow)
        return [part for columns in self._span(whole) if (part := big[:, :, columns]).numel()]

    # ------------------------------------------------------------------------------------------------------------------

    def trace(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        w, diagonal = self._views(k)
        kind = wide(k.dtype)
        return self._cut(w)[0].diagonal(dim1=1, dim2=2).sum(1, dtype=kind) + diagonal.sum(1, dtype=kind)


class TriuArrow(TrilArrow):
    """K = [[D, B], [0, A]], A (k, k) dense, D diagonal: the last k columns are dense."""

    name = "triu-arrow"
    _first = False
