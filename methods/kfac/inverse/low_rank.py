"""Low-rank inverses from a random sketch: RSVD and SRE, with continuation of the spectrum and a warm start.

Puiu, arXiv 2206.15397; the sketch: Halko, Martinsson and Tropp (SIAM Review 2011), algorithms 4.4 and 5.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.kfac.inverse.base import Inverse, LinAlgError, State

#: Retained eigenvalues at or below it count as 0 (Puiu's code).
_ZERO = 1e-10


class LowRank(Inverse):
    """M ~ U diag(D) U^T with r modes, inverted with lam on all modes.

    (M + lam I)^-1 X ~ U ((D + lam)^-1 - t^-1) U^T X + X / t,

    t = lam, or with ``continuation`` t = lam + min(D): the modes that were not kept count as the smallest kept one.

    Args:
        rank: r; kept modes, at most d.
        oversampling: further columns of the sketch.
        power: products of M with the sketch before the last one.
        method: ``rsvd`` re-orthonormalises the sketch after every product and takes the singular value decomposition
            of Q^T M; ``sre`` multiplies without re-orthonormalising in between and takes the eigendecomposition of
            Q^T M Q (cheaper; small modes drown in rounding as ``power`` grows).
        continuation: see above; without it the unkept modes count as 0, as published first.
        warm: the sketch starts at the modes kept before, filled up with random columns.
        seed: of the random columns, which depend on it, d and the column alone.
    """

    def __init__(
        self,
        rank: int = 220,
        oversampling: int = 10,
        power: int = 4,
        method: str = "rsvd",
        continuation: bool = False,
        warm: bool = False,
        seed: int = 0,
    ) -> None:
        self.rank, self.oversampling, self.power, self.method = rank, oversampling, power, method
        self.continuation, self.warm, self.seed = continuation, warm, seed

    def allocate(self, matrices: Tensor) -> State:
        """The identity: no modes, t = 1."""
        count, size = matrices.shape[:2]
        rank = min(self.rank, size)
        return {
            "vectors": matrices.new_zeros(count, size, rank),
            "values": matrices.new_zeros(count, rank),
            "damping": matrices.new_ones(count),
        }

    def refresh(self, matrices: Tensor, damping: Tensor, state: State | None) -> tuple[State, Tensor]:
        """A sketch, products, and a small decomposition."""
        size = matrices.shape[1]
        rank, width = min(self.rank, size), min(self.rank + self.oversampling, size)
        try:
            vectors, values = self._modes(matrices, self._start(matrices, width, state))
        except LinAlgError:
            failed = self.allocate(matrices)
            return failed, torch.zeros(len(matrices), dtype=torch.bool, device=matrices.device)
        values = torch.where(values[:, :rank] <= _ZERO, 0.0, values[:, :rank])
        new = {"vectors": vectors[:, :, :rank].contiguous(), "values": values, "damping": damping.clone()}
        return new, values.isfinite().all(1) & new["vectors"][:, 0].isfinite().all(1)

    def _start(self, matrices: Tensor, width: int, state: State | None) -> Tensor:
        size = matrices.shape[1]
        generator = torch.Generator().manual_seed(self.seed + size)
        drawn = torch.randn(size, width, generator=generator, dtype=torch.float64)
        sketch = drawn.to(matrices.device, matrices.dtype).expand(len(matrices), -1, -1)
        if not self.warm or state is None:
            return sketch
        old = state["vectors"]
        return torch.cat([old, sketch[:, :, old.shape[2] :]], dim=2)

    def _modes(self, matrices: Tensor, sketch: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (k, d, w) and values (k, w), largest first."""
        if self.method == "sre":
            for _ in range(self.power):
                sketch = matrices @ sketch
            # One scale for a column keeps the range and the exponent; the directions are as without it.
            basis = torch.linalg.qr(sketch / sketch.norm(dim=1, keepdim=True).clamp_min(torch.finfo(sketch.dtype).tiny))
            values, rotation = torch.linalg.eigh(basis.Q.mT @ matrices @ basis.Q)
            return basis.Q @ rotation.flip(2), values.flip(1)
        basis_q = torch.linalg.qr(matrices @ sketch).Q
        for _ in range(self.power):
            basis_q = torch.linalg.qr(matrices @ basis_q).Q
        # Right singular vectors of Q^T M = eigenvectors of M in the sketch's span, and closer than Q's combination.
        _, values, right = torch.linalg.svd(basis_q.mT @ matrices, full_matrices=False)
        return right.mT, values

    def apply(self, state: State, columns: Tensor) -> Tensor:
        """Two thin products."""
        vectors, values, damping = state["vectors"], state["values"], state["damping"][:, None]
        rest = damping + values[:, -1:] if self.continuation else damping
        weight = 1 / (values + damping) - 1 / rest
        return vectors @ (weight[:, :, None] * (vectors.mT @ columns)) + columns / rest[:, :, None]
