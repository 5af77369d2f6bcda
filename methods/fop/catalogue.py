"""Descriptors of FOP and its control arms, methods of the task ``training``. Imports no torch."""

from __future__ import annotations

from typing import Any

from harness.catalogue.method import Method
from methods.kfac.catalogue import EKFAC as KFAC_EKFAC
from methods.kfac.catalogue import KFAC_CHOLESKY
from methods.singd.catalogue import DENSE as SINGD_DENSE

_HERE = "methods.fop"

#: K-FAC's defaults, with any of its inverses; halves are those of one batch for all layers.
_KFAC: dict[str, Any] = {**{k: v for k, v in KFAC_CHOLESKY.hyper.items() if k != "spread"}, "inverse": "cholesky"}
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

FOP_SINGD = Method(
    name="training.fop-singd",
    impl=f"{_HERE}.factories:singd",
    summary="FOP on SINGD's factors (dense, or any of its structures): F^-1 is its preconditioner",
    source=f"{_SOURCE}; SINGD: Lin et al., arXiv 2312.05705; the pair is our extension",
    formula=_FORMULA.replace("F^-1 (g", "C C^T (g").replace("beta g'))", "beta g') K K^T)")
    + "; F = (C C^T x K K^T)^-1; K, C as SINGD's",
    needs=("torch",),
    reference=f"{_HERE}.reference_singd:singd",
    hyper={**SINGD_DENSE.hyper, **{k: v for k, v in _PROJECTION.items() if k not in ("damped", "split")}},
    origin="own design",
)
FOP_EKFAC = Method(
    name="training.fop-ekfac",
    impl=f"{_HERE}.factories:ekfac",
    summary="FOP on the factors' eigenbases with the Fisher's own diagonal in them (EKFAC)",
    source=f"{_SOURCE}; EKFAC: George et al., arXiv 1806.03884; the pair is our extension",
    formula=_FORMULA + "; F = Q diag(s) Q^T, Q = Q_G x Q_A, s = E[(Q^T g_n)^2]",
    needs=("torch",),
    hyper={**{k: v for k, v in KFAC_EKFAC.hyper.items() if k != "scaling"}, **_PROJECTION},
    origin="own design",
)
