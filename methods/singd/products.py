"""Matrix products of the preconditioners: in the operands' own precision, in TF32, or from bfloat16 operands."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

PRODUCTS = ("default", "tf32", "bf16")
_state = {"mode": "default"}


@contextlib.contextmanager
def precision(mode: str) -> Iterator[None]:
    """Products of float32 matrices inside the block.

    ``default`` leaves torch's setting, ``tf32`` allows TF32 (CUDA alone), ``bf16`` rounds the operands to bfloat16 and
    accumulates in float32. Other dtypes are not touched.
    """
    before, held = _state["mode"], None
    if mode == "tf32" and torch.cuda.is_available():
        held, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    _state["mode"] = mode
    try:
        yield
    finally:
        _state["mode"] = before
        if held is not None:
            torch.backends.cuda.matmul.allow_tf32 = held


def product(a: Tensor, b: Tensor) -> Tensor:
    """A @ B (B, m, k) x (B, k, n) -> (B, m, n) in the operands' dtype, with the precision in force."""
    if _state["mode"] != "bf16" or a.dtype != torch.float32:
        return a @ b
    first, second = a.bfloat16(), b.bfloat16()
    if a.is_cuda and a.ndim == 3:
        return torch.bmm(first, second, out_dtype=torch.float32)  # type: ignore[call-overload, no-any-return]
    return first.float() @ second.float()
