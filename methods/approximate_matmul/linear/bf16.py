"""``approximate_matmul.bf16``: the product in bfloat16 with float32 accumulation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from methods.approximate_matmul.linear import calls
from methods.approximate_matmul.linear.base import Estimator, Fit, Op, State


class Bf16(Op):
    """Y = bf16(bf16(A) bf16(B)), both operands and the result rounded to nearest even, sums in float32.

    Fit: B is cast, and the faster of torch.mm and F.linear is chosen on the training rows. Run time: the cast of A,
    the product, the cast of the result back to a's dtype.
    """

    method = "approximate_matmul.bf16"
    native_half = True

    @classmethod
    def learn(cls, a_train: Tensor, b: Tensor, hyper: Mapping[str, Any], fit: Fit) -> State:
        """Cast B, then choose."""
        with fit.clock("table_s"):
            state = {"b": b.to(torch.bfloat16).contiguous()}
            sample = a_train.to(torch.bfloat16)
            chosen, seconds, _ = calls.product(state["b"], sample, cls.method)
        fit.choices |= {"call": chosen, "candidates_s": seconds}
        return state

    def prepare(self) -> None:
        """Lay B out for the chosen call."""
        self._call = calls.call(self.choices["call"], self.state["b"].to(torch.bfloat16))

    def product(self, a: Tensor) -> Tensor:
        """Cast, multiply."""
        return self._call(a.to(torch.bfloat16))

    def narrow(self, a: Tensor) -> Tensor:
        """A in bfloat16."""
        return a.to(torch.bfloat16)

    def describe(self) -> dict[str, Any]:
        """Adds the call chosen at fit; the arithmetic is bfloat16."""
        about = {"backend": calls.title(self.choices["call"]), "choices": self.choices, "dtype": "bfloat16"}
        return super().describe() | about


KIND = Bf16


def make() -> Estimator:
    """The product in bfloat16; it has no options."""
    return Estimator(Bf16, {})
