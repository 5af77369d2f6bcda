"""Plain NumPy twins of the sketches, projections and run-time factorisations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from methods.approximate_matmul.linear import draws
from methods.approximate_matmul.linear.base import limited_rank
from methods.approximate_matmul.linear.osnap import resolved
from methods.approximate_matmul.linear.pca import EPSILON
from methods.approximate_matmul.linear.reference import Array, Plain, Product
from methods.approximate_matmul.linear.sparse_pca import decoder, loadings
from methods.approximate_matmul.linear.svd import ITERATIONS, probe


def _sketched(name: str, rank: int, draw: Callable[[int], Array]) -> Plain:
    """Y = A (S (Sᵀ B))."""

    def learn(_: Array, b: Array) -> Product:
        limited_rank(rank, b.shape[0], b.shape[1], name)
        sketch = draw(len(b))
        return lambda a: a @ (sketch @ (sketch.T @ b))

    return Plain(name, learn, {"rank": rank})


def gauss(*, rank: int = 16, scaling: str = "unbiased", seed: int = 0) -> Plain:
    """Gaussian sketch."""
    return _sketched("gauss", rank, lambda inner: draws.gauss(inner, rank, seed, scaling))


def rademacher(*, rank: int = 16, scaling: str = "unbiased", seed: int = 0) -> Plain:
    """Sketch of signs."""
    return _sketched("rademacher", rank, lambda inner: draws.rademacher(inner, rank, seed, scaling))


def hash_jl(*, rank: int = 16, scaling: str = "unbiased", backend: str = "auto", seed: int = 0) -> Plain:
    """Count sketch."""
    return _sketched("hash-jl", rank, lambda inner: draws.hash_jl(inner, rank, seed, scaling))


def popcount(*, codebooks: int = 16, backend: str = "auto", seed: int = 0) -> Plain:
    """Angles from the share of random hyperplanes that part a row from a column."""

    def learn(a_train: Array, b: Array) -> Product:
        planes = draws.hyperplanes(len(b), 4 * codebooks, seed)
        sides, lengths = b.T @ planes >= 0, np.linalg.norm(b, axis=0)

        def product(a: Array) -> Array:
            apart = np.stack([((row @ planes >= 0) != sides).mean(axis=1) for row in a])
            answer: Array = np.linalg.norm(a, axis=1)[:, None] * lengths * np.cos(np.pi * apart)
            return answer

        return product

    return Plain("popcount", learn, {"codebooks": codebooks, "backend": backend, "seed": seed})


def osnap(*, rank: int = 16, nonzeros: int | str = "auto", backend: str = "auto", seed: int = 0) -> Plain:
    """OSNAP."""
    return _sketched("osnap", rank, lambda inner: draws.osnap(inner, rank, seed, resolved(nonzeros, rank)))


def fast_jl(
    *, rank: int = 16, scaling: str = "unbiased", density: str = "theory", backend: str = "auto", seed: int = 0
) -> Plain:
    """Signs, the Walsh-Hadamard matrix written out, sparse Gaussian projection."""

    def draw(inner: int) -> Array:
        return draws.fast_jl_matrix(*draws.fast_jl(inner, rank, seed, scaling, density))

    return _sketched("fast-jl", rank, draw)


def pca(*, rank: int = 16, centre: bool = True) -> Plain:
    """Singular value decomposition of the centred training rows."""

    def learn(a_train: Array, b: Array) -> Product:
        limited_rank(rank, b.shape[0], b.shape[1], "pca")
        mean = a_train.mean(axis=0)
        _, values, vt = np.linalg.svd(a_train - mean, full_matrices=False)
        scale = max(float(values[0]), EPSILON * float(np.linalg.norm(a_train)))
        v = vt[:rank][values[:rank] > max(a_train.shape) * EPSILON * scale].T
        rest = mean @ b - (mean @ v) @ (v.T @ b) if centre else 0.0
        return lambda a: (a @ v) @ (v.T @ b) + rest

    return Plain("pca", learn, {"rank": rank, "centre": centre})


def sparse_pca(*, rank: int = 16, alpha: float = 0.03125, scaling: str = "invariant", backend: str = "auto") -> Plain:
    """The loadings of the method itself, products in float64."""

    def learn(a_train: Array, b: Array) -> Product:
        limited_rank(rank, b.shape[0], b.shape[1], "sparse-pca")
        sparse = loadings(a_train, rank, alpha, scaling)
        table = decoder(a_train, sparse, b)
        return lambda a: (a @ sparse) @ table

    return Plain("sparse-pca", learn, {"rank": rank, "alpha": alpha})


def svd(*, rank: int = 16, side: str = "both", seed: int = 0) -> Plain:
    """The same range finder and iterations in float64."""

    def truncated(matrix: Array) -> Array:
        basis = np.linalg.qr(matrix @ probe(matrix.shape, rank, seed))[0]
        for _ in range(ITERATIONS):
            basis = np.linalg.qr(matrix @ np.linalg.qr(matrix.T @ basis)[0])[0]
        inside, values, right = np.linalg.svd(basis.T @ matrix, full_matrices=False)
        answer: Array = (basis @ inside[:, :rank] * values[:rank]) @ right[:rank]
        return answer

    def learn(a_train: Array, b: Array) -> Product:
        limited_rank(rank, b.shape[0], b.shape[1], "svd")
        if side == "train":
            v = np.linalg.svd(a_train, full_matrices=True)[2][:rank].T
            return lambda a: (a @ v) @ (v.T @ b)
        right = truncated(b)
        return (lambda a: truncated(a) @ right) if side == "both" else (lambda a: a @ right)

    return Plain("svd", learn, {"rank": rank, "side": side, "seed": seed})


def sampling(*, rank: int = 16, norms: str = "run", seed: int = 0) -> Plain:
    """A loop over the draws."""

    def learn(a_train: Array, b: Array) -> Product:
        limited_rank(rank, b.shape[0], b.shape[1], "sampling")
        numbers = draws.uniforms(rank, seed)

        def product(a: Array) -> Array:
            sizes = np.linalg.norm(a_train if norms == "train" else a, axis=0) * np.linalg.norm(b, axis=1)
            sizes = sizes if sizes.sum() > 0 else np.ones_like(sizes)
            chances = sizes / sizes.sum()
            total = np.zeros((len(a), b.shape[1]))
            for number in numbers:
                k = min(int(np.searchsorted(np.cumsum(chances), number, side="right")), len(b) - 1)
                total += np.outer(a[:, k], b[k]) / (rank * chances[k])
            return total

        return product

    return Plain("sampling", learn, {"rank": rank, "norms": norms, "seed": seed})


def fd_amm(*, rank: int = 16, shrink: str = "theory", buffer: str = "double") -> Plain:
    """Frequent directions by a singular value decomposition of the whole buffer."""

    def shrunk(rows: Array) -> Array:
        _, values, vt = np.linalg.svd(rows, full_matrices=False)
        values = np.pad(values, (0, max(0, rank - len(values))))
        kept, cut = values[: rank - 1], values[rank - 1]
        smaller = np.abs(kept - cut) if shrink == "published" else np.sqrt(np.maximum(kept**2 - cut**2, 0.0))
        answer: Array = smaller[: len(vt), None] * vt[: rank - 1]
        return answer

    def learn(_: Array, b: Array) -> Product:
        limited_rank(rank, b.shape[0], b.shape[1], "fd-amm")

        def product(a: Array) -> Array:
            room = 2 * rank if buffer == "double" else rank
            sketch = np.empty((0, a.shape[0] + b.shape[1]))
            for row in np.hstack((a.T, b)):
                if len(sketch) == room:
                    sketch = shrunk(sketch)
                sketch = np.vstack((sketch, row))
            sketch = shrunk(sketch) if len(sketch) > rank else sketch
            answer: Array = sketch[:, : len(a)].T @ sketch[:, len(a) :]
            return answer

        return product

    return Plain("fd-amm", learn, {"rank": rank, "shrink": shrink, "buffer": buffer})


def cooccur(*, rank: int = 16, buffer: str = "double") -> Plain:
    """Co-occurring directions, column by column."""
    room, cut = (2 * rank, rank) if buffer == "double" else (rank, max(rank // 2, 1))

    def shrunk(left: Array, right: Array) -> tuple[Array, Array]:
        basis, inside = np.linalg.qr(left)
        other, beside = np.linalg.qr(right)
        u, values, vt = np.linalg.svd(inside @ beside.T, full_matrices=False)
        kept = min(cut - 1, len(values)) if len(values) >= cut else len(values)
        lost = values[cut - 1] if len(values) >= cut else 0.0
        weight = np.sqrt(np.maximum(values[:kept] - lost, 0.0))
        return basis @ (u[:, :kept] * weight), other @ (vt[:kept].T * weight)

    def learn(_: Array, b: Array) -> Product:
        limited_rank(rank, b.shape[0], b.shape[1], "cooccur")

        def product(a: Array) -> Array:
            left, right = np.empty((len(a), 0)), np.empty((b.shape[1], 0))
            for column, row in zip(a.T, b, strict=True):
                if left.shape[1] == room:
                    left, right = shrunk(left, right)
                left, right = np.column_stack((left, column)), np.column_stack((right, row))
            left, right = shrunk(left, right) if left.shape[1] > rank else (left, right)
            answer: Array = left @ right.T
            return answer

        return product

    return Plain("cooccur", learn, {"rank": rank, "buffer": buffer})
