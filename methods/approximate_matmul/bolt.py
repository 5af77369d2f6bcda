"""Bolt: 16 k-means centroids per subspace, 8-bit tables whose ends are clipped, exact sums.

Source: Blalock and Guttag, Bolt: Accelerated Data Mining with Fast Vector Compression (KDD 2017, arXiv 1706.10283);
the clipped fractions are those of its programs (dblalock/bolt). Departures: A is encoded and the tables come from B
(the published product encodes B and builds a table for every row of A, which costs more than the exact product when M
is small); k-means++ seeds instead of kmc2; the fraction is chosen on B's own tables against their true values.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from methods.approximate_matmul import kmeans
from methods.approximate_matmul import tables as lut
from methods.approximate_matmul.checks import one_of, whole
from methods.approximate_matmul.encoders import CentroidEncoder
from methods.approximate_matmul.estimator import Estimator, Trained, check_common, upcast_of
from methods.approximate_matmul.tables import Scale
from methods.approximate_matmul.tree import F32, F64, subspaces

#: 4-bit codes (Bolt, section 3).
ENTRIES = 16
#: Fractions tried for clipping (dblalock/bolt), and none.
FRACTIONS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


def make(
    *,
    codebooks: int = 16,
    lut_bits: int | None = 8,
    aggregation: str = "exact",
    upcast: int = 16,
    scale: Scale = "shared",
    iterations: int = kmeans.ITERATIONS,
    backend: str = "auto",
    seed: int = 0,
) -> Estimator:
    """Bolt.

    Args:
        codebooks: C.
        lut_bits: bits of a table entry, or None for float32 tables.
        aggregation: ``exact`` (Bolt) or ``average`` (MADDNESS's).
        upcast: codebooks averaged together.
        scale: table scales; ``shared`` is Bolt's.
        iterations: Lloyd steps.
        backend: ``auto``, ``native``, ``torch`` or ``numpy``.
        seed: of the k-means seeds.
    """
    hyper = dict(locals())
    check_common("bolt", codebooks, lut_bits, aggregation, upcast, backend)
    one_of("bolt", "scale", scale, ("output", "shared", "power-of-two"))
    whole("bolt", "iterations", iterations, 0)
    whole("bolt", "seed", seed, 0)
    return Estimator("bolt", hyper, lambda rows: _train(rows, hyper), upcast_of(codebooks, aggregation, upcast))


def _train(rows: F32, h: dict[str, Any]) -> Trained:
    starts = subspaces(rows.shape[1], h["codebooks"])
    centroids, _ = kmeans.codebooks(rows, starts, ENTRIES, h["seed"], h["iterations"])
    encoder = CentroidEncoder(centroids=centroids, starts=starts)

    def build(b: F64) -> lut.Tables:
        values = products(encoder, b)
        return lut.floating(values) if h["lut_bits"] is None else clipped(values, h["lut_bits"], h["scale"])

    return Trained(encoder=encoder, build=build)


def products(encoder: CentroidEncoder, b: F64) -> F64:
    """(C, K, M) inner products of the centroids with their rows of B (rotated when the encoder rotates)."""
    rotated = b if encoder.rotation is None else encoder.rotation.T.astype(np.float64) @ b
    rows = np.vstack([rotated, np.zeros((1, b.shape[1]))])[encoder.padded()]
    return np.asarray(encoder.centroids.astype(np.float64) @ rows)


def clipped(values: F64, bits: int, scale: Scale) -> lut.Tables:
    """Tables quantised with the fraction of saturated entries that reproduces them best."""
    best = min(FRACTIONS, key=lambda fraction: _loss(values, bits, scale, fraction))
    return lut.quantise(values, bits, scale, best)


def _loss(values: F64, bits: int, scale: Scale, fraction: float) -> float:
    low, step = lut.grid(values, bits, scale, fraction)
    q = lut.quantise(values, bits, scale, fraction).values
    return float(((q * step + low - values) ** 2).sum())
