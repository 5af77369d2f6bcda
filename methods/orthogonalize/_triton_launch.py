"""Launching the Triton kernels on tensors: shapes, strides, grids and configurations; no mathematics.

Every function takes three-dimensional tensors [batch, ., .] and starts kernels on the current stream without waiting.
All but pointers and coefficients is worked out once for each form of the operands and kept: see ``_triton_direct``.
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
from methods.orthogonalize._triton_direct import Launch, form, get

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


def _config(design: Any, line: Any, X: torch.Tensor) -> Config:
    batch, n, m = X.shape
    major = memory_class(X.device.index) if X.is_cuda else 9
    return choose(design, line, n, m if line == "apply" else n, batch, m if line == "gram" else n, X.dtype, major)


# --- published design ------------------------------------------------------------------------------------------------


def line_1(A: torch.Tensor, C: torch.Tensor, config: Config | None = None) -> None:
    """``C = A Aᵀ``."""
    _symmetric(A, C, 1.0, 0.0, "gram", config)


def line_2(A: torch.Tensor, C: torch.Tensor, alpha: float, beta: float, config: Config | None = None) -> None:
    """``C = alpha A Aᵀ + beta A`` for symmetric A."""
    _symmetric(A, C, alpha, beta, "square", config)


def _symmetric(A: torch.Tensor, C: torch.Tensor, alpha: float, beta: float, line: str, config: Config | None) -> None:
    def build() -> Launch:
        chosen = config or _config("published", line, A)
        batch, n, k = A.shape
        programs = batch * triton.cdiv(n, chosen.bm) * triton.cdiv(n, chosen.bn)
        meta = {"ADDEND": line == "square", "PRECISION": precision(A.dtype)} | _options(chosen)
        return Launch(published.symmetric_product_kernel, programs, (n, k, *A.stride(), *C.stride()), meta)

    get((line, form(A), form(C), config), build)((A, C), (float(alpha), float(beta)))


def line_3(B: torch.Tensor, X: torch.Tensor, Y: torch.Tensor, a: float, config: Config | None = None) -> None:
    """``Y = a X + B X``; Y must not overlap X."""

    def build() -> Launch:
        chosen = config or _config("published", "apply", X)
        batch, n, m = X.shape
        programs = batch * triton.cdiv(n, chosen.bm) * triton.cdiv(m, chosen.bn)
        integers = (n, m, *B.stride(), *X.stride(), *Y.stride())
        return Launch(published.apply_kernel, programs, integers, {"PRECISION": precision(X.dtype)} | _options(chosen))

    get(("apply", form(B), form(X), form(Y), config), build)((B, X, Y), (float(a),))


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

    def build() -> Launch:
        batch, rows, cols = X.shape
        bm, bn = (16, 256) if X.stride(2) == 1 else (256, 16)
        programs = batch * triton.cdiv(rows, bm) * triton.cdiv(cols, bn)
        integers = (rows, cols, *X.stride(), *Y.stride(), S.stride(0), 0 if S.shape[1] == 1 else S.stride(1))
        return Launch(
            elementwise.rescale_kernel, programs, integers, {"MODE": mode, "BM": bm, "BN": bn, "num_warps": 8}
        )

    get(("rescale", mode, form(X), form(Y), form(S)), build)((X, Y, S), (FLOOR[torch.float32],))


def aol_scale(A: torch.Tensor) -> torch.Tensor:
    """AOL's ``s_i = (sum_j |A_ij|)^(-1/2)`` from a contiguous Gram matrix, float32 [batch, n]."""
    batch, n, _ = A.shape
    S = torch.empty(batch, n, dtype=torch.float32, device=A.device)
    meta = {"BM": 4, "BN": 1024, "num_warps": 4}
    get(("aol", form(A), form(S)), lambda: Launch(elementwise.aol_scale_kernel, batch * triton.cdiv(n, 4), (n,), meta))(
        (A, S), (FLOOR[A.dtype],)
    )
    return S


def schatten4_scale(A: torch.Tensor) -> torch.Tensor:
    """``||A||_F^(-1/2)`` from a contiguous Gram matrix, float32 [batch, 1]; safe from overflow at any scale."""
    batch, n, _ = A.shape
    parts, tops = (torch.empty(batch, n, dtype=torch.float32, device=A.device) for _ in range(2))
    S = torch.empty(batch, 1, dtype=torch.float32, device=A.device)
    meta = {"BN": 1024, "num_warps": 4}
    key = (form(A), form(parts), form(tops))
    get(
        ("squares", key),
        lambda: Launch(elementwise.squares_kernel, batch * triton.cdiv(n, 4), (n,), {"BM": 4} | meta),
    )((A, parts, tops))
    get(("schatten4", key, form(S)), lambda: Launch(elementwise.schatten4_scale_kernel, batch, (n,), meta))(
        (parts, tops, S), (FLOOR[A.dtype],)
    )
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

    def build() -> Launch:
        chosen = config or fast_config("square" if addend else "gram", X)
        batch, n, k = X.shape
        size = triton.cdiv(n, max(chosen.bm, chosen.bn))
        tma = chosen.tma and takes_descriptor(X)
        meta = {
            "TMA": tma, "ROWS_CONTIGUOUS": rows_contiguous(X), "ADDEND": addend, "SUMS": partial is not None,
            "SCALE_COLUMNS": scale is not None, "PRECISION": precision(X.dtype),
        } | _options(chosen)  # fmt: skip
        programs = batch * size * (size + 1) // 2 * parts(chosen)
        return Launch(fast.symmetric_fast_kernel, programs, (n, k, size, *X.stride()), meta, chosen if tma else None)

    launch = get(("fast symmetric", addend, form(X), form(C), form(partial), form(scale), config), build)
    left = right = X
    if launch.extra is not None:
        tile = launch.extra
        left = _descriptor(X, tile.bm, tile.bk)
        right = left if tile.bm == tile.bn else _descriptor(X, tile.bn, tile.bk)
    pointers = (left, right, X, C, C if partial is None else partial, C if scale is None else scale)
    launch(pointers, (float(alpha), float(beta)))


def parts(config: Config) -> int:
    """Tiles in a supertile."""
    return max(config.bm, config.bn) // min(config.bm, config.bn)


def fast_config(line: Any, X: torch.Tensor) -> Config:
    """The configuration of the fast design for one product of X."""
    return _config("fast", line, X)


def gram_with_scale(X: torch.Tensor, A: torch.Tensor, config: Config | None = None) -> torch.Tensor:
    """``A = X Xᵀ``, and from its row sums AOL's scale, float32 [batch, n]; the sums run in a fixed order."""
    batch, n, _ = X.shape

    def build() -> Launch:
        chosen = config or fast_config("gram", X)
        side, each = max(chosen.bm, chosen.bn), parts(chosen)
        slots = triton.cdiv(n, side) * each
        meta = {"SIDE": side, "PARTS": each, "WIDE": chosen.bn > chosen.bm, "BM": 32, "num_warps": 1}
        return Launch(fast.aol_reduce_kernel, batch * triton.cdiv(n, 32), (n, slots), meta, slots)

    reduce = get(("sums", form(X), config), build)
    partial = torch.empty(batch, reduce.extra, n, dtype=torch.float32, device=X.device)
    scale = torch.empty(batch, n, dtype=torch.float32, device=X.device)
    symmetric_fast(X, A, partial=partial, config=config)
    reduce((partial, scale), (FLOOR[X.dtype],))
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

    def build() -> Launch:
        chosen = config or fast_config("apply", X)
        batch, n, m = X.shape
        tma = chosen.tma and takes_descriptor(X) and takes_descriptor(B)
        meta = {
            "TMA": tma, "ROWS_CONTIGUOUS": rows_contiguous(X), "SCALE_ROWS": scale is not None,
            "PRECISION": precision(X.dtype),
        } | _options(chosen)  # fmt: skip
        programs = batch * triton.cdiv(n, chosen.bm) * triton.cdiv(m, chosen.bn)
        integers = (n, m, B.stride(0), *X.stride(), *Y.stride())
        return Launch(fast.apply_fast_kernel, programs, integers, meta, chosen if tma else None)

    launch = get(("fast apply", form(B), form(X), form(Y), form(scale), config), build)
    left, right = B, X
    if launch.extra is not None:
        tile = launch.extra
        left, right = _descriptor(B, tile.bm, tile.bk), _descriptor(X, tile.bk, tile.bn)
    launch((left, right, B, X, Y, X if scale is None else scale), (float(a),))
