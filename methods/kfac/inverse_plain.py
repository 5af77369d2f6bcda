"""Plain ways to invert a factor: what one writes first with torch, and the float64 twin of low-rank inverses."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.kfac.inverse.base import Inverse, State


class TorchInverse(Inverse):
    """``torch.linalg.inv`` of M + lam I: what one writes first."""

    def allocate(self, matrices: Tensor) -> State:
        """The identity."""
        return {
            "inverse": torch.eye(matrices.shape[1], dtype=matrices.dtype, device=matrices.device).expand_as(matrices)
        }

    def refresh(self, matrices: Tensor, damping: Tensor, state: State | None) -> tuple[State, Tensor]:
        """LU and substitution, for a matrix that is symmetric."""
        eye = torch.eye(matrices.shape[1], dtype=matrices.dtype, device=matrices.device)
        inverse = torch.linalg.inv(matrices + damping[:, None, None] * eye)
        return {"inverse": inverse}, inverse[:, 0].isfinite().all(1)

    def apply(self, state: State, columns: Tensor) -> Tensor:
        """One product."""
        return state["inverse"] @ columns


class CholeskySolve(Inverse):
    """M + lam I = L L^T is kept and solved with at every application: the cheapest refresh, the dearest apply."""

    def allocate(self, matrices: Tensor) -> State:
        """The identity."""
        return {"root": torch.eye(matrices.shape[1], dtype=matrices.dtype, device=matrices.device).expand_as(matrices)}

    def refresh(self, matrices: Tensor, damping: Tensor, state: State | None) -> tuple[State, Tensor]:
        """The factorisation alone."""
        whole = matrices.clone()
        whole.diagonal(dim1=1, dim2=2).add_(damping[:, None])
        root, info = torch.linalg.cholesky_ex(whole, check_errors=False)
        return {"root": root}, info == 0

    def apply(self, state: State, columns: Tensor) -> Tensor:
        """Two triangular solves."""
        return torch.cholesky_solve(columns, state["root"])


class ExactLowRank(Inverse):
    """The best operator of rank r in float64, the plain twin of the sketched ones.

    U ((D + lam)^-1 - 1 / t) U^T + 1 / t of the r leading eigenpairs, t = lam, or lam + D_r with ``continuation``.

    Args:
        rank: r.
        continuation: the modes that were not kept count as the smallest kept one.
    """

    #: Above this width a full decomposition in float64 takes minutes: block power iterations find the leading part.
    DENSE_UP_TO = 5000
    ITERATIONS = 40

    def __init__(self, rank: int = 220, continuation: bool = False) -> None:
        self.rank, self.continuation = rank, continuation

    def allocate(self, matrices: Tensor) -> State:
        """The identity."""
        return {"whole": torch.eye(matrices.shape[1]).double().expand_as(matrices)}

    def refresh(self, matrices: Tensor, damping: Tensor, state: State | None) -> tuple[State, Tensor]:
        """The leading eigenpairs in float64."""
        values, vectors = self.leading(matrices.double())
        rank = min(self.rank, matrices.shape[1])
        new = {"vectors": vectors[:, :, :rank], "values": values[:, :rank].clamp_min(0), "damping": damping.double()}
        return new, values.isfinite().all(1)

    def leading(self, matrices: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors, largest first; of wide matrices twice the rank at most."""
        size = matrices.shape[1]
        if size <= self.DENSE_UP_TO:
            values, vectors = torch.linalg.eigh(matrices)
            return values.flip(1), vectors.flip(2)
        generator = torch.Generator(matrices.device).manual_seed(size)
        basis = torch.randn(
            1, size, 2 * self.rank, generator=generator, device=matrices.device, dtype=torch.float64
        ).repeat(len(matrices), 1, 1)
        for _ in range(self.ITERATIONS):
            basis = torch.linalg.qr(matrices @ basis).Q
        values, rotation = torch.linalg.eigh(basis.mT @ matrices @ basis)
        return values.flip(1), basis @ rotation.flip(2)

    def apply(self, state: State, columns: Tensor) -> Tensor:
        """In float64."""
        vectors, values, damping = state["vectors"], state["values"], state["damping"][:, None]
        rest = damping + values[:, -1:] if self.continuation else damping
        weight = 1 / (values + damping) - 1 / rest
        columns = columns.double()
        return vectors @ (weight[:, :, None] * (vectors.mT @ columns)) + columns / rest[:, :, None]
