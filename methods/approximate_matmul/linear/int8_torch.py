"""``approximate_matmul.int8-torch``: PyTorch's own dynamically quantised linear layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from harness.errors import Unsupported, UserError
from methods.approximate_matmul.linear import calls, integers
from methods.approximate_matmul.linear.base import Estimator, Fit, Op, State
from methods.approximate_matmul.linear.int8 import quantise_columns

#: Libraries behind the operator, in the order in which they are tried; each with A in 8 bits, then in 7.
ENGINES = ("onednn", "x86", "fbgemm", "qnnpack")
#: Relative error allowed on the extremes: 8-bit sums that saturate are off by a half.
_WHOLE = 0.05


class Int8Torch(Op):
    """Y = ((q - z) round(B / t)) s t with q = clip(round(A / s) + z): one scale s and zero z for all of A.

    s and z come from A's extremes at run time, t = max|column of B| / 127. Fit: B is quantised; library (oneDNN,
    FBGEMM, QNNPACK) and bits of A (8, or 7 where 8 would saturate 16-bit sums) are chosen on the training rows. Run
    time: one call of ``torch.ops.quantized.linear_dynamic``, which finds s and z, quantises, multiplies and scales.
    float32. Where a library overlooks a NaN, that row gets a meaningless finite answer.
    """

    method = "approximate_matmul.int8-torch"
    codeless = "the library quantises A inside its call and does not give it out (approximate_matmul.int8 has codes)"

    @classmethod
    def learn(cls, a_train: Tensor, b: Tensor, hyper: Mapping[str, Any], fit: Fit) -> State:
        """Quantise B, then choose the library."""
        if b.device.type != "cpu":
            raise Unsupported(f"{cls.method} runs on a CPU, b is on {b.device}")
        with fit.clock("table_s"):
            narrow, scale = quantise_columns(b)
            usable, left_out = _usable(narrow, scale)
            if not usable:
                raise Unsupported(f"no quantised linear layer here: {'; '.join(left_out)}")
            chosen, seconds = calls.fastest(usable, a_train.float())
        fit.choices |= {"engine": chosen, "candidates_s": seconds, "left_out": left_out}
        return {"b": narrow, "scale": scale}

    @property
    def work(self) -> torch.dtype:
        """The operator takes float32 alone."""
        return torch.float32

    def prepare(self) -> None:
        """Pack B; an operator saved on another machine may name a library that is not there or saturates here."""
        engine, _, bits = self.choices["engine"].rpartition("-")
        b, scale = self.state["b"], self.state["scale"].float()
        if engine in torch.backends.quantized.supported_engines and not _saturates(engine, int(bits), b):
            self._call = _packed(engine, int(bits), b, scale)
            return
        usable, left_out = _usable(b, scale)
        if not usable:
            raise Unsupported(f"no quantised linear layer here: {'; '.join(left_out)}")
        self.choices["engine"], self._call = next(iter(usable.items()))

    def product(self, a: Tensor) -> Tensor:
        """One library call.

        Raises:
            UserError: NaN or infinite entries, which leave A without a scale.
        """
        try:
            return self._call(a)
        except RuntimeError as error:
            if bool(torch.isfinite(a).all()):
                raise
            raise UserError(
                f"{self.method}: a has NaN or infinite entries, so it has no scale; remove those rows, or use "
                "approximate_matmul.int8, whose scales are a row's own."
            ) from error

    @classmethod
    def arrays(cls, hyper: Mapping[str, Any]) -> dict[str, str]:
        """B and its scales."""
        return {"b": "D M int8", "scale": "M"}

    def describe(self) -> dict[str, Any]:
        """Adds the library and the bits of A."""
        name = f"torch quantized.linear_dynamic, {self.choices['engine']}"
        return super().describe() | {"backend": name, "choices": self.choices, "dtype": "int8"}


def _usable(b: Tensor, scale: Tensor) -> tuple[dict[str, Callable[[Tensor], Tensor]], list[str]]:
    """Calls by ``library-bits`` that are right on entries of the largest magnitude, and what was left out and why."""
    usable, left_out = {}, []
    for engine in ENGINES:
        if engine not in torch.backends.quantized.supported_engines:
            left_out.append(f"{engine}: not in this torch")
            continue
        for bits in (8, 7):
            try:
                if _saturates(engine, bits, b):
                    left_out.append(f"{engine}-{bits}: sums saturate")
                    continue
                usable[f"{engine}-{bits}"] = _packed(engine, bits, b, scale)
                break  # seven bits are worse and no faster than eight that do not saturate
            except (RuntimeError, AttributeError, NotImplementedError) as error:
                left_out.append(f"{engine}-{bits}: {' '.join(str(error).split())[:120]}")
    return usable, left_out


def _saturates(engine: str, bits: int, b: Tensor) -> bool:
    """Whether the largest entries of A against the largest of B of either sign give a wrong sum."""
    extreme = torch.full_like(b, integers.TOP)
    extreme[:, 1::2] = -integers.TOP
    rows = torch.ones(2, len(b))
    rows[1, len(b) // 2 :] = -1.0
    wanted = rows @ extreme.float()
    got = _packed(engine, bits, extreme, torch.ones(b.shape[1]))(rows)
    return bool((got - wanted).abs().max() > _WHOLE * integers.TOP * len(b))


def _packed(engine: str, bits: int, b: Tensor, scale: Tensor) -> Callable[[Tensor], Tensor]:
    """The call on B as the library lays it out; the engine that torch is set to stays as it was."""
    zeros = torch.zeros(b.shape[1], dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces a successor that ships apart from it
        weight = torch._make_per_channel_quantized_tensor(b.t().contiguous(), scale.double(), zeros, 0)
    before = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = engine
        packed = torch.ops.quantized.linear_prepack(weight, None)
    finally:
        torch.backends.quantized.engine = before
    run = torch.ops.quantized.linear_dynamic
    return lambda a: run(a, packed, bits == 7)


KIND = Int8Torch


def make() -> Estimator:
    """PyTorch's dynamically quantised linear layer; it has no options."""
    return Estimator(Int8Torch, {})
