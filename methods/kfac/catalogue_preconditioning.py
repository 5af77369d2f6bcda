"""Descriptors of the task ``preconditioning``: back-ends that invert the factors of one layer. Imports no torch."""

from __future__ import annotations

from typing import Any

from harness.catalogue.method import Method, Origin

_HERE = "methods.kfac.preconditioning"
_KFAC = "Martens and Grosse, arXiv 1503.05671, section 6.3"
_SKETCH: dict[str, Any] = {"rank": 220, "oversampling": 10, "power": 4, "continuation": False, "warm": False, "seed": 0}
#: The factors' options; the suite sets them.
_HYPER: dict[str, Any] = {"damping": 1e-2, "decay": 0.95}


def _method(
    name: str,
    factory: str,
    summary: str,
    source: str,
    formula: str,
    reference: str | None = None,
    origin: Origin = "published design",
    without: tuple[str, ...] = (),
    **hyper: Any,
) -> Method:
    return Method(
        name=f"preconditioning.{name}",
        impl=f"{_HERE}:{factory}",
        summary=summary,
        source=source,
        formula=formula,
        needs=("torch",),
        reference=None if reference is None else f"{_HERE}:{reference}",
        hyper={key: value for key, value in {**_HYPER, **hyper}.items() if key not in without},
        dtypes=("float32", "float64"),
        origin=origin,
    )


CHOLESKY = _method(
    "cholesky",
    "cholesky",
    "Explicit inverses by Cholesky, a triangular solve and a product",
    f"{_KFAC}; Cholesky as in Eschenhagen et al., arXiv 2311.00636, code",
    "M + lam I = L L^T; X = L^-T L^-1; V -> X_G V X_A",
)
CHOLESKY_SOLVE = _method(
    "cholesky-solve",
    "cholesky_solve",
    "The Cholesky root alone; torch.cholesky_solve at every application",
    "torch.linalg.cholesky_ex, torch.cholesky_solve",
    "M + lam I = L L^T; V -> two triangular solves a side",
    origin="library",
)
TORCH_INV = _method(
    "torch-inv",
    "torch_inv",
    "torch.linalg.inv of the damped factors",
    "torch.linalg.inv",
    "X = (M + lam I)^-1 by LU",
    origin="library",
)
EIGH = _method(
    "eigh",
    "eigh",
    "Eigendecompositions (torch.linalg.eigh), the published baseline of randomized K-FAC",
    "Puiu, arXiv 2206.15397, section 6: K-FAC with the eigendecomposition; Grosse and Martens, arXiv 1602.01407",
    "M = Q D Q^T; V -> Q (D + lam)^-1 Q^T V",
)
NEWTON_SCHULZ = _method(
    "newton-schulz",
    "newton_schulz",
    "Inverses iterated from the ones before, products alone",
    "iteration: Schulz (1933); warm start: ours",
    "X <- X (2 I - M X), six times from the inverse before",
    iterations=6,
    tolerance=1e-2,
    half=False,
)
RSVD = _method(
    "rsvd",
    "rsvd",
    "Randomized singular value decomposition of rank 220, four power iterations",
    "Puiu, arXiv 2206.15397, with the sketch of its code",
    "(M + lam I)^-1 ~ U ((D + lam)^-1 - 1 / lam) U^T + 1 / lam",
    reference="best_low_rank",
    **_SKETCH,
)
SRE = _method(
    "sre",
    "sre",
    "Symmetric randomized eigendecomposition of rank 220, four power iterations",
    "Puiu, arXiv 2206.15397, with the sketch of its code",
    "as RSVD, from the eigenpairs of Q^T M Q",
    reference="best_low_rank",
    **_SKETCH,
)
BRAND = _method(
    "brand",
    "brand",
    "Brand's online update of 220 modes with the newest rows; the modes' start is a randomized decomposition",
    "Puiu, arXiv 2210.08494; Brand, Linear Algebra and its Applications, 2006; defaults: code of the former",
    "U diag(D) U^T <- rho U diag(D) U^T + (1 - rho) B B^T exactly, cut to r modes before",
    reference="brand_twin",
    rank=220,
    oversampling=10,
    power=3,
)
SENG = _method(
    "seng",
    "seng",
    "The empirical Fisher of the newest rows by Sherman, Morrison and Woodbury, unsampled",
    "Yang et al., SENG, arXiv 2006.05924",
    "v -> (v - U^T (lam I + U U^T)^-1 U v) / lam, U U^T = (a a^T) * (g g^T) / n",
    reference="seng_twin",
    without=("decay",),
)
SUBSPACE = _method(
    "subspace",
    "subspace",
    "Low-rank inverse on a subspace of 232 modes carried along: products and Cholesky alone",
    "the low-rank inverse of Puiu, arXiv 2206.15397, by orthogonal iteration and Cholesky QR: ours",
    "Q <- qr((M + delta) Q); (M + lam I)^-1 ~ Q ((Q^T M Q + lam)^-1 - 1 / lam) Q^T + 1 / lam",
    reference="best_subspace",
    origin="own design",
    rank=220,
    oversampling=12,
    power=1,
    continuation=False,
    seed=0,
)
