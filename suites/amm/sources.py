"""Training rows, test rows and the fixed B of each problem; NumPy arrays, a function of the problem alone.

Keys of ``Problem.params`` that it reads: ``data`` (below), ``train_rows``, ``hyper`` (for the methods, not here).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.catalogue import data
from harness.catalogue.suite import Problem
from harness.errors import UserError
from suites import polar_cache
from suites.amm import features, filters, probes

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

#: Penalty of the softmax probes on scaled features (sum of losses): small against thousands of rows.
PENALTY = 1.0
#: Rows that a probe is trained on; more change its weights little and cost minutes.
PROBE_ROWS = 10_000
#: UCR series are resampled to this length (arXiv 2106.10860, section 5.5).
SERIES = 320
#: RBF parameters tried, in units of one over the mean squared distance to the nearest prototype.
GAMMAS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
#: Inner dimension of the random matrices: low rank plus noise, so that there is something to learn.
RANK, NOISE = 16, 0.1
#: Most rows that a random problem keeps for training, and for contents.
POOL = 8192
SEED = 20_106


@dataclass(frozen=True, kw_only=True)
class Source:
    """What one problem multiplies.

    Attributes:
        train: float32 [N', D], rows that fit may see.
        pool: float32 [P, D], rows that it may not see; the contents are drawn from them.
        b: float32 [D, M], known in advance.
        labels: int64 [P], true classes of the pool's rows.
        bias: float32 [M], added to a classifier's product before the argmax.
        owners: int64 [M], class of each prototype of a kernel classifier; then ``gamma`` is its RBF parameter.
        gamma: exp(-gamma ||x - p||^2).
        endless: contents may have more rows than the pool: sums of two of its rows have its distribution.
        digest: first digits of the sha256 over train, pool and b.
    """

    train: F32
    pool: F32
    b: F32
    labels: I64 | None = None
    bias: F32 | None = None
    owners: I64 | None = None
    gamma: float = 0.0
    endless: bool = False
    digest: str = ""


def source(problem: Problem) -> Source:
    """The problem's matrices.

    Raises:
        Unavailable: its data are not here; the text names the command that brings them.
        UserError: the parameters or the shape do not fit the data.
    """
    params = problem.params
    found = _source(str(params["data"]), problem.shape, int(params.get("train_rows", 0)), problem.seed)
    n, inner, outer = problem.shape
    if found.b.shape != (inner, outer) or found.pool.shape[1] != inner or (len(found.pool) < n and not found.endless):
        raise UserError(
            f"{problem.id}: the data give {len(found.pool)} test rows and B {found.b.shape}, the shape says {n} and "
            f"{(inner, outer)}."
        )
    return found


@functools.lru_cache(maxsize=3)
def _source(name: str, shape: tuple[int, int, int], train_rows: int, seed: int) -> Source:
    kind, _, detail = name.partition(":")
    if kind not in MAKERS:
        raise UserError(f"unknown data {name!r}; known: {', '.join(MAKERS)}.")
    made = MAKERS[kind](detail, shape, seed)
    if train_rows and train_rows < len(made.train):
        chosen = np.random.default_rng(SEED).permutation(len(made.train))[:train_rows]
        made = replace(made, train=np.ascontiguousarray(made.train[np.sort(chosen)]))
    return replace(made, digest=_digest(made))


def _digest(made: Source) -> str:
    total = hashlib.sha256()
    for array in (made.train, made.pool, made.b):
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()[:16]


def _digits(detail: str, shape: tuple[int, int, int], seed: int) -> Source:
    """Pixels 0..16 of the digits times a logistic regression."""
    arrays = data.load("digits").arrays
    train = arrays["train_x"].reshape(-1, 64).astype(np.float32)
    pool = arrays["test_x"].reshape(-1, 64).astype(np.float32)
    # Half a minute of a bench, were it fitted in every worker: kept beside the oracles, as those of features are.
    seen = hashlib.sha256(train.tobytes() + arrays["train_y"].tobytes()).hexdigest()[:24]
    key = f"probe-digits-{seen}-{PENALTY:g}"
    kept = polar_cache.load(key)
    if kept is None:
        b, bias = probes.softmax_probe(train, arrays["train_y"], 10, PENALTY)
        kept = {"b": b, "bias": bias}
        polar_cache.save(key, kept)
    return Source(train=train, pool=pool, b=kept["b"], bias=kept["bias"], labels=arrays["test_y"])


def _features(detail: str, shape: tuple[int, int, int], seed: int) -> Source:
    """Features of a network times a softmax probe of ``shape[2]`` columns: the classes, or sub-classes of them."""
    arrays = features.load(f"features-{detail}").arrays
    train, pool = arrays["train_x"].astype(np.float32), arrays["test_x"].astype(np.float32)
    train_y, test_y = arrays["train_y"], arrays["test_y"]
    columns = shape[2]
    # Fitting the probe takes seconds and every worker is a new process: kept beside the oracles.
    seen = hashlib.sha256(arrays["train_x"][:PROBE_ROWS].tobytes() + arrays["test_x"].tobytes()).hexdigest()[:24]
    key = f"probe-{seen}-{columns}-{PENALTY:g}-{SEED}"
    kept = polar_cache.load(key)
    if kept is not None:
        return Source(train=train, pool=pool, b=kept["b"], bias=kept["bias"], labels=kept["labels"])
    if columns != 10:
        if columns % 10:
            raise UserError(f"features: 10 classes cannot be shared out to {columns} columns.")
        centres, owners = probes.subclasses(train, train_y, 10, columns // 10, SEED)
        train_y = probes.nearest_subclass(train[:PROBE_ROWS], train_y[:PROBE_ROWS], centres, owners)
        test_y = probes.nearest_subclass(pool, test_y, centres, owners)
    b, bias = probes.softmax_probe(train[:PROBE_ROWS], train_y[:PROBE_ROWS], columns, PENALTY)
    polar_cache.save(key, {"b": b, "bias": bias, "labels": test_y})
    return Source(train=train, pool=pool, b=b, bias=bias, labels=test_y)


def _filter(detail: str, shape: tuple[int, int, int], seed: int) -> Source:
    """Patches of photographs times a pair of filters; the test pictures are others than the training pictures."""
    name, _, card = detail.partition("@")
    train, pool, b = filters.patches(name, card)
    return Source(train=train, pool=pool, b=b)


def _ucr(detail: str, shape: tuple[int, int, int], seed: int) -> Source:
    """Series times the prototypes of an RBF kernel classifier.

    The prototypes are class-wise k-means centres (the paper compresses by stochastic neighbours); gamma is the one of
    ``GAMMAS`` over the mean squared distance to the nearest prototype that classifies the training series best.
    """
    found = data.load(f"ucr-{detail}")
    train, pool = (_resampled(found.arrays[f"{split}_x"]) for split in ("train", "test"))
    labels, classes = found.arrays["train_y"], int(found.meta["classes"])
    b, owners = probes.prototypes(train, labels, classes, shape[2], SEED)
    distance = probes.squared_distances(train, b)
    scale = max(float(distance.min(1).mean()), 1e-6)
    rights = [float((probes.kernel_classes(distance, owners, g / scale) == labels).mean()) for g in GAMMAS]
    return Source(
        train=train,
        pool=pool,
        b=np.ascontiguousarray(b.T),
        labels=found.arrays["test_y"],
        owners=owners,
        gamma=GAMMAS[int(np.argmax(rights))] / scale,
    )


def _resampled(series: NDArray[Any]) -> F32:
    """Linear interpolation to ``SERIES`` points."""
    at = np.linspace(0, series.shape[1] - 1, SERIES)
    return np.stack([np.interp(at, np.arange(series.shape[1]), row) for row in series]).astype(np.float32)


def _lowrank(detail: str, shape: tuple[int, int, int], seed: int) -> Source:
    """Rows of a gaussian model of rank 16 plus a tenth of noise; B gaussian.

    A content of more rows than the pool sums pairs of them, over sqrt(2): the same distribution, made on the device.
    """
    n, inner, outer = shape
    random = np.random.default_rng([SEED, seed, inner, outer])
    mix = random.standard_normal((min(RANK, inner), inner), np.float32)
    train_rows = max(4096, min(16 * inner, POOL))

    def rows(count: int) -> F32:
        out = random.standard_normal((count, len(mix)), np.float32) @ mix
        out += NOISE * random.standard_normal((count, inner), np.float32)
        return out

    b = random.standard_normal((inner, outer), np.float32) / np.float32(np.sqrt(inner))
    return Source(train=rows(train_rows), pool=rows(min(n, POOL)), b=b, endless=True)


def _edge(detail: str, shape: tuple[int, int, int], seed: int) -> Source:
    """Odd training data for conformance: gaussian, wholly constant, or with constant columns."""
    n, inner, outer = shape
    random = np.random.default_rng(SEED)
    mix = random.standard_normal((4, inner))
    train = random.standard_normal((200, 4)) @ mix + 0.1 * random.standard_normal((200, inner))
    if detail == "constant":
        train[:] = 1.5
    elif detail == "columns":
        train[:, ::2] = 3.0
    elif detail == "integers":
        train = random.integers(0, 5, (200, inner)).astype(np.float64)
    pool = train[random.integers(0, len(train), n)]
    b = random.standard_normal((inner, outer))
    return Source(train=train.astype(np.float32), pool=pool.astype(np.float32), b=b.astype(np.float32))


MAKERS: Mapping[str, Callable[[str, tuple[int, int, int], int], Source]] = {
    "digits": _digits,
    "features": _features,
    "filter": _filter,
    "ucr": _ucr,
    "lowrank": _lowrank,
    "edge": _edge,
}
