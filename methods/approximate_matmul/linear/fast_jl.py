"""``approximate_matmul.fast-jl``: the fast Johnson-Lindenstrauss transform."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from methods.approximate_matmul.linear import calls, draws
from methods.approximate_matmul.linear.base import Estimator, Fit, State, choice, limited_rank
from methods.approximate_matmul.linear.sketch import Sketch, checked_seed, sparse_call

BACKENDS = ("auto", "dense", "transform")


class FastJl(Sketch):
    """Y = (A S)(Sᵀ B), S = diag(signs) H P: random signs, Walsh-Hadamard transform, sparse Gaussian P.

    Ailon and Chazelle, SICOMP 39 (2009), section 2; unbiased. Fit: S and Sᵀ B. Run time: signs, log2(D') butterfly
    passes over A padded to a power of two and a sparse product (``transform``), or one dense product by S where that
    is faster; then a dense product. ``scaling="published"``: columns of P of unit length, E[Y] = (d/D') A B;
    ``density="published"``: the complement of the theory's chance of a non-zero.
    """

    method = "approximate_matmul.fast-jl"
    extra = ("transform",)

    @classmethod
    def learn(cls, a_train: Tensor, b: Tensor, hyper: Mapping[str, Any], fit: Fit) -> State:
        """Draw signs and P, apply them to B, choose the calls."""
        limited_rank(hyper["rank"], int(b.shape[0]), int(b.shape[1]), cls.method)
        with fit.clock("table_s"):
            drawn = draws.fast_jl(int(b.shape[0]), hyper["rank"], hyper["seed"], hyper["scaling"], hyper["density"])
            sketch = torch.from_numpy(draws.fast_jl_matrix(*drawn)).to(b.device)
            state = {
                "sketch": sketch.to(b.dtype),
                "table": (sketch.t() @ b.double()).to(b.dtype),
                "signs": torch.from_numpy(drawn[0]).to(b),
                "projection": torch.from_numpy(drawn[1]).to(b),
            }
        return cls.settle(state, a_train, fit, hyper["backend"])

    @classmethod
    def special(cls, name: str, state: State) -> calls.Call:
        """Signs, butterflies, sparse product."""
        signs, project = state["signs"], sparse_call(state["projection"])
        padding = int(state["projection"].shape[0]) - len(signs)
        return lambda a: project(transform(functional.pad(a * signs, (0, padding))))

    @classmethod
    def arrays(cls, hyper: Mapping[str, Any]) -> dict[str, str]:
        """Adds signs and P, whose rows are D' = 2^ceil(log2 D)."""
        return super().arrays(hyper) | {"signs": "D", "projection": "P d"}

    def prepare(self) -> None:
        """Adds a check of D' to the calls' layouts."""
        if (rows := len(self.state["projection"])) != 1 << (self.inner - 1).bit_length():
            raise ValueError(f"projection has {rows} rows, expected the next power of two from {self.inner} on")
        super().prepare()

    def _sketch_work(self) -> float:
        if self.choices["first"] != "transform":
            return float(self.inner * self.rank)
        # The butterflies only add; the multiplications are the signs', the scaling and P's.
        return float(self.inner + self.state["projection"].shape[0] + torch.count_nonzero(self.state["projection"]))


def transform(rows: Tensor) -> Tensor:
    """A H by log2(D') passes of additions, H the orthonormal Walsh-Hadamard matrix in Sylvester's order."""
    n, size = rows.shape
    half = 1
    while half < size:
        pairs = rows.view(n, size // (2 * half), 2, half)
        rows = torch.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), dim=2).view(n, size)
        half *= 2
    return rows / math.sqrt(size)


KIND = FastJl


def make(
    *, rank: int = 16, scaling: str = "unbiased", density: str = "theory", backend: str = "auto", seed: int = 0
) -> Estimator:
    """A fast transform to ``rank`` columns.

    Args:
        rank: columns of the sketch.
        scaling: unbiased or published.
        density: chance of a non-zero in P, theory or published.
        backend: auto, dense or transform.
        seed: of signs and P.
    """
    choice(scaling, draws.SCALINGS, "scaling", FastJl.method)
    choice(density, draws.DENSITIES, "density", FastJl.method)
    choice(backend, BACKENDS, "backend", FastJl.method)
    hyper = {"rank": rank, "scaling": scaling, "density": density, "backend": backend}
    return Estimator(FastJl, {**hyper, "seed": checked_seed(seed, FastJl.method)})
