"""``approximate_matmul.gauss``: a dense Gaussian sketch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from methods.approximate_matmul.linear import draws
from methods.approximate_matmul.linear.base import Estimator, choice
from methods.approximate_matmul.linear.sketch import Sketch, checked_seed


class Gauss(Sketch):
    """Y = (A S)(Sᵀ B), S_ij ~ N(0, 1/d).

    Unbiased; E|Y - A B|_F² = (|A|_F² |B|_F² + |A B|_F²) / d. Fit: S and Sᵀ B. Run time: two dense products.
    ``scaling="published"``: columns of unit length without the factor sqrt(D/d), E[Y] = (d/D) A B.
    """

    method = "approximate_matmul.gauss"

    @classmethod
    def draw(cls, inner: int, hyper: Mapping[str, Any]) -> draws.Array:
        """S [D, d]."""
        return draws.gauss(inner, hyper["rank"], hyper["seed"], hyper["scaling"])


KIND = Gauss


def make(*, rank: int = 16, scaling: str = "unbiased", seed: int = 0) -> Estimator:
    """A Gaussian sketch with ``rank`` columns; ``scaling`` is unbiased or published."""
    choice(scaling, draws.SCALINGS, "scaling", Gauss.method)
    return Estimator(Gauss, {"rank": rank, "scaling": scaling, "seed": checked_seed(seed, Gauss.method)})
