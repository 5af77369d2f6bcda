"""Diagonal matrices."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from methods.singd.rows import Rows, wide
from methods.singd.structures.base import Sizes, Structure


class Diagonal(Structure):
    """d numbers; Pi keeps the diagonal. No row is ever copied: sums of squares are enough."""

    name = "diagonal"

    def __init__(self, d: int, sizes: Sizes | None = None) -> None:
        super().__init__(d, sizes)
        self.count = d

    def identity(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """See :class:`Structure`."""
        return torch.ones(batch, self.d, dtype=dtype, device=device)

    def to_dense(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return k.diag_embed()

    def matmul(self, k: Tensor, m: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return k[:, :, None] * m

    def t_matmul(self, k: Tensor, m: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return k[:, :, None] * m

    def compose(self, k: Tensor, other: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return k * other

    def keeps(self, dtype: torch.dtype) -> bool:
        """See :class:`Structure`."""
        return True

    def keep(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return k * k

    def right(self, kept: Tensor, x: Tensor, out: torch.dtype) -> Tensor:
        """See :class:`Structure`."""
        return (x.to(kept.dtype) * kept[:, None, :]).to(out)

    def left(self, kept: Tensor, y: Tensor, out: torch.dtype) -> Tensor:
        """See :class:`Structure`."""
        return (y.to(kept.dtype) * kept[:, :, None]).to(out)

    @property
    def alike(self) -> Hashable:
        """See :class:`Structure`."""
        return self.name

    def within(self, big: Tensor, whole: Structure) -> list[Tensor]:
        """See :class:`Structure`."""
        return [big if whole is self else big[:, : self.d]]

    def keeps_within(self, whole: Structure) -> bool:
        """See :class:`Structure`."""
        return True

    def kept_within(self, big: Tensor, whole: Structure) -> list[Tensor]:
        """See :class:`Structure`."""
        return self.within(big, whole)

    def add_identity(self, k: Tensor, amount: float) -> Tensor:
        """See :class:`Structure`."""
        return k.add_(amount)

    def gather(self, k: Tensor, rows: Rows) -> Tensor:
        """See :class:`Structure`."""
        return rows.squares()

    def inner(self, k: Tensor, sums: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return (k.to(sums.dtype).square() * sums).to(k.dtype)

    def gram(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return k * k

    def trace(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return k.sum(1, dtype=wide(k.dtype))
