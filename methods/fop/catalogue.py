"""Descriptors of FOP and its control arms, methods of the task ``training``. Imports no torch."""

from __future__ import annotations

from typing import Any

from harness.catalogue.method import Method
from methods.kfac.catalogue import KFAC_CHOLESKY

_HERE = "methods.fop"

#: K-FAC's defaults, with any of its inverses.
_KFAC: dict[str, Any] = {**KFAC_CHOLESKY.hyper, "inverse": "cholesky"}
#: FOP's own; see ``methods.fop.projection.Projection``.
_PROJECTION: dict[str, Any] = {
    "split": "passes",
    "eta_ref": "sum",
    "eps": 0.0,
    "damped": False,
    "beta_max": None,
    "eta_min": None,
    "eta_max": None,
}
_SOURCE = "Lu and Armour, arXiv 2508.13898, equations 3 to 18; no code was published"
_FORMULA = (
    "g = (g1 + g2) / 2; g' = g1 - g2 - s g with <g, F g'> = 0; beta = <g, F^-1 g'> / <g', F^-1 g'>; "
    "v <- mu v + clip(eta F^-1 (g + beta g')); w <- w - lr v"
)


def _method(name: str, factory: str, summary: str, formula: str, without: tuple[str, ...] = (), **hyper: Any) -> Method:
    return Method(
        name=f"training.{name}",
        impl=f"{_HERE}.factories:{factory}",
        summary=summary,
        source=_SOURCE,
        formula=formula,
        needs=("torch",),
        reference=f"{_HERE}.reference:{factory}",
        hyper={key: value for key, value in {**_KFAC, **_PROJECTION, **hyper}.items() if key not in without},
        dtypes=("float32", "bfloat16", "float64"),
        origin="published design",
    )


FOP = _method(
    "fop",
    "fop",
    "FOP on Kronecker factors: two half batches, a Fisher-orthogonal direction, steps by layer; AdamW for the rest",
    _FORMULA,
)
FOP_BETA0 = _method(
    "fop-beta0",
    "beta_zero",
    "Control arm of FOP: no projected difference (beta = 0), so eta is 2 (or 1) exactly",
    "g = (g1 + g2) / 2; v <- mu v + clip(eta F^-1 g), eta = 2 (sum) or 1 (mean); w <- w - lr v",
    without=("eps", "damped", "beta_max"),
)
FOP_ETA1 = _method(
    "fop-eta1",
    "eta_one",
    "Control arm of FOP: no step sizes by layer (eta = 1)",
    _FORMULA.replace("clip(eta F^-1", "clip(F^-1"),
    without=("eta_ref", "eta_min", "eta_max"),
)
FOP_RANDOM = _method(
    "fop-random",
    "random_beta",
    "Control arm of FOP: beta of the same size with a random sign",
    _FORMULA.replace("beta = <g", "|beta| = |<g").replace("<g', F^-1 g'>;", "<g', F^-1 g'>|, sign random;"),
    seed=0,
)
KFAC_HALVES = _method(
    "kfac-halves",
    "kfac_halves",
    "Control arm of FOP: K-FAC on two half batches (batch norm sees halves)",
    "g = (g1 + g2) / 2; v <- mu v + clip(F^-1 g); w <- w - lr v",
    without=("eta_ref", "eps", "damped", "beta_max", "eta_min", "eta_max"),
)
