"""Descriptors of SINGD, INGD and IKFAC as methods of the task ``training``. Imports no torch."""

from __future__ import annotations

from typing import Any

from harness.catalogue.method import Method

_HERE = "methods.singd"

#: The constructor's defaults; see ``methods.singd.options.Options``.
_HYPER: dict[str, Any] = {
    "lr": 1e-3,
    "momentum": 0.9,
    "damping": 1e-3,
    "alpha1": 0.5,
    "weight_decay": 0.0,
    "update_period": 10,
    "lr_cov": 1e-2,
    "normalize_lr_cov": False,
    "kfac_like": False,
    "structures": ["dense", "dense"],
    "block": 30,
    "ranks": [15, 15],
    "rank": 1,
    "sharing": "expand",
    "loss_average": "batch",
    "reduction": "mean",
    "preconditioner_dtype": "weight",
    "products": "default",
    "cache": True,
    "init_grad_scale": 1.0,
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
_SINGD = "Lin et al., arXiv 2312.05705; defaults: the package singd 0.0.5"
_SHARING = "weight sharing: Eschenhagen et al., arXiv 2311.00636"
_STEP = "m <- a2 m + C C^T dW K K^T + wd w; w <- w - lr m"
_FACTOR = "K <- K (I - b1 m_K), m_K <- a1 m_K + (tr(H_C)/d_o H_K + lam tr(C^T C)/d_o K^T K - I)/2, H_K = Pi(K^T A K)"


def _method(name: str, factory: str, summary: str, source: str, formula: str, reference: str, **hyper: Any) -> Method:
    return Method(
        name=f"training.{name}",
        impl=f"{_HERE}.factories:{factory}",
        summary=f"{summary}; AdamW for what is neither Linear nor Conv2d",
        source=f"{source}; {_SHARING}",
        formula=f"{_STEP}; {formula}",
        needs=("torch",),
        reference=f"{_HERE}.reference:{reference}",
        hyper={**_HYPER, **hyper},
        origin="published design",
    )


def _structured(name: str, factory: str, kind: str, words: str, **sizes: Any) -> Method:
    return _method(
        f"singd-{name}",
        factory,
        f"SINGD with {words} factors",
        _SINGD,
        _FACTOR,
        factory,
        structures=[kind, kind],
        **sizes,
    )


INGD = _method(
    "ingd",
    "ingd",
    "INGD: dense inverse-free factors by natural gradients",
    "Lin et al., arXiv 2302.09738; defaults: the package singd 0.0.5",
    _FACTOR,
    "ingd",
)
IKFAC = _method(
    "ikfac",
    "ikfac",
    "IKFAC: K-FAC's inverse factors followed without inverting",
    _SINGD,
    "K <- K (I - b1/2 (K^T A K + lam K^T K - I)), C alike",
    "ikfac",
    alpha1=0.0,
    kfac_like=True,
)
DENSE = _structured("dense", "dense", "dense", "dense")
DIAGONAL = _structured("diagonal", "diagonal", "diagonal", "diagonal")
BLOCK30 = _structured("block30", "block30", "block", "block-diagonal (30)")
HIERARCHICAL15 = _structured("hierarchical15", "hierarchical15", "hierarchical", "hierarchical (15, 15)")
TRIL_TOEPLITZ = _structured("tril-toeplitz", "tril_toeplitz", "tril-toeplitz", "lower triangular Toeplitz")
TRIU_TOEPLITZ = _structured("triu-toeplitz", "triu_toeplitz", "triu-toeplitz", "upper triangular Toeplitz")
TRIL = _structured("tril", "tril", "tril", "lower triangular")
TRIU = _structured("triu", "triu", "triu", "upper triangular")
RANK1_ARROW = _structured("rank1-arrow", "rank1_arrow", "tril-arrow", "rank-1 arrow (one dense column and a diagonal)")
RANKK_ARROW = _structured("rankk-arrow", "rankk_arrow", "tril-arrow", "rank-k arrow", rank=8)
