"""Variants of MADDNESS (rows of the ablation) and of PCA that differ from it in one option. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.catalogue.method import Method
from methods.approximate_matmul.catalogue import MADDNESS
from methods.approximate_matmul.catalogue_linear import PCA

_PAPER = "Blalock and Guttag, Multiplying Matrices Without Multiplying, arXiv 2106.10860"


def _variant(suffix: str, summary: str, source: str, **changes: Any) -> Method:
    return replace(
        MADDNESS,
        name=f"{MADDNESS.name}-{suffix}",
        summary=summary,
        source=source,
        hyper={**MADDNESS.hyper, **changes},
        tags=("variant",),
    )


INT8_SPLITS = _variant(
    "int8-splits",
    "MADDNESS that learns thresholds on an 8-bit power-of-two grid a level; rows are compared in float32 all the same",
    f"{_PAPER}; the grid: its programs (dblalock/bolt), its exponent rounded down instead of towards zero",
    thresholds="int8",
)

STRICT = _variant(
    "strict",
    "MADDNESS whose trees go right where x > v, as the published programs encode, instead of x >= v",
    f"{_PAPER}, Algorithm 1 (>=); its programs (dblalock/bolt) compare with >",
    compare=">",
)

SHARED_SCALE = _variant(
    "shared-scale",
    "MADDNESS with one table scale for all outputs instead of one each",
    f"{_PAPER}; one scale, not rounded to a power of two: ours",
    scale="shared",
)

POWER_SCALE = _variant(
    "power-scale",
    "MADDNESS with one power-of-two table scale, as published: up to one bit of a table entry is lost",
    f"{_PAPER}, section 4.3; the rule: its programs (dblalock/bolt)",
    scale="power-of-two",
)

FLOAT_TABLES = _variant(
    "float-tables",
    "MADDNESS with float32 tables: what 8 bits cost in accuracy and bring in speed",
    f"{_PAPER}; tables that are not rounded: ours, as in joennlae/halutmatmul",
    lut_bits=None,
)

RIDGE100 = _variant(
    "ridge100",
    "MADDNESS with a hundred times the ridge: prototypes stay closer to the leaves' means",
    f"{_PAPER}, section 4.3 (ridge regression); its programs use 1",
    ridge=100.0,
)

PCA_PUBLISHED = replace(
    PCA,
    name="approximate_matmul.pca-published",
    summary="PCA as the published comparison computes it: directions of centred rows, the mean left out of the product",
    source="the comparison of arXiv 2106.10860, its programs (dblalock/bolt)",
    formula="Y = (A V)(Vᵀ B)",
    hyper={**PCA.hyper, "centre": False},
)
