"""What the random sketches and the fixed projections share: Y = (A S) T with S [D, d] and T [d, M] known at fit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.errors import Unsupported, UserError
from methods.approximate_matmul.linear import calls
from methods.approximate_matmul.linear.base import Fit, Op, State, limited_rank
from methods.approximate_matmul.linear.draws import Array


class Factored(Op):
    """Y = (A S) T. State: ``sketch`` S and ``table`` T. Run time: two products, each by the call fastest at fit."""

    #: back-ends of the product A S beyond the dense library calls
    extra: tuple[str, ...] = ()

    @classmethod
    def settle(cls, state: State, a_train: Tensor, fit: Fit, backend: str = "auto") -> State:
        """Choose the calls of both products on the training rows."""
        with fit.clock("table_s"):
            dense, seconds, left_out = "", dict[str, float](), list[str]()
            if backend in ("auto", "dense"):
                dense, seconds, left_out = calls.product(state["sketch"], a_train, cls.method)
            tried = {dense: calls.call(dense, state["sketch"])} if dense else {}
            if backend != "dense":
                tried |= {name: cls.special(name, state) for name in cls.extra}
            first, compared = calls.fastest(tried, a_train)
            codes = torch.mm(a_train, state["sketch"])
            second, also, _ = calls.product(state["table"], codes, cls.method)
        fit.choices |= {
            "first": first,
            "second": second,
            "first_s": {**seconds, **compared},
            "second_s": also,
            "left_out": left_out,
        }
        return state

    @classmethod
    def special(cls, name: str, state: State) -> calls.Call:
        """``a -> a @ S`` by a back-end of the method's own."""
        raise Unsupported(f"{cls.method} has no back-end {name!r}.")

    def prepare(self) -> None:
        """Lay S and T out for the chosen calls."""
        state = {key: value.to(self.work) if value.is_floating_point() else value for key, value in self.state.items()}
        first = self.choices["first"]
        self._first = self.special(first, state) if first in self.extra else calls.call(first, state["sketch"])
        self._second = calls.call(self.choices["second"], state["table"])

    def product(self, a: Tensor) -> Tensor:
        """(A S) T."""
        return self._second(self._first(a))

    def narrow(self, a: Tensor) -> Tensor:
        """A S, (N, d)."""
        return self._first(a)

    @classmethod
    def arrays(cls, hyper: Mapping[str, Any]) -> dict[str, str]:
        """S and T."""
        return {"sketch": "D d", "table": "d M"}

    @property
    def rank(self) -> int:
        """Columns of the sketch."""
        return int(self.state["table"].shape[0])

    def multiplies(self, n: int) -> float:
        """N D d + N d M, or the non-zeros of S in the place of D d where the back-end skips zeros."""
        return float(n) * (self._sketch_work() + self.rank * self.outer)

    def _sketch_work(self) -> float:
        if self.choices["first"] == "sparse":
            return float(torch.count_nonzero(self.state["sketch"]))
        return float(self.inner * self.rank)

    def describe(self) -> dict[str, Any]:
        """Adds the calls of both products and the rank."""
        first = self.choices["first"]
        names = [first if first in self.extra else calls.title(first), calls.title(self.choices["second"])]
        return super().describe() | {"backend": " then ".join(names), "rank": self.rank, "choices": self.choices}


class Sketch(Factored):
    """Y = (A S)(Sᵀ B) with a random S that does not see the data. Fit: S is drawn, T = Sᵀ B in float64."""

    @classmethod
    def draw(cls, inner: int, hyper: Mapping[str, Any]) -> Array:
        """S in float64; a method that overrides :meth:`learn` needs none.

        Raises:
            Unsupported: the method draws no dense matrix.
        """
        raise Unsupported(f"{cls.method} draws no dense matrix.")

    @classmethod
    def learn(cls, a_train: Tensor, b: Tensor, hyper: Mapping[str, Any], fit: Fit) -> State:
        """Draw, apply to B, choose the calls."""
        limited_rank(hyper["rank"], int(b.shape[0]), int(b.shape[1]), cls.method)
        with fit.clock("table_s"):
            sketch = torch.from_numpy(cls.draw(int(b.shape[0]), hyper)).to(b.device)
            state = {"sketch": sketch.to(b.dtype), "table": (sketch.t() @ b.double()).to(b.dtype)}
        return cls.settle(state, a_train, fit, hyper.get("backend", "auto"))


def sparse_call(sketch: Tensor) -> calls.Call:
    """``a -> a @ S`` reading only the non-zeros of S (compressed rows of Sᵀ)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        compressed = sketch.t().contiguous().to_sparse_csr()
    return lambda a: torch.sparse.mm(compressed, a.t()).t()


def checked_seed(seed: int, method: str) -> int:
    """A seed that NumPy's generator accepts.

    Raises:
        UserError: it is no integer from 0 on.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"{method}: seed must be an integer from 0 on, got {seed!r}.")
    return seed
