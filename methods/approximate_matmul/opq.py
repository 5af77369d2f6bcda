"""Optimised product quantisation: rows are rotated before they are split into subspaces.

Source: Ge, He, Ke and Sun, Optimized product quantization (PAMI 2014): eigenvalue allocation to start (section 3.2.3),
then alternating Lloyd steps and a Procrustes rotation R = U V' of A' Y = U S V', Y the quantised rows (section 3.1).
The rotation costs D multiply-adds per entry of A, more than the exact product when D > M: a baseline of accuracy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from methods.approximate_matmul import kmeans
from methods.approximate_matmul import tables as lut
from methods.approximate_matmul.bolt import products
from methods.approximate_matmul.checks import whole
from methods.approximate_matmul.encoders import CentroidEncoder
from methods.approximate_matmul.estimator import Estimator, Trained
from methods.approximate_matmul.pq import ENTRIES, check
from methods.approximate_matmul.tree import F32, U8, subspaces

#: Alternations; the paper's figures are flat long before its 100.
ROTATIONS = 20


def make(
    *,
    codebooks: int = 16,
    rotations: int = ROTATIONS,
    iterations: int = kmeans.ITERATIONS,
    backend: str = "auto",
    seed: int = 0,
) -> Estimator:
    """Optimised product quantisation.

    Args:
        codebooks: C.
        rotations: alternations of one Lloyd step and one rotation.
        iterations: Lloyd steps at the end, with the rotation held.
        backend: ``auto``, ``torch`` or ``numpy``.
        seed: of the k-means seeds.
    """
    hyper = dict(locals())
    check("opq", hyper)
    whole("opq", "rotations", rotations, 0)
    return Estimator("opq", hyper, lambda rows: _train(rows, hyper), None)


def _train(rows: F32, h: dict[str, Any]) -> Trained:
    starts = subspaces(rows.shape[1], h["codebooks"])
    rotation = allocate(rows, starts)
    centroids: F32 | None = None
    for _ in range(h["rotations"]):
        centroids, codes = kmeans.codebooks(rows @ rotation, starts, ENTRIES, h["seed"], 1, centroids)
        rotation = procrustes(rows, reconstruct(centroids, codes, starts))
    centroids, _ = kmeans.codebooks(rows @ rotation, starts, ENTRIES, h["seed"], h["iterations"], centroids)
    encoder = CentroidEncoder(centroids=centroids, starts=starts, rotation=rotation)
    return Trained(encoder=encoder, build=lambda b: lut.floating(products(encoder, b)))


def allocate(rows: F32, starts: NDArray[np.int32]) -> F32:
    """Principal directions dealt to the subspaces so that their products of eigenvalues are balanced."""
    exact = rows.astype(np.float64)
    exact -= exact.mean(axis=0)
    values, vectors = np.linalg.eigh(exact.T @ exact)
    capacity = np.diff(starts)
    logs = np.log(np.maximum(values, 1e-12 * max(values.max(), 1e-300)))
    logs -= logs.min()
    load, filled = np.zeros(len(capacity)), np.zeros(len(capacity), dtype=int)
    rotation = np.empty_like(vectors)
    for i in np.argsort(-values, kind="stable"):
        c = int(np.argmin(np.where(filled < capacity, load, np.inf)))
        rotation[:, starts[c] + filled[c]] = vectors[:, i]
        load[c] += logs[i]
        filled[c] += 1
    return rotation.astype(np.float32)


def reconstruct(centroids: F32, codes: U8, starts: NDArray[np.int32]) -> F32:
    """(N', D) rows with each subspace replaced by its centroid."""
    parts = [centroids[c, codes[:, c], : starts[c + 1] - starts[c]] for c in range(len(centroids))]
    return np.concatenate(parts, axis=1)


def procrustes(rows: F32, target: F32) -> F32:
    """The rotation R that minimises |rows R - target|."""
    u, _, vt = np.linalg.svd(rows.T.astype(np.float64) @ target)
    return np.asarray(u @ vt, dtype=np.float32)
