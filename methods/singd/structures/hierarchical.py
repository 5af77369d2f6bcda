"""Two dense blocks with their dense rows around a diagonal."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor
from torch.nn.functional import pad

from methods.singd.rows import Rows, wide
from methods.singd.structures.base import Sizes, Structure
from methods.singd.tensors import split


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
        self.count = self.top * d + self.middle + self.low * (d - self.top)
        self._thin: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def _parts(self, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[A, B1, B2] (B, k1, d), C (B, d - k1 - k2) and [D, E] (B, k2, d - k1), views."""
        ends = (self.top * self.d, self.low * (self.d - self.top))
        upper, c, lower = split(k, [ends[0], self.middle, ends[1]], dim=1)
        shape = (len(k), self.low, self.d - self.top)
        return upper.view(len(k), self.top, self.d), c, lower.view(shape)

    def _rows(self, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """R = [[A, B1, B2], [0, D, E]] (B, k1 + k2, d), its columns at the dense places, and (0, c, 0) (B, 1, d)."""
        upper, c, lower = self._parts(k)
        rows = torch.cat([upper, pad(lower, (self.top, 0))], dim=1)
        return rows, self._ends(rows), pad(c, (self.top, self.low))[:, None]

    def _ends(self, rows: Tensor) -> Tensor:
        """The first k1 and the last k2 columns."""
        return torch.cat([rows[:, :, : self.top], rows[:, :, self.d - self.low :]], dim=2)

    def _join(self, rows: Tensor, diagonal: Tensor) -> Tensor:
        """Numbers from R and the diagonal (B, d)."""
        c = diagonal[:, self.top : self.top + self.middle]
        return torch.cat([rows[:, : self.top].flatten(1), c, rows[:, self.top :, self.top :].flatten(1)], dim=1)

    def identity(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """See :class:`Structure`."""
        return self.add_identity(torch.zeros(batch, self.count, dtype=dtype, device=device), 1.0)

    def add_identity(self, k: Tensor, amount: float) -> Tensor:
        """See :class:`Structure`."""
        upper, c, lower = self._parts(k)
        upper.diagonal(dim1=1, dim2=2).add_(amount)
        c.add_(amount)
        lower.diagonal(self.middle, dim1=1, dim2=2).add_(amount)
        return k

    def to_dense(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        rows, _, c = self._rows(k)
        return self._scatter(rows, c[:, 0].diag_embed())

    def _scatter(self, thin: Tensor, whole: Tensor) -> Tensor:
        """Rows (B, k1 + k2, n) at the dense places and those of (B, d, n) between."""
        return torch.cat([thin[:, : self.top], whole[:, self.top : self.d - self.low], thin[:, self.top :]], dim=1)

    def matmul(self, k: Tensor, m: Tensor) -> Tensor:
        """See :class:`Structure`."""
        rows, _, c = self._rows(k)
        return self._scatter(torch.bmm(rows, m), c.mT * m)

    def t_matmul(self, k: Tensor, m: Tensor) -> Tensor:
        """See :class:`Structure`."""
        rows, _, c = self._rows(k)
        return torch.baddbmm(c.mT * m, rows.mT, self._ends(m.mT).mT)

    def compose(self, k: Tensor, other: Tensor) -> Tensor:
        """See :class:`Structure`: S^T K L = R L."""
        rows, ends, c = self._rows(k)
        right, _, c_ = self._rows(other)
        return self._join(torch.baddbmm(rows * c_, ends, right), (c * c_)[:, 0])

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
        rows, _, c = self._rows(k)
        ends, between = torch.bmm(rows, rows.mT) * 0.5, (rows * c)[:, :, self.top : self.d - self.low]
        q = torch.cat([ends[:, :, : self.top], between, ends[:, :, self.top :]], dim=2)
        unit = torch.zeros_like(rows)
        unit[:, : self.top, : self.top].diagonal(dim1=1, dim2=2).fill_(1)
        unit[:, self.top :, self.d - self.low :].diagonal(dim1=1, dim2=2).fill_(1)
        return torch.cat([unit, q, unit, c.square()], dim=1)

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
        thin = self._units(len(k), k.dtype, k.device)
        return self._join(rows.times(thin).mT, rows.squares())

    def _units(self, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The unit vectors of the dense rows, (B, d, k1 + k2)."""
        key = (batch, dtype, device)
        if key not in self._thin:
            thin = torch.zeros(batch, self.d, self.top + self.low, dtype=dtype, device=device)
            thin[:, : self.top, : self.top].diagonal(dim1=1, dim2=2).fill_(1)
            thin[:, self.d - self.low :, self.top :].diagonal(dim1=1, dim2=2).fill_(1)
            self._thin = {key: thin}
        return self._thin[key]

    # -- padded: between, and behind blocks that are not full ----------------------------------------------------------

    @property
    def alike(self) -> Hashable:
        """See :class:`Structure`."""
        return self.name

    def within(self, big: Tensor, whole: Structure) -> list[Tensor]:
        """See :class:`Structure`."""
        assert isinstance(whole, Hierarchical)
        upper, c, lower = whole._parts(big)
        upper, lower, far = upper[:, : self.top], lower[:, : self.low], whole.d - whole.low
        near, end = far - whole.top, far + self.low
        found = [upper[:, :, : self.top + self.middle], upper[:, :, far:end], c[:, : self.middle]]
        found += [lower[:, :, : self.middle], lower[:, :, near : near + self.low]]
        return [part for part in found if part.numel()]

    def keeps_within(self, whole: Structure) -> bool:
        """See :class:`Structure`."""
        assert isinstance(whole, Hierarchical)
        return (self.top, self.low) == (whole.top, whole.low)

    def kept_within(self, big: Tensor, whole: Structure) -> list[Tensor]:
        """See :class:`Structure`."""
        return [big[:, :, : self.top + self.middle], big[:, :, whole.d - self.low :]]

    # ------------------------------------------------------------------------------------------------------------------

    def _projected(self, rows: Tensor, diagonal: Tensor) -> Tensor:
        """Pi from the dense rows of a symmetric matrix and its diagonal (B, d); ``rows`` is changed."""
        once = (rows[:, : self.top, : self.top], rows[:, self.top :, self.d - self.low :])
        for corner in once:
            corner.mul_(0.5)
        return self._join(rows.mul_(2), diagonal)

    def inner(self, k: Tensor, sums: Tensor) -> Tensor:
        """See :class:`Structure`.

        With T = S^T X X^T, H = K^T X X^T K has the dense rows R_e^T (T K), T K = T_e R + T diag(c) (e: columns at the
        dense places), and between, H_jj = sum_i R_ij ((T K)_ij + c_j T_ij) + c_j^2 (X X^T)_jj.
        """
        rows, ends, c = self._rows(k)
        t, _, squares = self._rows(sums.to(k.dtype))
        t[:, self.top :, : self.top] = t[:, : self.top, self.d - self.low :].mT
        scaled = t * c
        moved = torch.baddbmm(scaled, self._ends(t), rows)
        diagonal = torch.addcmul((rows * (moved + scaled)).sum(1), c[:, 0].square(), squares[:, 0])
        return self._projected(torch.bmm(ends.mT, moved), diagonal)

    def gram(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        rows, ends, c = self._rows(k)
        return self._projected(torch.bmm(ends.mT, rows), torch.addcmul(rows.square().sum(1), c[:, 0], c[:, 0]))

    def trace(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        upper, c, lower = self._parts(k)
        places = (upper.diagonal(dim1=1, dim2=2), c, lower.diagonal(self.middle, dim1=1, dim2=2))
        return torch.cat(places, dim=1).sum(1, dtype=wide(k.dtype))
