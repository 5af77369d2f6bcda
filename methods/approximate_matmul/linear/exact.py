"""``approximate_matmul.exact``: the exact product by the fastest library call on this machine and shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from harness.errors import UserError
from methods.approximate_matmul.linear import calls
from methods.approximate_matmul.linear.base import Estimator, Fit, Op, State, choice


class Exact(Op):
    """Y = A B by torch.mm, by F.linear on Bᵀ stored row by row, or by NumPy's BLAS, whichever fit found fastest.

    Fit: a copy of B in the layout that the call likes; the choice is timed on ``rows`` rows of the training data,
    outside any measurement. Run time: one library call in a's dtype. NumPy takes part only on a CPU, in float32 and
    float64, and only when its BLAS is known to use as many threads as torch.
    """

    method = "approximate_matmul.exact"
    native_half = True
    #: The baseline's choice is made anew in every process, so that one disturbed measurement does not stay.
    loader = None

    @classmethod
    def learn(cls, a_train: Tensor, b: Tensor, hyper: Mapping[str, Any], fit: Fit) -> State:
        """Copy B, then choose."""
        rows = hyper["rows"] or a_train.shape[0]
        with fit.clock("table_s"):
            state = {"b": b.contiguous().clone()}
            sample = _sample(a_train, rows)
            chosen, seconds, left_out = calls.product(state["b"], sample, cls.method, hyper["backend"])
        fit.choices |= {"call": chosen, "candidates_s": seconds, "left_out": left_out, "rows": rows}
        return state

    def prepare(self) -> None:
        """Lay B out for the chosen call."""
        self._call = calls.call(self.choices["call"], self.state["b"].to(self.work))

    def product(self, a: Tensor) -> Tensor:
        """One library call."""
        return self._call(a)

    def describe(self) -> dict[str, Any]:
        """Adds the call chosen at fit and the times it was chosen by."""
        return super().describe() | {"backend": calls.title(self.choices["call"]), "choices": self.choices}


def _sample(a_train: Tensor, rows: int) -> Tensor:
    """``rows`` training rows, repeated if there are fewer, in the training matrix's own order of memory."""
    repeats = -(-rows // a_train.shape[0])
    whole = (a_train.repeat(repeats, 1) if repeats > 1 else a_train)[:rows]
    # A's order decides which call is the fastest: up to ten times, with few columns in B.
    by_column = min(a_train.shape) > 1 and a_train.stride(0) < a_train.stride(1)
    return whole.t().contiguous().t() if by_column else whole.contiguous()


KIND = Exact


def make(*, backend: str = "auto", rows: int | None = None) -> Estimator:
    """The exact product.

    Args:
        backend: one of auto (measured at fit), mm, linear, numpy.
        rows: rows of A at run time, for the choice at fit; by default as many as there are training rows.
    """
    choice(backend, calls.BACKENDS, "backend", Exact.method)
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise UserError(f"{Exact.method}: rows must be a positive integer or None, got {rows!r}.")
    return Estimator(Exact, {"backend": backend, "rows": rows})
