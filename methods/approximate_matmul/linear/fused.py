"""Launching the quantisation kernels; everything here is optional and tried at fit before it is used."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch
from torch import Tensor

#: Entries of the longest piece of a row that one program holds.
_BLOCK = 4096
_SCALE_BLOCK = 1024
#: Share of probe entries that must agree: a reciprocal off by one unit in the last place may turn a rare tie.
_AGREEMENT = 0.999


def missing(device: torch.device) -> str | None:
    """Why the kernels cannot run on ``device``; None when they can."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton kernels run on a GPU"
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    return None


def refusal(device: torch.device, inner: int, dtype: torch.dtype, top: float, floor: float) -> str | None:
    """Why the kernels are not used here: they cannot run, or differ from the eager operations on random rows."""
    if why := missing(device):
        return why
    rows = torch.randn((33, inner), generator=torch.Generator().manual_seed(0)).to(device)
    try:
        got, scale = quantise(rows, inner, len(rows), dtype, top, floor)
        wanted, steps = eager(rows, dtype, top, floor)
        share = float((got.float() == wanted.float()).float().mean())
        share = share if torch.allclose(scale, steps[:, 0], rtol=1e-6) else 0.0
    except Exception as error:  # whatever a compiler or driver may say, the eager operations remain
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return None if share >= _AGREEMENT else f"only {share:.4f} of the entries agree with the eager operations"


def eager(a: Tensor, dtype: torch.dtype, top: float, floor: float) -> tuple[Tensor, Tensor]:
    """The same quantisation by PyTorch's operations: entries and scales [n, 1]."""
    largest = a.abs().amax(dim=1, keepdim=True).clamp_(min=floor)
    scaled_rows = (a * (largest.reciprocal() * top)).clamp_(-top, top)
    return (scaled_rows.round_() if dtype == torch.int8 else scaled_rows).to(dtype), largest.div_(top)


def _kernels() -> Any:
    return importlib.import_module("methods.approximate_matmul.linear._kernels_quantise")


def quantise(
    a: Tensor, width: int, rows: int, dtype: torch.dtype, top: float, floor: float, inverse: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A [n, d] as [rows, width] of a one-byte dtype, zero outside, and the scales [n] (empty with ``inverse``)."""
    n, d = a.shape
    out = torch.zeros if rows > n else torch.empty
    q = out((rows, width), dtype=dtype, device=a.device)
    scale = torch.empty(n if inverse is None else 0, dtype=torch.float32, device=a.device)
    block = min(_BLOCK, 1 << max(width - 1, 15).bit_length())
    _kernels().quantise_kernel[(n,)](
        a,
        q,
        scale,
        scale if inverse is None else inverse,
        d,
        width,
        a.stride(0),
        a.stride(1),
        0 if inverse is None or inverse.numel() == 1 else 1,
        TOP=top,
        FLOOR=floor,
        STATIC=inverse is not None,
        WHOLE=dtype == torch.int8,
        BLOCK=block,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return q, scale


def scaled(sums: Tensor, rows: Tensor | None, columns: Tensor, out: Tensor) -> Tensor:
    """Fill ``out`` [n, M] with the first n rows and M columns of ``sums`` times the scales."""
    size = out.numel()
    _kernels().scale_kernel[(-(-size // _SCALE_BLOCK),)](
        sums,
        columns if rows is None else rows,
        columns,
        out,
        size,
        out.shape[1],
        sums.stride(0),
        ROWS=rows is not None,
        BLOCK=_SCALE_BLOCK,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return out
