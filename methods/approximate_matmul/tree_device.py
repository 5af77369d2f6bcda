"""Learning of hash trees on the rows' own device: :mod:`.tree` for all codebooks at once, in torch.

The same splits by the same float64 arithmetic, up to the order of additions; no value goes to the host before the end.
Codebooks are padded to one width with columns of zeros, which are never tried before any other.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from methods.approximate_matmul.tables import Statistics
from methods.approximate_matmul.tree import DEPTH, F64, LEAVES, NODES, Compare, Trees, subspaces

#: Elements of a float64 array of centred rows (256 MiB); about eight such arrays are alive together.
_CHUNK = 2**25
#: Rows of one-hot products that are alive together, in elements of the one-hot matrix (512 MiB in float32).
_ONE_HOT = 2**27


def learn(a: Tensor, codebooks: int, *, candidates: int, min_leaf: int, compare: Compare) -> tuple[Trees, Tensor]:
    """As :func:`.tree.learn` for (N', D) float32 rows on any device; codes (N', C) uint8 stay there."""
    starts = subspaces(a.shape[1], codebooks)
    width = int(np.diff(starts).max())
    inside = torch.from_numpy(starts[:-1, None] + np.arange(width)).to(a.device)
    real = inside < torch.from_numpy(starts[1:, None]).to(a.device)
    step = max(_CHUNK // (len(a) * width), 1)
    parts = []
    for first in range(0, codebooks, step):
        own = slice(first, first + step)
        x = a[:, inside[own].clamp(max=a.shape[1] - 1).flatten()].T.reshape(-1, width, len(a))
        parts.append(_learn(x * real[own, :, None], real[own], candidates, min_leaf, compare))
    columns, thresholds, codes = (torch.cat(part) for part in zip(*parts, strict=True))
    trees = Trees(
        columns=(columns.cpu().numpy() + starts[:-1, None]).astype(np.int32),
        thresholds=thresholds.cpu().numpy(),
        starts=starts,
    )
    return trees, codes.T.to(torch.uint8)


def _learn(x: Tensor, real: Tensor, candidates: int, min_leaf: int, compare: Compare) -> tuple[Tensor, Tensor, Tensor]:
    """Columns (C, 4), thresholds (C, 15) and codes (C, N) of codebooks (C, d, N) whose columns are ``real`` (C, d)."""
    codebooks, width, rows = x.shape
    exact = x.double()
    exact -= exact.mean(-1, keepdim=True)
    order = torch.sort(x, dim=-1, stable=True).indices
    codes = torch.zeros((codebooks, rows), dtype=torch.int64, device=x.device)
    columns = torch.zeros((codebooks, DEPTH), dtype=torch.int64, device=x.device)
    thresholds = torch.full((codebooks, NODES), torch.inf, device=x.device)
    for level in range(DEPTH):
        onehot = functional.one_hot(codes, 2**level).double()
        counts = onehot.sum(1)
        means = (exact @ onehot) / counts.clamp_min(1)[:, None]
        centred = exact - means.gather(2, codes[:, None].expand(-1, width, -1))
        del onehot
        scores = torch.where(real, centred.square().sum(-1), -1.0)
        tried = torch.sort(-scores, dim=-1, stable=True).indices[:, :candidates]
        gain = torch.full((codebooks,), -1.0, dtype=torch.float64, device=x.device)
        best = torch.full((codebooks, 2**level), torch.inf, device=x.device)
        for j in tried.T:
            saved, found = _split(_at(x, j), centred, _at(order, j), codes, counts, min_leaf, compare)
            # Padding is tried where candidates outnumber columns: it saves nothing and so never replaces a column.
            better = saved > gain
            gain = torch.where(better, saved, gain)
            best = torch.where(better[:, None], found, best)
            columns[:, level] = torch.where(better, j, columns[:, level])
        thresholds[:, 2**level - 1 : 2 ** (level + 1) - 1] = best
        codes = 2 * codes + (_at(x, columns[:, level]) >= best.gather(1, codes))
    return columns, thresholds, codes


def _at(x: Tensor, column: Tensor) -> Tensor:
    """(C, N): one column of each codebook of (C, d, N)."""
    return x[torch.arange(len(x), device=x.device), column]


def _split(
    column: Tensor, centred: Tensor, order: Tensor, codes: Tensor, counts: Tensor, min_leaf: int, compare: Compare
) -> tuple[Tensor, Tensor]:
    """Squared error (C,) that the best thresholds (C, buckets) on one column of each codebook save."""
    grouped = codes.gather(1, order).to(torch.uint8)
    bucket, by_bucket = torch.sort(grouped, dim=1, stable=True)
    order, bucket = order.gather(1, by_bucket), bucket.long()
    values = column.gather(1, order)
    gains = torch.zeros_like(centred[:, 0])
    for one in centred.unbind(1):
        gains += one.gather(1, order).cumsum(1).square()
    ends = counts.cumsum(1)
    left = torch.arange(1, values.shape[1] + 1, device=column.device) - (ends - counts).gather(1, bucket)
    right = counts.gather(1, bucket) - left
    gains *= 1 / left + 1 / right.clamp_min(1)
    allowed = torch.minimum(left, right) >= max(min_leaf, 1)
    following = torch.cat((values[:, 1:], values[:, -1:]), dim=1)
    gains = torch.where(allowed & (following != values), gains, -1.0)
    thresholds = torch.full_like(counts, torch.inf, dtype=torch.float32)
    total = torch.zeros_like(gains[:, 0])
    for k in range(counts.shape[1]):
        most, at = torch.where(bucket == k, gains, -1.0).max(1, keepdim=True)
        between = _between(values.gather(1, at), following.gather(1, at), compare)
        thresholds[:, k] = torch.where(most >= 0, between, torch.inf)[:, 0]
        total += most[:, 0].clamp_min(0)
    return total, thresholds


def _between(low: Tensor, high: Tensor, compare: Compare) -> Tensor:
    """As :func:`.tree._between`."""
    middle = ((low.double() + high.double()) / 2).float()
    if compare == ">":
        return torch.nextafter(torch.where(middle < high, middle, low), torch.full_like(low, torch.inf))
    return torch.where(middle > low, middle, high)


def contingency(codes: Tensor) -> F64:
    """(16 C, 16 C) counts G'G; sums of a block of rows are integers below 2^24, so float32 is exact."""
    size = LEAVES * codes.shape[1]
    total = torch.zeros((size, size), dtype=torch.float64, device=codes.device)
    for rows in torch.split(codes, _rows(size)):
        onehot = _one_hot(rows, torch.float32)
        total += onehot.T @ onehot
    return np.asarray(total.cpu().numpy())


def sums(a: Tensor, codes: Tensor, b: F64 | None = None) -> F64:
    """(16 C, D) sums G'A, or (16 C, M) sums G'(A B) when B (D, M) is given."""
    size = LEAVES * codes.shape[1]
    width = a.shape[1] if b is None else b.shape[1]
    total = torch.zeros((size, width), dtype=torch.float64, device=codes.device)
    factor = None if b is None else torch.from_numpy(b).to(a.device)
    for part, rows in zip(torch.split(a, _rows(size)), torch.split(codes, _rows(size)), strict=True):
        exact = part.double()
        total += _one_hot(rows, torch.float64).T @ (exact if factor is None else exact @ factor)
    return np.asarray(total.cpu().numpy())


def statistics(a: Tensor, codes: Tensor) -> Statistics:
    """As :func:`.tables.statistics`."""
    return Statistics(counts=contingency(codes), sums=sums(a, codes), entries=LEAVES)


def _rows(size: int) -> int:
    return max(_ONE_HOT // size, 1)


def _one_hot(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, 16 C)."""
    onehot = torch.zeros((*codes.shape, LEAVES), dtype=dtype, device=codes.device)
    return onehot.scatter_(2, codes.long()[..., None], 1).flatten(1)
