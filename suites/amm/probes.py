"""Fixed right-hand sides B from data: softmax probes, sub-classes, and prototypes of kernel classifiers. NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def softmax_probe(x: NDArray[Any], labels: I64, classes: int, penalty: float) -> tuple[F32, F32]:
    """Multinomial logistic regression, sum of cross-entropies plus penalty/2 ||B||^2, by L-BFGS in float64.

    Features are divided by their largest magnitude while fitting, so that the penalty means the same for all data.

    Returns:
        B [D, classes] and bias [classes] in float32, for the features as given.
    """
    unit = float(np.abs(x).max()) or 1.0
    rows = np.asarray(x, np.float64) / unit
    target = np.eye(classes)[labels]
    width = rows.shape[1]

    def loss(flat: F64) -> tuple[float, F64]:
        b, bias = flat[: width * classes].reshape(width, classes), flat[width * classes :]
        logits = rows @ b + bias
        logits -= logits.max(1, keepdims=True)
        powers = np.exp(logits)
        total = powers.sum(1, keepdims=True)
        value = float(np.log(total).sum() - (logits * target).sum() + 0.5 * penalty * (b * b).sum())
        slope = powers / total - target
        return value, np.concatenate([(rows.T @ slope + penalty * b).ravel(), slope.sum(0)])

    found = minimize(
        loss, np.zeros((width + 1) * classes), jac=True, method="L-BFGS-B", options={"maxiter": 300, "maxcor": 20}
    )
    b = found.x[: width * classes].reshape(width, classes) / unit
    return b.astype(np.float32), found.x[width * classes :].astype(np.float32)


def lloyd(x: NDArray[Any], count: int, seed: int, rounds: int = 20) -> F64:
    """k-means from randomly chosen rows; a centre that loses its rows takes the row farthest from its own centre."""
    random = np.random.default_rng(seed)
    rows = np.asarray(x, np.float64)
    count = min(count, len(rows))
    centres = rows[random.choice(len(rows), count, replace=False)].copy()
    for _ in range(rounds):
        distance = squared_distances(rows, centres)
        nearest = distance.argmin(1)
        for k in range(count):
            mine = rows[nearest == k]
            centres[k] = mine.mean(0) if len(mine) else rows[distance.min(1).argmax()]
    return centres


def squared_distances(rows: NDArray[Any], centres: NDArray[Any]) -> F64:
    """[N, K] squared euclidean distances in float64."""
    a, c = np.asarray(rows, np.float64), np.asarray(centres, np.float64)
    found: F64 = np.maximum((a * a).sum(1)[:, None] - 2 * a @ c.T + (c * c).sum(1), 0)
    return found


def shares(labels: I64, classes: int, count: int) -> list[int]:
    """``count`` prototypes shared out among the classes, at most one a training row."""
    sizes = np.bincount(labels, minlength=classes)
    given = np.minimum(np.full(classes, count // classes), sizes)
    while given.sum() < count and (given < sizes).any():
        given[int(np.argmax(np.where(given < sizes, sizes / (given + 1), -1.0)))] += 1
    return [int(g) for g in given]


def prototypes(x: NDArray[Any], labels: I64, classes: int, count: int, seed: int) -> tuple[F32, I64]:
    """Class-wise k-means centres [count, D] and their classes: the compressed training set of a kernel classifier."""
    parts, owners = [], []
    for c, share in enumerate(shares(labels, classes, count)):
        if share:
            parts.append(lloyd(x[labels == c], share, seed + c))
            owners += [c] * len(parts[-1])
    return np.concatenate(parts).astype(np.float32), np.array(owners, np.int64)


def kernel_classes(distance: F64, owners: I64, gamma: float) -> I64:
    """Class of the largest sum of exp(-gamma d) over a class's prototypes; distance is [N, M]."""
    powers = np.exp(-gamma * (distance - distance.min(1, keepdims=True)))
    scores = np.stack([powers[:, owners == c].sum(1) for c in range(int(owners.max()) + 1)], 1)
    found: I64 = scores.argmax(1).astype(np.int64)
    return found


def subclasses(x: NDArray[Any], labels: I64, classes: int, each: int, seed: int) -> tuple[F64, I64]:
    """``each`` k-means centres a class: centres [classes * each, D] and the class of each."""
    centres = [lloyd(x[labels == c][:2000], each, seed + c, rounds=10) for c in range(classes)]
    return np.concatenate(centres), np.repeat(np.arange(classes), each)


def nearest_subclass(x: NDArray[Any], labels: I64, centres: F64, owners: I64) -> I64:
    """The nearest centre of a row's own class: the labels of the many-column variant."""
    distance = squared_distances(x, centres)
    distance[owners[None, :] != labels[:, None]] = np.inf
    found: I64 = distance.argmin(1).astype(np.int64)
    return found
