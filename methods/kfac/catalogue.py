"""Descriptors of the K-FAC family's methods of the task ``training``. Imports no torch."""

from __future__ import annotations

from typing import Any

from harness.catalogue.method import Method

_HERE = "methods.kfac"
_DTYPES = ("float32", "bfloat16", "float64")

#: The constructor's defaults; see ``methods.kfac.options.Options``.
_HYPER: dict[str, Any] = {
    "lr": 1e-3,
    "momentum": 0.9,
    "damping": 1e-3,
    "damping_mode": "pi",
    "weight_decay": 0.0,
    "weight_decay_mode": "coupled",
    "weight_decay_start": 0,
    "factor_decay": 0.95,
    "factor_init": "identity",
    "sharing": "expand",
    "fisher": "empirical",
    "mc_samples": 1,
    "loss": "cross-entropy",
    "loss_terms": "batch",
    "reduction": "mean",
    "update_period": 10,
    "refresh_period": 100,
    "stagger": False,
    "spread": False,
    "groups": 0,
    "subsample": 1.0,
    "clip": "kl",
    "clip_value": 1e-3,
    "packed": False,
    "refresh_lag": 0,
    "product_dtype": "as-set",
    "inverse_dtype": "wide",
    "sharding": "none",
    "exclude": [],
    "fallback": "adamw",
    "fallback_lr": 1e-3,
    "fallback_momentum": 0.9,
    "fallback_beta1": 0.9,
    "fallback_beta2": 0.999,
    "fallback_eps": 1e-8,
    "fallback_weight_decay": 0.0,
    "graphs": "auto",
}
#: Takes all layers' statistics from one batch.
_TOGETHER = ("spread",)
#: Puiu's code (arXiv 2206.15397); the rule of the adaptive rank from his code of distributed K-FACs.
_RANK: dict[str, Any] = {
    "rank": 220,
    "adaptive_rank": False,
    "rank_target": 0.033,
    "rank_floor": 10,
    "rank_cap": 700,
    "oversampling": 10,
    "continuation": False,
    "seed": 0,
}
_SKETCH: dict[str, Any] = {**_RANK, "power": 4, "warm": False}
#: Puiu's code of arXiv 2210.08494 (CIFAR-10); what it schedules (lr, damping, rank) stays at its first value.
BRAND: dict[str, Any] = {
    **_SKETCH,
    "momentum": 0.0,
    "damping": 0.1,
    "damping_mode": "adaptive",
    "weight_decay": 7e-4,
    "weight_decay_start": 400,
    "clip": "rms",
    "clip_value": 0.07,
    "update_period": 20,
    "refresh_period": 100,
    "inverse": "rsvd",
    "power": 3,
    "continuation": True,
    "brand_rank": None,
    "brand_period": 1,
    "truncate": False,
    "adaptive_brand_rank": False,
    "overwrite_period": 0,
    "correction_period": 0,
    "correction_share": 0.2,
}
_KFAC = "Martens and Grosse, arXiv 1503.05671; convolutions: Grosse and Martens, arXiv 1602.01407"
_SHARING = "weight sharing: Eschenhagen et al., arXiv 2311.00636"
_FORMULA = "v <- mu v + clip((G + ..)^-1 dW (A + ..)^-1); w <- w - lr v"


def _method(
    name: str,
    factory: str,
    reference: str | None,
    summary: str,
    source: str,
    formula: str,
    without: tuple[str, ...] = (),
    **hyper: Any,
) -> Method:
    return Method(
        name=f"training.{name}",
        impl=f"{_HERE}.factories:{factory}",
        summary=summary,
        source=source,
        formula=formula,
        needs=("torch",),
        reference=None
        if reference is None
        else f"{_HERE}.{'brand_reference' if reference.startswith('brand') else 'reference'}:{reference}",
        hyper={key: value for key, value in {**_HYPER, **hyper}.items() if key not in without},
        dtypes=_DTYPES,
        origin="published design",
    )


KFAC_CHOLESKY = _method(
    "kfac-cholesky",
    "cholesky",
    "kfac",
    "K-FAC with explicit Cholesky inverses, equal sizes batched; AdamW for what is neither Linear nor Conv2d",
    f"{_KFAC}; {_SHARING}; defaults: Wang et al., arXiv 1905.05934, code",
    _FORMULA,
)
KFAC_EIGH = _method(
    "kfac-eigh",
    "eigh",
    "eigh",
    "K-FAC with eigendecompositions and the product of the factors damped; AdamW for the rest",
    f"{_KFAC}; {_SHARING}; defaults: Wang et al., arXiv 1905.05934, code",
    "v <- mu v + clip(Q_G [(Q_G^T dW Q_A) / (d_G d_A^T + lam)] Q_A^T); w <- w - lr v",
    damping_mode="exact",
)
KFAC_NEWTON_SCHULZ = _method(
    "kfac-newton-schulz",
    "newton_schulz",
    "kfac",
    "K-FAC with inverses iterated from the ones before, products alone; AdamW for the rest",
    f"{_KFAC}; iteration: Schulz (1933); warm start: ours",
    f"X <- X (2 I - M X); {_FORMULA}",
    iterations=6,
    tolerance=1e-2,
    half=False,
)
EKFAC = _method(
    "ekfac",
    "ekfac",
    "ekfac",
    "EKFAC: the Fisher's own diagonal in K-FAC's eigenbases; AdamW for the rest",
    "George et al., arXiv 1806.03884; defaults: Wang et al., arXiv 1905.05934, code",
    "s = E_n[(Q_G^T dW_n Q_A)^2]; v <- mu v + clip(Q_G [(Q_G^T dW Q_A) / (s + lam)] Q_A^T); w <- w - lr v",
    without=("damping_mode", *_TOGETHER),
    scaling="intra-batch",
    scale_decay=None,
)
RS_KFAC = _method(
    "rs-kfac",
    "rs",
    "low_rank",
    "RS-KFAC: randomized singular value decompositions of the factors; AdamW for the rest",
    "Puiu, arXiv 2206.15397; defaults of the sketch: its code, of the rest: Wang et al., arXiv 1905.05934, code",
    f"(M + lam I)^-1 ~ U ((D + lam)^-1 - 1 / lam) U^T + 1 / lam; {_FORMULA}",
    damping_mode="adaptive",
    **_SKETCH,
)
SRE_KFAC = _method(
    "sre-kfac",
    "sre",
    "low_rank",
    "SRE-KFAC: symmetric randomized eigendecompositions of the factors; AdamW for the rest",
    "Puiu, arXiv 2206.15397; defaults of the sketch: its code, of the rest: Wang et al., arXiv 1905.05934, code",
    f"(M + lam I)^-1 ~ U ((D + lam)^-1 - 1 / lam) U^T + 1 / lam; {_FORMULA}",
    damping_mode="adaptive",
    **_SKETCH,
)
RS_KFAC_WARM = _method(
    "rs-kfac-warm",
    "rs_warm",
    "low_rank",
    "RS-KFAC on a subspace carried along: one product moves it, Cholesky alone inverts it; AdamW for the rest",
    "the low-rank inverse of Puiu, arXiv 2206.15397, by orthogonal iteration and Cholesky QR: ours; other defaults: "
    "his code and Wang et al., arXiv 1905.05934, code",
    f"Q <- qr((M + delta) Q); (M + lam I)^-1 ~ Q ((Q^T M Q + lam)^-1 - 1 / lam) Q^T + 1 / lam; {_FORMULA}",
    damping_mode="adaptive",
    **{**_RANK, "oversampling": 12},  # 232 modes: rows of full vectors for a GPU's tensor cores
    power=1,
    dense=True,
)
_BRAND = "U D U^T + B B^T = [U Q] core [U Q]^T, core = H S H^T, U' = [U Q] H"
B_KFAC = _method(
    "b-kfac",
    "b",
    "brand",
    "B-KFAC: wide linear layers' factors as eigenpairs that Brand's update carries along, RS-KFAC elsewhere",
    "Puiu, arXiv 2210.08494; defaults: its code",
    f"{_BRAND}; {_FORMULA}",
    without=("subsample", "sharding", "refresh_lag", *_TOGETHER),
    **BRAND,
)
B_R_KFAC = _method(
    "b-r-kfac",
    "b_r",
    "brand_overwritten",
    "B-R-KFAC: B-KFAC, its eigenpairs overwritten by a randomized decomposition every few refreshes",
    "Puiu, arXiv 2210.08494; defaults: its code",
    f"{_BRAND}; {_FORMULA}",
    without=("subsample", "sharding", "refresh_lag", *_TOGETHER),
    **{**BRAND, "overwrite_period": 5},
)
B_KFAC_C = _method(
    "b-kfac-c",
    "b_c",
    None,
    "B-KFAC-C: B-KFAC, a random share of its eigenpairs corrected by the dense running mean",
    "Puiu, arXiv 2210.08494; defaults: its code",
    f"{_BRAND}; T = U_s^T M U_s = H S H^T, U_s <- U_s H; {_FORMULA}",
    without=("subsample", "sharding", "refresh_lag", *_TOGETHER),
    **{**BRAND, "correction_period": 5},
)
#: What SENG keeps of the options of K-FAC.
_NOT_SENG = (
    "packed",
    "refresh_lag",
    "inverse_dtype",
    "sharding",
    "damping_mode",
    "factor_decay",
    "factor_init",
    "sharing",
    "loss_terms",
    "subsample",
    "refresh_period",
    "stagger",
    "spread",
    "groups",
)
SENG = _method(
    "seng",
    "seng",
    None,
    "SENG: the sketched empirical Fisher of single samples, inverted by Woodbury's identity; SGD for the rest",
    "Yang, Xu, Wang, Wen and Xu, arXiv 2006.05924; defaults: its code",
    "v <- mu v + (dW - U^T (lam I + U U^T)^-1 U dW) / lam + wd W; w <- w - lr v",
    without=_NOT_SENG,
    lr=0.05,
    damping=0.05,
    update_period=200,
    clip="none",
    fallback="sgd",
    fallback_lr=None,
    svd_rank=16,
    col_sample=256,
    explicit_threshold=1_000_000,
    exact=False,
    seed=0,
)
