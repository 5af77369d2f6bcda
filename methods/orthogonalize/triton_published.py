"""Published Newton-Schulz designs on Triton kernels: what Dion, flash-newton-schulz and Turbo-Muon run, re-implemented.

Every step is ``A = X Xᵀ`` (line 1), ``B = b A + c A²`` (line 2), ``X <- a X + B X`` (line 3, or the library's product).
All functions take G [..., m, n] in float32, bfloat16 or float16 on a GPU, iterate in G's dtype with float32
accumulation on the smaller side (tall inputs as transposed views), and return the shape, dtype and device of G.

Departures from upstream: the floors of norms are tiny instead of 1e-7, so that results do not depend on the scale of G
(1e-12 to 1e12); float16 is first scaled by a power of two where a Gram matrix precedes the normalisation;
configurations come from a table instead of a search; no copy from host to device is made per call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from methods.orthogonalize import _triton_launch as launch
from methods.orthogonalize.coefficients import AOL_V1, TURBO4, YOU5, Table
from methods.orthogonalize.normalise import prescale_factor

Apply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], None]


def ns_symmetric(G: torch.Tensor) -> torch.Tensor:
    """Five YOU5 steps after Frobenius: lines 1 and 2 in Triton, then the library's addmm; microsoft/dion's default.

    Raises:
        Unsupported: not on a GPU, or another dtype.
    """
    return _frobenius_engine(G, YOU5, _library_apply)


def ns_fused(G: torch.Tensor) -> torch.Tensor:
    """:func:`ns_symmetric` with the fused third line, ``a X + B X`` in one kernel.

    Raises:
        Unsupported: not on a GPU, or another dtype.
    """
    return _frobenius_engine(G, YOU5, launch.line_3)


def tail4(G: torch.Tensor) -> torch.Tensor:
    """The last four rows of YOU5 after Frobenius, fused: what is left of Turbo-Muon without its preconditioner.

    Raises:
        Unsupported: not on a GPU, or another dtype.
    """
    return _frobenius_engine(G, TURBO4, launch.line_3)


def aol(G: torch.Tensor) -> torch.Tensor:
    """AOL from the first Gram matrix, then four AOL_V1 steps, fused: thib-s/flash-newton-schulz (2025-09-22).

    Raises:
        Unsupported: not on a GPU, or another dtype.
    """
    return _gram_engine(G, AOL_V1, "aol")


def turbo(G: torch.Tensor) -> torch.Tensor:
    """AOL from the first Gram matrix, then four TURBO4 steps, fused: Turbo-Muon (arXiv 2512.04632).

    Raises:
        Unsupported: not on a GPU, or another dtype.
    """
    return _gram_engine(G, TURBO4, "aol")


def schatten4(G: torch.Tensor) -> torch.Tensor:
    """The Schatten-4 norm ``||X Xᵀ||_F^½`` from the first Gram matrix, then four TURBO4 steps, fused.

    Raises:
        Unsupported: not on a GPU, or another dtype.
    """
    return _gram_engine(G, TURBO4, "schatten4")


def _frobenius_engine(G: torch.Tensor, table: Table, apply: Apply) -> torch.Tensor:
    launch.check(G)
    out, target = launch.like_output(G)
    if not G.numel():
        return out
    with launch.on_device(G):
        X = launch.wide_view(G)
        norm = torch.linalg.vector_norm(X, dim=(-2, -1), dtype=torch.float32).unsqueeze(1)
        current, other = _ping_pong(target, len(table.rows))
        launch.rescale(X, current, norm, "divide")
        _iterate(current, other, table, apply)
    return out


def _gram_engine(G: torch.Tensor, table: Table, normaliser: str) -> torch.Tensor:
    launch.check(G)
    out, target = launch.like_output(G)
    if not G.numel():
        return out
    with launch.on_device(G):
        X = launch.wide_view(G)
        current, other = _ping_pong(target, len(table.rows))
        if X.dtype == torch.float16:
            launch.rescale(X, current, prescale_factor(X).reshape(-1, 1), "rows")
            X = current
        A = _square_like(X)
        launch.line_1(X, A)
        if normaliser == "aol":
            scale = launch.aol_scale(A)
            launch.rescale(X, current, scale, "rows")
            launch.rescale(A, A, scale, "both")
        else:
            scale = launch.schatten4_scale(A)
            launch.rescale(X, current, scale, "rows")
            launch.rescale(A, A, scale, "both")  # both factors are the one scalar
        _iterate(current, other, table, launch.line_3, first_gram=A)
    return out


def _iterate(
    current: torch.Tensor, other: torch.Tensor, table: Table, apply: Apply, first_gram: torch.Tensor | None = None
) -> None:
    """Run every row of the table from ``current``, changing places with ``other`` after each step."""
    A = _square_like(current) if first_gram is None else first_gram
    B = torch.empty_like(A)
    for step, (a, b, c) in enumerate(table.rows):
        if step or first_gram is None:
            launch.line_1(current, A)
        launch.line_2(A, B, c, b)
        apply(B, current, other, a)
        current, other = other, current


def _library_apply(B: torch.Tensor, X: torch.Tensor, Y: torch.Tensor, a: float) -> None:
    """``Y = a X + B X`` by the library's product with an addend (it copies X into Y first)."""
    if X.shape[0] == 1:
        torch.addmm(X[0], B[0], X[0], beta=a, out=Y[0])
    else:
        torch.baddbmm(X, B, X, beta=a, out=Y)


def _ping_pong(target: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two buffers of the output's layout, so that after ``steps`` exchanges the result lies in ``target``."""
    spare = torch.empty_like(target)
    return (target, spare) if steps % 2 == 0 else (spare, target)


def _square_like(X: torch.Tensor) -> torch.Tensor:
    return torch.empty(X.shape[0], X.shape[1], X.shape[1], dtype=X.dtype, device=X.device)
