"""Preconditioners of one layer that work on the newest rows: Brand's online update, and the empirical Fisher itself.

Neither multiplies a dense factor in ``refresh``: both cost a multiple of the layer's width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.errors import Unsupported, UserError
from methods.kfac.inverse import brand as online
from methods.kfac.inverse.base import State
from methods.kfac.inverse.low_rank import LowRank
from methods.kfac.inverse_plain import ExactLowRank
from methods.kfac.preconditioner import SIDES


class Brand:
    """M ~ U diag(D) U^T follows M <- rho M + (1 - rho) / n sum r r^T by Brand's update, cut to r modes before each.

    Puiu, arXiv 2210.08494 (B-KFAC); ``place`` is the overwrite of B-R-KFAC by a randomized decomposition. Without it
    the first batch makes the modes, where the published code starts at zero. The r + n modes after an update all
    enter the application, the others count as 0.

    Args:
        d_out: rows of the gradient.
        d_in: columns of the gradient.
        damping: lam, absolute, on both factors.
        decay: rho.
        rank: r.
        oversampling: of the overwrite.
        power: products of the overwrite's sketch.
    """

    online = True

    def __init__(
        self, d_out: int, d_in: int, damping: float, decay: float, rank: int, oversampling: int, power: int
    ) -> None:
        self.widths = {"a": d_in, "g": d_out}
        self.damping, self.decay, self.rank = damping, decay, rank
        self.sketch = LowRank(rank=rank, oversampling=oversampling, power=power)
        self.pending: dict[str, Tensor] = {}
        self.overwrites: dict[str, Tensor] = {}
        self.states: dict[str, State] = {}

    def place(self, side: str, factor: Tensor) -> None:
        """Overwrite this side's modes at the next refresh."""
        self.overwrites[side] = factor

    def update(self, a: Tensor | None = None, g: Tensor | None = None) -> None:
        """Keep the rows (n, d) for the next refresh, by reference. A side as narrow as r + n is left alone.

        Raises:
            Unsupported: no side is wide enough.
        """
        for side, rows in zip(SIDES, (a, g), strict=True):
            if rows is not None and self.rank + len(rows) < self.widths[side]:
                self.pending[side] = rows
        if a is not None and not self.pending:
            raise Unsupported(
                f"Brand's update needs rank + rows < width; got {self.rank} + {len(a)} rows for width {a.shape[1]}. "
                "Narrow layers take a randomized decomposition."
            )

    @torch.no_grad()
    def refresh(self) -> None:
        """Overwrites that were asked for, then one update with the rows."""
        for side, factor in self.overwrites.items():
            damping = torch.full_like(factor[:1, 0], self.damping)
            self.states[side], _ = self.sketch.refresh(factor[None], damping, None)
        self.overwrites = {}
        for side, rows in self.pending.items():
            self.states[side] = self._followed(self.states.get(side), rows)
        self.pending = {}

    def _followed(self, old: State | None, rows: Tensor) -> State:
        scaled = rows[None] / len(rows) ** 0.5
        first = old is None
        old = old or {
            "vectors": scaled.new_zeros(1, rows.shape[1], 0),
            "values": scaled.new_zeros(1, 0),
            "damping": scaled.new_full((1,), self.damping),
        }
        keep = scaled.new_full((), 0.0 if first else self.decay)
        vectors, values = online.follow(old["vectors"], old["values"], scaled, keep, self.rank)
        return {"vectors": vectors, "values": values, "damping": old["damping"]}

    @torch.no_grad()
    def precondition(self, gradient: Tensor) -> Tensor:
        """Two thin products a side."""
        found = gradient[None]
        if "g" in self.states:
            found = self.sketch.apply(self.states["g"], found)
        if "a" in self.states:
            found = self.sketch.apply(self.states["a"], found.mT).mT
        return found[0].clone() if not self.states else found[0]


class EmpiricalFisher:
    """(lam I + U^T U)^-1 V with the rows vec(g_n a_n^T) / sqrt(n) of U, by Sherman, Morrison and Woodbury.

        K = (a a^T) * (g g^T) / n,   w = (lam I + K)^-1 U v,   v -> (v - U^T w) / lam

    Yang, Xu, Wen, Chen and Xu, SENG, arXiv 2006.05924, for layers without shared weights; U is never formed, and no
    column is sampled. O(n^2 (d_in + d_out) + n^3) a refresh.

    Args:
        damping: lam.
    """

    online = True

    def __init__(self, damping: float) -> None:
        self.damping = damping
        self.rows: tuple[Tensor, Tensor] | None = None
        self.taken: tuple[Tensor, Tensor] | None = None
        self.root: Tensor | None = None

    def update(self, a: Tensor | None = None, g: Tensor | None = None) -> None:
        """Keep the rows of both sides, by reference."""
        if a is None or g is None:
            raise UserError("the empirical Fisher needs the rows of both sides: update(a, g).")
        self.rows = (a, g)

    @torch.no_grad()
    def refresh(self) -> None:
        """The Gram matrix and its Cholesky root; the rows are copied, as the next batch overwrites them."""
        if self.rows is None:
            return
        a, g = (rows.clone() for rows in self.rows)
        gram = (a @ a.mT) * (g @ g.mT) / len(a)
        gram.diagonal().add_(self.damping)
        self.root, self.taken = torch.linalg.cholesky_ex(gram, check_errors=False).L, (a, g)

    @torch.no_grad()
    def precondition(self, gradient: Tensor) -> Tensor:
        """Three thin products and a solve of size n."""
        if self.taken is None or self.root is None:
            return gradient.clone()
        a, g = self.taken
        along = ((g @ gradient) * a).sum(1, keepdim=True) / len(a) ** 0.5
        weight = torch.cholesky_solve(along, self.root) / len(a) ** 0.5
        answer: Tensor = (gradient - (g * weight).mT @ a) / self.damping
        return answer


class BrandTwin(Brand):
    """The same recursion in float64 from exact decompositions of a root of M: plain twin of :class:`Brand`."""

    def place(self, side: str, factor: Tensor) -> None:
        """As there."""
        super().place(side, factor.double())

    def update(self, a: Tensor | None = None, g: Tensor | None = None) -> None:
        """As there."""
        super().update(*(rows if rows is None else rows.double() for rows in (a, g)))

    @torch.no_grad()
    def refresh(self) -> None:
        """As there, the overwrite by a full decomposition, the update by that of [U sqrt(rho D), sqrt(1 - rho) B]."""
        for side, factor in self.overwrites.items():
            values, vectors = ExactLowRank(self.rank).leading(factor[None])
            self.states[side] = self._kept(vectors[0, :, : self.rank], values[0, : self.rank].clamp_min(0))
        self.overwrites = {}
        for side, rows in self.pending.items():
            new = rows.mT / len(rows) ** 0.5
            old = self.states.get(side)
            root = new
            if old is not None:
                kept = old["vectors"][0, :, : self.rank] * (self.decay * old["values"][0, : self.rank]).sqrt()
                root = torch.cat([kept, (1 - self.decay) ** 0.5 * new], 1)
            vectors, sigma, _ = torch.linalg.svd(root, full_matrices=False)
            self.states[side] = self._kept(vectors, sigma.square())
        self.pending = {}

    def _kept(self, vectors: Tensor, values: Tensor) -> State:
        return {"vectors": vectors[None], "values": values[None], "damping": values.new_full((1,), self.damping)}

    def precondition(self, gradient: Tensor) -> Tensor:
        """As there."""
        return super().precondition(gradient.double())


class FisherTwin(EmpiricalFisher):
    """U's rows written out in float64 where they fit: plain twin of :class:`EmpiricalFisher`."""

    #: Largest U in scalars that is written out; beyond, the identity for U U^T is used in float64 as well.
    LARGEST = 2**25

    @torch.no_grad()
    def precondition(self, gradient: Tensor) -> Tensor:
        """Woodbury with U written out."""
        if self.rows is None:
            return gradient.double()
        a, g = (rows.double() / len(rows) ** 0.25 for rows in self.rows)
        v, eye = gradient.double(), self.damping * torch.eye(len(a), dtype=a.dtype, device=a.device)
        if len(a) * v.numel() > self.LARGEST:
            weight = torch.linalg.solve(eye + (a @ a.mT) * (g @ g.mT), ((g @ v) * a).sum(1))
            return _over(v - (g * weight[:, None]).mT @ a, self.damping)
        whole = torch.einsum("no,ni->noi", g, a).reshape(len(a), -1)
        weight = torch.linalg.solve(eye + whole @ whole.mT, whole @ v.reshape(-1))
        return _over(v - (weight @ whole).reshape(v.shape), self.damping)


def _over(tensor: Tensor, amount: float) -> Tensor:
    return torch.div(tensor, amount)
