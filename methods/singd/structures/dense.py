"""All matrices: INGD and IKFAC."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.singd.products import moment as moment_of
from methods.singd.products import multiplied, operand, prepared, product, size
from methods.singd.rows import Rows, wide
from methods.singd.structures.base import Sizes, Structure


def moment(rows: Rows) -> Tensor:
    """X X^T (B, d, d) in the dtype of sums."""
    total: Tensor | None = None
    for piece in rows.pieces():
        part = moment_of(piece).to(wide(piece.dtype))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def inner_moment(dense: Tensor, rows: Rows) -> Tensor:
    """K^T X X^T K (B, d, d) in the dtype of sums: X^T K first where that is less work (4 n d^2 < 2 n d^2 + 4 d^3)."""
    if rows.count >= 2 * rows.d:
        return product(dense.mT, product(moment(rows).to(dense.dtype), dense)).to(wide(dense.dtype))
    total: Tensor | None = None
    for piece in rows.pieces():
        part = moment_of(product(piece, dense)).to(wide(piece.dtype))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


class Dense(Structure):
    """d^2 numbers; Pi is the identity."""

    name = "dense"
    squares = True

    def __init__(self, d: int, sizes: Sizes | None = None) -> None:
        super().__init__(d, sizes)
        self.count = d * d

    def identity(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """See :class:`Structure`."""
        return torch.eye(self.d, dtype=dtype, device=device).reshape(1, -1).repeat(batch, 1)

    def to_dense(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return k.view(-1, self.d, self.d)

    def matmul(self, k: Tensor, m: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return product(self.to_dense(k), m)

    def t_matmul(self, k: Tensor, m: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return product(self.to_dense(k).mT, m)

    def compose(self, k: Tensor, other: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return product(self.to_dense(k), self.to_dense(other)).flatten(1)

    def add_identity(self, k: Tensor, amount: float) -> Tensor:
        """See :class:`Structure`."""
        self.to_dense(k).diagonal(dim1=1, dim2=2).add_(amount)
        return k

    def keep(self, k: Tensor) -> Tensor:
        """See :class:`Structure`: (B, d, d), padded, in the dtype of operands."""
        dense, d = self.to_dense(k), size(self.d)
        whole = torch.zeros(k.shape[0], d, d, dtype=operand(k.dtype), device=k.device)
        whole[:, : self.d, : self.d] = product(dense, dense.mT)
        return whole

    def apply_kept(self, kept: Tensor, m: Tensor) -> Tensor:
        """See :class:`Structure`."""
        found = multiplied(kept, prepared(m, kept.dtype), m.dtype)
        return found[:, : self.d, : m.shape[2]]

    def kept_bytes(self, dtype: torch.dtype, products: str) -> int:
        """See :class:`Structure`."""
        return size(self.d) ** 2 * operand(dtype, products).itemsize

    def gather(self, k: Tensor, rows: Rows) -> Tensor:
        """See :class:`Structure`. With K already applied."""
        return inner_moment(self.to_dense(k), rows).flatten(1)

    def inner(self, k: Tensor, sums: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return sums.to(k.dtype)

    def gram(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        dense = self.to_dense(k)
        return product(dense.mT, dense).flatten(1)

    def trace(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return self.to_dense(k).diagonal(dim1=1, dim2=2).sum(1, dtype=wide(k.dtype))
