"""What the vector-quantisation estimators share: checked options, checked data, and the clock of fitting."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.errors import UserError
from methods.approximate_matmul.checks import one_of, training, whole
from methods.approximate_matmul.encoders import Encoder
from methods.approximate_matmul.operator import BACKENDS, LookupProduct
from methods.approximate_matmul.tables import Tables, group, largest_exact
from methods.approximate_matmul.tree import F32, F64


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the training rows alone determine.

    Attributes:
        encoder: rows to codes.
        build: B (D, M) float64 to tables.
    """

    encoder: Encoder
    build: Callable[[F64], Tables]


class Estimator:
    """An unfitted look-up product: ``fit`` gives the operator.

    Attributes:
        name: the method's name, without the task.
        hyper: its options.
    """

    def __init__(
        self,
        name: str,
        hyper: Mapping[str, Any],
        train: Callable[[F32], Trained],
        upcast: int | None,
        train_on_gpu: Callable[[Tensor], Trained] | None = None,
    ) -> None:
        self.name, self.hyper = name, dict(hyper)
        self._train, self._upcast, self._train_on_gpu = train, upcast, train_on_gpu

    @torch.no_grad()
    def fit(self, a_train: Tensor, b: Tensor) -> LookupProduct:
        """Learn codes from the rows of ``a_train`` (N', D), then tables from ``b`` (D, M).

        Learning runs on the CPU in NumPy, or on the GPU that ``a_train`` lies on if the method can (the same up to the
        order of float64 additions); the operator runs on b's device.

        Raises:
            UserError: the matrices do not fit each other, are empty, not floating or not finite, or D < C; or their
                product does not fit float32.
        """
        training(a_train, b, int(self.hyper["codebooks"]), self.name)
        rows = a_train.detach().to(torch.float32).contiguous()
        weights = b.detach().to("cpu", torch.float64).numpy()
        start = time.perf_counter()
        if rows.is_cuda and self._train_on_gpu is not None:
            trained = self._train_on_gpu(rows)
        else:
            trained = self._train(rows.cpu().numpy())
        between = time.perf_counter()
        # Numbers beyond float32 become infinite here and are refused below, in words.
        with np.errstate(over="ignore", invalid="ignore"):
            tables = trained.build(weights)
        if not tables.finite():
            raise UserError(
                f"{self.name}: outputs of about {_largest(rows):.0e} times {float(np.abs(weights).max()):.0e} do not "
                "fit float32 (at most 3e38), in which tables and outputs are kept; scale a_train, a and b down."
            )
        times = {"train_s": between - start, "table_s": time.perf_counter() - between}
        return LookupProduct(self.name, self.hyper, trained.encoder, tables, self._upcast, b.device, times)

    def __call__(self, a: Tensor) -> Tensor:
        """Refuse: there are no tables yet."""
        raise UserError(f"{self.name} is not fitted: call fit(a_train, b) and use the operator that it returns.")

    encode = scan = codes = totals = __call__

    def save(self, path: str | Path) -> None:
        """Refuse: there is nothing to write yet."""
        raise UserError(
            f"{self.name} is not fitted, so {path} was not written: call fit(a_train, b) and save the operator that it "
            "returns."
        )


def _largest(rows: Tensor) -> float:
    return float(rows.abs().max())


def check_common(name: str, codebooks: int, lut_bits: int | None, aggregation: str, upcast: int, backend: str) -> None:
    """Check the options that all look-up products share, the 16-bit limit of exact sums among them."""
    whole(name, "codebooks", codebooks, 1)
    one_of(name, "aggregation", aggregation, ("exact", "average"))
    one_of(name, "backend", backend, BACKENDS)
    whole(name, "upcast", upcast, 1, 128)
    if upcast & (upcast - 1):
        raise UserError(f"{name}: upcast must be a power of two (a balanced tree of averages), got {upcast}.")
    if lut_bits is None:
        if aggregation == "average":
            raise UserError(f"{name}: averages are of bytes; give lut_bits (8) or use aggregation 'exact'.")
        return
    whole(name, "lut_bits", lut_bits, 1, 8)
    limit = largest_exact(lut_bits)
    if aggregation == "average" and codebooks // group(codebooks, upcast) > limit:
        raise UserError(
            f"{name}: {codebooks} codebooks in groups of {group(codebooks, upcast)} (a power of two that divides them) "
            f"overflow 16 bits; at most {limit} groups."
        )
    if aggregation == "exact" and codebooks > limit:
        raise UserError(
            f"{name}: exact sums of {codebooks} codebooks overflow 16 bits with {lut_bits}-bit tables; at most {limit} "
            f"codebooks, fewer lut_bits, lut_bits=None, or aggregation 'average'."
        )


def upcast_of(codebooks: int, aggregation: str, upcast: int) -> int | None:
    """The group really averaged, or None for exact sums."""
    return group(codebooks, upcast) if aggregation == "average" else None
