"""Descriptors of the vector-quantisation methods of the task ``approximate_matmul``. Imports no torch."""

from __future__ import annotations

from harness.catalogue.method import Method

_HERE = "methods.approximate_matmul"
_DTYPES = ("float32", "float64", "float16", "bfloat16", "uint8")
_MADDNESS = "Blalock and Guttag, Multiplying Matrices Without Multiplying, arXiv 2106.10860"
_CONSTANTS = "16 leaves, 4 candidates, 8-bit tables: the paper; ridge 1, upcast 16: its programs (dblalock/bolt)"
_SCAN = "y_m = scale_m sum_c q[c, code_c, m] + offset_m"
_TREE = "i <- 2 i + [x_j >= v_i], 4 times"
_HYPER = {
    "codebooks": 16,
    "candidates": 4,
    "ridge": 1.0,
    "lut_bits": 8,
    "aggregation": "exact",
    "upcast": 16,
    "tables": "prototype",
    "thresholds": "float",
    "compare": ">=",
    "nonzeros": None,
    "scale": "output",
    "min_leaf": 1,
    "backend": "auto",
    "seed": 0,
}

MADDNESS = Method(
    name="approximate_matmul.maddness",
    impl=f"{_HERE}.maddness:make",
    summary="rows hashed by learned trees, ridge-optimised prototypes, 8-bit tables summed exactly",
    source=f"{_MADDNESS}; {_CONSTANTS}; exact sums and scales per output: ours",
    formula=f"{_TREE}; P = P0 + (G'G + ridge I)^-1 G'(A - G P0); {_SCAN}",
    needs=("torch",),
    reference=f"{_HERE}.reference:maddness",
    cost=f"{_HERE}.cost:tree",
    hyper=_HYPER,
    dtypes=_DTYPES,
    origin="published design",
)

MADDNESS_PQ = Method(
    name="approximate_matmul.maddness-pq",
    impl=f"{_HERE}.maddness:make_pq",
    summary="MADDNESS without ridge: prototypes are means on their own columns",
    source=f"{_MADDNESS}, section 5 (MADDNESS-PQ); {_CONSTANTS}",
    formula=f"{_TREE}; P = leaf means; {_SCAN}",
    needs=("torch",),
    reference=f"{_HERE}.reference:maddness_pq",
    cost=f"{_HERE}.cost:tree",
    hyper={**_HYPER, "nonzeros": 1},
    dtypes=_DTYPES,
    origin="published design",
)

MADDNESS_SPARSE = Method(
    name="approximate_matmul.maddness-sparse",
    impl=f"{_HERE}.maddness:make_sparse",
    summary="MADDNESS whose prototypes have at most nonzeros D / C columns: cheaper tables",
    source=f"{_MADDNESS}, appendix; the selection rule and nonzeros 2 and 4: its programs (dblalock/bolt)",
    formula=f"{_TREE}; columns of largest |G_c W_c[:, j]| kept, ridge again per column; {_SCAN}",
    needs=("torch",),
    reference=f"{_HERE}.reference:maddness_sparse",
    cost=f"{_HERE}.cost:tree",
    hyper={**_HYPER, "nonzeros": 4},
    dtypes=_DTYPES,
    origin="published design",
)

MADDNESS_DIRECT = Method(
    name="approximate_matmul.maddness-direct",
    impl=f"{_HERE}.maddness:make_direct",
    summary="MADDNESS whose tables are fitted to A B, since B is known",
    source=f"{_MADDNESS}; tables from known weights: McCarter and Dronen, arXiv 2207.05808; {_CONSTANTS}",
    formula=f"{_TREE}; T = (G'G + ridge I)^-1 G'A B; {_SCAN}",
    needs=("torch",),
    reference=f"{_HERE}.reference:maddness_direct",
    cost=f"{_HERE}.cost:tree",
    hyper={**_HYPER, "tables": "direct"},
    dtypes=_DTYPES,
    origin="own design",
)

MADDNESS_AVERAGE = Method(
    name="approximate_matmul.maddness-avg",
    impl=f"{_HERE}.maddness:make_average",
    summary="MADDNESS with the paper's averaged bytes instead of exact sums",
    source=f"{_MADDNESS}, section 4.4; {_CONSTANTS}",
    formula=f"{_TREE}; avg(a, b) = (a + b + 1) >> 1 over groups of U, minus C log2(U) / 4; scale, offset",
    needs=("torch",),
    reference=f"{_HERE}.reference:maddness_average",
    cost=f"{_HERE}.cost:tree",
    hyper={**_HYPER, "aggregation": "average"},
    dtypes=_DTYPES,
    origin="published design",
)

MADDNESS_CANDIDATES = Method(
    name="approximate_matmul.maddness-candidates",
    impl=f"{_HERE}.maddness:make",
    summary="MADDNESS that tries 16 split columns a level instead of four: the ablation of that number",
    source=f"{_MADDNESS}, section 4 (more than four candidates gave almost nothing); {_CONSTANTS}",
    formula=f"{_TREE}, the best of 16 columns a level; P = P0 + (G'G + ridge I)^-1 G'(A - G P0); {_SCAN}",
    needs=("torch",),
    reference=f"{_HERE}.reference:maddness",
    cost=f"{_HERE}.cost:tree",
    hyper={**_HYPER, "candidates": 16},
    dtypes=_DTYPES,
    origin="published design",
)

BOLT = Method(
    name="approximate_matmul.bolt",
    impl=f"{_HERE}.bolt:make",
    summary="16 k-means centroids per subspace, clipped 8-bit tables, exact sums",
    source="Blalock and Guttag, Bolt, arXiv 1706.10283; clipped fractions: dblalock/bolt; 25 Lloyd steps: faiss",
    formula=f"code_c = argmin_k |x_c - P[c, k]|; {_SCAN}",
    needs=("torch",),
    reference=f"{_HERE}.reference:bolt",
    cost=f"{_HERE}.cost:centroids",
    hyper={
        "codebooks": 16,
        "lut_bits": 8,
        "aggregation": "exact",
        "upcast": 16,
        "scale": "shared",
        "iterations": 25,
        "backend": "auto",
        "seed": 0,
    },
    dtypes=_DTYPES,
    origin="published design",
)

PQ = Method(
    name="approximate_matmul.pq",
    impl=f"{_HERE}.pq:make",
    summary="product quantisation: 256 k-means centroids per subspace, float32 tables",
    source="Jegou, Douze and Schmid, PAMI 2011; 25 Lloyd steps: faiss",
    formula="code_c = argmin_k |x_c - P[c, k]|; y = sum_c T[c, code_c]",
    needs=("torch",),
    reference=f"{_HERE}.reference:pq",
    cost=f"{_HERE}.cost:centroids",
    hyper={"codebooks": 16, "iterations": 25, "backend": "auto", "seed": 0},
    dtypes=_DTYPES,
    origin="published design",
)

OPQ = Method(
    name="approximate_matmul.opq",
    impl=f"{_HERE}.opq:make",
    summary="product quantisation after a learned rotation (more multiplications than the exact product if D > M)",
    source="Ge, He, Ke and Sun, PAMI 2014; 20 alternations: ours",
    formula="x <- x R; code_c = argmin_k |x_c - P[c, k]|; y = sum_c T[c, code_c]",
    needs=("torch",),
    reference=f"{_HERE}.reference:opq",
    cost=f"{_HERE}.cost:rotated",
    hyper={"codebooks": 16, "rotations": 20, "iterations": 25, "backend": "auto", "seed": 0},
    dtypes=_DTYPES,
    origin="published design",
)
