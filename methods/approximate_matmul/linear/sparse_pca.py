"""``approximate_matmul.sparse-pca``: projection on sparse loadings of the training rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.errors import UserError
from methods.approximate_matmul.linear import calls
from methods.approximate_matmul.linear.base import Estimator, Fit, State, choice, limited_rank
from methods.approximate_matmul.linear.draws import Array
from methods.approximate_matmul.linear.hash_jl import BACKENDS
from methods.approximate_matmul.linear.pca import EPSILON
from methods.approximate_matmul.linear.sketch import Factored, sparse_call

#: Turns of the factorisation in the published sweep.
ITERATIONS = 10
#: Coordinate sweeps of one lasso at most, and the relative change at which it stops (scikit-learn's lasso: 1e-4).
SWEEPS, TOLERANCE = 200, 1e-6


class SparsePca(Factored):
    """Y = (A W) T, W [D, d] sparse loadings of the training rows, T = argmin |Ã B - (Ã W) T|_F.

    Loadings: min |X - U Wᵀ|² / 2 + alpha sqrt(N' v) |W|_1, |u_k| <= 1, X the centred training rows, v their mean
    variance (the objective of Mairal et al., ICML 2009, and its algorithm 2 for U; the lasso for W by coordinate
    descent where the published sweep used least angles; 10 turns as there, where alpha went from 2**-14 to 8). The
    objective depends on X only through Xᵀ X, so a D x D square root of it is what is factorised. The published code
    recovered A by a ridge regression on W; T here is the least-squares decoder, which is never worse on the training
    rows. ``scaling="published"`` weighs |W|_1 by alpha N' v / D, which depends on the rows' unit.
    Fit: W and T. Run time: a product that skips zeros or a dense one, whichever is faster, and a dense one.
    """

    method = "approximate_matmul.sparse-pca"
    extra = ("sparse",)

    @classmethod
    def learn(cls, a_train: Tensor, b: Tensor, hyper: Mapping[str, Any], fit: Fit) -> State:
        """Sparse loadings on the CPU, then the decoder."""
        limited_rank(hyper["rank"], int(b.shape[0]), int(b.shape[1]), cls.method)
        rows = a_train.double().cpu().numpy()
        with fit.clock("train_s"):
            sparse = loadings(rows, hyper["rank"], hyper["alpha"], hyper["scaling"])
        with fit.clock("table_s"):
            table = decoder(rows, sparse, b.double().cpu().numpy())
            state = {"sketch": torch.from_numpy(sparse).to(b), "table": torch.from_numpy(table).to(b)}
        return cls.settle(state, a_train, fit, hyper["backend"])

    @classmethod
    def special(cls, name: str, state: State) -> calls.Call:
        """The product that skips zeros."""
        return sparse_call(state["sketch"])


def root(gram: Array) -> Array:
    """F with Fᵀ F = gram for a symmetric matrix without negative eigenvalues but for rounding."""
    values, vectors = np.linalg.eigh(gram)
    factor: Array = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    return factor


def loadings(rows: Array, rank: int, alpha: float, scaling: str = "invariant") -> Array:
    """W [D, <= rank] with unit columns; columns that came out empty are dropped.

    Raises:
        UserError: no variance, or alpha so large that every loading is zero.
    """
    centred = rows - rows.mean(axis=0)
    total = float((centred**2).sum())
    if total <= (EPSILON * float(np.linalg.norm(rows))) ** 2:
        raise UserError(f"{SparsePca.method}: all training rows are equal, so there is no direction; give varied rows.")
    inner = rows.shape[1]
    unit = total / inner**2 if scaling == "published" else float(np.sqrt(total / inner))
    found = factorise(root(centred.T @ centred), rank, alpha * unit)
    length = np.linalg.norm(found, axis=0)
    if not (length > 0).any():
        raise UserError(f"{SparsePca.method}: alpha = {alpha} leaves no loading; lower it.")
    kept: Array = np.ascontiguousarray(found[:, length > 0] / length[length > 0])
    return kept


def factorise(data: Array, rank: int, weight: float) -> Array:
    """W of min |X - U Wᵀ|² / 2 + weight |W|_1, |u_k| <= 1, by turns from the leading singular vectors."""
    left, values, right = np.linalg.svd(data, full_matrices=False)
    atoms: Array = left[:, :rank].copy()
    codes: Array = (values[:rank, None] * right[:rank]).T.copy()
    for _ in range(ITERATIONS):
        _shrink(codes, data.T @ atoms, atoms.T @ atoms, weight)
        _turn(atoms, data @ codes, codes.T @ codes)
    return codes


def _shrink(codes: Array, match: Array, gram: Array, weight: float) -> None:
    """The lasso for W by coordinate descent, all D rows at a time, in place."""
    for _ in range(SWEEPS):
        change = 0.0
        for k in range(codes.shape[1]):
            if gram[k, k] <= 0:
                continue
            pull = match[:, k] - codes @ gram[:, k] + codes[:, k] * gram[k, k]
            new = np.sign(pull) * np.maximum(np.abs(pull) - weight, 0.0) / gram[k, k]
            change = max(change, float(np.abs(new - codes[:, k]).max()))
            codes[:, k] = new
        if change <= TOLERANCE * float(np.abs(codes).max()):
            return


def _turn(atoms: Array, match: Array, gram: Array) -> None:
    """One pass of projected block coordinate descent over the columns of U, in place."""
    for k in range(atoms.shape[1]):
        if gram[k, k] > 0:
            new = atoms[:, k] + (match[:, k] - atoms @ gram[:, k]) / gram[k, k]
            atoms[:, k] = new / max(1.0, float(np.linalg.norm(new)))


def decoder(rows: Array, sparse: Array, b: Array) -> Array:
    """T = argmin |Ã B - (Ã W) T|_F, of least norm."""
    factor = root(rows.T @ rows)
    answer: Array = np.linalg.lstsq(factor @ sparse, factor @ b, rcond=EPSILON)[0]
    return answer


KIND = SparsePca


def make(*, rank: int = 16, alpha: float = 0.03125, scaling: str = "invariant", backend: str = "auto") -> Estimator:
    """Sparse loadings.

    Args:
        rank: loadings at most.
        alpha: weight of the L1 term, relative to the rows' variance.
        scaling: unit of alpha, invariant or published.
        backend: auto, dense or sparse.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha < float("inf"):
        raise UserError(f"{SparsePca.method}: alpha must be a finite number of at least 0, got {alpha!r}.")
    choice(scaling, ("invariant", "published"), "scaling", SparsePca.method)
    choice(backend, BACKENDS, "backend", SparsePca.method)
    return Estimator(SparsePca, {"rank": rank, "alpha": float(alpha), "scaling": scaling, "backend": backend})
