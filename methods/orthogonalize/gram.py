"""The Gram Newton-Schulz iteration: iterate on the small n x n matrix and touch the long side only at restarts.

With R = X Xᵀ and Q = 1, one step is Z = b R + c R², Q <- Q (a + Z), R <- (a + Z) R (a + Z); at a restart and at the
end X <- Q X, and after a restart R is formed anew from X. In exact arithmetic it equals the plain iteration; products
of the long side fall from two per step to two per segment. Without a restart rounding errors in R, which then has
small negative eigenvalues, grow with Q.

Source: Gram Newton-Schulz (Dao-AILab/gram-newton-schulz), whose default is one restart before the third step.
Departures: float32 and float64 stay as they are (published: float16 for all); 1.02 instead of 1.05 as Polar Express's
safety factor. Square matrices take the standard iteration, as published: there the Gram iteration saves nothing.

bfloat16 inputs to :func:`gram` are iterated in float16, as published and at the same speed: with Polar Express's
steep rows bfloat16's error in R pushed singular values to 2.2 (log-uniform spectra, nearly square gaussians), float16's
to 1.2. After AOL with its gentler rows bfloat16 is stable, so :func:`gram_aol` stays in the input's dtype.
"""

from __future__ import annotations

import torch

from methods.orthogonalize.coefficients import POLAR_EXPRESS, TURBO4, Row, Table
from methods.orthogonalize.newton_schulz import (
    as_batch,
    checked,
    finished,
    gram_matrix,
    is_tall,
    newton_schulz,
    product_plus,
    start,
)
from methods.orthogonalize.normalise import Normaliser, frobenius_factor, scaled

RESTART = 2  # published default: before the third step


def gram_newton_schulz(
    G: torch.Tensor, table: Table, normaliser: Normaliser = "frobenius", restart: int | None = RESTART
) -> torch.Tensor:
    """Orthogonalize by the Gram iteration.

    Args:
        G: (..., m, n) in float32, bfloat16, float16 or float64, any strides. Not modified.
        table: coefficients; one row, one iteration.
        normaliser: as in :func:`methods.orthogonalize.newton_schulz.newton_schulz`.
        restart: X and R are formed anew before this iteration (counted from 0); None for never.

    Returns:
        (..., m, n), contiguous, G's dtype and device.
    """
    checked(G)
    if G.numel() == 0 or G.shape[-2] == G.shape[-1]:
        return newton_schulz(G, table, normaliser)
    segments = [table.rows] if restart is None else [table.rows[:restart], table.rows[restart:]]
    with torch.no_grad():
        Y, A = _start(as_batch(G), normaliser)
        for rows in segments:
            Q = _product_of_steps(gram_matrix(Y) if A is None else A, rows)
            A = None
            Y = Y @ Q if is_tall(Y) else Q @ Y
        return finished(Y.to(G.dtype), G)


def _start(G: torch.Tensor, normaliser: Normaliser) -> tuple[torch.Tensor, torch.Tensor | None]:
    if normaliser == "frobenius" and G.dtype == torch.bfloat16:
        return scaled(G, frobenius_factor(G), torch.float16), None
    return start(G, normaliser)


def _product_of_steps(R: torch.Tensor, rows: tuple[Row, ...]) -> torch.Tensor:
    """Q with X <- Q X equal to all steps in ``rows``, from the Gram matrix R alone."""
    Q: torch.Tensor | None = None
    for index, (a, b, c) in enumerate(rows):
        Z = product_plus(R, R, R, b, c)
        if index < len(rows) - 1:
            RZ = product_plus(R, R, Z, a)
            R = product_plus(RZ, Z, RZ, a)
        if Q is None:
            Z.diagonal(dim1=-2, dim2=-1).add_(a)
            Q = Z
        else:
            Q = product_plus(Q, Q, Z, a)
    assert Q is not None, "a segment has at least one row"
    return Q


def gram(G: torch.Tensor) -> torch.Tensor:
    """Five Gram steps of Polar Express, one restart, after Frobenius normalisation."""
    return gram_newton_schulz(G, POLAR_EXPRESS)


def gram_aol(G: torch.Tensor) -> torch.Tensor:
    """Four Gram steps, rows 2-5 of YOU5, one restart, after AOL, whose Gram matrix starts the iteration."""
    return gram_newton_schulz(G, TURBO4, "aol")
