"""Inverse by a symmetric eigendecomposition, which also gives the bases for joint damping and EKFAC."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from methods.kfac.inverse.base import Inverse, LinAlgError, State, eye_like
from methods.kfac.products import multiply


class Eigh(Inverse):
    """M = Q diag(d) Q^T; eigenvalues below 0 are rounding and become 0. ``torch.linalg.eigh`` synchronises on a GPU."""

    spectral = True
    wide: Mapping[str, tuple[int, ...]] = {"vectors": (1,)}
    uses_state = False

    def allocate(self, matrices: Tensor) -> State:
        """The identity without damping."""
        count, size = matrices.shape[:2]
        return {
            "vectors": eye_like(matrices),
            "values": matrices.new_ones(count, size),
            "damping": matrices.new_zeros(count),
        }

    def refresh(self, matrices: Tensor, damping: Tensor, state: State | None) -> tuple[State, Tensor]:
        """Good: it converged and is finite."""
        try:
            values, vectors = torch.linalg.eigh(matrices)
        except LinAlgError:
            failed = self.allocate(matrices)
            return failed, torch.zeros(len(matrices), dtype=torch.bool, device=matrices.device)
        new = {"vectors": vectors, "values": values.clamp_min(0.0), "damping": damping.clone()}
        return new, values.isfinite().all(1) & vectors[:, 0].isfinite().all(1)

    def apply(self, state: State, columns: Tensor) -> Tensor:
        """Q ((Q^T X) / (d + lam))."""
        vectors = state["vectors"]
        inner = multiply(vectors.mT, columns) / (state["values"] + state["damping"][:, None])[:, :, None]
        return multiply(vectors, inner)

    def apply_right(self, state: State, rows: Tensor) -> Tensor:
        """((X Q) / (d + lam)) Q^T."""
        vectors = state["vectors"]
        inner = multiply(rows, vectors) / (state["values"] + state["damping"][:, None])[:, None, :]
        return multiply(inner, vectors.mT)
