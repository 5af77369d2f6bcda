"""Low-rank inverses from a random sketch: RSVD and SRE, with continuation of the spectrum and a warm start.

Puiu, arXiv 2206.15397; the sketch: Halko, Martinsson and Tropp (SIAM Review 2011), algorithms 4.4 and 5.3. These are
the decompositions as published; :mod:`methods.kfac.inverse.subspace` is the same inverse without any.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from methods.kfac.inverse.base import Inverse, LinAlgError, State

#: Retained eigenvalues at or below it count as 0 (Puiu's code).
_ZERO = 1e-10
#: Kept from division by it.
_TINY = 1e-30


class Sketched(Inverse):
    """What inverses from a sketch share: a rank that may change, random columns, damping relative to the spectrum.

    Args:
        rank: r; kept modes, at most d. The optimizer may set it between refreshes, for states that come new.
        oversampling: further columns of the sketch.
        power: products of M with the sketch before the last one.
        continuation: the modes that were not kept count as the smallest kept one, not as 0.
        relative: the damping given is a share of the largest eigenvalue that the decomposition finds.
        seed: of the random columns, which depend on it, d and the column alone.
    """

    def __init__(self, rank: int, oversampling: int, power: int, continuation: bool, relative: bool, seed: int) -> None:
        self.rank, self.oversampling, self.power = rank, oversampling, power
        self.continuation, self.relative, self.seed = continuation, relative, seed

    def kept(self, state: State) -> int:
        """Rank of a state."""
        return state["values"].shape[1]

    def size(self, state: State) -> int:
        """Width d of a state's matrices."""
        return state["vectors"].shape[1]

    def ratio(self, state: State) -> Tensor:
        """Smallest kept eigenvalue over the largest, the worst of the stack: 0-d, on the device."""
        values = state["values"]
        return (values[:, -1] / values[:, 0].clamp_min(_TINY)).amax()

    def resized(self, state: State, rank: int) -> State:
        """The state with another rank: cut, or filled up with random columns of eigenvalue 0, which change nothing."""
        vectors, values = state["vectors"], state["values"]
        more = min(rank, vectors.shape[1]) - vectors.shape[2]
        if more <= 0:
            return state | {"vectors": vectors[:, :, :rank].contiguous(), "values": values[:, :rank].contiguous()}
        drawn = self.columns(vectors, vectors.shape[2] + more)[:, :, -more:]
        zeros = values.new_zeros(len(values), more)
        return state | {"vectors": torch.cat([vectors, drawn], 2), "values": torch.cat([values, zeros], 1)}

    def columns(self, like: Tensor, width: int) -> Tensor:
        """Gaussian columns (k, d, width) for a stack (k, d, ...)."""
        return _drawn(self.seed, like.shape[1], width, like.dtype, like.device).expand(len(like), -1, -1)


@functools.lru_cache(maxsize=32)
def _drawn(seed: int, size: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Columns are the same at every refresh, and drawing a million of them on the host costs it 10 ms."""
    generator = torch.Generator().manual_seed(seed + size)
    return torch.randn(size, width, generator=generator, dtype=torch.float64).to(device, dtype)


class LowRank(Sketched):
    """M ~ U diag(D) U^T with r modes, inverted with lam on all modes.

    (M + lam I)^-1 X ~ U ((D + lam)^-1 - t^-1) U^T X + X / t,

    t = lam, or with ``continuation`` t = lam + min(D): the modes that were not kept count as the smallest kept one.

    Args:
        rank: see :class:`Sketched`, as are the arguments that are not here.
        oversampling: further columns.
        power: products of M with the sketch before the last one.
        method: ``rsvd`` re-orthonormalises the sketch after every product and takes the singular value decomposition
            of Q^T M; ``sre`` multiplies without re-orthonormalising in between and takes the eigendecomposition of
            Q^T M Q (cheaper; small modes drown in rounding as ``power`` grows). Both give largest eigenvalues first.
        continuation: see above; without it the unkept modes count as 0, as published first.
        warm: the sketch starts at the modes kept before, filled up with random columns, and ``sre`` orthonormalises
            after every product too; ``power=1`` is then enough.
        relative: see :class:`Sketched`.
        seed: of the random columns.
    """

    def __init__(
        self,
        rank: int = 220,
        oversampling: int = 10,
        power: int = 4,
        method: str = "rsvd",
        continuation: bool = False,
        warm: bool = False,
        relative: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(rank, oversampling, power, continuation, relative, seed)
        self.method, self.warm = method, warm

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
        """A sketch, products, and a small decomposition; the rank is that of the state, if there is one."""
        size = matrices.shape[1]
        rank = min(self.rank, size) if state is None else self.kept(state)
        width = min(rank + self.oversampling, size)
        try:
            vectors, values = self.modes(matrices, self._start(matrices, width, state))
        except LinAlgError:
            failed = self.allocate(matrices) if state is None else state
            return failed, torch.zeros(len(matrices), dtype=torch.bool, device=matrices.device)
        values = torch.where(values[:, :rank] <= _ZERO, 0.0, values[:, :rank])
        amount = damping * values[:, 0] if self.relative else damping.clone()
        new = {"vectors": vectors[:, :, :rank].contiguous(), "values": values, "damping": amount.clamp_min(_TINY)}
        return new, values.isfinite().all(1) & new["vectors"][:, 0].isfinite().all(1)

    def _start(self, matrices: Tensor, width: int, state: State | None) -> Tensor:
        sketch = self.columns(matrices, width)
        if not self.warm or state is None:
            return sketch
        old = state["vectors"]
        return torch.cat([old, sketch[:, :, old.shape[2] :]], dim=2)

    def modes(self, matrices: Tensor, sketch: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (k, d, w) and values (k, w), largest first."""
        if self.method == "sre":
            for _ in range(self.power):
                sketch = matrices @ (torch.linalg.qr(sketch).Q if self.warm else sketch)
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
