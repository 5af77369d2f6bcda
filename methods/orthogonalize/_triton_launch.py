"""Launching the Triton kernels on tensors: shapes, strides, grids and configurations; no mathematics.

Every function takes three-dimensional tensors [batch, ., .] and starts kernels on the current stream without waiting.
"""

from __future__ import annotations

import contextlib
import math
import os
from typing import Any

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from harness.errors import Unsupported, UserError
from methods.orthogonalize import _kernels_elementwise as elementwise
from methods.orthogonalize import _kernels_fast as fast
from methods.orthogonalize import _kernels_published as published
from methods.orthogonalize._triton_configs import Config, choose, memory_class

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Smallest row sum or norm that is told from zero: float32's smallest normal number. Gram entries in float16 vanish
#: under 2**-24, and a smaller floor would let a row with a vanished Gram entry grow without bound.
FLOOR = {torch.float32: 1.1754944e-38, torch.bfloat16: 1.1754944e-38, torch.float16: 2.0**-24}


def check(G: torch.Tensor) -> None:
    """Refuse what the kernels cannot take."""
    if not G.is_cuda and not INTERPRETED:
        raise Unsupported(f"needs CUDA: Triton kernels run on an NVIDIA GPU, the input is on {G.device}")
    if G.ndim < 2:
        raise UserError(f"expected a matrix or a batch of matrices, got shape {tuple(G.shape)}; add a dimension")
    if G.dtype not in DTYPES:
        raise Unsupported(f"needs float32, bfloat16 or float16, got {G.dtype}; use polar.svd or a torch method")


def wide_view(G: torch.Tensor) -> torch.Tensor:
    """G as [batch, n, m] with n <= m; tall matrices become transposed views, nothing is copied when batches merge."""
    X = G if G.ndim == 3 else G.reshape(math.prod(G.shape[:-2]), *G.shape[-2:])
    return X.mT if X.shape[-2] > X.shape[-1] else X


def like_output(G: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A contiguous output of G's shape, and its [batch, n, m] view."""
    out = torch.empty(G.shape, dtype=G.dtype, device=G.device)
    return out, wide_view(out)


def on_device(G: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make G's device current (Triton launches there); free when it already is."""
    if not G.is_cuda or G.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(G.device)


def precision(dtype: torch.dtype) -> str:
    """``input_precision`` of the products: float32 is computed as float32; half precision has no choice."""
    return "ieee" if dtype == torch.float32 else "tf32"


def _config(design: Any, line: Any, X: torch.Tensor, cols: int) -> Config:
    major = memory_class(X.device.index) if X.is_cuda else 9
    return choose(design, line, X.shape[1], cols, X.shape[0], X.dtype, major)


# --- published design ------------------------------------------------------------------------------------------------


def line_1(A: torch.Tensor, C: torch.Tensor, config: Config | None = None) -> None:
    """``C = A Aᵀ``."""
    _symmetric(A, C, 1.0, 0.0, False, config or _config("published", "gram", A, A.shape[1]))


def line_2(A: torch.Tensor, C: torch.Tensor, alpha: float, beta: float, config: Config | None = None) -> None:
    """``C = alpha A Aᵀ + beta A`` for symmetric A."""
    _symmetric(A, C, alpha, beta, True, config or _config("published", "square", A, A.shape[1]))


def _symmetric(A: torch.Tensor, C: torch.Tensor, alpha: float, beta: float, addend: bool, config: Config) -> None:
    batch, n, k = A.shape
    published.symmetric_product_kernel[(batch * triton.cdiv(n, config.bm) * triton.cdiv(n, config.bn),)](
        A, C, n, k, *A.stride(), *C.stride(), alpha, beta,
        ADDEND=addend, PRECISION=precision(A.dtype), **_options(config),
    )  # fmt: skip


def line_3(B: torch.Tensor, X: torch.Tensor, Y: torch.Tensor, a: float, config: Config | None = None) -> None:
    """``Y = a X + B X``; Y must not overlap X."""
    batch, n, m = X.shape
    config = config or _config("published", "apply", X, m)
    published.apply_kernel[(batch * triton.cdiv(n, config.bm) * triton.cdiv(m, config.bn),)](
        B, X, Y, n, m, *B.stride(), *X.stride(), *Y.stride(), a, PRECISION=precision(X.dtype), **_options(config)
    )


def _options(config: Config) -> dict[str, Any]:
    cap = {"maxnreg": config.registers} if config.registers else {}
    return cap | {
        "BM": config.bm,
        "BN": config.bn,
        "BK": config.bk,
        "GROUP": config.group,
        "num_warps": config.warps,
        "num_stages": config.stages,
    }


# --- element-wise passes ---------------------------------------------------------------------------------------------


def rescale(X: torch.Tensor, Y: torch.Tensor, S: torch.Tensor, mode: str) -> None:
    """``Y = diag(S) X`` ("rows"), ``diag(S) X diag(S)`` ("both"), ``X / S`` ("divide"); S [batch, n] or [batch, 1]."""
    batch, rows, cols = X.shape
    bm, bn = (16, 256) if X.stride(2) == 1 else (256, 16)
    step = 0 if S.shape[1] == 1 else S.stride(1)
    elementwise.rescale_kernel[(batch * triton.cdiv(rows, bm) * triton.cdiv(cols, bn),)](
        X, Y, S, rows, cols, *X.stride(), *Y.stride(), S.stride(0), step, FLOOR[torch.float32],
        MODE=mode, BM=bm, BN=bn, num_warps=8,
    )  # fmt: skip


def aol_scale(A: torch.Tensor) -> torch.Tensor:
    """AOL's ``s_i = (sum_j |A_ij|)^(-1/2)`` from a contiguous Gram matrix, float32 [batch, n]."""
    batch, n, _ = A.shape
    S = torch.empty(batch, n, dtype=torch.float32, device=A.device)
    elementwise.aol_scale_kernel[(batch * triton.cdiv(n, 4),)](A, S, n, FLOOR[A.dtype], BM=4, BN=1024, num_warps=4)
    return S


def schatten4_scale(A: torch.Tensor) -> torch.Tensor:
    """``||A||_F^(-1/2)`` from a contiguous Gram matrix, float32 [batch, 1]; safe from overflow at any scale."""
    batch, n, _ = A.shape
    parts, tops = (torch.empty(batch, n, dtype=torch.float32, device=A.device) for _ in range(2))
    S = torch.empty(batch, 1, dtype=torch.float32, device=A.device)
    elementwise.squares_kernel[(batch * triton.cdiv(n, 4),)](A, parts, tops, n, BM=4, BN=1024, num_warps=4)
    elementwise.schatten4_scale_kernel[(batch,)](parts, tops, S, n, FLOOR[A.dtype], BN=1024, num_warps=4)
    return S


# --- own design ------------------------------------------------------------------------------------------------------


def takes_descriptor(X: torch.Tensor) -> bool:
    """Whether TMA can read X [batch, ., .]: half precision, one unit stride, the others multiples of 16 bytes."""
    if X.dtype == torch.float32 or X.data_ptr() % 16 or (X.is_cuda and memory_class(X.device.index) < 9):
        return False
    strides = [X.stride(1), X.stride(2)]
    if 1 not in strides:
        return False
    other = strides[1 - strides.index(1)] if strides != [1, 1] else 0
    outer = X.stride(0) if X.shape[0] > 1 else other
    return other > 0 and outer > 0 and other % 8 == 0 and outer % 8 == 0 and max(X.shape) < 2**31


def rows_contiguous(X: torch.Tensor) -> bool:
    """Whether consecutive entries of a column of X [batch, n, m] lie beside each other (a transposed view)."""
    return X.stride(1) == 1 and X.stride(2) != 1


def _descriptor(X: torch.Tensor, rows: int, cols: int) -> Any:
    """Blocks [1, rows, cols] of X, or [1, cols, rows] of the transposed storage."""
    if rows_contiguous(X):
        X, rows, cols = X.mT, cols, rows
    outer = X.stride(0) if X.shape[0] > 1 else X.shape[1] * X.stride(1)
    return TensorDescriptor(X, list(X.shape), [outer, X.stride(1), 1], [1, rows, cols])


def symmetric_fast(
    X: torch.Tensor,
    C: torch.Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    addend: bool = False,
    partial: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    config: Config | None = None,
) -> None:
    """``C = X Xᵀ`` or ``alpha X Xᵀ + beta X``, then ``C diag(scale)``; ``partial`` receives sums of |C|."""
    batch, n, k = X.shape
    config = config or fast_config("square" if addend else "gram", X)
    size = triton.cdiv(n, max(config.bm, config.bn))
    tma = config.tma and takes_descriptor(X)
    left = _descriptor(X, config.bm, config.bk) if tma else X
    right = left if config.bm == config.bn else _descriptor(X, config.bn, config.bk) if tma else X
    fast.symmetric_fast_kernel[(batch * size * (size + 1) // 2 * parts(config),)](
        left, right, X, C, C if partial is None else partial, C if scale is None else scale,
        n, k, size, *X.stride(), alpha, beta,
        TMA=tma, ROWS_CONTIGUOUS=rows_contiguous(X), ADDEND=addend, SUMS=partial is not None,
        SCALE_COLUMNS=scale is not None, PRECISION=precision(X.dtype), **_options(config),
    )  # fmt: skip


def parts(config: Config) -> int:
    """Tiles in a supertile."""
    return max(config.bm, config.bn) // min(config.bm, config.bn)


def fast_config(line: Any, X: torch.Tensor) -> Config:
    """The configuration of the fast design for one product of X."""
    return _config("fast", line, X, X.shape[2] if line == "apply" else X.shape[1])


def gram_with_scale(X: torch.Tensor, A: torch.Tensor, config: Config | None = None) -> torch.Tensor:
    """``A = X Xᵀ``, and from its row sums AOL's scale, float32 [batch, n]; the sums run in a fixed order."""
    batch, n, _ = X.shape
    config = config or fast_config("gram", X)
    slots = triton.cdiv(n, max(config.bm, config.bn)) * parts(config)
    partial = torch.empty(batch, slots, n, dtype=torch.float32, device=X.device)
    scale = torch.empty(batch, n, dtype=torch.float32, device=X.device)
    symmetric_fast(X, A, partial=partial, config=config)
    fast.aol_reduce_kernel[(batch * triton.cdiv(n, 32),)](
        partial, scale, n, slots, FLOOR[X.dtype],
        SIDE=max(config.bm, config.bn), PARTS=parts(config), WIDE=config.bn > config.bm, BM=32, num_warps=1,
    )  # fmt: skip
    return scale


def apply_fast(
    B: torch.Tensor,
    X: torch.Tensor,
    Y: torch.Tensor,
    a: float,
    scale: torch.Tensor | None = None,
    config: Config | None = None,
) -> None:
    """``Y = a X + B X``, or ``a diag(scale) X + B X``; B contiguous, Y must not overlap X."""
    batch, n, m = X.shape
    config = config or fast_config("apply", X)
    tma = config.tma and takes_descriptor(X) and takes_descriptor(B)
    left = _descriptor(B, config.bm, config.bk) if tma else B
    right = _descriptor(X, config.bk, config.bn) if tma else X
    fast.apply_fast_kernel[(batch * triton.cdiv(n, config.bm) * triton.cdiv(m, config.bn),)](
        left, right, B, X, Y, X if scale is None else scale, n, m, B.stride(0), *X.stride(), *Y.stride(), a,
        TMA=tma, ROWS_CONTIGUOUS=rows_contiguous(X), SCALE_ROWS=scale is not None,
        PRECISION=precision(X.dtype), **_options(config),
    )  # fmt: skip
