"""Descriptors of the Triton methods of task ``polar``; importing this imports neither torch nor triton."""

from __future__ import annotations

from harness.catalogue.method import Method, Origin

_PUBLISHED = "methods.orthogonalize.triton_published"
_DION = "microsoft/dion, newton_schulz_triton.py"
_FLASH = "thib-s/flash-newton-schulz, newton_schulz_triton.py (2025-09-22)"
_TURBO = "Turbo-Muon, arXiv 2512.04632, and its published code"
_STEP = "A = X Xᵀ; B = b A + c A²; X <- a X + B X"
_AOL = "s_i = (Σ_j |A_ij|)^(-1/2) from the first Gram matrix; X <- diag(s) X"


def _method(
    name: str, impl: str, twin: str, cost: str, *, summary: str, source: str, formula: str, origin: Origin
) -> Method:
    return Method(
        name=f"polar.{name}",
        impl=impl,
        summary=summary,
        source=source,
        formula=formula,
        needs=("torch", "triton", "cuda"),
        reference=f"methods.orthogonalize.reference:{twin}",
        cost=f"methods.orthogonalize.cost:{cost}",
        dtypes=("float32", "bfloat16", "float16"),
        devices=("cuda",),
        origin=origin,
    )


NS_SYMMETRIC_TRITON = _method(
    "ns-symmetric-triton",
    f"{_PUBLISHED}:ns_symmetric",
    "ns_torch",
    "symmetric5",
    summary="Dion's design: symmetric Triton products, then the library's addmm; 5 steps after Frobenius",
    source=f"{_DION}; table of J. You (modded-nanogpt, 2025-02-14)",
    formula=f"5 x YOU5: {_STEP}",
    origin="published design",
)
NS_FUSED_TRITON = _method(
    "ns-fused-triton",
    f"{_PUBLISHED}:ns_fused",
    "ns_torch",
    "symmetric5",
    summary="symmetric Triton products and the fused a X + B X; 5 steps after Frobenius",
    source=f"{_FLASH}; table of J. You (modded-nanogpt, 2025-02-14)",
    formula=f"5 x YOU5: {_STEP}",
    origin="published design",
)
TAIL4_TRITON = _method(
    "tail4-triton",
    f"{_PUBLISHED}:tail4",
    "tail4",
    "symmetric4",
    summary="the last four rows of YOU5 after Frobenius, all three products fused: Turbo-Muon without AOL",
    source=_TURBO,
    formula=f"4 x TURBO4: {_STEP}",
    origin="published design",
)
AOL_TRITON = _method(
    "aol-triton",
    f"{_PUBLISHED}:aol",
    "aol",
    "symmetric4",
    summary="AOL from the first Gram matrix, then four steps with the table tuned for it",
    source=f"{_FLASH}; AOL: B. Prach and C. Lampert, arXiv 2208.03160",
    formula=f"{_AOL}; 4 x AOL_V1: {_STEP}",
    origin="published design",
)
TURBO_TRITON = _method(
    "turbo-triton",
    f"{_PUBLISHED}:turbo",
    "turbo",
    "symmetric4",
    summary="Turbo-Muon: AOL from the first Gram matrix, then the last four rows of YOU5",
    source=f"{_TURBO}; AOL: B. Prach and C. Lampert, arXiv 2208.03160",
    formula=f"{_AOL}; 4 x TURBO4: {_STEP}",
    origin="published design",
)
SCHATTEN4_TRITON = _method(
    "schatten4-triton",
    f"{_PUBLISHED}:schatten4",
    "schatten4",
    "symmetric4",
    summary="the Schatten-4 norm from the first Gram matrix (exact scalar, no bias), then the last four rows of YOU5",
    source=f"norm: arXiv 2506.10935, section 3.4, optax 'schatten'; iteration: {_TURBO}",
    formula=f"X <- X / ||X Xᵀ||_F^(1/2); 4 x TURBO4: {_STEP}",
    origin="published design",
)
TURBO_FAST_TRITON = _method(
    "turbo-fast-triton",
    "methods.orthogonalize.triton_fast:turbo_fast",
    "turbo",
    "symmetric4",
    summary="Turbo-Muon with AOL folded into the products: no pass over X besides them, triangular grid, TMA",
    source=f"iteration: {_TURBO}; kernels: ours",
    formula=f"{_AOL}, never formed: B = (b A' + c A'²) D, X1 = a D X + B X; then {_STEP}",
    origin="own design",
)
TURBO_GRAPH_TRITON = _method(
    "turbo-graph-triton",
    "methods.orthogonalize.triton_graph:turbo_graph",
    "turbo",
    "symmetric4",
    summary="turbo-fast-triton captured into one CUDA graph a shape and replayed; up to 2^24 elements",
    source=f"iteration: {_TURBO}; kernels and capture: ours",
    formula=f"{_AOL}, never formed: B = (b A' + c A'²) D, X1 = a D X + B X; then {_STEP}",
    origin="own design",
)
