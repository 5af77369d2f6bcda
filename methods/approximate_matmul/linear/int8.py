"""``approximate_matmul.int8``: dynamic quantisation of A, one scale a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from methods.approximate_matmul.linear import fused, integers, products
from methods.approximate_matmul.linear.base import Estimator, Fit, Op, State

#: Bytes of float32 rows quantised at a time and thread on a CPU, so that the passes over them stay in a private cache.
_BLOCK_BYTES = 2**19
#: A row whose largest magnitude is below this counts as this: 127 / amax stays finite in float32.
SMALLEST = 2.0**-119


def up(top: Tensor) -> Tensor:
    """127 / top as the product 127 * (1 / top), each rounded to float32, so that a plain twin can repeat it."""
    return top.reciprocal() * integers.TOP


def quantise_columns(b: Tensor) -> tuple[Tensor, Tensor]:
    """B as int8 with one scale a column: round(127 B / max|B|), max|B| / 127; a zero column has the scale of SMALLEST.

    Symmetric, to nearest even: the scheme of LLM.int8() (Dettmers et al., arXiv 2208.07339, section 2.1).
    """
    top = b.float().abs().amax(dim=0).clamp(min=SMALLEST)
    return torch.round(b.float() * up(top)).to(torch.int8), top / integers.TOP


class Int8(Op):
    """Y = (round(A / s) round(B / t)) s t, s = max|row of A| / 127 found at run time, t = max|column of B| / 127.

    Fit: B is quantised; the engine of the integer product is chosen on the training rows, among engines that give the
    same integers, and on a GPU whether the scalings are part of it. Run time: row maxima, quantisation, product with
    exact sums, two scalings. float32 throughout. A row with a NaN or an infinity gives NaN or infinities. Scheme: row-
    and column-wise int8, arXiv 2208.07339, section 2.1.
    """

    method = "approximate_matmul.int8"

    @property
    def work(self) -> torch.dtype:
        """Scales are float32; the GPU kernels read and write half inputs as they are."""
        return torch.float32 if self._weight is None or self.dtype == torch.float64 else self.dtype

    @classmethod
    def learn(cls, a_train: Tensor, b: Tensor, hyper: Mapping[str, Any], fit: Fit) -> State:
        """Quantise B, then choose the engine."""
        with fit.clock("table_s"):
            narrow, scale = quantise_columns(b)
            cls.choose(narrow, a_train, fit)
        return {"b": narrow, "scale": scale}

    @staticmethod
    def choose(narrow: Tensor, a_train: Tensor, fit: Fit) -> None:
        """Measure the engines on a block of rows."""
        rows = block_rows(a_train)
        top = a_train[:rows].float().abs().amax().clamp(min=SMALLEST)
        sample = torch.round(a_train[:rows].float() * up(top))
        chosen, seconds, left_out = integers.choose(narrow, sample)
        fit.choices |= {"engine": chosen, "candidates_s": seconds, "left_out": left_out}
        device, inner = narrow.device, len(narrow)
        if device.type != "cuda" or chosen != "int_mm":
            return
        if fused.refusal(device, inner, torch.int8, integers.TOP, SMALLEST) is None:
            product, seconds, left_out = products.choose(narrow, a_train, SMALLEST)
            fit.choices |= {"product": product, "products_s": seconds, "products_left_out": left_out}

    def prepare(self) -> None:
        """Lay B out for the engine; an operator saved on another machine may name one that is not exact here."""
        if self.choices["engine"] == "int_mm" and integers.inexact("int_mm", self.state["b"]):
            self.choices["engine"] = "float32"
        self._engine = integers.engine(self.choices["engine"], self.state["b"])
        self._scale = self.state["scale"].float()
        self._inverse: Tensor | None = None
        why = "the engine takes float32"
        if self.choices["engine"] == "int_mm":
            why = "eager operations on a CPU"
            if self.device.type == "cuda":
                why = fused.refusal(self.device, self.inner, torch.int8, integers.TOP, SMALLEST) or ""
        self.choices["quantise"] = why or "triton"
        self._weight: products.Weight | None = None
        if not why:
            self._weight = products.usable(self.choices.get("product"), self.state["b"], self._scale)
            self.choices["product"] = self._weight.name

    def product(self, a: Tensor) -> Tensor:
        """Block by block: quantise, multiply, scale; on a GPU in one kernel each, or two."""
        if self._weight is not None:
            q, steps = self._quantised(a, self._weight)
            return self._weight(q, steps if self._inverse is None else None, a.new_empty((len(a), self.outer)))
        rows = block_rows(a)
        out = a.new_empty((a.shape[0], self.outer))
        space = a.new_empty((min(rows, a.shape[0]), self.inner))
        for start in range(0, a.shape[0], rows):
            block = a[start : start + rows]
            self._block(block, space[: block.shape[0]], out[start : start + rows])
        return out

    def narrow(self, a: Tensor) -> Tensor:
        """The (N, D) int8 entries; the scales of the rows are not part of them."""
        if self._weight is not None:
            return self._quantised(a, self._weight)[0][: len(a), : self.inner]
        return self._rounded(a).to(torch.int8)

    def _rounded(self, a: Tensor) -> Tensor:
        return torch.round(a * up(a.abs().amax(dim=1, keepdim=True).clamp_(min=SMALLEST)))

    @classmethod
    def arrays(cls, hyper: Mapping[str, Any]) -> dict[str, str]:
        """B and its scales."""
        return {"b": "D M int8", "scale": "M"}

    def _quantised(self, a: Tensor, weight: products.Weight) -> tuple[Tensor, Tensor]:
        rows = weight.rows(len(a))
        return fused.quantise(a, weight.width, rows, torch.int8, integers.TOP, SMALLEST, self._inverse)

    def _block(self, a: Tensor, space: Tensor, out: Tensor) -> None:
        top = torch.abs(a, out=space).amax(dim=1, keepdim=True).clamp_(min=SMALLEST)
        torch.mul(a, up(top), out=space).round_()
        torch.mul(self._engine(space), top.div_(integers.TOP), out=out)
        out.mul_(self._scale)

    def describe(self) -> dict[str, Any]:
        """Adds the engine of the integer product."""
        names = {"int_mm": "torch._int_mm", "float32": "float32 product of integers (exact)"}
        name = names[self.choices["engine"]]
        if self._weight is not None and self._weight.name != products.LIBRARY:
            name = f"Triton int8 product, {self._weight.name}, scaled as it is written"
        choices = dict(self.choices)
        if self._weight is None:
            choices.pop("product", None)  # of the GPU that it was fitted on
        return super().describe() | {"backend": name, "choices": choices, "dtype": "int8"}


def block_rows(a: Tensor) -> int:
    """Rows handled at a time: all of them on a GPU."""
    if a.device.type != "cpu":
        return max(int(a.shape[0]), 1)
    return max(64, _BLOCK_BYTES * torch.get_num_threads() // (4 * int(a.shape[1])))


KIND = Int8


def make() -> Estimator:
    """Dynamic int8; it has no options."""
    return Estimator(Int8, {})
