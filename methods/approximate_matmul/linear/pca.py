"""``approximate_matmul.pca``: projection on the principal directions of the training rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.errors import UserError
from methods.approximate_matmul.linear import calls
from methods.approximate_matmul.linear.base import Estimator, Fit, State, limited_rank
from methods.approximate_matmul.linear.sketch import Factored

#: Directions whose singular value is below max(N', D) * this times the largest are rounding noise of float32 data
#: (the usual rank tolerance, Golub and Van Loan, 5.4.1); they are left out of the projection.
EPSILON = 2.0**-23


class Pca(Factored):
    """Y = mu B + ((A - mu) V)(Vᵀ B), V the d leading eigenvectors of the training rows' covariance, mu their mean.

    Fit: V, Vᵀ B and the mean term mu (I - V Vᵀ) B in float64. Run time: two dense products, the second of which adds
    the mean term where that is faster than a pass of its own. ``centre=False`` leaves the mean term out, as the
    published comparison does (arXiv 2106.10860, its programs), although V comes from centred rows there too.
    Directions without variance are left out, so the effective rank may be smaller.
    """

    method = "approximate_matmul.pca"

    @classmethod
    def learn(cls, a_train: Tensor, b: Tensor, hyper: Mapping[str, Any], fit: Fit) -> State:
        """Eigenvectors of the covariance, then the tables.

        Raises:
            UserError: the training rows have no variance and there is no mean term.
        """
        limited_rank(hyper["rank"], int(b.shape[0]), int(b.shape[1]), cls.method)
        with fit.clock("train_s"):
            mean, directions = principal(a_train, hyper["rank"])
        if not directions.shape[1] and not hyper["centre"]:
            raise UserError(
                f"{cls.method}: all training rows are equal, so there is no principal direction; "
                "give varied rows or leave centre at True."
            )
        with fit.clock("table_s"):
            table = directions.t() @ b.double()
            state = {"sketch": directions.to(b.dtype), "table": table.to(b.dtype)}
            if hyper["centre"]:
                state["offset"] = (mean @ b.double() - (mean @ directions) @ table).to(b.dtype)
        state = cls.settle(state, a_train, fit)
        if hyper["centre"]:
            with fit.clock("table_s"):
                ways = _ways(fit.choices["second"], state)
                fit.choices["mean"], fit.choices["mean_s"] = calls.fastest(ways, torch.mm(a_train, state["sketch"]))
        return state

    def prepare(self) -> None:
        """Adds the mean term."""
        super().prepare()
        if "offset" in self.state:
            state = {name: self.state[name].to(self.work) for name in ("table", "offset")}
            self._second = _ways(self.choices["second"], state)[self.choices.get("mean", "after")]

    @classmethod
    def arrays(cls, hyper: Mapping[str, Any]) -> dict[str, str]:
        """Adds the mean term."""
        return super().arrays(hyper) | ({"offset": "M"} if hyper["centre"] else {})


def _ways(second: str, state: Mapping[str, Tensor]) -> dict[str, calls.Call]:
    """Ways to C T + offset: within the product, or in a pass after the product's fastest call."""
    table, offset = state["table"], state["offset"]
    product = calls.call(second, table)
    return {
        "within": lambda codes: torch.addmm(offset, codes, table),
        "after": lambda codes: product(codes).add_(offset),
    }


def principal(rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Mean [D] and the leading eigenvectors [D, <= rank] of the covariance, in float64."""
    wide = rows.double()
    mean = wide.mean(dim=0)
    centred = wide - mean
    values, vectors = torch.linalg.eigh(centred.t() @ centred)
    values, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    # Rounding of the mean leaves a residue where a column is constant: measure against the rows themselves.
    scale = torch.maximum(values[0].clamp(min=0).sqrt(), EPSILON * wide.norm())
    kept = values.clamp(min=0).sqrt() > max(rows.shape) * EPSILON * scale
    return mean, vectors[:, : int(kept.sum())]


KIND = Pca


def make(*, rank: int = 16, centre: bool = True) -> Estimator:
    """Projection on ``rank`` principal directions; ``centre=False`` leaves out the mean term."""
    return Estimator(Pca, {"rank": rank, "centre": bool(centre)})
