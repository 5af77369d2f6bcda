"""``approximate_matmul.rademacher``: a dense sketch of random signs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from methods.approximate_matmul.linear import draws
from methods.approximate_matmul.linear.base import Estimator, choice
from methods.approximate_matmul.linear.sketch import Sketch, checked_seed


class Rademacher(Sketch):
    """Y = (A S)(Sᵀ B), S_ij = +-1/sqrt(d) (Achlioptas, JCSS 66 (2003), theorem 1.1).

    Unbiased. Fit: S and Sᵀ B. Run time: two dense products.
    ``scaling="published"``: +-1/sqrt(D), E[Y] = (d/D) A B.
    """

    method = "approximate_matmul.rademacher"

    @classmethod
    def draw(cls, inner: int, hyper: Mapping[str, Any]) -> draws.Array:
        """S [D, d]."""
        return draws.rademacher(inner, hyper["rank"], hyper["seed"], hyper["scaling"])


KIND = Rademacher


def make(*, rank: int = 16, scaling: str = "unbiased", seed: int = 0) -> Estimator:
    """A sketch of signs with ``rank`` columns; ``scaling`` is unbiased or published."""
    choice(scaling, draws.SCALINGS, "scaling", Rademacher.method)
    return Estimator(Rademacher, {"rank": rank, "scaling": scaling, "seed": checked_seed(seed, Rademacher.method)})
