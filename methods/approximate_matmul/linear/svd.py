"""``approximate_matmul.svd``: truncated singular value decompositions of the factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from methods.approximate_matmul.linear.base import Estimator, Fit, State, choice, factorising, limited_rank
from methods.approximate_matmul.linear.draws import Array
from methods.approximate_matmul.linear.sketch import Factored, checked_seed

SIDES = ("both", "b", "train")

#: Extra columns of the range finder (Halko, Martinsson and Tropp, SIAM Review 53 (2011), section 1.3: 5 or 10).
OVERSAMPLE = 10
#: Subspace iterations of the published comparison.
ITERATIONS = 5


class Svd(Factored):
    """Randomised SVD of rank d (Halko, Martinsson and Tropp 2011, algorithms 4.4 and 5.1).

    ``side="both"`` (published): Y = A_d B_d. Fit: B_d = P Q. Run time: the range of A by 5 subspace iterations, its
    small SVD, three thin products; far from free. ``side="b"``: Y = A B_d, all of it known at fit, two products at
    run time. ``side="train"``: Y = (A V)(Vᵀ B), V the leading right singular vectors of the uncentred training rows.
    """

    method = "approximate_matmul.svd"

    @classmethod
    def learn(cls, a_train: Tensor, b: Tensor, hyper: Mapping[str, Any], fit: Fit) -> State:
        """Factors of B, or directions of the training rows."""
        rank = hyper["rank"]
        limited_rank(rank, int(b.shape[0]), int(b.shape[1]), cls.method)
        wide = b.double()
        if hyper["side"] == "train":
            with fit.clock("train_s"):
                rows = a_train.double()
                sketch = torch.linalg.eigh(rows.t() @ rows).eigenvectors.flip(1)[:, :rank]
            table = sketch.t() @ wide
        else:
            with fit.clock("table_s"):
                sketch, small, right = truncated(
                    wide, torch.from_numpy(probe(wide.shape, rank, hyper["seed"])).to(wide), rank
                )
                table = small @ right
        state = {"sketch": sketch.to(b.dtype), "table": table.to(b.dtype)}
        if hyper["side"] != "both":
            return cls.settle(state, a_train, fit)
        state["probe"] = torch.from_numpy(probe((a_train.shape[1],) * 2, rank, hyper["seed"])).to(b)
        fit.choices |= {"first": "run-time SVD", "second": "mm"}
        return state

    def prepare(self) -> None:
        """Cast the factors; choose nothing at run time."""
        if self.hyper["side"] == "both":
            self._probe, self._sketch, self._table = (self.state[k].to(self.work) for k in ("probe", "sketch", "table"))
        else:
            super().prepare()

    def product(self, a: Tensor) -> Tensor:
        """A_d B_d from the inside out, or the two products known at fit."""
        if self.hyper["side"] != "both":
            return super().product(a)
        with factorising(a, self.method):
            left, small, right = truncated(a, self._probe, self.hyper["rank"])
        return left @ ((small @ (right @ self._sketch)) @ self._table)

    def narrow(self, a: Tensor) -> Tensor:
        """A V where it is known at fit; with side="both" all rows choose their directions together."""
        if self.hyper["side"] != "both":
            return super().narrow(a)
        return super(Factored, self).narrow(a)

    codeless = "with side='both' its directions depend on all rows of A at once (sides 'b' and 'train' have codes)"

    @classmethod
    def arrays(cls, hyper: Mapping[str, Any]) -> dict[str, str]:
        """Adds the test matrix."""
        return super().arrays(hyper) | ({"probe": "D w"} if hyper["side"] == "both" else {})

    def multiplies(self, n: int) -> float:
        """The range finder's products and the thin ones; orthonormalisations count 2 n l²."""
        if self.hyper["side"] != "both":
            return super().multiplies(n)
        d, width = self.rank, int(self.state["probe"].shape[1])
        passes = 2 * ITERATIONS + 2
        return float(
            passes * n * self.inner * width + passes * (n + self.inner) * width**2 + n * d * (self.outer + width)
        )

    def describe(self) -> dict[str, Any]:
        """Which side is factored when."""
        if self.hyper["side"] != "both":
            return super().describe()
        return super(Factored, self).describe() | {"backend": "torch.linalg.qr and svd at run time", "rank": self.rank}


def probe(shape: tuple[int, ...] | torch.Size, rank: int, seed: int) -> Array:
    """The Gaussian test matrix [columns, rank + 10]."""
    return np.random.default_rng(seed).standard_normal((int(shape[1]), min(rank + OVERSAMPLE, int(shape[1]))))


def truncated(matrix: Tensor, test: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [n, d], diag(s) [d, d] and Vᵀ [d, D] of the randomised truncated SVD."""
    basis = torch.linalg.qr(matrix @ test).Q
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.t() @ basis).Q).Q
    inside, values, right = torch.linalg.svd(basis.t() @ matrix, full_matrices=False)
    return basis @ inside[:, :rank], torch.diag(values[:rank]), right[:rank]


KIND = Svd


def make(*, rank: int = 16, side: str = "both", seed: int = 0) -> Estimator:
    """Truncated SVDs of rank ``rank``; ``side`` is both (published, at run time), b or train (at fit)."""
    choice(side, SIDES, "side", Svd.method)
    return Estimator(Svd, {"rank": rank, "side": side, "seed": checked_seed(seed, Svd.method)})
