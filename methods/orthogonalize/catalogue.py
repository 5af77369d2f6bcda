"""Descriptors of the torch methods of the task ``polar``. Imports no torch."""

from __future__ import annotations

from harness.catalogue.method import Method

_HERE = "methods.orthogonalize"
_FROBENIUS = "X = G / |G|_F"
_AOL = "X = diag(s) G, s_i = (sum_j |G G'|_ij)^(-1/2)"
_STEP = "X <- a X + (b A + c A^2) X, A = X X'"
_AOL_SOURCE = "Turbo-Muon (thib-s/flash-newton-schulz); the rescaling: Prach and Lampert, arXiv 2208.03160"
_YOU = "table of J. You, modded-nanogpt 2025-02-14, as in microsoft/dion"

SVD = Method(
    name="polar.svd",
    impl=f"{_HERE}.exact:svd",
    summary="exact polar factor by singular value decomposition (float32 inside for half types)",
    source="torch.linalg.svd (LAPACK, cuSOLVER)",
    formula="G = U S V', X = U V'",
    needs=("torch",),
    cost=f"{_HERE}.cost:svd",
    origin="library",
    largest=2**23,
)

NS_TORCH = Method(
    name="polar.ns-torch",
    impl=f"{_HERE}.newton_schulz:ns_torch",
    summary="plain torch Newton-Schulz: Frobenius, 5 steps, every operation its own kernel (the baseline)",
    source=f"K. Jordan et al., Muon (2024), its written form; {_YOU}",
    formula=f"{_FROBENIUS}; 5 x {_STEP}; rows YOU5",
    needs=("torch",),
    reference=f"{_HERE}.reference:ns_torch",
    cost=f"{_HERE}.cost:plain5",
    origin="published design",
)

NS_JORDAN = Method(
    name="polar.ns-jordan",
    impl=f"{_HERE}.newton_schulz:ns_jordan",
    summary="plain torch Newton-Schulz with one row for all 5 steps",
    source="K. Jordan et al., Muon (2024): KellerJordan/Muon, zeropower_via_newtonschulz5",
    formula=f"{_FROBENIUS}; 5 x {_STEP}; (a, b, c) = (3.4445, -4.7750, 2.0315)",
    needs=("torch",),
    reference=f"{_HERE}.reference:ns_jordan",
    cost=f"{_HERE}.cost:plain5",
    origin="published design",
)

NS_COMPILED = Method(
    name="polar.ns-compiled",
    impl=f"{_HERE}.compiled:ns_compiled",
    summary="polar.ns-torch through torch.compile, one compilation per shape",
    source=f"as polar.ns-torch; {_YOU}",
    formula=f"{_FROBENIUS}; 5 x {_STEP}; rows YOU5",
    needs=("torch", "cxx"),
    reference=f"{_HERE}.reference:ns_torch",
    cost=f"{_HERE}.cost:plain5",
    origin="published design",
    tags=("compile",),
)

TAIL4_TORCH = Method(
    name="polar.tail4-torch",
    impl=f"{_HERE}.newton_schulz:tail4_torch",
    summary="4 steps without AOL: shows what the saved step costs when nothing replaces it",
    source=f"Turbo-Muon's published code with its preconditioning off; rows 2-5 of the {_YOU}",
    formula=f"{_FROBENIUS}; 4 x {_STEP}; rows YOU5[1:]",
    needs=("torch",),
    reference=f"{_HERE}.reference:tail4",
    cost=f"{_HERE}.cost:plain4",
    origin="published design",
)

AOL_TORCH = Method(
    name="polar.aol-torch",
    impl=f"{_HERE}.newton_schulz:aol_torch",
    summary="AOL, then 4 plain steps of the table tuned for it; the first Gram matrix is reused",
    source=f"{_AOL_SOURCE}; its table of 2025-09-22, also microsoft/dion newton_schulz_triton_fast",
    formula=f"{_AOL}; 4 x {_STEP}; rows AOL_V1",
    needs=("torch",),
    reference=f"{_HERE}.reference:aol",
    cost=f"{_HERE}.cost:plain4",
    origin="published design",
)

TURBO_TORCH = Method(
    name="polar.turbo-torch",
    impl=f"{_HERE}.newton_schulz:turbo_torch",
    summary="AOL, then 4 plain steps, the last rows of the usual table; the first Gram matrix is reused",
    source=f"{_AOL_SOURCE}, the paper's version; rows 2-5 of the {_YOU}",
    formula=f"{_AOL}; 4 x {_STEP}; rows YOU5[1:]",
    needs=("torch",),
    reference=f"{_HERE}.reference:turbo",
    cost=f"{_HERE}.cost:plain4",
    origin="published design",
)

TURBO_COMPILED = Method(
    name="polar.turbo-compiled",
    impl=f"{_HERE}.compiled:turbo_compiled",
    summary="polar.turbo-torch through torch.compile, one compilation per shape",
    source=f"{_AOL_SOURCE}; rows 2-5 of the {_YOU}",
    formula=f"{_AOL}; 4 x {_STEP}; rows YOU5[1:]",
    needs=("torch", "cxx"),
    reference=f"{_HERE}.reference:turbo",
    cost=f"{_HERE}.cost:plain4",
    origin="published design",
    tags=("compile",),
)

SCHATTEN4_TORCH = Method(
    name="polar.schatten4-torch",
    impl=f"{_HERE}.newton_schulz:schatten4_torch",
    summary="Schatten-4 norm from the first Gram matrix (an exact scalar, no bias), then 4 plain steps",
    source=f"CANS (arXiv 2506.10935), section 3.4; KellerJordan/Muon pull request 14; rows 2-5 of the {_YOU}",
    formula=f"X = G / |G G'|_F^(1/2); 4 x {_STEP}; rows YOU5[1:]",
    needs=("torch",),
    reference=f"{_HERE}.reference:schatten4",
    cost=f"{_HERE}.cost:plain4",
    origin="published design",
)

POLAR_EXPRESS = Method(
    name="polar.polar-express",
    impl=f"{_HERE}.newton_schulz:polar_express",
    summary="5 steps of Polar Express (greedily optimal rows, safety 1.02), sums fused into the products",
    source="Polar Express (arXiv 2505.16932); rows as in modded-nanogpt and microsoft/dion",
    formula=f"{_FROBENIUS}; 5 x {_STEP}; rows POLAR_EXPRESS",
    needs=("torch",),
    reference=f"{_HERE}.reference:polar_express",
    cost=f"{_HERE}.cost:plain5",
    origin="published design",
)

CANS = Method(
    name="polar.cans",
    impl=f"{_HERE}.newton_schulz:cans",
    summary="5 steps of CANS with a safety factor of 1.02, sums fused into the products",
    source="CANS (arXiv 2506.10935); rows as in NVIDIA-NeMo/Emerging-Optimizers; the safety factor is ours",
    formula=f"{_FROBENIUS}; 5 x {_STEP}; rows CANS5_SAFE",
    needs=("torch",),
    reference=f"{_HERE}.reference:cans",
    cost=f"{_HERE}.cost:plain5",
    origin="published design",
)

GRAM = Method(
    name="polar.gram",
    impl=f"{_HERE}.gram:gram",
    summary="Gram iteration, 5 steps of Polar Express, one restart (bfloat16 is iterated in float16, as published)",
    source="Gram Newton-Schulz (Dao-AILab/gram-newton-schulz); rows of Polar Express (arXiv 2505.16932) at 1.02",
    formula=f"{_FROBENIUS}; R = X X', Q <- Q (a + b R + c R^2), R <- P R P, X <- Q X before step 3 and at the end",
    needs=("torch",),
    reference=f"{_HERE}.reference:gram",
    cost=f"{_HERE}.cost:gram5",
    origin="published design",
)

GRAM_AOL = Method(
    name="polar.gram-aol",
    impl=f"{_HERE}.gram:gram_aol",
    summary="AOL, whose Gram matrix starts a 4-step Gram iteration with one restart",
    source=f"own combination of Gram Newton-Schulz (Dao-AILab/gram-newton-schulz) and {_AOL_SOURCE}",
    formula=f"{_AOL}; R = X X', Q <- Q (a + b R + c R^2), R <- P R P, X <- Q X before step 3 and at the end",
    needs=("torch",),
    reference=f"{_HERE}.reference:gram_aol",
    cost=f"{_HERE}.cost:gram4",
    origin="own design",
)

FROBENIUS_ONLY = Method(
    name="polar.frobenius-only",
    impl=f"{_HERE}.scaling:frobenius_only",
    summary="plain rescaling, no iteration: not orthogonal, and meant to be seen failing",
    source="the first line of every Newton-Schulz routine",
    formula=_FROBENIUS,
    needs=("torch",),
    cost=f"{_HERE}.cost:scale_only",
    origin="published design",
)

AOL_ONLY = Method(
    name="polar.aol-only",
    impl=f"{_HERE}.scaling:aol_only",
    summary="AOL, no iteration: not orthogonal, and meant to be seen failing",
    source=_AOL_SOURCE,
    formula=_AOL,
    needs=("torch",),
    cost=f"{_HERE}.cost:aol_only",
    origin="published design",
)

TORCH_MUON = Method(
    name="polar.torch-muon",
    impl=f"{_HERE}.peers:torch_muon",
    summary="torch.optim.Muon's own routine: bfloat16 whatever comes in, one matrix at a time (batches are looped)",
    source="torch.optim._muon; K. Jordan et al., Muon (2024)",
    formula=f"X = G / max(|G|_F, 1e-7) in bfloat16; 5 x {_STEP}; (a, b, c) = (3.4445, -4.7750, 2.0315)",
    needs=("torch",),
    cost=f"{_HERE}.cost:plain5_bfloat16",
    tags=("slow-cpu",),
    origin="library",
)

GNS = Method(
    name="polar.gns",
    impl=f"{_HERE}.peers:gns",
    summary="the package gram-newton-schulz as installed: float16 inside, symmetric CuTe kernels on the GPU",
    source="Dao-AILab/gram-newton-schulz (PyPI: gram-newton-schulz)",
    formula="Gram iteration, 5 steps of Polar Express at 1.05, restart before step 3",
    needs=("torch", "cxx", "package:gram_newton_schulz"),
    cost=f"{_HERE}.cost:gram5_float16",
    origin="library",
    tags=("compile",),
)
