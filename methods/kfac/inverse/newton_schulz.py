"""Inverse by Newton and Schulz' iteration from the inverse before: products alone, some of them in bfloat16."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from methods.kfac.inverse.base import Inverse, State, damped, eye_like
from methods.kfac.inverse.cholesky import Cholesky
from methods.kfac.products import multiply

#: Smallest norm that is divided by.
_FLOOR = 1e-30


class NewtonSchulz(Inverse):
    """X <- X (2 I - M X) = X + X (I - M X): quadratic convergence while the residual's spectral radius is below 1.

    Schulz (1933); Newton's method for a matrix inverse. The first inverse is Cholesky's, as an iteration from nothing
    needs about 2 log2(condition) products. Later ones start at c X with the c that minimises |I - c M X|_F. The
    residual |I - M X|_F / sqrt(d) of the result, in the factors' precision, decides whether it is good; if not, the
    failure ladder takes the matrix (its first rung is Cholesky's inverse).

    Args:
        iterations: of one refresh.
        tolerance: largest residual of a good inverse.
        half: products of all but the last iteration in bfloat16 (with float32 accumulation inside a product); the
            iteration corrects its own rounding.
    """

    def __init__(self, iterations: int = 6, tolerance: float = 1e-2, half: bool = False) -> None:
        self.iterations, self.tolerance, self.half = iterations, tolerance, half
        self._cholesky = Cholesky()

    wide: Mapping[str, tuple[int, ...]] = {"inverse": (1, 2)}

    def allocate(self, matrices: Tensor) -> State:
        """The identity."""
        return {"inverse": eye_like(matrices)}

    def refresh(self, matrices: Tensor, damping: Tensor, state: State | None) -> tuple[State, Tensor]:
        """Iterate from the old inverse; the first time, Cholesky's."""
        if state is None:
            return self._cholesky.refresh(matrices, damping, None)
        whole = damped(matrices, damping)
        inverse = _scaled(whole, state["inverse"])
        for index in range(self.iterations):
            half = self.half and index < self.iterations - 1
            inverse = inverse + _product(inverse, _residual(whole, inverse, half), half)
            inverse = (inverse + inverse.mT) / 2
        left = _residual(whole, inverse, False).square().sum((1, 2)).div(whole.shape[1]).sqrt()
        return {"inverse": inverse}, left <= self.tolerance

    def apply(self, state: State, columns: Tensor) -> Tensor:
        """One product."""
        return multiply(state["inverse"], columns)

    def apply_right(self, state: State, rows: Tensor) -> Tensor:
        """One product; the inverse is symmetric."""
        return multiply(rows, state["inverse"])

    def direct(self, matrices: Tensor, damping: Tensor) -> tuple[State, Tensor]:
        """Cholesky's inverse."""
        return self._cholesky.refresh(matrices, damping, None)


def _scaled(whole: Tensor, inverse: Tensor) -> Tensor:
    """The multiple c X nearest to an inverse, c = tr(M X) / |M X|_F^2."""
    product = whole @ inverse
    trace = product.diagonal(dim1=1, dim2=2).sum(1)
    factor = trace / product.square().sum((1, 2)).clamp_min(_FLOOR)
    return inverse * factor[:, None, None]


def _product(left: Tensor, right: Tensor, half: bool) -> Tensor:
    if not half:
        return left @ right
    return (left.bfloat16() @ right.bfloat16()).to(left.dtype)


def _residual(whole: Tensor, inverse: Tensor, half: bool) -> Tensor:
    """I - M X."""
    found = -_product(whole, inverse, half)
    found.diagonal(dim1=1, dim2=2).add_(1.0)
    return found
