"""Normalisers: bring every singular value into (0, 1] before the iteration, without overflow in any dtype.

All functions take matrices that are already oriented: X of shape (..., n, m) with n <= m, and its Gram matrix
A = X Xᵀ of shape (..., n, n). A NaN anywhere in a matrix makes that whole norm NaN; a zero matrix stays zero.
"""

from __future__ import annotations

from typing import Literal

import torch

Normaliser = Literal["frobenius", "aol", "schatten4", "spectral", "none"]

# Norms under this are not raised to 1: float32 squares of entries under 1e-19 vanish, so a smaller floor would divide
# a matrix whose norm was lost by (nearly) nothing. Entries of size 1e-12 are far above it. No unit: see README.md.
_NORM_FLOOR = {torch.float32: 1e-15, torch.float64: 1e-150}

# Smallest row sum of |A|, relative to the largest, that AOL still raises to 1. Below it the Gram entries are rounding
# or underflow: 2**-24 is float16's smallest step (the Gram of a prescaled matrix is below 2**14), and float32 and
# bfloat16 squares vanish at 1e-38.
_AOL_FLOOR = {torch.float16: 1e-6, torch.bfloat16: 1e-30, torch.float32: 1e-30, torch.float64: 1e-200}

POWER_STEPS = 20
POWER_MARGIN = 1.05  # the estimate comes from below; the tables here stay bounded up to at least this value


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of norms: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def scaled(X: torch.Tensor, factor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """``X * factor`` multiplied in factor's precision, rounded once to ``dtype`` (X's), in one pass; contiguous."""
    if torch.compiler.is_compiling():
        return (X * factor).to(dtype or X.dtype)
    return torch.mul(X, factor, out=torch.empty(X.shape, dtype=dtype or X.dtype, device=X.device))


def frobenius_factor(X: torch.Tensor) -> torch.Tensor:
    """1 / ‖X‖_F per matrix, shape (..., 1, 1), in float32 (float64 for float64).

    The sum of squares is taken in that precision, so the norm must stay under 1.8e19 (float32); a norm that
    overflows gives NaN, never a silent zero. Norms under 1e-15 (float64: 1e-150) count as that value.
    """
    wide = wide_dtype(X.dtype)
    norm: torch.Tensor = torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True, dtype=wide)
    return norm.nan_to_num(nan=torch.nan, posinf=torch.nan).clamp(min=_NORM_FLOOR[wide]).reciprocal()


def frobenius(X: torch.Tensor) -> torch.Tensor:
    """X / ‖X‖_F, the norm in float32 (float64 for float64). The scalar keeps the polar factor exactly."""
    return scaled(X, frobenius_factor(X))


def prescale_factor(X: torch.Tensor) -> torch.Tensor:
    """The power of two that makes X's Gram matrix safe, shape (..., 1, 1), in float32 (float64 for float64).

    float16 (short range): ‖X‖_F comes to [64, 128), so every Gram entry is under 2^14 and small entries stay normal
    numbers as far as possible. Other dtypes: the largest entry comes to [1, 2), without forming any square.
    """
    wide = wide_dtype(X.dtype)
    if X.dtype == torch.float16:
        size = torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True, dtype=wide)
        return _inverse_power_of_two(size) * 64.0
    return _inverse_power_of_two(torch.linalg.vector_norm(X, ord=torch.inf, dim=(-2, -1), keepdim=True).to(wide))


def prescale(X: torch.Tensor) -> torch.Tensor:
    """Multiply each matrix by an exact power of two so that its Gram matrix neither overflows nor underflows.

    No rounding (but for entries that fall out of the dtype's range by being that much smaller than the largest), so
    neither the polar factor nor AOL's diagonal changes, and G and 2^k G give bitwise equal results.
    """
    return scaled(X, prescale_factor(X))


def schatten4(A: torch.Tensor) -> torch.Tensor:
    """The Schatten-4 norm of X from its Gram matrix, one per matrix: ‖X‖_S4 = (Σ σᵢ⁴)^¼ = ‖A‖_F^½, shape (...).

    An exact scalar with σ_max <= ‖X‖_S4 <= ‖X‖_F. A must come from a prescaled X.
    Source: CANS (arXiv 2506.10935), section 3.4; KellerJordan/Muon pull request 14; optax 'schatten'.
    """
    wide = wide_dtype(A.dtype)
    norm: torch.Tensor = torch.linalg.vector_norm(A, dim=(-2, -1), dtype=wide)
    return norm.clamp(min=_NORM_FLOOR[wide]).sqrt()


def aol_scale(A: torch.Tensor) -> torch.Tensor:
    """AOL's diagonal from the Gram matrix: s_i = (Σ_j |A_ij|)^(-1/2), shape (..., n), float32 (float64 for float64).

    diag(Σ_j |A_ij|) - A is diagonally dominant with a non-negative diagonal, hence positive semidefinite, hence
    σ_max(diag(s) X) <= 1. The floor is dimensionless: row sums under 1e-30 of the largest (float16: 1e-6) count as
    that much, so zero rows stay finite. A must come from a prescaled X.

    Source: B. Prach and C. Lampert, arXiv 2208.03160 (the rescaling); Turbo-Muon (its use before Newton-Schulz).
    Departure: the published code clamps the row sums at an absolute 1e-7, which is not invariant to scale.
    """
    wide = wide_dtype(A.dtype)
    sums = torch.linalg.vector_norm(A, ord=1, dim=-1, dtype=wide)
    floor = (sums.amax(dim=-1, keepdim=True) * _AOL_FLOOR[A.dtype]).clamp(min=torch.finfo(wide).tiny)
    return torch.maximum(sums, floor).rsqrt()


def spectral(X: torch.Tensor, steps: int = POWER_STEPS) -> torch.Tensor:
    """X / (1.05 σ̂), with σ̂ <= σ_max from ``steps`` steps of power iteration on X Xᵀ.

    The start vector is fixed, so the result is deterministic. An estimate, not a bound: with a flat top of the
    spectrum σ̂ falls short by a few per cent, which the margin covers.
    """
    wide = wide_dtype(X.dtype)
    Y = prescale(X)
    vector = torch.cos(torch.arange(X.shape[-1], device=X.device, dtype=wide) ** 2).unsqueeze(-1)
    vector = vector.expand(*X.shape[:-2], -1, -1)
    tiny = torch.finfo(wide).tiny
    size = torch.ones_like(vector[..., :1, :])
    for _ in range(steps):
        vector = vector / torch.linalg.vector_norm(vector, dim=-2, keepdim=True).clamp(min=tiny)
        image = Y @ vector.to(Y.dtype)
        size = torch.linalg.vector_norm(image, dim=-2, keepdim=True, dtype=wide)
        direction = (image.to(wide) / size.clamp(min=tiny)).to(Y.dtype)
        vector = (Y.mT @ direction).to(wide)
    return scaled(Y, (size * POWER_MARGIN).clamp(min=_NORM_FLOOR[wide]).reciprocal())


def _inverse_power_of_two(size: torch.Tensor) -> torch.Tensor:
    """2^-floor(log2 size) exactly, by the exponent's bits; clamped to normal numbers (0 -> a large finite power)."""
    if size.dtype == torch.float64:
        mantissa, top, integer = 52, 2046, torch.int64
    else:
        mantissa, top, integer = 23, 254, torch.int32
    exponent = (size.view(integer) >> mantissa) & (top + 1)
    # Capped four powers short of the ends: the factor, and 64 times it, stay finite normal numbers.
    return ((top - exponent).clamp(8, top - 8) << mantissa).view(size.dtype)
