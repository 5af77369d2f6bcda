"""Descriptors of the exact, quantised, sketched and low-rank products. Imports no torch."""

from __future__ import annotations

from harness.catalogue.method import Method

_HERE = "methods.approximate_matmul.linear"
#: Bytes are cast to float32 first.
_DTYPES = ("float32", "float64", "float16", "bfloat16", "uint8")

EXACT = Method(
    name="approximate_matmul.exact",
    impl=f"{_HERE}.exact:make",
    summary="Exact product: the fastest of torch.mm, F.linear and NumPy's BLAS, chosen at fit by measuring",
    source="PyTorch and NumPy as installed",
    formula="Y = A B",
    needs=("torch",),
    reference=f"{_HERE}.reference:exact",
    cost=f"{_HERE}.cost:exact",
    dtypes=_DTYPES,
    hyper={"backend": "auto", "rows": None},
    origin="library",
)

BF16 = Method(
    name="approximate_matmul.bf16",
    impl=f"{_HERE}.bf16:make",
    summary="Product in bfloat16: B cast at fit, A and the result cast at run time",
    source="PyTorch as installed; Kalamkar et al., A Study of BFLOAT16 (arXiv 1905.12322)",
    formula="Y = bf16(bf16(A) bf16(B)), sums in float32",
    needs=("torch",),
    reference=f"{_HERE}.reference:bf16",
    cost=f"{_HERE}.cost:bfloat16",
    dtypes=_DTYPES,
    origin="library",
    tags=("slow-cpu",),
)

INT8 = Method(
    name="approximate_matmul.int8",
    impl=f"{_HERE}.int8:make",
    summary="Dynamic int8: one scale a row of A found at run time, one a column of B; exact integer sums",
    source="Dettmers et al., LLM.int8() (arXiv 2208.07339), section 2.1; torch._int_mm",
    formula="Y = (round(A / s) round(B / t)) s t, s = max|row| / 127, t = max|column| / 127",
    needs=("torch",),
    reference=f"{_HERE}.reference:int8",
    cost=f"{_HERE}.cost:one_byte",
    dtypes=_DTYPES,
    origin="published design",
)

INT8_TORCH = Method(
    name="approximate_matmul.int8-torch",
    impl=f"{_HERE}.int8_torch:make",
    summary="PyTorch's dynamically quantised linear layer: one scale and zero for all of A, one scale a column of B",
    source="torch.ops.quantized.linear_dynamic as installed; library and bits of A chosen at fit by measuring",
    formula="Y = ((q - z) round(B / t)) s t, q = clip(round(A / s) + z), t = max|column| / 127",
    needs=("torch",),
    cost=f"{_HERE}.cost:one_byte",
    dtypes=_DTYPES,
    devices=("cpu",),
    origin="library",
)

INT8_STATIC = Method(
    name="approximate_matmul.int8-static",
    impl=f"{_HERE}.int8_static:make",
    summary="Static int8: scales of A from the training rows, values beyond them saturate",
    source="Jacob et al. (arXiv 1712.05877), section 3; column scales: SmoothQuant (arXiv 2211.10438), section 4",
    formula="Y = (clip(round(A / s)) round(s B / t)) t, s = max|training rows| / 127",
    needs=("torch",),
    reference=f"{_HERE}.reference:int8_static",
    cost=f"{_HERE}.cost:one_byte",
    dtypes=_DTYPES,
    hyper={"granularity": "tensor"},
    origin="published design",
)

FP8 = Method(
    name="approximate_matmul.fp8",
    impl=f"{_HERE}.fp8:make",
    summary="Product in float8 (E4M3), one scale a row of A found at run time, one a column of B",
    source="Micikevicius et al., FP8 Formats for Deep Learning (arXiv 2209.05433); torch._scaled_mm",
    formula="Y = (e4m3(A / s) e4m3(B / t)) s t, s = max|row| / 448, t = max|column| / 448",
    needs=("torch", "cuda"),
    reference=f"{_HERE}.reference:fp8",
    cost=f"{_HERE}.cost:one_byte",
    hyper={"fast_accumulation": False},
    devices=("cuda",),
    origin="library",
)

PCA = Method(
    name="approximate_matmul.pca",
    impl=f"{_HERE}.pca:make",
    summary="Projection of the rows less their mean on the d leading principal directions of the training rows",
    source="Jolliffe, Principal Component Analysis (2002), chapter 2",
    formula="Y = mu B + ((A - mu) V)(Vᵀ B)",
    needs=("torch",),
    reference=f"{_HERE}.reference_factors:pca",
    cost=f"{_HERE}.cost:rank_one",
    dtypes=_DTYPES,
    hyper={"rank": 16, "centre": True},
    origin="published design",
)

SPARSE_PCA = Method(
    name="approximate_matmul.sparse-pca",
    impl=f"{_HERE}.sparse_pca:make",
    summary="Projection on sparse loadings of the training rows, least-squares decoder",
    source="Mairal et al., ICML 2009; the comparison of arXiv 2106.10860",
    formula="Y = (A W) T, T = argmin |Ã B - (Ã W) T|",
    needs=("torch",),
    reference=f"{_HERE}.reference_factors:sparse_pca",
    cost=f"{_HERE}.cost:touched",
    dtypes=_DTYPES,
    hyper={"rank": 16, "alpha": 0.03125, "scaling": "invariant", "backend": "auto"},
    origin="published design",
)

FAST_JL = Method(
    name="approximate_matmul.fast-jl",
    impl=f"{_HERE}.fast_jl:make",
    summary="Fast Johnson-Lindenstrauss transform: signs, Walsh-Hadamard transform, sparse Gaussian projection",
    source="Ailon and Chazelle, SIAM J. Comput. 39 (2009), section 2",
    formula="Y = (A S)(Sᵀ B), S = diag(signs) H P",
    needs=("torch",),
    reference=f"{_HERE}.reference_factors:fast_jl",
    cost=f"{_HERE}.cost:rank_one",
    dtypes=_DTYPES,
    hyper={"rank": 16, "scaling": "unbiased", "density": "theory", "backend": "auto", "seed": 0},
    origin="published design",
)

HASH_JL = Method(
    name="approximate_matmul.hash-jl",
    impl=f"{_HERE}.hash_jl:make",
    summary="Feature hashing (count sketch): every column added with a random sign to one of d",
    source="Weinberger et al., Feature Hashing (arXiv 0902.2206), definition 1",
    formula="Y = (A S)(Sᵀ B), one +-1 in every row of S",
    needs=("torch",),
    reference=f"{_HERE}.reference_factors:hash_jl",
    cost=f"{_HERE}.cost:rank_one",
    dtypes=_DTYPES,
    hyper={"rank": 16, "scaling": "unbiased", "backend": "auto", "seed": 0},
    origin="published design",
)

POPCOUNT = Method(
    name="approximate_matmul.popcount",
    impl=f"{_HERE}.popcount:make",
    summary="Signs of random projections packed to bits, angles from the number of bits that differ",
    source="Charikar, Similarity estimation techniques from rounding algorithms (STOC 2002), section 3",
    formula="Y = |a| |b| cos(pi H / n), H = popcount(sign(a P) xor sign(b P)), n = 4 codebooks",
    needs=("torch",),
    reference=f"{_HERE}.reference_factors:popcount",
    cost=f"{_HERE}.cost:rank_one",
    dtypes=_DTYPES,
    hyper={"codebooks": 16, "backend": "auto", "seed": 0},
    origin="published design",
)

OSNAP = Method(
    name="approximate_matmul.osnap",
    impl=f"{_HERE}.osnap:make",
    summary="Sparse sketch with s signs in every row",
    source="Nelson and Nguyen, OSNAP (arXiv 1211.1002), section 1",
    formula="Y = (A S)(Sᵀ B), s entries +-1/sqrt(s) in every row of S",
    needs=("torch",),
    reference=f"{_HERE}.reference_factors:osnap",
    cost=f"{_HERE}.cost:rank_one",
    dtypes=_DTYPES,
    hyper={"rank": 16, "nonzeros": "auto", "backend": "auto", "seed": 0},
    origin="published design",
)

RADEMACHER = Method(
    name="approximate_matmul.rademacher",
    impl=f"{_HERE}.rademacher:make",
    summary="Dense sketch of random signs",
    source="Achlioptas, J. Comput. Syst. Sci. 66 (2003), theorem 1.1",
    formula="Y = (A S)(Sᵀ B), S = +-1/sqrt(d)",
    needs=("torch",),
    reference=f"{_HERE}.reference_factors:rademacher",
    cost=f"{_HERE}.cost:rank_one",
    dtypes=_DTYPES,
    hyper={"rank": 16, "scaling": "unbiased", "seed": 0},
    origin="published design",
)

GAUSS = Method(
    name="approximate_matmul.gauss",
    impl=f"{_HERE}.gauss:make",
    summary="Dense Gaussian sketch",
    source="Indyk and Motwani, STOC 1998",
    formula="Y = (A S)(Sᵀ B), S ~ N(0, 1/d)",
    needs=("torch",),
    reference=f"{_HERE}.reference_factors:gauss",
    cost=f"{_HERE}.cost:rank_one",
    dtypes=_DTYPES,
    hyper={"rank": 16, "scaling": "unbiased", "seed": 0},
    origin="published design",
)

FD_AMM = Method(
    name="approximate_matmul.fd-amm",
    impl=f"{_HERE}.fd_amm:make",
    summary="Frequent directions of A and B together, found at run time",
    source="Ye, Luo and Zhang, IJCAI 2016; Ghashami et al., SIAM J. Comput. 45 (2016)",
    formula="sigma_i <- sqrt(max(sigma_i² - sigma_d², 0)) over the rows of [Aᵀ, B]",
    needs=("torch",),
    reference=f"{_HERE}.reference_factors:fd_amm",
    cost=f"{_HERE}.cost:rank_one",
    dtypes=_DTYPES,
    hyper={"rank": 16, "shrink": "theory", "buffer": "double"},
    origin="published design",
)

COOCCUR = Method(
    name="approximate_matmul.cooccur",
    impl=f"{_HERE}.cooccur:make",
    summary="Co-occurring directions of A and B, found at run time",
    source="Mroueh, Marcheret and Goel, AISTATS 2017, algorithm 2",
    formula="A B ~ X Zᵀ, singular values of X Zᵀ soft-thresholded whenever the buffers are full",
    needs=("torch",),
    reference=f"{_HERE}.reference_factors:cooccur",
    cost=f"{_HERE}.cost:rank_one",
    dtypes=_DTYPES,
    hyper={"rank": 16, "buffer": "double"},
    origin="published design",
)

SAMPLING = Method(
    name="approximate_matmul.sampling",
    impl=f"{_HERE}.sampling:make",
    summary="Columns of A and rows of B drawn by the product of their norms, at run time",
    source="Drineas, Kannan and Mahoney, SIAM J. Comput. 36 (2006), lemma 4",
    formula="Y = sum of A^(k) B_(k) / (d p_k), p_k ~ |A^(k)| |B_(k)|",
    needs=("torch",),
    reference=f"{_HERE}.reference_factors:sampling",
    cost=f"{_HERE}.cost:rank_one",
    dtypes=_DTYPES,
    hyper={"rank": 16, "norms": "run", "seed": 0},
    origin="published design",
)

SVD = Method(
    name="approximate_matmul.svd",
    impl=f"{_HERE}.svd:make",
    summary="Randomised SVD of A at run time and of B at fit, thin factors multiplied",
    source="Halko, Martinsson and Tropp, SIAM Review 53 (2011), algorithms 4.4 and 5.1",
    formula="Y = A_d B_d",
    needs=("torch",),
    reference=f"{_HERE}.reference_factors:svd",
    cost=f"{_HERE}.cost:rank_one",
    dtypes=_DTYPES,
    hyper={"rank": 16, "side": "both", "seed": 0},
    origin="published design",
)
