"""Checks of matrices and options. Messages say what was expected, what came, and what to do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.errors import Unsupported, UserError

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
#: What a fitted operator takes besides: rows of bytes, such as pictures have.
BYTES = (torch.uint8,)


def matrix(value: object, name: str, method: str, also: tuple[torch.dtype, ...] = ()) -> None:
    """Check that ``value`` is a dense floating matrix (or of a dtype ``also``) on a CPU or a CUDA device.

    Raises:
        UserError: naming what came.
        Unsupported: another kind of device.
    """
    if not isinstance(value, Tensor):
        raise UserError(f"{method}: {name} must be a torch tensor, got {type(value).__name__}.")
    if value.ndim != 2:
        raise UserError(f"{method}: {name} must have two dimensions, got shape {tuple(value.shape)}.")
    if value.dtype not in (*DTYPES, *also):
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in (*DTYPES, *also))
        raise UserError(f"{method}: {name} must be one of {known}, got {value.dtype}; cast it first.")
    if value.layout != torch.strided:
        raise UserError(f"{method}: {name} must be dense, got layout {value.layout}; call to_dense().")
    if value.device.type not in ("cpu", "cuda"):
        raise Unsupported(f"{method} runs on cpu and cuda, {name} is on {value.device}")


def training(a_train: Tensor, b: Tensor, codebooks: int, method: str) -> None:
    """Check what ``fit`` is given.

    Raises:
        UserError: shapes that do not fit, fewer columns than codebooks, empty or non-finite matrices, two devices.
    """
    matrix(a_train, "a_train", method)
    matrix(b, "b", method)
    width = a_train.shape[1]
    if width != b.shape[0]:
        raise UserError(f"{method}: a_train has {width} columns but b has {b.shape[0]} rows; they must be equal.")
    if a_train.device != b.device:
        raise UserError(f"{method}: a_train is on {a_train.device} and b on {b.device}; put both on one device.")
    for name, value in (("a_train", a_train), ("b", b)):
        if not value.numel():
            raise UserError(f"{method}: {name} is empty (shape {tuple(value.shape)}); at least one row and column.")
        if not bool(torch.isfinite(value.to(torch.float32)).all()):
            raise UserError(f"{method}: {name} has entries that are not finite in float32; mend or scale the data.")
    if width < codebooks:
        raise UserError(
            f"{method}: {codebooks} codebooks need at least as many columns, a_train has {width}; "
            f"use codebooks <= {width}."
        )


def answer_dtype(a: Tensor) -> torch.dtype:
    """The dtype of a product with the rows ``a``: theirs, float32 for bytes."""
    return a.dtype if a.is_floating_point() else torch.float32


def whole(name: str, option: str, value: object, low: int, high: int | None = None) -> None:
    """Check that an option is a whole number in a range.

    Raises:
        UserError: naming the range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{name}: {option} must be a whole number {limits}, got {value!r}.")


def positive(name: str, option: str, value: object, why: str) -> None:
    """Check that an option is a finite number above zero.

    Raises:
        UserError: saying why it must be.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{name}: {option} must be a finite positive number ({why}), got {value!r}.")


def one_of(name: str, option: str, value: object, known: tuple[str, ...]) -> None:
    """Check that an option is one of a few words."""
    if value not in known:
        raise UserError(f"{name}: {option} must be one of {', '.join(known)}; got {value!r}.")
