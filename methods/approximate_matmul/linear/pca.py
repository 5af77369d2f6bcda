"""``approximate_matmul.pca``: projection on the principal directions of the training rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.errors import UserError
from methods.approximate_matmul.linear.base import Estimator, Fit, State, limited_rank
from methods.approximate_matmul.linear.sketch import Factored

#: Directions whose singular value is below max(N', D) * this times the largest are rounding noise of float32 data
#: (the usual rank tolerance, Golub and Van Loan, 5.4.1); they are left out of the projection.
EPSILON = 2.0**-23


class Pca(Factored):
    """Y = (A V)(Vᵀ B), V the d leading eigenvectors of the training rows' covariance.

    As in the published comparison V comes from centred rows but the mean is not subtracted at run time.
    ``centre=True`` adds the exact mean term mu (I - V Vᵀ) B. Fit: V, Vᵀ B in float64. Run time: two dense products.
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
                "give varied rows or use centre=True."
            )
        with fit.clock("table_s"):
            table = directions.t() @ b.double()
            state = {"sketch": directions.to(b.dtype), "table": table.to(b.dtype)}
            if hyper["centre"]:
                state["offset"] = (mean @ b.double() - (mean @ directions) @ table).to(b.dtype)
        return cls.settle(state, a_train, fit)

    def prepare(self) -> None:
        """Adds the mean term."""
        super().prepare()
        self._offset = self.state["offset"].to(self.work) if "offset" in self.state else None

    @classmethod
    def arrays(cls, hyper: Mapping[str, Any]) -> dict[str, str]:
        """Adds the mean term."""
        return super().arrays(hyper) | ({"offset": "M"} if hyper["centre"] else {})

    def product(self, a: Tensor) -> Tensor:
        """(A V) T, and the mean term if there is one."""
        out = super().product(a)
        return out if self._offset is None else out.add_(self._offset)


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


def make(*, rank: int = 16, centre: bool = False) -> Estimator:
    """Projection on ``rank`` principal directions; ``centre`` adds the exact mean term."""
    return Estimator(Pca, {"rank": rank, "centre": bool(centre)})
