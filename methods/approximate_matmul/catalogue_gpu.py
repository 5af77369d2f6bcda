"""Descriptors of MADDNESS on NVIDIA GPUs. Importing this imports neither torch nor triton."""

from __future__ import annotations

from typing import Any

from harness.catalogue.method import Method

_GPU = "methods.approximate_matmul.gpu.maddness"
_PAPER = "Blalock and Guttag, Multiplying Matrices Without Multiplying, arXiv 2106.10860; kernels: ours"
_TREE = "i <- 2 i + [x_j >= v_i], 4 times"
_HYPER: dict[str, Any] = {
    "codebooks": 16,
    "candidates": 4,
    "ridge": 1.0,
    "lut_bits": 8,
    "tables": "prototype",
    "thresholds": "float",
    "compare": ">=",
    "nonzeros": None,
    "scale": "output",
    "min_leaf": 1,
    "seed": 0,
}


def _method(design: str, summary: str, formula: str, **hyper: Any) -> Method:
    return Method(
        name=f"approximate_matmul.maddness-triton-{design}",
        impl=f"{_GPU}:make_{design}",
        summary=summary,
        source=_PAPER,
        formula=f"{_TREE}; {formula}",
        needs=("torch", "triton", "cuda"),
        reference=f"{_GPU}:reference",
        cost="methods.approximate_matmul.cost:tree",
        hyper={**_HYPER, **hyper},
        dtypes=("float32", "bfloat16", "float16"),
        devices=("cuda",),
        origin="own design",
    )


LUT = _method(
    "lut",
    "MADDNESS in two kernels: encode, then table entries through the first-level cache, two 16-bit sums a word",
    "y_m = scale_m sum_c q[c, code_c, m] + offset_m",
)
ONEHOT = _method(
    "onehot",
    "MADDNESS in two kernels: encode, then one-hot rows times tables on tensor cores, exact int32 sums",
    "G one-hot of the codes, [N, 16 C]; Y = (G (q - 128) + 128 C) diag(scale) + offset",
    kind="int8",
)
FUSED = _method(
    "fused",
    "MADDNESS in one kernel: rows encoded, one-hot product and dequantisation, codes never stored",
    "G one-hot of the codes, [N, 16 C]; Y = (G (q - 128) + 128 C) diag(scale) + offset",
    kind="int8",
)
