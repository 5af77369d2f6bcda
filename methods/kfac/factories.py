"""One factory for each method of the task ``training`` in this family: defaults by name, the class behind it."""

from __future__ import annotations

from typing import Any

from torch import nn

from methods.kfac.kfac import KFAC
from methods.kfac.options import in_range


def cholesky(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> KFAC:
    """K-FAC with explicit inverses by Cholesky."""
    return KFAC(model, lr, inverse="cholesky", **options)


def eigh(model: nn.Module, *, lr: float = 1e-3, damping_mode: str = "exact", **options: Any) -> KFAC:
    """K-FAC with eigendecompositions; by default the product is damped, which needs them."""
    return KFAC(model, lr, inverse="eigh", damping_mode=damping_mode, **options)


def newton_schulz(
    model: nn.Module,
    *,
    lr: float = 1e-3,
    iterations: int = 6,
    tolerance: float = 1e-2,
    half: bool = False,
    **options: Any,
) -> KFAC:
    """K-FAC with inverses iterated from the ones before."""
    in_range("iterations", iterations, 1, whole=True)
    in_range("tolerance", tolerance, 0.0, 1.0, left=False, right=False)
    chosen = {"iterations": int(iterations), "tolerance": tolerance, "half": half}
    return KFAC(model, lr, inverse="newton-schulz", inverse_options=chosen, **options)
