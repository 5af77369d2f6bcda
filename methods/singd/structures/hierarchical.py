"""Two dense blocks with their dense rows around a diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.singd.rows import Rows, wide
from methods.singd.structures.base import Sizes, Structure
from methods.singd.tensors import split, unflatten


class Hierarchical(Structure):
    """K = [[A, B1, B2], [0, C, 0], [0, D, E]] with A (k1, k1), C diagonal, E (k2, k2): about (k1 + k2 + 1) d numbers.

    Pi keeps the pattern and doubles B1, B2 and D. The entries of Pi(K^T S K) depend on the entries of S in the pattern
    alone, so those of X X^T are summed once: thin products and squares, no copied patches. Where d < k1 + k2, A is
    filled first.
    """

    name = "hierarchical"

    def __init__(self, d: int, sizes: Sizes | None = None) -> None:
        super().__init__(d, sizes)
        self.top = min(self.sizes.ranks[0], d)
        self.low = min(self.sizes.ranks[1], d - self.top)
        self.middle = d - self.top - self.low
        top, middle, low = self.top, self.middle, self.low
        self._shapes = ((top, top), (top, middle), (top, low), (middle,), (low, middle), (low, low))
        self.count = top * d + middle + low * (middle + low)

    def _views(self, k: Tensor) -> list[Tensor]:
        """A, B1, B2, C, D, E."""
        parts = split(k, [torch.Size(shape).numel() for shape in self._shapes], dim=1)
        return [unflatten(part, 1, shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def _join(self, *parts: Tensor) -> Tensor:
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def _parts(self, m: Tensor) -> tuple[Tensor, ...]:
        return split(m, [self.top, self.middle, self.low], dim=1)

    def identity(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """See :class:`Structure`."""
        made = [torch.zeros(batch, *shape, dtype=dtype, device=device) for shape in self._shapes]
        made[3].fill_(1)
        for index in (0, 5):
            made[index].diagonal(dim1=1, dim2=2).fill_(1)
        return self._join(*made)

    def to_dense(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        a, b1, b2, c, d, e = self._views(k)
        whole = k.new_zeros(k.shape[0], self.d, self.d)
        one, two = self.top, self.top + self.middle
        whole[:, :one] = torch.cat([a, b1, b2], dim=2)
        whole[:, one:two, one:two] = c.diag_embed()
        whole[:, two:, one:] = torch.cat([d, e], dim=2)
        return whole

    def matmul(self, k: Tensor, m: Tensor) -> Tensor:
        """See :class:`Structure`."""
        a, b1, b2, c, d, e = self._views(k)
        y = self._parts(m)[1]
        upper = torch.cat([a, b1, b2], dim=2) @ m
        return torch.cat([upper, c[:, :, None] * y, torch.cat([d, e], dim=2) @ m[:, self.top :]], dim=1)

    def t_matmul(self, k: Tensor, m: Tensor) -> Tensor:
        """See :class:`Structure`."""
        c = self._views(k)[3]
        x, y, z = self._parts(m)
        found = self._thin(k).mT @ torch.cat([x, z], dim=1)
        found[:, self.top : self.top + self.middle].addcmul_(c[:, :, None], y)
        return found

    def compose(self, k: Tensor, other: Tensor) -> Tensor:
        """See :class:`Structure`."""
        a, b1, b2, c, d, e = self._views(k)
        a_, b1_, b2_, c_, d_, e_ = self._views(other)
        row = c_[:, None, :]
        return self._join(a @ a_, a @ b1_ + b1 * row + b2 @ d_, a @ b2_ + b2 @ e_, c * c_, d * row + e @ d_, e @ e_)

    def _thin(self, k: Tensor) -> Tensor:
        """The rows [A, B1, B2] and [0, D, E] (B, k1 + k2, d)."""
        a, b1, b2, _, d, e = self._views(k)
        zero = a.new_zeros(a.shape[0], self.low, self.top)
        return torch.cat([torch.cat([a, b1, b2], dim=2), torch.cat([zero, d, e], dim=2)], dim=1)

    def keeps(self, dtype: torch.dtype) -> bool:
        """See :class:`Structure`."""
        return True

    def kept_numbers(self) -> int:
        """See :class:`Structure`."""
        return (3 * (self.top + self.low) + 1) * self.d

    def keep(self, k: Tensor) -> Tensor:
        """See :class:`Structure`: rows S^T, Q^T, S^T and diag D (B, 3 (k1 + k2) + 1, d).

        With S the unit vectors of the dense rows and R = S^T K, K = S R + diag(0, c, 0), so K K^T = D + S Q^T + Q S^T,
        D = diag(0, c^2, 0), Q^T = R R^T / 2 in the dense columns and R diag(c) between.
        """
        c, rows = self._views(k)[3], self._thin(k)
        ends = rows @ rows.mT * 0.5
        q = torch.cat(
            [ends[:, :, : self.top], rows[:, :, self.top : self.d - self.low] * c[:, None], ends[:, :, self.top :]], 2
        )
        unit = torch.zeros_like(rows)
        unit[:, : self.top, : self.top].diagonal(dim1=1, dim2=2).fill_(1)
        unit[:, self.top :, self.d - self.low :].diagonal(dim1=1, dim2=2).fill_(1)
        return torch.cat([unit, q, unit, torch.nn.functional.pad(c.square(), (self.top, self.low))[:, None]], dim=1)

    def right(self, kept: Tensor, x: Tensor, out: torch.dtype) -> Tensor:
        """See :class:`Structure`."""
        thin, x = self.top + self.low, x.to(kept.dtype)
        inner = torch.bmm(x, kept[:, : 2 * thin].mT)
        return (x * kept[:, 3 * thin :]).baddbmm_(inner, kept[:, thin : 3 * thin]).to(out)

    def left(self, kept: Tensor, y: Tensor, out: torch.dtype) -> Tensor:
        """See :class:`Structure`."""
        thin, y = self.top + self.low, y.to(kept.dtype)
        inner = torch.bmm(kept[:, : 2 * thin], y)
        return (y * kept[:, 3 * thin :].mT).baddbmm_(kept[:, thin : 3 * thin].mT, inner).to(out)

    def gather(self, k: Tensor, rows: Rows) -> Tensor:
        """See :class:`Structure`."""
        thin = k.new_zeros(k.shape[0], self.d, self.top + self.low)
        thin[:, : self.top, : self.top].diagonal(dim1=1, dim2=2).fill_(1)
        thin[:, self.d - self.low :, self.top :].diagonal(dim1=1, dim2=2).fill_(1)
        found = rows.times(thin).mT
        upper, lower = split(found, [self.top, self.low], dim=1)
        middle = slice(self.top, self.top + self.middle)
        parts = split(upper, [self.top, self.middle, self.low], dim=2)
        return self._join(*parts, rows.squares()[:, middle], lower[:, :, middle], lower[:, :, middle.stop :])

    def inner(self, k: Tensor, sums: Tensor) -> Tensor:
        """See :class:`Structure`."""
        a, b1, b2, c, d, e = self._views(k)
        s11, s12, s13, s22, s32, s33 = self._views(sums.to(k.dtype))
        row = c[:, None, :]
        t12 = s11 @ b1 + s12 * row + s13 @ d
        t32 = s13.mT @ b1 + s32 * row + s33 @ d
        t13 = s11 @ b2 + s13 @ e
        t33 = s13.mT @ b2 + s33 @ e
        h22 = (b1 * t12).sum(1) + (d * t32).sum(1) + c * ((s12 * b1).sum(1) + s22 * c + (s32 * d).sum(1))
        h32 = b2.mT @ t12 + e.mT @ t32
        return self._join(a.mT @ s11 @ a, 2 * (a.mT @ t12), 2 * (a.mT @ t13), h22, 2 * h32, b2.mT @ t13 + e.mT @ t33)

    def gram(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return self.inner(k, self.identity(k.shape[0], k.dtype, k.device))

    def trace(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        a, _, _, c, _, e = self._views(k)
        kind = wide(k.dtype)
        ends = [m.diagonal(dim1=1, dim2=2).sum(1, dtype=kind) for m in (a, e)]
        return ends[0] + c.sum(1, dtype=kind) + ends[1]
