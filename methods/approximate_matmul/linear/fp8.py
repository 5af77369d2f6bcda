"""``approximate_matmul.fp8``: the product in float8 (E4M3) on NVIDIA tensor cores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from harness.errors import Unsupported
from methods.approximate_matmul.linear import fused
from methods.approximate_matmul.linear.base import Estimator, Fit, Op, State
from methods.approximate_matmul.linear.int8 import SMALLEST

#: Largest finite E4M3 number (Micikevicius et al., FP8 Formats for Deep Learning, arXiv 2209.05433, table 1).
TOP = 448.0
#: torch._scaled_mm wants both sides of B to be multiples of 16 (ATen, cuda/Blas.cpp).
_SIDE = 16
#: First compute capability with float8 tensor cores.
_CAPABILITY = (8, 9)
#: Relative error at which two ways of scaling agree: bfloat16 results, and short accumulators.
_AGREES = 0.01
FLOAT8 = torch.float8_e4m3fn
#: A row whose largest magnitude is below this counts as this.
FLOOR = SMALLEST * TOP


class Fp8(Op):
    """Y = (e4m3(A / s) e4m3(B / t)) s t, s = max|row of A| / 448 at run time, t = max|column of B| / 448.

    Fit: B is scaled and cast. Run time: row maxima, scaling and cast, then for bfloat16 rows one torch._scaled_mm that
    scales as it writes (where the device has one that agrees), else one with float32 result and unit scales and two
    scalings. ``fast_accumulation`` lets the tensor cores keep their short accumulators (H100: about 14
    bits); off, partial sums are promoted to float32. Sides are padded with zeros to multiples of 16.
    """

    method = "approximate_matmul.fp8"

    @property
    def work(self) -> torch.dtype:
        """Scales are float32; the GPU kernels read and write half inputs as they are."""
        return torch.float32 if self._quantise != "triton" or self.dtype == torch.float64 else self.dtype

    @classmethod
    def learn(cls, a_train: Tensor, b: Tensor, hyper: Mapping[str, Any], fit: Fit) -> State:
        """Scale and cast B.

        Raises:
            Unsupported: no CUDA device, or one without float8.
        """
        if b.device.type != "cuda":
            raise Unsupported(f"{cls.method} needs an NVIDIA GPU, got tensors on {b.device}")
        have = torch.cuda.get_device_capability(b.device)
        if have < _CAPABILITY:
            raise Unsupported(f"{cls.method} needs compute capability 8.9 or later, this GPU has {have[0]}.{have[1]}")
        with fit.clock("table_s"):
            top = b.float().abs().amax(dim=0).clamp(min=FLOOR)
            narrow = (b.float() * (top.reciprocal() * TOP)).clamp_(-TOP, TOP).to(FLOAT8)
        return {"b": narrow, "scale": top / TOP}

    def prepare(self) -> None:
        """Pad B and store it column by column, as the tensor cores read it."""
        inner, outer = self.inner, self.outer
        wide = functional.pad(self.state["b"].float(), (0, -outer % _SIDE, 0, -inner % _SIDE))
        self._weight = wide.to(FLOAT8).t().contiguous().t()
        self._one = torch.ones((), device=wide.device)
        self._quantise = fused.refusal(wide.device, inner, FLOAT8, TOP, FLOOR) or "triton"
        columns = functional.pad(self.state["scale"].float(), (0, -outer % _SIDE), value=1.0)
        self._columns = columns.reshape(1, -1).contiguous()
        fast = bool(self.hyper["fast_accumulation"])
        self._by_rows = rowwise_refusal(self._weight, self._columns, fast)

    def product(self, a: Tensor) -> Tensor:
        """Scale, cast, multiply, scale back; on a GPU with Triton in one kernel before and one after the product."""
        width = len(self._weight)
        if self._quantise == "triton":
            q, steps = fused.quantise(a, width, len(a), FLOAT8, TOP, FLOOR)
            if a.dtype == torch.bfloat16 and not self._by_rows:
                fast = bool(self.hyper["fast_accumulation"])
                return rowwise(q, steps, self._weight, self._columns, fast)[:, : self.outer].contiguous()
            return fused.scaled(self._sums(q), steps, self.state["scale"], a.new_empty((len(a), self.outer)))
        top = a.abs().amax(dim=1, keepdim=True).clamp_(min=FLOOR)
        scaled = (a * (top.reciprocal() * TOP)).clamp_(-TOP, TOP)
        if width != self.inner:
            scaled = functional.pad(scaled, (0, width - self.inner))
        sums = self._sums(scaled.to(FLOAT8).contiguous())
        return (sums[:, : self.outer] * top.div_(TOP)).mul_(self.state["scale"])

    def narrow(self, a: Tensor) -> Tensor:
        """The (N, D) float8 entries; the scales of the rows are not part of them."""
        if self._quantise == "triton":
            return fused.quantise(a, self.inner, len(a), FLOAT8, TOP, FLOOR)[0]
        return fused.eager(a, FLOAT8, TOP, FLOOR)[0]

    @classmethod
    def arrays(cls, hyper: Mapping[str, Any]) -> dict[str, str]:
        """B and its scales."""
        return {"b": "D M", "scale": "M"}

    def _sums(self, q: Tensor) -> Tensor:
        sums: Tensor = torch._scaled_mm(
            q,
            self._weight,
            self._one,
            self._one,
            out_dtype=torch.float32,
            use_fast_accum=self.hyper["fast_accumulation"],
        )
        return sums

    def describe(self) -> dict[str, Any]:
        """The arithmetic is float8."""
        return super().describe() | {
            "backend": "torch._scaled_mm",
            "dtype": "float8_e4m3fn",
            "quantise": self._quantise,
            "scales": self._by_rows or "inside the product, for bfloat16 rows",
        }


def rowwise(q: Tensor, rows: Tensor, weight: Tensor, columns: Tensor, fast: bool) -> Tensor:
    """(q weight) scaled by ``rows`` [n] and ``columns`` [1, M] as it is written: bfloat16 [n, M]."""
    scaled: Tensor = torch._scaled_mm(
        q, weight, rows.reshape(-1, 1), columns, out_dtype=torch.bfloat16, use_fast_accum=fast
    )
    return scaled


def rowwise_refusal(weight: Tensor, columns: Tensor, fast: bool) -> str:
    """Why scales stay outside the product: it takes none by row here, or does not agree on probe rows; "" if it may."""
    q = torch.randn((_SIDE + 1, len(weight)), generator=torch.Generator().manual_seed(0)).to(weight.device).to(FLOAT8)
    rows = torch.linspace(0.5, 2.0, len(q), device=weight.device)
    try:
        got = rowwise(q, rows, weight, columns, fast).double()
    except Exception as error:  # whatever a library may say, the scalings outside remain
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    wanted = (q.double() @ weight.double()) * rows.double()[:, None] * columns.double()
    return "" if bool((got - wanted).norm() <= _AGREES * wanted.norm()) else "scales by row give another product"


KIND = Fp8


def make(*, fast_accumulation: bool = False) -> Estimator:
    """The float8 product.

    Args:
        fast_accumulation: keep partial sums in the tensor cores' short accumulators.
    """
    return Estimator(Fp8, {"fast_accumulation": bool(fast_accumulation)})
