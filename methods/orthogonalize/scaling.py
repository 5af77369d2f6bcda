"""Normalisation alone, no iteration: how far from orthogonal does each scaling leave a matrix?

Far, for a general spectrum: these two are measured to be compared with each other, and fail the accuracy gate.
"""

from __future__ import annotations

import torch

from methods.orthogonalize.coefficients import Table
from methods.orthogonalize.newton_schulz import newton_schulz

NOTHING = Table("nothing", (), "no iteration")


def frobenius_only(G: torch.Tensor) -> torch.Tensor:
    """G / ‖G‖_F."""
    return newton_schulz(G, NOTHING, "frobenius")


def aol_only(G: torch.Tensor) -> torch.Tensor:
    """AOL: diag((Σ_j |A_ij|)^(-1/2)) times G, on the smaller side."""
    return newton_schulz(G, NOTHING, "aol")
