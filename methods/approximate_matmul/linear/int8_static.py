"""``approximate_matmul.int8-static``: quantisation of A with scales learned from the training rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from methods.approximate_matmul.linear import integers
from methods.approximate_matmul.linear.base import Estimator, Fit, State, choice
from methods.approximate_matmul.linear.int8 import SMALLEST, Int8, quantise_columns, up

GRANULARITIES = ("tensor", "column")


class Int8Static(Int8):
    """Y = (clip(round(A / s)) round(s B / t)) t with s from the training rows: max|A| / 127, or one a column of A.

    With one scale a column, s is folded into B before B is quantised (static per-tensor quantisation: Jacob et al.,
    arXiv 1712.05877, section 3; folded column scales: SmoothQuant, arXiv 2211.10438, section 4, with alpha = 1).
    Fit: s, B, the engine. Run time: one scaling with clipping to +-127, product with exact sums, one scaling. Values
    beyond the training range saturate; with engine int_mm a NaN counts as 0.
    """

    method = "approximate_matmul.int8-static"

    @classmethod
    def learn(cls, a_train: Tensor, b: Tensor, hyper: Mapping[str, Any], fit: Fit) -> State:
        """Scales of A, then B with them folded in, then the engine."""
        with fit.clock("train_s"):
            size = a_train.float().abs()
            top = size.amax(dim=0) if hyper["granularity"] == "column" else size.amax().reshape(1)
            # A column that is zero in training must not blow up what run time puts there.
            top = torch.where(top < SMALLEST, size.amax().clamp(min=SMALLEST), top)
        with fit.clock("table_s"):
            narrow, scale = quantise_columns(b.float() * (top / integers.TOP).unsqueeze(1))
            cls.choose(narrow, a_train, fit)
        return {"b": narrow, "scale": scale, "inverse": up(top)}

    def prepare(self) -> None:
        """Lay B out for the engine."""
        super().prepare()
        self._inverse = self.state["inverse"].float()

    def _rounded(self, a: Tensor) -> Tensor:
        return torch.round(a * self.state["inverse"]).clamp_(-integers.TOP, integers.TOP)

    @classmethod
    def arrays(cls, hyper: Mapping[str, Any]) -> dict[str, str]:
        """Adds the scales of A."""
        return super().arrays(hyper) | {"inverse": "D" if hyper["granularity"] == "column" else "1"}

    def _block(self, a: Tensor, space: Tensor, out: Tensor) -> None:
        torch.mul(a, self.state["inverse"], out=space).round_().clamp_(-integers.TOP, integers.TOP)
        torch.mul(self._engine(space), self._scale, out=out)


KIND = Int8Static


def make(*, granularity: str = "tensor") -> Estimator:
    """Static int8.

    Args:
        granularity: ``tensor`` (one scale for A) or ``column`` (one for each of its columns).
    """
    choice(granularity, GRANULARITIES, "granularity", Int8Static.method)
    return Estimator(Int8Static, {"granularity": granularity})
