"""One factory for each method of the task ``training`` in this family: defaults by name, the class behind it."""

from __future__ import annotations

from typing import Any

from torch import nn

from harness.errors import UserError
from methods.kfac.brand import BrandKFAC
from methods.kfac.catalogue import BRAND
from methods.kfac.ekfac import EKFAC
from methods.kfac.kfac import KFAC
from methods.kfac.options import flag, in_range
from methods.kfac.randomized import AdaptiveRankKFAC, RandomizedKFAC
from methods.kfac.seng import SENG


def cholesky(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> KFAC:
    """K-FAC with explicit inverses by Cholesky."""
    return KFAC(model, lr, inverse="cholesky", **_free("kfac-cholesky", options))


def eigh(model: nn.Module, *, lr: float = 1e-3, damping_mode: str = "exact", **options: Any) -> KFAC:
    """K-FAC with eigendecompositions; by default the product is damped, which needs them."""
    return KFAC(model, lr, inverse="eigh", damping_mode=damping_mode, **_free("kfac-eigh", options))


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
    flag("half", half)
    chosen = {"iterations": int(iterations), "tolerance": tolerance, "half": half}
    return KFAC(model, lr, inverse="newton-schulz", inverse_options=chosen, **_free("kfac-newton-schulz", options))


def ekfac(
    model: nn.Module,
    *,
    lr: float = 1e-3,
    scaling: str = "intra-batch",
    scale_decay: float | None = None,
    **options: Any,
) -> EKFAC:
    """EKFAC with the scalings of single samples or of running mean gradients."""
    chosen = _free("ekfac", options, ("inverse", "damping_mode"))
    return EKFAC(model, lr, scaling=scaling, scale_decay=scale_decay, **chosen)


def rs(model: nn.Module, *, lr: float = 1e-3, damping_mode: str = "adaptive", **options: Any) -> RandomizedKFAC:
    """RS-KFAC: randomized singular value decompositions of both factors."""
    return _randomized(model, lr, "rsvd", _split(_SKETCH, damping_mode=damping_mode, **options))


def sre(model: nn.Module, *, lr: float = 1e-3, damping_mode: str = "adaptive", **options: Any) -> RandomizedKFAC:
    """SRE-KFAC: symmetric randomized eigendecompositions of both factors."""
    return _randomized(model, lr, "sre", _split(_SKETCH, damping_mode=damping_mode, **options))


def rs_warm(
    model: nn.Module, *, lr: float = 1e-3, damping_mode: str = "adaptive", oversampling: int = 12, **options: Any
) -> RandomizedKFAC:
    """RS-KFAC on a subspace that is carried along, without a decomposition."""
    chosen = _split(_SUBSPACE, damping_mode=damping_mode, oversampling=oversampling, **options)
    return _randomized(model, lr, "subspace", chosen)


def b(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> BrandKFAC:
    """B-KFAC: Brand's online update on wide linear layers, RS-KFAC elsewhere."""
    return _brand(model, lr, {}, options)


def b_r(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> BrandKFAC:
    """B-R-KFAC: B-KFAC whose pairs are overwritten by a randomized decomposition now and then."""
    return _brand(model, lr, {"overwrite_period": 5}, options)


def b_c(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> BrandKFAC:
    """B-KFAC-C: B-KFAC with corrections of some of the modes."""
    return _brand(model, lr, {"correction_period": 5}, options)


def seng(model: nn.Module, *, lr: float = 0.05, **options: Any) -> SENG:
    """SENG: the sketched empirical Fisher of single samples, inverted by Woodbury's identity."""
    return SENG(model, lr, **options)


def _randomized(model: nn.Module, lr: float, inverse: str, options: dict[str, Any]) -> RandomizedKFAC:
    kind = AdaptiveRankKFAC if options.get("adaptive_rank") else RandomizedKFAC
    return kind(model, lr, inverse=inverse, **_free(f"the one with {inverse}", options))


def _free(method: str, options: dict[str, Any], fixed: tuple[str, ...] = ("inverse",)) -> dict[str, Any]:
    """Options without those that the method stands for.

    Raises:
        UserError: one of them was given.
    """
    for name in fixed:
        if name in options:
            raise UserError(f"{name} is fixed by {method}; got {options[name]!r}. Choose the method that has it.")
    return options


def _brand(model: nn.Module, lr: float, own: dict[str, Any], options: dict[str, Any]) -> BrandKFAC:
    chosen = {**BRAND, **own, **options}
    inverse = chosen.pop("inverse")
    return BrandKFAC(model, lr, inverse=inverse, **_split(_SKETCH, **chosen))


def _split(names: tuple[str, ...], **options: Any) -> dict[str, Any]:
    """Options with those of the back-end put under ``sketch``."""
    return {
        **{key: value for key, value in options.items() if key not in names},
        "sketch": {key: options[key] for key in names if key in options},
    }


_SKETCH = ("oversampling", "power", "continuation", "warm", "seed")
_SUBSPACE = ("oversampling", "power", "continuation", "dense", "seed")
