"""Matrix products of the preconditioners: in the operands' own precision, in TF32, or from bfloat16 operands."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

PRODUCTS = ("default", "tf32", "bf16")
_state = {"mode": "default"}
#: Tensor cores want every extent to be a multiple of 16 bytes: 8 numbers of the smallest dtype.
_MULTIPLE = 8
#: Smaller matrices are not worth a padded copy.
_LEAST = 128
#: Devices whose matrix units want it.
_PADDED_ON = {"cuda"}


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


def fast() -> bool:
    """Whether products of float32 matrices may run on matrix units: in TF32 or from bfloat16."""
    return _state["mode"] == "bf16" or torch.backends.cuda.matmul.allow_tf32


def size(d: int) -> int:
    """The extent that a kept matrix of size ``d`` is padded to."""
    return d if d < _LEAST else -(-d // _MULTIPLE) * _MULTIPLE


def extent(d: int, like: Tensor) -> int:
    """The extent that :func:`prepared` gives to ``d`` in a matrix like ``like``."""
    return size(d) if like.device.type in _PADDED_ON and like.dtype != torch.float64 else d


def operand(dtype: torch.dtype, mode: str | None = None) -> torch.dtype:
    """The dtype that products of matrices of ``dtype`` take their operands in."""
    chosen = _state["mode"] if mode is None else mode
    return torch.bfloat16 if chosen == "bf16" and dtype == torch.float32 else dtype


def product(a: Tensor, b: Tensor) -> Tensor:
    """A @ B (B, m, k) x (B, k, n) -> (B, m, n) in A's dtype, with the precision in force."""
    kind = operand(a.dtype)
    return multiplied(prepared(a, kind), prepared(b, kind), a.dtype)[:, : a.shape[1], : b.shape[2]]


def prepared(a: Tensor, dtype: torch.dtype) -> Tensor:
    """``a`` (B, m, n) in ``dtype``, padded with zeros where the device's matrix units want it."""
    if a.device.type not in _PADDED_ON or min(a.shape[1:]) < _LEAST or dtype == torch.float64:
        return a.to(dtype)
    if a.stride(2) != 1 and a.stride(1) == 1:
        return prepared(a.mT, dtype).mT
    m, n = size(a.shape[1]), size(a.shape[2])
    row = a.stride(1) * a.element_size()
    if (m, n) == a.shape[1:] and a.stride(2) == 1 and row % 16 == 0 and a.data_ptr() % 16 == 0:
        return a.to(dtype)
    whole = torch.zeros(a.shape[0], m, n, dtype=dtype, device=a.device)
    whole[:, : a.shape[1], : a.shape[2]] = a
    return whole


def multiplied(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """A @ B of prepared operands, in ``dtype``; an extent that only one of them has padded is padded here."""
    if a.shape[2] < b.shape[1]:
        a = torch.nn.functional.pad(a, (0, b.shape[1] - a.shape[2]))
    elif b.shape[1] < a.shape[2]:
        b = torch.nn.functional.pad(b, (0, 0, 0, a.shape[2] - b.shape[1]))
    if a.dtype == dtype:
        return torch.bmm(a, b)
    if a.is_cuda:
        return torch.bmm(a, b, out_dtype=dtype)  # type: ignore[call-overload, no-any-return]
    return torch.bmm(a.to(dtype), b.to(dtype))
