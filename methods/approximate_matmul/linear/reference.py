"""Plain NumPy twins of the exact and quantised products: float64, nothing stored in a library's layout, no backend.

A twin draws the same random numbers as its method (``draws.py``), so that the two may be compared digit by digit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from methods.approximate_matmul.linear.base import checked
from methods.approximate_matmul.linear.int8 import SMALLEST

Array = np.ndarray[Any, np.dtype[Any]]
Product = Callable[[Array], Array]


class Plain:
    """An unfitted twin: ``learn(a_train, b)`` in float64 returns the product as a function of A."""

    def __init__(self, name: str, learn: Callable[[Array, Array], Product], hyper: Mapping[str, Any]) -> None:
        self.name, self.learn, self.hyper = name, learn, dict(hyper)

    def fit(self, a_train: Tensor, b: Tensor) -> Callable[[Tensor], Tensor]:
        """Learn, then approximate ``a @ b``; the answer is float64 for float64 inputs, else float32."""
        checked(a_train, b, self.name)
        product = self.learn(_wide(a_train), _wide(b))

        def op(a: Tensor) -> Tensor:
            answer = torch.from_numpy(np.ascontiguousarray(product(_wide(a))))
            return answer.to(a.device, torch.float64 if a.dtype == torch.float64 else torch.float32)

        return op


def _wide(tensor: Tensor) -> Array:
    host: Array = tensor.detach().cpu().double().numpy()
    return host


def exact(*, backend: str = "auto", rows: int | None = None) -> Plain:
    """A B in float64."""
    return Plain("exact", lambda _, b: lambda a: a @ b, {"backend": backend, "rows": rows})


def bf16() -> Plain:
    """Operands and result rounded to bfloat16, sums in float64."""

    def learn(_: Array, b: Array) -> Product:
        return lambda a: _bf16(_bf16(a) @ _bf16(b))

    return Plain("bf16", learn, {})


def _bf16(values: Array) -> Array:
    """Round to eight significant bits, to nearest even, by way of float32."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32)
    return np.where(np.isfinite(values), rounded.view(np.float32), values).astype(np.float64)


def int8() -> Plain:
    """Entries quantised in float32, as the method does, then exact integer sums and float64 scalings."""

    def learn(_: Array, b: Array) -> Product:
        narrow, scale = _columns(b)

        def product(a: Array) -> Array:
            rows, steps = _columns(a.T)
            return _integers(rows.T, narrow) * steps[:, None].astype(np.float64) * scale

        return product

    return Plain("int8", learn, {})


def int8_static(*, granularity: str = "tensor") -> Plain:
    """Scales of A from the training rows, folded into B; clipping at run time."""

    def learn(a_train: Array, b: Array) -> Product:
        size = np.abs(a_train.astype(np.float32))
        top = size.max(axis=0) if granularity == "column" else size.max(keepdims=True)[0]
        top = np.where(top < np.float32(SMALLEST), np.maximum(size.max(), np.float32(SMALLEST)), top)
        narrow, scale = _columns(b.astype(np.float32) * (top / np.float32(127))[:, None])

        def product(a: Array) -> Array:
            entries = np.clip(np.rint(a.astype(np.float32) * _up(top)), -127, 127).astype(np.int64)
            return _integers(entries, narrow) * scale.astype(np.float64)

        return product

    return Plain("int8-static", learn, {"granularity": granularity})


def _integers(rows: Array, columns: Array) -> Array:
    """Exact sums of products of bytes. In float64, which holds them up to 2^53 and has a fast product, unlike int64."""
    return rows.astype(np.float64) @ columns.astype(np.float64)  # type: ignore[no-any-return]


def _up(top: Array) -> Array:
    return (np.float32(1) / top) * np.float32(127)


def _columns(b: Array) -> tuple[Array, Array]:
    """Integers of each column and its scale, both found in float32."""
    narrow = b.astype(np.float32)
    top = np.maximum(np.abs(narrow).max(axis=0), np.float32(SMALLEST))
    return np.rint(narrow * _up(top)).astype(np.int64), top / np.float32(127)


def fp8(*, fast_accumulation: bool = False) -> Plain:
    """Entries rounded to E4M3 (3 fraction bits, subnormals below 2**-6), sums in float64."""

    def learn(_: Array, b: Array) -> Product:
        narrow, scale = _e4m3_columns(b)

        def product(a: Array) -> Array:
            rows, steps = _e4m3_columns(a.T)
            return (rows.T @ narrow) * steps[:, None].astype(np.float64) * scale

        return product

    return Plain("fp8", learn, {"fast_accumulation": fast_accumulation})


def _e4m3_columns(b: Array) -> tuple[Array, Array]:
    narrow, largest = b.astype(np.float32), np.float32(448)
    top = np.maximum(np.abs(narrow).max(axis=0), np.float32(SMALLEST) * largest)
    scaled = np.clip(narrow * ((np.float32(1) / top) * largest), -largest, largest).astype(np.float64)
    exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(scaled), 2.0**-60))), -6)
    step = 2.0 ** (exponent - 3)
    return np.clip(np.rint(scaled / step) * step, -448, 448), top / largest
