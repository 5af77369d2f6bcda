"""Lower and upper triangular matrices, packed."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.singd.products import product
from methods.singd.rows import Rows, wide
from methods.singd.structures.base import Sizes, Structure
from methods.singd.structures.dense import inner_moment
from methods.singd.tensors import unflatten


class Tril(Structure):
    """d (d + 1) / 2 numbers; Pi keeps the triangle and doubles what is off the diagonal.

    Packed as a rectangle (rectangular full packed format; Gustavson et al., ACM TOMS 37, 2010): the first half of the
    columns as they are, the triangle that remains transposed into the corner above them. Products unpack.
    """

    name = "tril"
    _lower = True

    def __init__(self, d: int, sizes: Sizes | None = None) -> None:
        super().__init__(d, sizes)
        self.count = d * (d + 1) // 2
        self.odd = d % 2
        #: Columns that stay in place, and how far down an even size shifts them.
        self.stay, self.shift = (d + 1) // 2, 1 - d % 2

    def _lower_of(self, k: Tensor) -> Tensor:
        """The packed lower triangle as (B, d, d)."""
        packed = unflatten(k, 1, (self.d + self.shift, self.stay))
        whole = packed.new_zeros(k.shape[0], self.d, self.d)
        whole[:, :, : self.stay] = packed[:, self.shift :].tril()
        rest = self.d - self.stay
        whole[:, self.stay :, self.stay :] = packed[:, :rest, self.odd :].triu().mT
        return whole

    def _pack(self, lower: Tensor) -> Tensor:
        """A lower triangle (B, d, d), zero above, as (B, count)."""
        packed = lower.new_zeros(lower.shape[0], self.d + self.shift, self.stay)
        packed[:, self.shift :] = lower[:, :, : self.stay]
        rest = self.d - self.stay
        packed[:, :rest, self.odd :] += lower[:, self.stay :, self.stay :].mT
        return packed.flatten(1)

    def _projected(self, s: Tensor) -> Tensor:
        """Pi of a symmetric matrix."""
        return self._pack(s.tril() + s.tril(-1))

    def identity(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """See :class:`Structure`."""
        return self._pack(torch.eye(self.d, dtype=dtype, device=device).repeat(batch, 1, 1))

    def to_dense(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        lower = self._lower_of(k)
        return lower if self._lower else lower.mT

    def matmul(self, k: Tensor, m: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return product(self.to_dense(k), m)

    def t_matmul(self, k: Tensor, m: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return product(self.to_dense(k).mT, m)

    def apply(self, k: Tensor, m: Tensor) -> Tensor:
        """See :class:`Structure`; unpacked once."""
        dense = self.to_dense(k)
        return product(dense, product(dense.mT, m))

    def compose(self, k: Tensor, other: Tensor) -> Tensor:
        """See :class:`Structure`."""
        found = product(self.to_dense(k), self.to_dense(other))
        return self._pack(found if self._lower else found.mT)

    def gather(self, k: Tensor, rows: Rows) -> Tensor:
        """See :class:`Structure`. With K already applied."""
        return self._projected(inner_moment(self.to_dense(k), rows))

    def inner(self, k: Tensor, sums: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return sums.to(k.dtype)

    def gram(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        dense = self.to_dense(k)
        return self._projected(product(dense.mT, dense))

    def trace(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        packed, kind = unflatten(k, 1, (self.d + self.shift, self.stay)), wide(k.dtype)
        ends = (packed.diagonal(offset, dim1=1, dim2=2) for offset in ((0, 1) if self.odd else (-1, 0)))
        first, last = (end.sum(1, dtype=kind) for end in ends)
        return first + last


class Triu(Tril):
    """The transposes: K is stored as the lower triangle K^T."""

    name = "triu"
    _lower = False
