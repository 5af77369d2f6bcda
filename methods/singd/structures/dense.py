"""All matrices: INGD and IKFAC."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.singd.products import extent, multiplied, operand, prepared, product, size
from methods.singd.rows import Rows, wide
from methods.singd.structures.base import Sizes, Structure


def moment(rows: Rows, like: Tensor) -> Tensor:
    """X X^T (B, d, d) in the dtype of sums, with the precision in force for matrices like ``like``."""
    return padded_moment(rows, like)[:, : rows.d, : rows.d]


def padded_moment(rows: Rows, like: Tensor) -> Tensor:
    """As :func:`moment`, with zeros up to the extent that products on ``like``'s device want."""
    total: Tensor | None = None
    kind, room = operand(rows.dtype), extent(rows.d, like)
    for (x,) in rows.slabs(room, dtype=kind):
        ready = prepared(x, kind)
        part = multiplied(ready, ready.mT, rows.dtype).to(wide(rows.dtype))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def inner_moment(dense: Tensor, rows: Rows) -> Tensor:
    """K^T X X^T K (B, d, d) in the dtype of sums: K^T X first where that is less work (4 n d^2 < 2 n d^2 + 4 d^3)."""
    kind, d = operand(dense.dtype), rows.d
    if rows.count >= 2 * d:
        return product(dense.mT, product(moment(rows, dense).to(dense.dtype), dense)).to(wide(dense.dtype))
    total: Tensor | None = None
    left = prepared(dense.mT, kind)
    for (x,) in rows.slabs(left.shape[1], dtype=kind):
        y = multiplied(left, prepared(x, kind), dense.dtype).to(kind)
        part = multiplied(y, y.mT, dense.dtype)[:, :d, :d].to(wide(dense.dtype))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def padded_square(dense: Tensor, room: int) -> Tensor:
    """K K^T (B, room, room) of dense matrices, zero behind them, in the dtype of operands."""
    d = dense.shape[1]
    kind = operand(dense.dtype)
    found = product(dense, dense.mT)
    return found.to(kind) if room == d else torch.nn.functional.pad(found.to(kind), (0, room - d, 0, room - d))


class Dense(Structure):
    """d^2 numbers; Pi is the identity."""

    name = "dense"

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

    @property
    def room(self) -> int:
        """See :class:`Structure`."""
        return size(self.d)

    def keeps(self, dtype: torch.dtype) -> bool:
        """See :class:`Structure`."""
        return True

    def keep(self, k: Tensor) -> Tensor:
        """See :class:`Structure`: (B, room, room) in the dtype of operands."""
        return padded_square(self.to_dense(k), self.room)

    def right(self, kept: Tensor, x: Tensor, out: torch.dtype) -> Tensor:
        """See :class:`Structure`."""
        return multiplied(x.to(kept.dtype), kept, out)

    def left(self, kept: Tensor, y: Tensor, out: torch.dtype) -> Tensor:
        """See :class:`Structure`."""
        return multiplied(kept, y.to(kept.dtype), out)

    def kept_bytes(self, dtype: torch.dtype, products: str) -> int:
        """See :class:`Structure`."""
        return self.room**2 * operand(dtype, products).itemsize

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
