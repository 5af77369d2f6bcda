"""k-means by Lloyd's iteration with k-means++ seeds, for the codebooks of Bolt and product quantisation.

Source: Lloyd, Least squares quantization in PCM (1982); Arthur and Vassilvitskii, k-means++ (SODA 2007).
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from harness.errors import UserError
from methods.approximate_matmul.tree import F32, F64, U8

#: Lloyd steps (the default of faiss::Clustering).
ITERATIONS = 25
#: Seeds are drawn among this many rows per centroid: D^2 sampling over all rows would dominate the fit.
_ROWS_PER_SEED = 20


def codebooks(
    x: F32, starts: NDArray[np.int32], entries: int, seed: int, iterations: int = ITERATIONS, start: F32 | None = None
) -> tuple[F32, U8]:
    """Centroids of every subspace, padded to the widest, and the rows' codes.

    Args:
        x: (N', D) float32.
        starts: (C + 1,) bounds of the subspaces.
        entries: K, at most 256.
        seed: of the seeds' generator, one stream a codebook.
        iterations: Lloyd steps.
        start: (C, K, d) centroids to start from instead of drawn seeds.

    Returns:
        (C, K, d) float32 and (N', C) uint8.

    Raises:
        UserError: distances would not fit float32.
    """
    widest = int(np.diff(starts).max())
    # A distance between two rows sums the squares of at most twice the largest entry.
    if widest * (2.0 * float(np.abs(x).max())) ** 2 > float(np.finfo(np.float32).max):
        raise UserError(
            f"k-means: squared distances of rows with entries up to {float(np.abs(x).max()):.0e} do not fit float32 "
            f"(at most 3e38); scale a_train and a down, below 1e18 or so."
        )
    centroids = np.zeros((len(starts) - 1, entries, widest), dtype=np.float32)
    codes = np.empty((len(x), len(starts) - 1), dtype=np.uint8)
    for c, (first, last) in enumerate(itertools.pairwise(starts)):
        block = x[:, first:last].copy()
        middle = block.mean(axis=0, dtype=np.float64).astype(np.float32)
        block -= middle  # |c|^2 - 2 x.c loses digits far from the origin
        if start is None:
            seeds = draw(block, entries, np.random.default_rng((seed, c)))
        else:
            seeds = start[c, :, : last - first] - middle
        found, codes[:, c] = lloyd(block, seeds, iterations)
        centroids[c, :, : last - first] = found + middle
    return centroids, codes


def draw(x: F32, entries: int, generator: np.random.Generator) -> F32:
    """k-means++: each seed is drawn with probability proportional to its squared distance from those before it."""
    limit = _ROWS_PER_SEED * entries
    pool = x if len(x) <= limit else x[generator.choice(len(x), limit, replace=False)]
    chosen = [int(generator.integers(len(pool)))]
    distance = ((pool - pool[chosen[0]]) ** 2).sum(axis=1, dtype=np.float64)
    while len(chosen) < entries:
        total = distance.sum()
        # Fewer different rows than centroids: the rest are copies, which no row will choose (argmin takes the first).
        at = int(generator.choice(len(pool), p=distance / total)) if total > 0 else chosen[0]
        chosen.append(at)
        distance = np.minimum(distance, ((pool - pool[at]) ** 2).sum(axis=1, dtype=np.float64))
    return pool[chosen].copy()


def lloyd(x: F32, centroids: F32, iterations: int) -> tuple[F32, U8]:
    """Assign, average, repeat until nothing moves; an empty cluster keeps its centroid."""
    codes = assign(x, centroids)
    for _ in range(iterations):
        counts = np.bincount(codes, minlength=len(centroids))
        sums: F64 = np.stack([np.bincount(codes, weights=column, minlength=len(centroids)) for column in x.T], axis=1)
        averages = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        centroids = np.where(counts[:, None] > 0, averages, centroids)
        previous, codes = codes, assign(x, centroids)
        if np.array_equal(previous, codes):
            break
    return centroids, codes


def assign(x: F32, centroids: F32) -> U8:
    """(N',) nearest centroid of each row."""
    codes = np.empty(len(x), dtype=np.uint8)
    norms = (centroids**2).sum(axis=1)
    for first in range(0, len(x), 4096):
        part = x[first : first + 4096]
        codes[first : first + 4096] = (norms - 2 * (part @ centroids.T)).argmin(axis=1)
    return codes
