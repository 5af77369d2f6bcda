"""``approximate_matmul.osnap``: a sparse sketch with a few signs in every row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.errors import UserError
from methods.approximate_matmul.linear import calls, draws
from methods.approximate_matmul.linear.base import Estimator, State, choice
from methods.approximate_matmul.linear.hash_jl import BACKENDS
from methods.approximate_matmul.linear.sketch import Sketch, checked_seed, sparse_call


class Osnap(Sketch):
    """Y = (A S)(Sᵀ B): s entries +-1/sqrt(s) in every row of S, one in each of s blocks of columns.

    Nelson and Nguyen, OSNAP (arXiv 1211.1002), section 1; unbiased; s = 1 is the count sketch. Fit: S and Sᵀ B. Run
    time: A S with s D additions a row (``sparse``) or as a dense product where that is faster, then a dense product.
    ``nonzeros="auto"`` is the published sweep's 4, or the rank where that is smaller.
    """

    method = "approximate_matmul.osnap"
    extra = ("sparse",)

    @classmethod
    def draw(cls, inner: int, hyper: Mapping[str, Any]) -> draws.Array:
        """S [D, d].

        Raises:
            UserError: more non-zeros a row than columns.
        """
        rank, nonzeros = hyper["rank"], resolved(hyper["nonzeros"], hyper["rank"])
        if nonzeros > rank:
            raise UserError(f"{cls.method}: nonzeros = {nonzeros} must not exceed rank = {rank}; lower nonzeros.")
        return draws.osnap(inner, rank, hyper["seed"], nonzeros)

    @classmethod
    def special(cls, name: str, state: State) -> calls.Call:
        """The product that skips zeros."""
        return sparse_call(state["sketch"])


def resolved(nonzeros: int | str, rank: int) -> int:
    """Non-zeros a row."""
    return min(draws.OSNAP_NONZEROS, rank) if nonzeros == "auto" else int(nonzeros)


KIND = Osnap


def make(*, rank: int = 16, nonzeros: int | str = "auto", backend: str = "auto", seed: int = 0) -> Estimator:
    """OSNAP with ``rank`` columns and ``nonzeros`` entries a row; ``backend`` is auto, dense or sparse."""
    choice(backend, BACKENDS, "backend", Osnap.method)
    if nonzeros != "auto" and (isinstance(nonzeros, bool) or not isinstance(nonzeros, int) or nonzeros < 1):
        raise UserError(f"{Osnap.method}: nonzeros must be 'auto' or an integer from 1 on, got {nonzeros!r}.")
    seed = checked_seed(seed, Osnap.method)
    return Estimator(Osnap, {"rank": rank, "nonzeros": nonzeros, "backend": backend, "seed": seed})
