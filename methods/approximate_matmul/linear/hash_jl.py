"""``approximate_matmul.hash-jl``: feature hashing, also known as count sketch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from methods.approximate_matmul.linear import calls, draws
from methods.approximate_matmul.linear.base import Estimator, State, choice
from methods.approximate_matmul.linear.sketch import Sketch, checked_seed, sparse_call

BACKENDS = ("auto", "dense", "sparse")


class HashJl(Sketch):
    """Y = (A S)(Sᵀ B): every column of A is added, with a random sign, to one of d columns.

    Weinberger et al., Feature Hashing (arXiv 0902.2206), definition 1; unbiased by its lemma 2. Fit: S and Sᵀ B.
    Run time: A S with D additions a row (``sparse``) or as a dense product where that is faster, then a dense product.
    ``scaling="published"``: a further factor 1/sqrt(2) on either side, E[Y] = A B / 2.
    """

    method = "approximate_matmul.hash-jl"
    extra = ("sparse",)

    @classmethod
    def draw(cls, inner: int, hyper: Mapping[str, Any]) -> draws.Array:
        """S [D, d]."""
        return draws.hash_jl(inner, hyper["rank"], hyper["seed"], hyper["scaling"])

    @classmethod
    def special(cls, name: str, state: State) -> calls.Call:
        """The product that skips zeros."""
        return sparse_call(state["sketch"])


KIND = HashJl


def make(*, rank: int = 16, scaling: str = "unbiased", backend: str = "auto", seed: int = 0) -> Estimator:
    """Hashing to ``rank`` columns; ``scaling`` is unbiased or published, ``backend`` auto, dense or sparse."""
    choice(scaling, draws.SCALINGS, "scaling", HashJl.method)
    choice(backend, BACKENDS, "backend", HashJl.method)
    seed = checked_seed(seed, HashJl.method)
    return Estimator(HashJl, {"rank": rank, "scaling": scaling, "backend": backend, "seed": seed})
