"""Brand's online update of a low-rank eigendecomposition (Brand, Linear Algebra and its Applications, 2006).

Used on running means of second moments by Puiu, arXiv 2210.08494. All of it works on stacks (k, d, ...).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Projections of new directions off the old ones: one as in the formula, two more because what is left of a direction
#: that was in the old span is rounding alone, and has to be orthogonal as well.
_PROJECTIONS = 3


def update(vectors: Tensor, values: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors and eigenvalues of U diag(D) U^T + B B^T, exact, largest first.

        P = U^T B,  Q R = B - U P,  core = [[D + P P^T, P R^T], [R P^T, R R^T]] = H S H^T,  U' = [U Q] H

    O(d (r + n)^2 + (r + n)^3), linear in d.

    Args:
        vectors: U (k, d, r), orthonormal columns; r may be 0.
        values: D (k, r).
        columns: B (k, d, n), r + n <= d.

    Returns:
        (k, d, r + n) and (k, r + n).

    Raises:
        torch.linalg.LinAlgError: the core's eigendecomposition does not converge.
    """
    inside = vectors.mT @ columns
    outside = columns - vectors @ inside
    basis = torch.linalg.qr(outside).Q
    for _ in range(_PROJECTIONS - 1):
        basis = torch.linalg.qr(basis - vectors @ (vectors.mT @ basis)).Q
    rest = basis.mT @ outside
    both = torch.cat([inside, rest], 1)
    core = both @ both.mT
    core.diagonal(dim1=1, dim2=2)[:, : values.shape[1]].add_(values)
    found, rotation = torch.linalg.eigh(core)
    # Two products: [U Q] need not be written out.
    old = values.shape[1]
    rotation = rotation.flip(2)
    return vectors @ rotation[:, :old] + basis @ rotation[:, old:], found.flip(1).clamp_min(0.0)


def follow(vectors: Tensor, values: Tensor, rows: Tensor, keep: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """One step of a running mean, M <- rho M + (1 - rho) B B^T, on M ~ U diag(D) U^T cut to ``rank`` first.

    Rows that do not fit beside the kept modes (rank + n > d) enter piece by piece, cut in between.

    Args:
        vectors: U (k, d, w).
        values: D (k, w).
        rows: B^T (k, n, d).
        keep: rho, 0-d.
        rank: modes kept before each update.
    """
    vectors, values = vectors[:, :, :rank], values[:, :rank] * keep
    # Room beside the modes; at least one row.
    piece = max(1, vectors.shape[1] - rank)
    for part in (rows * (1 - keep).sqrt()).split(piece, 1):  # type: ignore[no-untyped-call]
        vectors, values = update(vectors[:, :, :rank], values[:, :rank], part.mT)
    return vectors, values


def correct(vectors: Tensor, values: Tensor, matrix: Tensor, shift: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Correction of some modes by the matrix itself (B-KFAC-C): exact within their span, then sorted again.

    Args:
        vectors: U (1, d, w).
        values: D (1, w).
        matrix: M (1, d, d).
        shift: 0-d; M - shift I is what the modes stand for.
        chosen: indices of the modes.

    Raises:
        torch.linalg.LinAlgError: the small eigendecomposition does not converge.
    """
    some = vectors[:, :, chosen]
    small = some.mT @ (matrix @ some)
    small.diagonal(dim1=1, dim2=2).sub_(shift)
    found, rotation = torch.linalg.eigh(small)
    vectors, values = vectors.clone(), values.clone()
    vectors[:, :, chosen], values[:, chosen] = some @ rotation, found.clamp_min(0.0)
    order = values[0].argsort(descending=True)
    return vectors[:, :, order], values[:, order]


def choice(count: int, share: float, seed: int) -> Tensor:
    """Sorted random indices, ``share`` of ``count``, at least one."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[: max(1, math.ceil(share * count))].sort().values
