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
