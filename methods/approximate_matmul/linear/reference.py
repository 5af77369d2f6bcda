"""Plain NumPy twins of the linear methods: float64, nothing stored in a library's layout, no backend.

A twin draws the same random numbers as its method (``draws.py``), so that the two may be compared digit by digit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from methods.approximate_matmul.linear.base import checked

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
