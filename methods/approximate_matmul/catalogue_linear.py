"""Descriptors of the exact, quantised, sketched and low-rank products. Imports no torch."""

from __future__ import annotations

from harness.catalogue.method import Method

_HERE = "methods.approximate_matmul.linear"

EXACT = Method(
    name="approximate_matmul.exact",
    impl=f"{_HERE}.exact:make",
    summary="Exact product: the fastest of torch.mm, F.linear and NumPy's BLAS, chosen at fit by measuring",
    source="PyTorch and NumPy as installed",
    formula="Y = A B",
    needs=("torch",),
    reference=f"{_HERE}.reference:exact",
    cost=f"{_HERE}.cost:exact",
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
    origin="published design",
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
