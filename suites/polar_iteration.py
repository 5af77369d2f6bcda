"""Polar factor of large matrices by a float64 iteration that needs matrix products only."""

from __future__ import annotations

import math

import torch

from harness.errors import Unsupported

#: Smallest ratio sigma_min / bound that the schedule treats at full speed. A gaussian 8192 x 8192 has about 1e-6
#: (Edelman 1988, "Eigenvalues and condition numbers of random matrices"); smaller ones cost extra steps.
LOWEST = 1e-8
#: The iterate may stop when it changes by less, ||X_{k+1} - X_k||_F / sqrt(n), and the schedule has ended
#: (1 - l is less): before that, a spectrum can rest at a fixed point of the scaled cubic that is not 1.
#: The convergence is quadratic, so the error left is far below the bound.
TOLERANCE = 1e-11
#: The optimal scaling sends sigma = 1 to about 2.6 l, which cancels all digits when l is tiny. With this cap, the root
#: of rho (3 - rho^2) / 2 = 0.1, the image of 1 keeps at least a tenth (the remedy of Chen and Chow 2014).
CAP = 1.69770248525577
#: About 28 steps of the schedule, and the plain steps that raise another factor of 1000. A smaller singular value is
#: rounding noise, and the answer would be noise too.
MAX_STEPS = 50


def polar_by_iteration(matrix: torch.Tensor) -> torch.Tensor:
    """Orthogonal polar factor of a wide (or square) matrix by optimally scaled cubic Newton-Schulz steps.

    X <- p(X) = (rho/2) X (3 I - rho^2 X^T X), rho = min(sqrt(3 / (1 + l + l^2)), CAP), where l bounds the smallest
    singular value of X from below: l <- min(p(l), p(1)).

    Shapes: [n, m] with n <= m -> [n, m]. Dtype float64; every step is two products. The start is divided by an
    upper bound of sigma_max taken from the Gram matrix A = X X^T: sqrt(min(||A||_F, max_i sum_j |A_ij|)).
    The forward error is about 1e-16 times the condition number.

    Source: J. Chen, E. Chow, "A stable scaling of Newton-Schulz for improving the sign function computation of a
    Hermitian matrix" (2014). Departure: the lower bound starts at ``LOWEST`` whatever the matrix, so that a matrix
    with a smaller singular value takes more steps instead of a wrong schedule.

    Raises:
        Unsupported: no convergence in ``MAX_STEPS`` steps (a matrix without full rank).
    """
    if matrix.ndim != 2 or matrix.shape[0] > matrix.shape[1] or matrix.dtype != torch.float64:
        raise ValueError(f"expected a wide float64 matrix, got {tuple(matrix.shape)} {matrix.dtype}")
    x = matrix / matrix.abs().max()
    gram = x @ x.mT
    bound = min(float(torch.linalg.matrix_norm(gram)), float(gram.abs().sum(1).max()))
    x = x / math.sqrt(bound)
    low = LOWEST
    for _ in range(MAX_STEPS):
        rho = min(math.sqrt(3.0 / (1.0 + low + low * low)), CAP)
        gram = x @ x.mT
        new = torch.addmm(x, gram, x, beta=1.5 * rho, alpha=-0.5 * rho**3)
        low = min(1.0, *(0.5 * rho * end * (3.0 - (rho * end) ** 2) for end in (low, 1.0)))
        change = float(torch.linalg.matrix_norm(new - x)) / math.sqrt(x.shape[0])
        x = new
        if change <= TOLERANCE and 1.0 - low <= TOLERANCE:
            break
    # A direction that stayed at zero makes ||X||_F^2 smaller than n by one.
    missing = x.shape[0] - float(torch.linalg.matrix_norm(x)) ** 2
    if change <= TOLERANCE and missing < 0.5:
        return x
    raise Unsupported(
        f"the float64 iteration for the polar factor of a {matrix.shape[0]} x {matrix.shape[1]} matrix did not settle "
        f"in {MAX_STEPS} steps on full rank (last change {change:.1e}, {missing:.1f} directions missing); pass a "
        f"matrix of full rank, or a smaller one, whose oracle is a singular value decomposition."
    )


def dominant_projector(psd: torch.Tensor, threshold: float) -> torch.Tensor:
    """Orthogonal projector onto the eigenvectors of a symmetric matrix with eigenvalue >= ``threshold``.

    P = (I + sign(H - threshold I)) / 2, the sign being the polar factor of a symmetric matrix (Higham 2008,
    "Functions of Matrices", ch. 5 and 8). Shapes: [n, n] -> [n, n], float64. No eigenvectors are computed, so it
    is as fast as the iteration itself on a GPU. An eigenvalue within about 1e-12 of the threshold may fall on
    either side.

    Raises:
        Unsupported: see :func:`polar_by_iteration`.
    """
    identity = torch.eye(psd.shape[0], dtype=psd.dtype, device=psd.device)
    sign = polar_by_iteration(psd - threshold * identity)
    return 0.25 * (sign + sign.mT) + 0.5 * identity
