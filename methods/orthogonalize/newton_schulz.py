"""Newton-Schulz in the input's own dtype with torch's products: any leading dimensions, tall matrices without a copy.

A tall matrix is never transposed in memory: with Y of shape (m, n), m > n, the Gram matrix is Yᵀ Y and the update is
a Y + Y B, so input, iterates and output keep the caller's layout and the result is contiguous.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from harness.errors import Unsupported
from methods.orthogonalize.coefficients import (
    AOL_V1,
    CANS5_SAFE,
    JORDAN,
    POLAR_EXPRESS,
    TURBO4,
    YOU5,
    Row,
    Table,
)
from methods.orthogonalize.normalise import (
    Normaliser,
    aol_scale,
    frobenius_factor,
    prescale,
    scaled,
    schatten4,
    spectral,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

Step = Callable[[torch.Tensor, torch.Tensor, Row], torch.Tensor]


def newton_schulz(
    G: torch.Tensor, table: Table, normaliser: Normaliser = "frobenius", step: Step | None = None
) -> torch.Tensor:
    """Orthogonalize: normalise, then one quintic step per row of the table, all products in G's dtype.

    Args:
        G: (..., m, n) in float32, bfloat16, float16 or float64, any strides. Not modified.
        table: coefficients; one row, one iteration.
        normaliser: see :mod:`methods.orthogonalize.normalise`; AOL and Schatten-4 hand their Gram matrix on.
        step: :func:`fused_step` (default) or :func:`plain_step`.

    Returns:
        (..., m, n), contiguous, G's dtype and device.

    Raises:
        Unsupported: fewer than two dimensions, or another dtype.
    """
    checked(G)
    if G.numel() == 0:
        return G.detach().clone(memory_format=torch.contiguous_format)
    with torch.no_grad():
        return finished(iterate(as_batch(G), table, normaliser, fused_step if step is None else step), G)


def iterate(G: torch.Tensor, table: Table, normaliser: Normaliser, step: Step) -> torch.Tensor:
    """The whole algorithm on a matrix or a batch of matrices, free of checks and copies, for eager and compiled use."""
    Y, A = start(G, normaliser)
    for row in table.rows:
        Y = step(Y, gram_matrix(Y) if A is None else A, row)
        A = None
    return Y


def plain_step(Y: torch.Tensor, A: torch.Tensor, row: Row) -> torch.Tensor:
    """One step as commonly written in torch: B = b A + c A A; Y <- a Y + B Y, every operation its own kernel."""
    a, b, c = row
    B = b * A + c * A @ A
    return a * Y + (Y @ B if is_tall(Y) else B @ Y)


def fused_step(Y: torch.Tensor, A: torch.Tensor, row: Row) -> torch.Tensor:
    """The same step with the sums inside the products (addmm, baddbmm): no separate elementwise passes."""
    a, b, c = row
    B = product_plus(A, A, A, b, c)
    return product_plus(Y, Y, B, a) if is_tall(Y) else product_plus(Y, B, Y, a)


def product_plus(
    addend: torch.Tensor, left: torch.Tensor, right: torch.Tensor, beta: float, alpha: float = 1.0
) -> torch.Tensor:
    """``beta addend + alpha left right`` for matrices or batches of matrices."""
    combine = torch.addmm if addend.ndim == 2 else torch.baddbmm
    return combine(addend, left, right, beta=beta, alpha=alpha)


def start(G: torch.Tensor, normaliser: Normaliser) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The first iterate, and its Gram matrix where the normaliser needed it anyway."""
    if normaliser == "frobenius":
        return scaled(G, frobenius_factor(G)), None
    if normaliser == "spectral":
        return (spectral(G.mT).mT if is_tall(G) else spectral(G)), None
    if normaliser == "none":
        return G, None
    Y = prescale(G)
    A = gram_matrix(Y)
    if normaliser == "schatten4":
        factor = schatten4(A).reciprocal()[..., None, None]
        return scaled(Y, factor), scaled(A, factor * factor)
    if normaliser == "aol":
        s = aol_scale(A)
        rows, columns = s.unsqueeze(-1), s.unsqueeze(-2)
        return scaled(Y, columns if is_tall(Y) else rows), scaled(A, rows * columns)
    raise Unsupported(f"normaliser must be frobenius, aol, schatten4, spectral or none; got {normaliser!r}.")


def gram_matrix(Y: torch.Tensor) -> torch.Tensor:
    """The product of the smaller size: Y Yᵀ, or Yᵀ Y for a tall Y."""
    return Y.mT @ Y if is_tall(Y) else Y @ Y.mT


def is_tall(Y: torch.Tensor) -> bool:
    """More rows than columns."""
    return Y.shape[-2] > Y.shape[-1]


def checked(G: torch.Tensor) -> None:
    """Refuse what no engine of this family can orthogonalize."""
    if G.ndim < 2:
        raise Unsupported(f"a matrix or a batch of matrices is needed; got shape {tuple(G.shape)}: add a dimension.")
    if G.dtype not in DTYPES:
        raise Unsupported(f"float32, bfloat16, float16 or float64 is needed; got {G.dtype}: convert it first.")


def as_batch(G: torch.Tensor) -> torch.Tensor:
    """At most three dimensions; a copy only if the leading strides cannot be merged."""
    return G.detach() if G.ndim <= 3 else G.detach().reshape(-1, *G.shape[-2:])


def finished(Y: torch.Tensor, G: torch.Tensor) -> torch.Tensor:
    """Y in G's shape, contiguous, never an alias of G."""
    result = Y.reshape(G.shape).contiguous()
    return result.clone() if result.data_ptr() == G.data_ptr() else result


def ns_torch(G: torch.Tensor) -> torch.Tensor:
    """Five plain steps of YOU5 after Frobenius normalisation: the "plain torch" baseline."""
    return newton_schulz(G, YOU5, "frobenius", plain_step)


def ns_jordan(G: torch.Tensor) -> torch.Tensor:
    """Five plain steps of JORDAN after Frobenius normalisation."""
    return newton_schulz(G, JORDAN, "frobenius", plain_step)


def tail4_torch(G: torch.Tensor) -> torch.Tensor:
    """Four plain steps, rows 2-5 of YOU5, after Frobenius normalisation: what Turbo-Muon is without AOL."""
    return newton_schulz(G, TURBO4, "frobenius", plain_step)


def aol_torch(G: torch.Tensor) -> torch.Tensor:
    """Four plain steps of the table tuned for AOL, after AOL; the first step reuses AOL's Gram matrix."""
    return newton_schulz(G, AOL_V1, "aol", plain_step)


def turbo_torch(G: torch.Tensor) -> torch.Tensor:
    """Four plain steps, rows 2-5 of YOU5, after AOL; the first step reuses AOL's Gram matrix."""
    return newton_schulz(G, TURBO4, "aol", plain_step)


def schatten4_torch(G: torch.Tensor) -> torch.Tensor:
    """Four plain steps, rows 2-5 of YOU5, after Schatten-4 normalisation from the first Gram matrix."""
    return newton_schulz(G, TURBO4, "schatten4", plain_step)


def polar_express(G: torch.Tensor) -> torch.Tensor:
    """Five fused steps of Polar Express after Frobenius normalisation."""
    return newton_schulz(G, POLAR_EXPRESS)


def cans(G: torch.Tensor) -> torch.Tensor:
    """Five fused steps of CANS with a safety factor after Frobenius normalisation."""
    return newton_schulz(G, CANS5_SAFE)
