"""``approximate_matmul.sparse-pca``: projection on sparse loadings of the training rows."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.errors import MissingDependency, UserError
from methods.approximate_matmul.linear import calls
from methods.approximate_matmul.linear.base import Estimator, Fit, State, choice, limited_rank
from methods.approximate_matmul.linear.draws import Array
from methods.approximate_matmul.linear.hash_jl import BACKENDS
from methods.approximate_matmul.linear.pca import EPSILON
from methods.approximate_matmul.linear.sketch import Factored, checked_seed, sparse_call

#: Iterations of the dictionary learning in the published sweep.
ITERATIONS = 10


class SparsePca(Factored):
    """Y = (A W) T, W [D, d] the sparse loadings of scikit-learn's SparsePCA, T = argmin |Ã B - (Ã W) T|_F.

    Loadings: min |X - U Wᵀ|² / 2 + alpha N' v / D |W|_1, |u_k| <= 1, X the centred training rows, v their mean
    variance (Mairal et al., ICML 2009, by least angles, 10 iterations as in the published sweep, which took alpha
    from 2**-14 to 8). The objective depends on X only through Xᵀ X, so a D x D square root of it is what is
    factorised. The published code recovered A by a ridge regression on W; T here is the least-squares decoder, which
    is never worse on the training rows. Fit: W and T. Run time: a product that skips zeros or a dense one, whichever
    is faster, and a dense one.
    """

    method = "approximate_matmul.sparse-pca"
    extra = ("sparse",)

    @classmethod
    def learn(cls, a_train: Tensor, b: Tensor, hyper: Mapping[str, Any], fit: Fit) -> State:
        """Sparse loadings on the CPU, then the decoder."""
        limited_rank(hyper["rank"], int(b.shape[0]), int(b.shape[1]), cls.method)
        rows = a_train.double().cpu().numpy()
        with fit.clock("train_s"):
            sparse = loadings(rows, hyper["rank"], hyper["alpha"], hyper["seed"])
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


def loadings(rows: Array, rank: int, alpha: float, seed: int) -> Array:
    """W [D, <= rank] with unit columns; columns that came out empty are dropped.

    Raises:
        MissingDependency: scikit-learn is not installed.
        UserError: no variance, or alpha so large that every loading is zero.
    """
    try:
        decomposition = importlib.import_module("sklearn.decomposition")
    except ImportError as error:
        raise MissingDependency("sparse-pca needs scikit-learn; pip install 'speedclaim[data]'.") from error
    centred = rows - rows.mean(axis=0)
    total = float((centred**2).sum())
    if total <= (EPSILON * float(np.linalg.norm(rows))) ** 2:
        raise UserError(f"{SparsePca.method}: all training rows are equal, so there is no direction; give varied rows.")
    inner = rows.shape[1]
    model = decomposition.SparsePCA(
        n_components=rank, alpha=alpha * total / inner**2, max_iter=ITERATIONS, method="lars", random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Array = model.fit(root(centred.T @ centred)).components_.T
    length = np.linalg.norm(found, axis=0)
    if not (length > 0).any():
        raise UserError(f"{SparsePca.method}: alpha = {alpha} leaves no loading; lower it.")
    return np.ascontiguousarray(found[:, length > 0] / length[length > 0])


def decoder(rows: Array, sparse: Array, b: Array) -> Array:
    """T = argmin |Ã B - (Ã W) T|_F, of least norm."""
    factor = root(rows.T @ rows)
    answer: Array = np.linalg.lstsq(factor @ sparse, factor @ b, rcond=EPSILON)[0]
    return answer


KIND = SparsePca


def make(*, rank: int = 16, alpha: float = 0.03125, backend: str = "auto", seed: int = 0) -> Estimator:
    """Sparse loadings.

    Args:
        rank: loadings at most.
        alpha: weight of the L1 term, relative to the rows' variance.
        backend: auto, dense or sparse.
        seed: of scikit-learn's solver.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha < float("inf"):
        raise UserError(f"{SparsePca.method}: alpha must be a finite number of at least 0, got {alpha!r}.")
    choice(backend, BACKENDS, "backend", SparsePca.method)
    hyper = {"rank": rank, "alpha": float(alpha), "backend": backend, "seed": checked_seed(seed, SparsePca.method)}
    return Estimator(SparsePca, hyper)
