"""Inverse by Cholesky: d^3 / 3 for the factor, 2 d^3 / 3 for the inverse, no synchronisation with the host."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.kfac.inverse.base import Inverse, State, damped, eye_like


class Cholesky(Inverse):
    """M + lam I = L L^T, then its explicit inverse; the apply is one product."""

    def allocate(self, matrices: Tensor) -> State:
        """The identity."""
        return {"inverse": eye_like(matrices)}

    def refresh(self, matrices: Tensor, damping: Tensor, state: State | None) -> tuple[State, Tensor]:
        """Good: the factorisation went through and the result is finite."""
        factor, info = torch.linalg.cholesky_ex(damped(matrices, damping), check_errors=False)
        inverse = torch.cholesky_inverse(factor)
        return {"inverse": inverse}, (info == 0) & inverse.diagonal(dim1=1, dim2=2).sum(1).isfinite()

    def apply(self, state: State, columns: Tensor) -> Tensor:
        """One product of (k, d, d) with (k, d, n)."""
        return state["inverse"] @ columns
