"""The plain algorithms in float64: what every fast implementation in this family is compared with.

Each function takes a tensor of any floating dtype, converts it exactly to float64, runs the textbook iteration matrix
by matrix, and returns **float64** (the one departure from the contract of the task, which returns the input's dtype):
the difference to a fast method is then all rounding and kernel error of that method. Tall matrices are transposed.
"""

from __future__ import annotations

import torch

from harness.errors import Unsupported
from methods.orthogonalize.coefficients import (
    AOL_V1,
    CANS5_SAFE,
    JORDAN,
    POLAR_EXPRESS,
    TURBO4,
    YOU5,
    Table,
)
from methods.orthogonalize.normalise import Normaliser


def polar_ns(G: torch.Tensor, table: Table, normaliser: Normaliser = "frobenius") -> torch.Tensor:
    """Newton-Schulz by definition: normalise, then X <- a X + (b A + c A²) X with A = X Xᵀ, row by row of the table.

    Args:
        G: (..., m, n), any floating dtype.
        table: coefficients, one row per iteration.
        normaliser: ``frobenius``, ``aol``, ``schatten4``, ``spectral`` (the true σ_max, by SVD) or ``none``.

    Returns:
        (..., m, n) in float64.
    """
    matrices = G.detach().to(torch.float64).reshape(-1, *G.shape[-2:])
    results = [_polar_ns_of_one(matrix, table, normaliser) for matrix in matrices]
    return torch.stack(results).reshape(G.shape) if results else matrices.reshape(G.shape)


def _polar_ns_of_one(matrix: torch.Tensor, table: Table, normaliser: Normaliser) -> torch.Tensor:
    tall = matrix.shape[0] > matrix.shape[1]
    X = normalise(matrix.T if tall else matrix, normaliser)
    for a, b, c in table.rows:
        A = X @ X.T
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.T if tall else X


def normalise(X: torch.Tensor, normaliser: Normaliser) -> torch.Tensor:
    """One float64 matrix (n, m) with n <= m, normalised by definition; zero matrices and zero rows stay zero."""
    size = X.abs().max() if X.numel() else X.new_ones(())
    if normaliser == "none" or size == 0:
        return X
    X = X / size  # float64 holds the square of any float32, but not the fourth power
    if normaliser == "frobenius":
        return X / (X * X).sum().sqrt()
    if normaliser == "spectral":
        return X / (torch.linalg.matrix_norm(X, 2) if bool(X.isfinite().all()) else torch.nan)
    A = X @ X.T
    if normaliser == "schatten4":
        return X / (A * A).sum() ** 0.25
    if normaliser == "aol":
        sums = A.abs().sum(dim=1)
        return torch.where(sums == 0, 1.0, sums).rsqrt()[:, None] * X
    raise Unsupported(f"normaliser must be frobenius, aol, schatten4, spectral or none; got {normaliser!r}.")


def polar_svd(G: torch.Tensor) -> torch.Tensor:
    """U Vᵀ of G = U S Vᵀ in float64; a matrix that is not finite gives NaN."""
    matrices = G.detach().to(torch.float64).reshape(-1, *G.shape[-2:])
    factors = [_polar_svd_of_one(matrix) for matrix in matrices]
    return torch.stack(factors).reshape(G.shape) if factors else matrices.reshape(G.shape)


def _polar_svd_of_one(matrix: torch.Tensor) -> torch.Tensor:
    if not bool(matrix.isfinite().all()):
        return torch.full_like(matrix, torch.nan)
    U, _, Vh = torch.linalg.svd(matrix, full_matrices=False)
    product: torch.Tensor = U @ Vh
    return product


def ns_torch(G: torch.Tensor) -> torch.Tensor:
    """Five steps of YOU5 after Frobenius normalisation."""
    return polar_ns(G, YOU5)


def ns_jordan(G: torch.Tensor) -> torch.Tensor:
    """Five steps of JORDAN after Frobenius normalisation."""
    return polar_ns(G, JORDAN)


def tail4(G: torch.Tensor) -> torch.Tensor:
    """Rows 2-5 of YOU5 after Frobenius normalisation."""
    return polar_ns(G, TURBO4)


def aol(G: torch.Tensor) -> torch.Tensor:
    """The table tuned for AOL (four steps) after AOL."""
    return polar_ns(G, AOL_V1, "aol")


def turbo(G: torch.Tensor) -> torch.Tensor:
    """Rows 2-5 of YOU5 after AOL: Turbo-Muon as published."""
    return polar_ns(G, TURBO4, "aol")


def schatten4(G: torch.Tensor) -> torch.Tensor:
    """Rows 2-5 of YOU5 after Schatten-4 normalisation."""
    return polar_ns(G, TURBO4, "schatten4")


def polar_express(G: torch.Tensor) -> torch.Tensor:
    """Five steps of Polar Express after Frobenius normalisation."""
    return polar_ns(G, POLAR_EXPRESS)


def cans(G: torch.Tensor) -> torch.Tensor:
    """Five steps of CANS with a safety factor after Frobenius normalisation."""
    return polar_ns(G, CANS5_SAFE)


def gram(G: torch.Tensor) -> torch.Tensor:
    """In exact arithmetic the Gram iteration is the plain one: five steps of Polar Express."""
    return polar_ns(G, POLAR_EXPRESS)


def gram_aol(G: torch.Tensor) -> torch.Tensor:
    """In exact arithmetic the Gram iteration is the plain one: AOL, then rows 2-5 of YOU5."""
    return polar_ns(G, TURBO4, "aol")
