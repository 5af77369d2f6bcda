"""Our own Newton-Schulz engine on Triton: AOL folded into the products, no pass over X besides them.

With D = diag(s), s_i = (sum_j |A_ij|)^(-1/2) and A = X Xᵀ, the first step of the iteration on D X needs

    A' = D A D,    B = b A' + c A'²,    X1 = (a I + B) D X = a D X + (B D) X,

so X is never rescaled: the row sums leave with the Gram product (both a tile and its mirror contribute, in a fixed
order), the second product stores ``B D`` and the third starts from ``a s_i X_ij``. Only A is rescaled, in place.
bfloat16 and float32 need no scaling against overflow: with entries from 1e-12 to 1e12, A stays within 1e±35 and s
undoes it. float16 is brought into range by a power of two, and D X is formed, since ``B D`` would lose small entries.
"""

from __future__ import annotations

import torch

from methods.orthogonalize import _triton_launch as launch
from methods.orthogonalize.coefficients import TURBO4
from methods.orthogonalize.normalise import prescale_factor


def turbo_fast(G: torch.Tensor) -> torch.Tensor:
    """AOL and four TURBO4 steps, equal to :func:`methods.orthogonalize.triton_published.turbo` up to rounding.

    Shapes: G [..., m, n], any strides. Precision: products in G's dtype with float32 accumulation, scales in float32.
    Source: Turbo-Muon (arXiv 2512.04632) for the iteration; the folding is ours.
    Departure: see the module; the row sums are those of the float32 Gram entries before rounding.

    Raises:
        Unsupported: not on a GPU, or a dtype other than float32, bfloat16 and float16.
    """
    launch.check(G)
    out, target = launch.like_output(G)
    if not G.numel():
        return out
    with launch.on_device(G):
        _run(launch.wide_view(G), target)
    return out


def _run(X: torch.Tensor, target: torch.Tensor) -> None:
    spare = torch.empty_like(target)
    A = torch.empty(X.shape[0], X.shape[1], X.shape[1], dtype=X.dtype, device=X.device)
    B = torch.empty_like(A)
    fold = X.dtype != torch.float16
    if not fold:
        launch.rescale(X, target, prescale_factor(X).reshape(-1, 1), "rows")
        X = target
    scale = launch.gram_with_scale(X, A)
    launch.rescale(A, A, scale, "both")
    if not fold:
        launch.rescale(X, target, scale, "rows")
    for step, (a, b, c) in enumerate(TURBO4.rows):
        folded = scale if fold and step == 0 else None
        if step:
            launch.symmetric_fast(X, A)
        launch.symmetric_fast(A, B, alpha=c, beta=b, addend=True, scale=folded)
        result = target if step % 2 else spare
        launch.apply_fast(B, X, result, a, scale=folded)
        X = result
