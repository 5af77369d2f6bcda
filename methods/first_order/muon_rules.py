"""Muon's choices that depend on shape, device and dtype: the learning-rate factor, the orthogonalizer, the dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from harness.catalogue import registry
from harness.errors import Unsupported, UserError
from harness.measure import availability

#: Learning-rate factor by the shape (m, n) of the (flattened) matrix. ``spectral``: K. Jordan et al., Muon (2024), its
#: repository; ``rms``: J. Liu et al., Muon is Scalable for LLM Training (arXiv 2502.16982), section 2.2, which gives
#: updates of AdamW's root mean square.
ADJUST: Mapping[str, Callable[[int, int], float]] = {
    "spectral": lambda m, n: math.sqrt(max(1.0, m / n)),
    "rms": lambda m, n: 0.2 * math.sqrt(max(m, n)),
    "none": lambda m, n: 1.0,
}
#: What ``auto`` tries in this order: one algorithm (AOL, then four steps) in the fastest engine that runs here. The
#: second is plain torch and runs everywhere.
AUTO = ("polar.turbo-fast-triton", "polar.turbo-torch")
_DTYPES: Mapping[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def iteration_dtype_of(choice: str, parameter: Tensor) -> torch.dtype:
    """The dtype that the iteration runs in.

    Raises:
        UserError: an unknown name.
    """
    if choice in _DTYPES:
        return _DTYPES[choice]
    if choice == "parameter":
        return parameter.dtype
    if choice != "auto":
        raise UserError(f"iteration_dtype is auto, parameter or one of {', '.join(_DTYPES)}; got {choice!r}.")
    if parameter.device.type == "cuda":
        return torch.bfloat16
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def orthogonalizer_of(
    choice: str | Callable[[Tensor], Tensor], device: str, dtype: torch.dtype
) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Name and function of the orthogonalizer: of ``AUTO`` the first that runs on ``device`` in ``dtype``.

    A function of the user's own gets a copy of the stack where it would otherwise see the momentum itself.

    Raises:
        UserError: a name that no ``polar`` method has.
        Unsupported: the named method cannot run here.
    """
    if not isinstance(choice, str):
        own: Any = choice
        return f"{getattr(own, '__module__', '?')}:{getattr(own, '__qualname__', type(own).__name__)}", _guarded(own)
    named = str(dtype).removeprefix("torch.")
    if choice == "auto":
        why = ""
        for name in AUTO:
            why = availability.reason(registry.method(name), device, named) or ""
            if not why:
                return name, registry.load(name)
        raise Unsupported(f"no orthogonalizer of {', '.join(AUTO)} runs here: {why}.")
    if not choice.startswith("polar."):
        raise UserError(f"orthogonalizer is auto, a function, or the name of a polar.* method; got {choice!r}.")
    if reason := availability.reason(registry.method(choice), device, named):
        raise Unsupported(f"orthogonalizer {choice} cannot run on {device} in {named}: {reason}")
    return choice, registry.load(choice)


def _guarded(own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def call(stack: Tensor) -> Tensor:
        return own(stack.clone())

    return call
