"""Product quantisation: 256 k-means centroids per subspace, float32 tables.

Source: Jegou, Douze and Schmid, Product quantization for nearest neighbor search (PAMI 2011). Here A is encoded and the
tables are products with B.
"""

from __future__ import annotations

from typing import Any

from methods.approximate_matmul import kmeans
from methods.approximate_matmul import tables as lut
from methods.approximate_matmul.bolt import products
from methods.approximate_matmul.checks import whole
from methods.approximate_matmul.encoders import CentroidEncoder
from methods.approximate_matmul.estimator import Estimator, Trained, check_common
from methods.approximate_matmul.tree import F32, subspaces

#: One byte a code (PAMI 2011, section 5).
ENTRIES = 256


def make(
    *, codebooks: int = 16, iterations: int = kmeans.ITERATIONS, backend: str = "auto", seed: int = 0
) -> Estimator:
    """Product quantisation.

    Args:
        codebooks: C.
        iterations: Lloyd steps.
        backend: ``auto``, ``torch`` or ``numpy``.
        seed: of the k-means seeds.
    """
    hyper = dict(locals())
    check("pq", hyper)
    return Estimator("pq", hyper, lambda rows: _train(rows, hyper), None)


def check(name: str, hyper: dict[str, Any]) -> None:
    """Check the options of float-table product quantisers."""
    check_common(name, hyper["codebooks"], None, "exact", 1, hyper["backend"])
    whole(name, "iterations", hyper["iterations"], 0)
    whole(name, "seed", hyper["seed"], 0)


def _train(rows: F32, h: dict[str, Any]) -> Trained:
    starts = subspaces(rows.shape[1], h["codebooks"])
    centroids, _ = kmeans.codebooks(rows, starts, ENTRIES, h["seed"], h["iterations"])
    encoder = CentroidEncoder(centroids=centroids, starts=starts)
    return Trained(encoder=encoder, build=lambda b: lut.floating(products(encoder, b)))
