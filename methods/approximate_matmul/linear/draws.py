"""Random sketching matrices S [D, d] in float64 NumPy, shared by the methods and their plain twins.

Every draw has E[S Sᵀ] = I by default, so that E[(A S)(Sᵀ B)] = A B. Options reproduce what published timing code did
instead: its own scalings shrink the product, which lowers the squared error on weakly correlated data.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
SCALINGS = ("unbiased", "published")
DENSITIES = ("theory", "published")

#: Non-zeros a row of OSNAP in the published sweep (Nelson and Nguyen, arXiv 1211.1002, leave s free).
OSNAP_NONZEROS = 4


def gauss(inner: int, rank: int, seed: int, scaling: str) -> Array:
    """S_ij ~ N(0, 1/d) (Indyk and Motwani 1998); published: columns of unit length, E[S Sᵀ] = (d/D) I."""
    sketch = np.random.default_rng(seed).standard_normal((inner, rank))
    if scaling == "published":
        sketch *= math.sqrt(rank) / np.linalg.norm(sketch, axis=0)
    return sketch / math.sqrt(rank)


def rademacher(inner: int, rank: int, seed: int, scaling: str) -> Array:
    """S_ij = +-1/sqrt(d) (Achlioptas, JCSS 66 (2003), theorem 1.1); published: +-1/sqrt(D), E[S Sᵀ] = (d/D) I."""
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(inner, rank))
    return signs / math.sqrt(inner if scaling == "published" else rank)


def hash_jl(inner: int, rank: int, seed: int, scaling: str) -> Array:
    """Count sketch: one +-1 a row, in a random column (Weinberger et al., arXiv 0902.2206, definition 1).

    Published: a further factor 1/sqrt(2) on either side, E[S Sᵀ] = I/2.
    """
    rng = np.random.default_rng(seed)
    sketch = np.zeros((inner, rank))
    sketch[np.arange(inner), rng.integers(rank, size=inner)] = rng.choice((-1.0, 1.0), size=inner)
    return sketch / math.sqrt(2) if scaling == "published" else sketch


def hyperplanes(inner: int, bits: int, seed: int) -> Array:
    """Normal vectors of random hyperplanes, [D, bits] ~ N(0, 1) (Charikar, STOC 2002, section 3)."""
    return np.random.default_rng(seed).standard_normal((inner, bits))


def osnap(inner: int, rank: int, seed: int, nonzeros: int) -> Array:
    """OSNAP in blocks: s count sketches side by side, entries +-1/sqrt(s) (arXiv 1211.1002, section 1).

    The d columns are cut into s blocks as equal as possible; a row has one entry in each.
    """
    rng = np.random.default_rng(seed)
    sketch = np.zeros((inner, rank))
    for block in np.array_split(np.arange(rank), nonzeros):
        sketch[np.arange(inner), rng.choice(block, size=inner)] = rng.choice((-1.0, 1.0), size=inner)
    return sketch / math.sqrt(nonzeros)


def fast_jl_density(inner: int, density: str) -> float:
    """Chance of a non-zero in P: min(1, ln²D / D) (Ailon and Chazelle, SICOMP 39 (2009), section 2, with n = D points).

    Published: an entry was kept when a uniform number exceeded that value, the complement.
    """
    chance = min(1.0, math.log(inner) ** 2 / inner)
    return chance if density == "theory" else 1.0 - chance


def fast_jl(inner: int, rank: int, seed: int, scaling: str, density: str) -> tuple[Array, Array]:
    """Signs [D] and sparse Gaussian P [D', d], D' the next power of two: S = diag(signs) H P, H orthonormal.

    P_ij ~ N(0, 1/(q d)) with chance q, else 0, so that E[P Pᵀ] = I. Published: unit
    variance and columns of unit length (a column that came out empty stays empty), E[S Sᵀ] = (d/D') I.
    """
    rng = np.random.default_rng(seed)
    padded = 1 << max(inner - 1, 0).bit_length()
    signs = rng.choice((-1.0, 1.0), size=inner)
    chance = fast_jl_density(padded, density)
    kept = rng.random((padded, rank)) < chance
    entries = rng.standard_normal((padded, rank)) * kept
    if scaling == "published":
        length = np.linalg.norm(entries, axis=0)
        return signs, entries / np.where(length > 0, length, 1.0)
    return signs, entries / math.sqrt(chance * rank)


def hadamard(size: int) -> Array:
    """The orthonormal Walsh-Hadamard matrix of a power of two, by Sylvester's doubling."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / math.sqrt(size)


def fast_jl_matrix(signs: Array, projection: Array) -> Array:
    """S = diag(signs) H P as a dense matrix, the zero padding of A's columns cut off."""
    return (signs[:, None] * hadamard(len(projection))[: len(signs)]) @ projection


def uniforms(rank: int, seed: int) -> Array:
    """The d uniform numbers that choose columns in importance sampling."""
    return np.random.default_rng(seed).random(rank)
