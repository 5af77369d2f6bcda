"""The exact polar factor by a singular value decomposition: the price of being right."""

from __future__ import annotations

import torch

from methods.orthogonalize.newton_schulz import as_batch, checked, finished
from methods.orthogonalize.normalise import prescale_factor, scaled, wide_dtype


def svd(G: torch.Tensor) -> torch.Tensor:
    """U Vᵀ of G = U S Vᵀ.

    Computed in float32 for float32, bfloat16 and float16, in float64 for float64. For a rank-deficient G the factor is
    not unique; this is the one that LAPACK or cuSOLVER completes (a zero matrix gives a finite partial isometry). A
    matrix with a NaN or an infinity gives NaN; the rest of its batch is unaffected.

    Args:
        G: (..., m, n), any strides. Not modified.

    Returns:
        (..., m, n), contiguous, G's dtype and device.

    Raises:
        Unsupported: fewer than two dimensions, or another dtype.
    """
    checked(G)
    if G.numel() == 0:
        return G.detach().clone(memory_format=torch.contiguous_format)
    with torch.no_grad():
        batch = as_batch(G)
        finite = batch.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
        safe = torch.where(finite, batch, torch.zeros((), dtype=G.dtype, device=G.device))
        U, _, Vh = torch.linalg.svd(scaled(safe, prescale_factor(safe), wide_dtype(G.dtype)), full_matrices=False)
        return finished(torch.where(finite, U @ Vh, torch.nan).to(G.dtype), G)
