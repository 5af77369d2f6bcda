"""One factory for each method of the task ``training`` in this family: FOP and the arms that leave a part of it out."""

from __future__ import annotations

from typing import Any

from torch import nn

from methods.fop.ekfac import EKFOP
from methods.fop.fop import FOP
from methods.fop.singd import FOPSINGD
from methods.kfac.options import in_range

#: Options of the back-ends; what is left of them goes to the back-end's constructor.
_BACKENDS = {
    "newton-schulz": ("iterations", "tolerance", "half"),
    "rsvd": ("rank", "oversampling", "power", "continuation", "warm"),
    "sre": ("rank", "oversampling", "power", "continuation", "warm"),
}


def fop(model: nn.Module, *, lr: float = 1e-3, split: str = "passes", inverse: str = "cholesky", **options: Any) -> FOP:
    """FOP with any inverse; ``rank``, ``iterations`` and the like go to the one that has them."""
    names = _BACKENDS.get(inverse, ())
    chosen = {name: options.pop(name) for name in names if name in options}
    for name in ("iterations", "rank"):
        if name in chosen:
            in_range(name, chosen[name], 1, whole=True)
    return FOP(model, lr, split=split, inverse=inverse, inverse_options=chosen, **options)


def beta_zero(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> FOP:
    """FOP without the projected difference: K-FAC on two halves times eta*, which is then exactly 2 (or 1)."""
    return fop(model, lr=lr, beta="zero", **options)


def eta_one(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> FOP:
    """FOP without the layers' own step sizes."""
    return fop(model, lr=lr, eta="one", **options)


def random_beta(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> FOP:
    """FOP with |beta*| under a random sign."""
    return fop(model, lr=lr, beta="random", **options)


def kfac_halves(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> FOP:
    """K-FAC with gradients and statistics of two half batches, which batch norm sees apart."""
    return fop(model, lr=lr, beta="zero", eta="one", **options)


def singd(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> FOPSINGD:
    """FOP on SINGD's factors, of any structure."""
    return FOPSINGD(model, lr, **options)


def ekfac(model: nn.Module, *, lr: float = 1e-3, split: str = "passes", **options: Any) -> EKFOP:
    """FOP on EKFAC's bases and scales."""
    return EKFOP(model, lr, split=split, **options)
