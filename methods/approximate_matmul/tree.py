"""Learning of hash trees (MADDNESS, Algorithm 2): which columns and thresholds turn a row into 4-bit codes.

A tree of depth 4 belongs to each codebook. Level t compares ONE column with a threshold that depends on the node
reached so far (1 + 2 + 4 + 8 = 15 thresholds in heap order): i <- 2 i + [x_j >= v_node]. NaN compares false.

Learning is greedy: a level takes, among the ``candidates`` columns with the largest residual, the one whose optimal
splits leave the least squared error over all columns of the subspace.

Why it is fast: with rows centred in their bucket, a split after position p of the rows sorted by x_j lowers the
squared error by |S_p|^2 (1/n_left + 1/n_right), S_p = sum of the first p centred rows. Squares need no running sum; S
returns to zero at a bucket's end, so one cumulative sum serves all buckets; each column is sorted once, and a stable
counting sort by bucket keeps the order within buckets.

Source: Blalock and Guttag, Multiplying Matrices Without Multiplying, arXiv 2106.10860, Algorithms 1 and 2.
Departures, all on purpose: float64 centred sums instead of float32 E[x^2] - E[x]^2; splits only between different
values, so that the partition learned is the partition encoded; a node that cannot be split gets the threshold +inf
(its rows go left); ``x >= v`` in learning and in encoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from methods.approximate_matmul.parallel import shared_out

Compare = Literal[">=", ">"]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

#: Depth 4 and 16 leaves: 4-bit codes, one byte shuffle's table (arXiv 2106.10860, section 4).
DEPTH = 4
LEAVES = 16
NODES = LEAVES - 1
#: "more than four gave almost nothing": arXiv 2106.10860, section 4.
CANDIDATES = 4


@dataclass(frozen=True, kw_only=True)
class Trees:
    """All codebooks' trees.

    Attributes:
        columns: (C, 4) int32, indices into all D columns.
        thresholds: (C, 15) float32 in heap order; ``x >= v`` goes right.
        starts: (C + 1,) int32, first column of each subspace and D.
    """

    columns: NDArray[np.int32]
    thresholds: F32
    starts: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class _Level:
    """One candidate's splits of all buckets of a level."""

    gain: float
    column: int
    thresholds: F32


def subspaces(width: int, codebooks: int) -> NDArray[np.int32]:
    """(C + 1,) bounds of contiguous column ranges; the first D mod C ranges get one column more."""
    sizes = np.full(codebooks, width // codebooks, dtype=np.int32)
    sizes[: width % codebooks] += 1
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)


def learn(
    a: F32, codebooks: int, *, candidates: int = CANDIDATES, min_leaf: int = 1, compare: Compare = ">="
) -> tuple[Trees, U8]:
    """Learn every codebook's tree.

    Args:
        a: (N', D) float32, finite.
        codebooks: C <= D.
        candidates: columns tried per level.
        min_leaf: least rows on each side of a split.
        compare: ``>`` learns v with x > v going right, stored as the next float32 above v.

    Returns:
        The trees and the training rows' codes, (N', C) uint8.
    """
    starts = subspaces(a.shape[1], codebooks)
    columns = np.empty((codebooks, DEPTH), dtype=np.int32)
    thresholds = np.empty((codebooks, NODES), dtype=np.float32)
    codes = np.empty((codebooks, a.shape[0]), dtype=np.uint8)

    def some(share: range) -> None:
        memory = np.empty(_floats(len(a), int(np.diff(starts).max())))
        for c in share:
            x = a[:, starts[c] : starts[c + 1]]
            local, thresholds[c], codes[c] = learn_one(x, candidates, min_leaf, compare, memory)
            columns[c] = local + starts[c]

    shared_out(codebooks, some)
    return Trees(columns=columns, thresholds=thresholds, starts=starts), np.ascontiguousarray(codes.T)


def learn_one(
    x: F32, candidates: int = CANDIDATES, min_leaf: int = 1, compare: Compare = ">=", memory: F64 | None = None
) -> tuple[NDArray[np.int32], F32, U8]:
    """One codebook: (4,) columns of ``x`` (N', d), (15,) thresholds, (N',) codes.

    ``memory`` is overwritten; fresh pages cost more than the sums, so give the same to every codebook.
    """
    by_column = np.ascontiguousarray(x.T)
    size = _floats(*x.shape)
    buffers = (np.empty(size) if memory is None else memory[:size]).reshape(4, len(x), -1)
    exact = _even(x, buffers[3])
    orders: dict[int, NDArray[np.intp]] = {}
    columns = np.zeros(DEPTH, dtype=np.int32)
    thresholds = np.full(NODES, np.inf, dtype=np.float32)
    codes = np.zeros(len(x), dtype=np.uint8)
    for level in range(DEPTH):
        counts = np.bincount(codes, minlength=2**level)
        centred = _centre(exact, codes, counts, buffers[0])
        weights = _weights(counts, min_leaf)
        scores = np.einsum("nd,nd->d", centred, centred)[: x.shape[1]]
        tried = []
        for j in np.argsort(-scores, kind="stable")[:candidates]:
            if j not in orders:
                orders[j] = sorted_rows(by_column[j])
            at = _Place(order=orders[j], codes=codes, counts=counts, weights=weights)
            tried.append(_split(int(j), by_column[j], centred, at, compare, buffers[1:3]))
        best = max(tried, key=lambda split: split.gain)
        columns[level] = best.column
        thresholds[2**level - 1 : 2 ** (level + 1) - 1] = best.thresholds
        codes = 2 * codes + (by_column[best.column] >= best.thresholds[codes])
    return columns, thresholds, codes


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where the rows are: their order by one column, their buckets, and the weights of :func:`_weights`."""

    order: NDArray[np.intp]
    codes: U8
    counts: NDArray[np.intp]
    weights: F64


def sorted_rows(column: F32) -> NDArray[np.intp]:
    """Row numbers by ascending value, ties by row: one sort of 64-bit keys, twice as fast as argsort.

    A key is the float's bits, made monotone as an unsigned number, above the row number.
    """
    bits = column.view(np.uint32)
    negative = bits >> np.uint32(31) != 0
    monotone = np.where(negative, ~bits, bits | np.uint32(2**31)).astype(np.uint64)
    keys = (monotone << np.uint64(32)) | np.arange(len(column), dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64(2**32 - 1)).astype(np.intp)


def _floats(rows: int, width: int) -> int:
    """Float64 numbers that learning one tree works in: four copies of the rows of :func:`_even`."""
    return 4 * rows * (width + width % 2)


def _even(x: F32, out: F64) -> F64:
    """Centred float64 rows with an even number of columns (zeros behind), so that sums can run in pairs."""
    width = x.shape[1]
    out[:, width:] = 0.0
    out[:, :width] = x
    out -= out.mean(axis=0)
    return out


def _centre(exact: F64, codes: U8, counts: NDArray[np.intp], out: F64) -> F64:
    sums = np.stack([np.bincount(codes, weights=column, minlength=len(counts)) for column in exact.T], axis=1)
    means = sums / np.maximum(counts, 1)[:, None]
    np.take(means, codes, axis=0, out=out, mode="clip")
    return np.subtract(exact, out, out=out)


def _weights(counts: NDArray[np.intp], min_leaf: int) -> F64:
    """1/n_left + 1/n_right behind each position of the rows grouped by bucket; 0 where a side would be too small."""
    parts = []
    for count in counts:
        left = np.arange(1, count + 1, dtype=np.float64)
        right = count - left
        allowed = np.minimum(left, right) >= max(min_leaf, 1)
        parts.append(np.where(allowed, 1.0 / left + 1.0 / np.maximum(right, 1.0), 0.0))
    return np.concatenate(parts) if parts else np.empty(0)


def _split(j: int, column: F32, centred: F64, at: _Place, compare: Compare, buffers: F64) -> _Level:
    """The best threshold on column ``j`` of every bucket, and the squared error that they save together."""
    order, counts, weights = at.order, at.counts, at.weights
    if len(counts) > 1:
        order = order[np.argsort(at.codes[order], kind="stable")]
    values = column[order]
    # A running sum waits for its own last addition, so two columns go as one complex number. One pair at a time, since
    # NumPy keeps Python's lock in running sums of several columns.
    rows, sums = np.take(centred, order, axis=0, out=buffers[0], mode="clip"), buffers[1]
    for pair, into in zip(rows.view(np.complex128).T, sums.view(np.complex128).T, strict=True):
        np.cumsum(pair, out=into)
    gains = np.einsum("nd,nd->n", sums, sums)
    gains *= weights
    # Rows of equal value cannot be separated; the last row of a bucket has weight 0, whatever follows it.
    forbidden = weights == 0
    forbidden[:-1] |= values[1:] == values[:-1]
    np.copyto(gains, -1.0, where=forbidden)
    thresholds = np.full(len(counts), np.inf, dtype=np.float32)
    total, first = 0.0, 0
    for bucket, count in enumerate(counts):
        if count > 1:
            best = first + int(gains[first : first + count].argmax())
            if gains[best] >= 0:
                thresholds[bucket] = _between(values[best], values[best + 1], compare)
                total += float(gains[best])
        first += count
    return _Level(gain=total, column=j, thresholds=thresholds)


def _between(low: np.float32, high: np.float32, compare: Compare) -> np.float32:
    """The float32 v, near the middle, with low < v <= high; for ``>`` the one above a v with low <= v < high."""
    middle = np.float32((float(low) + float(high)) / 2)
    if compare == ">":
        return np.float32(np.nextafter(middle if middle < high else low, np.float32(np.inf)))
    return middle if middle > low else high


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The 8-bit grid of each (codebook, level): x -> floor((x - offset) scale), saturated to 0..255.

    floor(z) >= q holds exactly when z >= q for an integer q in 1..255, so comparing bytes and comparing floats with
    offset + q / scale give the same code (up to the rounding of x - offset).

    Attributes:
        offset: (C, 4) float32, the least training value of the level's column.
        scale: (C, 4) float32, powers of two.
        quantised: (C, 15) uint8 in 1..255; 255 where a node does not split.
    """

    offset: F32
    scale: F32
    quantised: U8


def to_int8(trees: Trees, a: F32) -> tuple[Trees, Grid]:
    """Thresholds on 8-bit grids with power-of-two scales 2^floor(log2(254 / range)).

    Departures from the published code: the exponent is floored (truncation towards zero clips ranges over 254), the
    offset is the column's least value, and a constant column gets the scale 1.
    """
    low, high = a.min(axis=0)[trees.columns], a.max(axis=0)[trees.columns]
    span = high.astype(np.float64) - low
    exponent = np.floor(np.log2(254.0 / np.where(span > 0, span, 254.0)))
    scale = np.exp2(np.clip(exponent, -126, 126))
    level = np.repeat(np.arange(DEPTH), 2 ** np.arange(DEPTH))
    finite = np.isfinite(trees.thresholds)
    z = (np.where(finite, trees.thresholds, 0).astype(np.float64) - low[:, level]) * scale[:, level]
    quantised = np.where(finite, np.clip(np.rint(z), 1, 255), 255).astype(np.uint8)
    values = low[:, level] + quantised / scale[:, level]
    grid = Grid(offset=low.astype(np.float32), scale=scale.astype(np.float32), quantised=quantised)
    return Trees(columns=trees.columns, thresholds=values.astype(np.float32), starts=trees.starts), grid


def encode(a: F32, trees: Trees) -> U8:
    """(N, C) uint8 codes of the rows of ``a`` (N, D); the vectorised NumPy form of Algorithm 1."""
    codes = np.empty((len(a), len(trees.columns)), dtype=np.uint8)
    for c, (columns, thresholds) in enumerate(zip(trees.columns, trees.thresholds, strict=True)):
        node = np.zeros(len(a), dtype=np.uint8)
        for level in range(DEPTH):
            node = 2 * node + (a[:, columns[level]] >= thresholds[2**level - 1 + node])
        codes[:, c] = node
    return codes
