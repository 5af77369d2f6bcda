"""The generalisation bound of MADDNESS (Theorem 4.1) and the gap really observed, side by side.

With rows drawn independently, sigma the largest singular value of the training rows, ridge lambda > 0 and any column b,
with probability at least 1 - delta

    E[L] <= mean of L over the training rows
            + C sigma |b| / (2 sqrt(lambda)) (1/256 + (8 + sqrt(nu)) / sqrt(2 n)),
    nu = C (4 ceil(log2 D) + 256) log 2 - log delta,      L(a, b) = |a.b - estimate|.

Source: Blalock and Guttag, arXiv 2106.10860, Theorem 4.1. It speaks of 8-bit tables of ridge prototypes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.errors import UserError
from methods.approximate_matmul.operator import LookupProduct


def penalty(
    *, codebooks: int, width: int, rows: int, sigma: float, norm: float, ridge: float, delta: float = 0.05
) -> float:
    """The bound's addition to the training error.

    Args:
        codebooks: C.
        width: D.
        rows: n, training rows.
        sigma: largest singular value of the training rows.
        norm: Euclidean norm of the column b.
        ridge: lambda > 0.
        delta: probability of failure.
    """
    if not (0 < delta < 1 and ridge > 0 and rows > 0):
        raise UserError(f"the bound needs 0 < delta < 1, ridge > 0 and rows > 0; got {delta}, {ridge}, {rows}.")
    nu = codebooks * (4 * math.ceil(math.log2(width)) + 256) * math.log(2) - math.log(delta)
    deviation = (8 + math.sqrt(nu)) / math.sqrt(2 * rows)
    return codebooks * sigma * norm / (2 * math.sqrt(ridge)) * (1 / 256 + deviation)


def compare(op: LookupProduct, a_train: Tensor, a_test: Tensor, b: Tensor, delta: float = 0.05) -> dict[str, float]:
    """Mean absolute errors and the bound, for the column of B whose bound is largest.

    Returns:
        ``train``, ``test`` (means of L), ``gap`` (their difference), ``penalty`` and ``size`` (mean of abs(a.b)), which
        shows when the bound says nothing.
    """
    column = int(b.norm(dim=0).argmax())
    losses = []
    for a in (a_train, a_test):
        exact = a.double() @ b.double()[:, column]
        losses.append(float((exact - op(a).double()[:, column]).abs().mean()))
    added = penalty(
        codebooks=op.encoder.codebooks,
        width=op.inner,
        rows=a_train.shape[0],
        sigma=float(torch.linalg.matrix_norm(a_train.double(), 2)),
        norm=float(b.double()[:, column].norm()),
        ridge=float(op.hyper["ridge"]),
        delta=delta,
    )
    size = float((a_test.double() @ b.double()[:, column]).abs().mean())
    return {"train": losses[0], "test": losses[1], "gap": losses[1] - losses[0], "penalty": added, "size": size}
