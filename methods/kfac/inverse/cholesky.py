"""Inverse by Cholesky, no synchronisation with the host."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from methods.kfac.inverse import blocked
from methods.kfac.inverse.base import Inverse, State, damped, eye_like, shared_eye
from methods.kfac.products import multiply

#: From this width on by blocks, and the blocks' width: below, latency decides and not the number of multiply-adds.
#: One of 4609 on one H100 (2026-11-23, TF32 in the last product), ms and the host's share: blocks of 464 8.4 and 4.5,
#: 664 7.9 and 2.4, 928 7.7 and 1.8, 1160 7.8 and 1.7; of 2305: 464 2.9 and 2.7, 776 2.9 and 2.2, 1160 3.0 and 2.0. Five
#: of 4609 in IEEE float32 and blocks of 512 the day before: 39.7, ``torch.cholesky_inverse`` 63.9.
BLOCKED_FROM = 1024
LEAF = 1024


class Cholesky(Inverse):
    """M + lam I = L L^T, then the explicit inverse L^-T L^-1; the apply is one product.

    Narrow matrices: a triangular solve against the identity and a full product, which spend more multiply-adds than
    needed but, unlike ``torch.cholesky_inverse``, check nothing on the host. Wide ones: by blocks.
    """

    wide: Mapping[str, tuple[int, ...]] = {"inverse": (1, 2)}
    uses_state = False

    def allocate(self, matrices: Tensor) -> State:
        """The identity."""
        return {"inverse": eye_like(matrices)}

    def refresh(self, matrices: Tensor, damping: Tensor, state: State | None) -> tuple[State, Tensor]:
        """Good: the factorisation went through and the result is finite."""
        if matrices.shape[1] >= BLOCKED_FROM:
            inverse, good = blocked.inverse(matrices, damping, LEAF, library=False)
            return {"inverse": inverse[:, : matrices.shape[1], : matrices.shape[1]]}, good
        factor, info = torch.linalg.cholesky_ex(damped(matrices, damping), check_errors=False)
        root = torch.linalg.solve_triangular(factor, shared_eye(matrices), upper=False)
        inverse = torch.bmm(root.mT, root)
        return {"inverse": inverse}, (info == 0) & inverse.diagonal(dim1=1, dim2=2).sum(1).isfinite()

    def apply(self, state: State, columns: Tensor) -> Tensor:
        """One product of (k, d, d) with (k, d, n)."""
        return multiply(state["inverse"], columns)

    def apply_right(self, state: State, rows: Tensor) -> Tensor:
        """One product of (k, n, d) with (k, d, d); the inverse is symmetric."""
        return multiply(rows, state["inverse"])
