"""One factory for each method of the task ``training`` in this family: defaults by name, the class behind it."""

from __future__ import annotations

from typing import Any

from torch import nn

from methods.kfac.ekfac import EKFAC
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


def ekfac(
    model: nn.Module,
    *,
    lr: float = 1e-3,
    scaling: str = "intra-batch",
    scale_decay: float | None = None,
    **options: Any,
) -> EKFAC:
    """EKFAC with the scalings of single samples or of running mean gradients."""
    return EKFAC(model, lr, scaling=scaling, scale_decay=scale_decay, **options)


def rs(model: nn.Module, *, lr: float = 1e-3, damping_mode: str = "adaptive", **options: Any) -> KFAC:
    """RS-KFAC: randomized singular value decompositions of both factors."""
    return _low_rank(model, "rsvd", lr, damping_mode, options)


def sre(model: nn.Module, *, lr: float = 1e-3, damping_mode: str = "adaptive", **options: Any) -> KFAC:
    """SRE-KFAC: symmetric randomized eigendecompositions of both factors."""
    return _low_rank(model, "sre", lr, damping_mode, options)


def _low_rank(model: nn.Module, name: str, lr: float, damping_mode: str, options: dict[str, Any]) -> KFAC:
    chosen = {key: options.pop(key) for key in _SKETCH if key in options}
    for key, low in {"rank": 1, "oversampling": 0, "power": 0, "seed": 0}.items():
        if key in chosen:
            in_range(key, chosen[key], low, whole=True)
    return KFAC(model, lr, inverse=name, inverse_options=chosen, damping_mode=damping_mode, **options)


_SKETCH = ("rank", "oversampling", "power", "continuation", "warm", "seed")
