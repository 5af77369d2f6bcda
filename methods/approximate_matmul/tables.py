"""From codes to tables: prototypes (means, ridge, few non-zeros), tables fitted to A B directly, 8-bit tables.

G in {0, 1}^(N' x KC) is the one-hot form of the training codes (C ones a row). Everything here needs two statistics
only, both gathered in one pass over the training rows: the contingency counts G'G and the sums S = G' A.

Source: Blalock and Guttag, arXiv 2106.10860, sections 4.3 (ridge) and 4.4 (tables); direct tables after McCarter and
Dronen, arXiv 2207.05808 (weights known). Departures: float64; a leaf that no training row reaches keeps the mean of
its nearest ancestor; table scales need not be powers of two and may differ per output (``scale``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from methods.approximate_matmul.parallel import shared_out
from methods.approximate_matmul.tree import F32, F64, LEAVES, U8

Scale = Literal["output", "shared", "power-of-two"]
#: Rows of a chunk when sums are taken through one-hot products: the chunk stays in a second-level cache.
_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Sums over the training rows.

    Attributes:
        counts: (C K, C K) float64, G'G.
        sums: (C K, D) float64, G'A.
        entries: K, prototypes per codebook.
    """

    counts: F64
    sums: F64
    entries: int

    @property
    def codebooks(self) -> int:
        """C."""
        return len(self.counts) // self.entries


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Look-up tables: y_m = (sum over c of values[c, code_c, m]) scale_m + offset_m.

    Attributes:
        values: (C, K, M), uint8 when quantised, otherwise float32 (scale 1, offset 0).
        scale: (M,) float32.
        offset: (M,) float32.
    """

    values: NDArray[np.uint8] | F32
    scale: F32
    offset: F32

    @property
    def quantised(self) -> bool:
        """Whether sums are integers."""
        return self.values.dtype == np.uint8

    def finite(self) -> bool:
        """Whether no sum that codes can choose leaves float32, before or after scale and offset."""
        if not all(np.isfinite(part).all() for part in (self.values, self.scale, self.offset)):
            return False
        ends = np.stack([self.values.min(axis=1), self.values.max(axis=1)]).astype(np.float64).sum(axis=1)
        scaled = ends * self.scale
        return bool(max(np.abs(scaled).max(), np.abs(scaled + self.offset).max()) <= float(np.finfo(np.float32).max))

    def dequantised(self) -> F32:
        """(C, K, M) float32 tables whose plain sum is the output; the offset is spread over the codebooks."""
        spread = (self.offset / len(self.values)).astype(np.float32)
        return np.asarray(self.values * self.scale + spread, dtype=np.float32)


def statistics(a: F32, codes: U8, entries: int = LEAVES) -> Statistics:
    """Counts and sums of the training rows ``a`` (N', D) under ``codes`` (N', C)."""
    return Statistics(counts=contingency(codes, entries), sums=sums(a, codes, entries), entries=entries)


def contingency(codes: U8, entries: int = LEAVES) -> F64:
    """(C K, C K) counts G'G of ``codes`` (N', C)."""
    codebooks = codes.shape[1]
    columns = np.ascontiguousarray(codes.T).astype(np.intp)
    counts = np.zeros((codebooks, entries, codebooks, entries))

    def some(share: range) -> None:
        for i in share:
            shifted = entries * columns[i]
            for j in range(i, codebooks):
                pair = np.bincount(shifted + columns[j], minlength=entries**2).reshape(entries, entries)
                counts[i, :, j] = pair
                counts[j, :, i] = pair.T

    shared_out(codebooks, some)
    return counts.reshape(codebooks * entries, -1)


def own_statistics(a: F32, codes: U8, starts: NDArray[np.int32], entries: int = LEAVES) -> Statistics:
    """What :func:`means` needs and no more: counts on the diagonal, sums on each codebook's own columns."""
    codebooks = codes.shape[1]
    counts, sums = np.zeros(codebooks * entries), np.zeros((codebooks * entries, a.shape[1]))
    for c in range(codebooks):
        block = slice(c * entries, (c + 1) * entries)
        counts[block] = np.bincount(codes[:, c], minlength=entries)
        for j in range(int(starts[c]), int(starts[c + 1])):
            sums[block, j] = np.bincount(codes[:, c], weights=a[:, j], minlength=entries)
    return Statistics(counts=np.diag(counts), sums=sums, entries=entries)


def sums(a: F32, codes: U8, entries: int = LEAVES, b: F64 | None = None) -> F64:
    """(C K, D) sums G'A, or (C K, M) sums G'(A B) when B (D, M) is given, which is cheaper if M < D."""
    columns = np.ascontiguousarray(codes.T).astype(np.intp)
    codebooks, rows = columns.shape
    total = np.zeros((codebooks * entries, a.shape[1] if b is None else b.shape[1]))
    first = entries * np.arange(codebooks)[:, None]
    for start in range(0, rows, _ROWS):
        part = a[start : start + _ROWS].astype(np.float64)
        onehot = np.zeros((codebooks * entries, len(part)))
        onehot[first + columns[:, start : start + _ROWS], np.arange(len(part))] = 1.0
        total += onehot @ (part if b is None else part @ b)
    return total


def means(stats: Statistics, starts: NDArray[np.int32]) -> F64:
    """(C, K, D) prototypes: a leaf's mean on its own subspace, zero elsewhere.

    An empty leaf of a tree (K = 16) takes the mean of the nearest ancestor that has rows.
    """
    size = stats.entries
    prototypes = np.zeros((stats.codebooks, size, stats.sums.shape[1]))
    for c in range(stats.codebooks):
        own = slice(int(starts[c]), int(starts[c + 1]))
        block = slice(c * size, (c + 1) * size)
        counts, sums = np.diag(stats.counts)[block], stats.sums[block, own]
        prototypes[c, :, own] = sums / np.maximum(counts, 1.0)[:, None]
        for leaf in np.flatnonzero(counts == 0):
            width = 1
            while counts[leaf // width * width : (leaf // width + 1) * width].sum() == 0:
                width *= 2
            group = slice(leaf // width * width, (leaf // width + 1) * width)
            prototypes[c, leaf, own] = sums[group].sum(axis=0) / counts[group].sum()
    return prototypes


def ridge(stats: Statistics, start: F64, strength: float) -> F64:
    """Prototypes P = P0 + (G'G + lambda I)^-1 G'(A - G P0), the paper's optimisation of all rows together.

    Args:
        stats: counts and sums.
        start: (C, K, D) initial prototypes P0; the shrinkage is towards them.
        strength: lambda > 0.
    """
    flat = start.reshape(len(stats.counts), -1)
    update = _solve(stats.counts, stats.sums - stats.counts @ flat, strength)
    return np.asarray((flat + update).reshape(start.shape))


def _solve(counts: F64, right: F64, strength: float) -> F64:
    system = counts + strength * np.eye(len(counts))
    return np.asarray(linalg.cho_solve(linalg.cho_factor(system, lower=True), right))


def sparse_ridge(stats: Statistics, start: F64, strength: float, nonzeros: int, starts: NDArray[np.int32]) -> F64:
    """As :func:`ridge`, but each codebook's prototypes may be non-zero in at most ``nonzeros`` D / C columns.

    Kept are the codebook's own columns and those with the largest |G_c W_c[:, j]| of the full solution; then each
    column j is solved again with the codebooks that kept it. ``nonzeros = 1`` returns ``start``: on its own subspace
    a leaf's mean leaves no residual.
    """
    size, codebooks, width = stats.entries, stats.codebooks, start.shape[-1]
    full = (ridge(stats, start, strength) - start).reshape(codebooks, size, width)
    weight = np.diag(stats.counts).reshape(codebooks, size)
    importance = np.einsum("ck,ckj->cj", weight, full**2)
    kept = np.zeros((codebooks, width), dtype=bool)
    for c in range(codebooks):
        importance[c, starts[c] : starts[c + 1]] = np.inf
        kept[c, np.argsort(-importance[c], kind="stable")[: max(nonzeros * width // codebooks, 1)]] = True
        kept[c, starts[c] : starts[c + 1]] = True
    flat = start.reshape(codebooks * size, width).copy()
    residual = stats.sums - stats.counts @ flat
    for j in range(width):
        rows = np.flatnonzero(np.repeat(kept[:, j], size))
        flat[rows, j] += _solve(stats.counts[np.ix_(rows, rows)], residual[rows, j], strength)
    return flat.reshape(start.shape)


def direct(counts: F64, products: F64, strength: float, entries: int = LEAVES) -> F64:
    """(C, K, M) tables T = argmin |A B - G T|^2 + lambda |T|^2 = (G'G + lambda I)^-1 G'(A B).

    It differs from ridge prototypes times B in the point that T is shrunk to: zero here, P0 B there.

    Args:
        counts: (C K, C K), G'G.
        products: (C K, M), G'(A B).
        strength: lambda > 0.
        entries: K.
    """
    return _solve(counts, products, strength).reshape(len(counts) // entries, entries, -1)


def floating(tables: F64) -> Tables:
    """Unquantised tables."""
    outputs = tables.shape[-1]
    return Tables(
        values=tables.astype(np.float32),
        scale=np.ones(outputs, dtype=np.float32),
        offset=np.zeros(outputs, dtype=np.float32),
    )


def quantise(tables: F64, bits: int = 8, scale: Scale = "output", clip: float = 0.0) -> Tables:
    """Tables of ``bits``-bit integers: q = floor((T - off_c) s + 1/2), y = sum q / s + sum of off_c.

    Args:
        tables: (C, K, M) float64.
        bits: 1 to 8.
        scale: ``output``: off_c and s of each output column; ``shared``: one off_c per codebook and one s for all
            outputs (raw sums stay comparable); ``power-of-two``: as shared, with the published 2^-ceil(log2 gap) 255.
        clip: fraction of a codebook's entries allowed to saturate at either end (Bolt); 0 keeps all of them.
    """
    low, step = grid(tables, bits, scale, clip)
    q = np.clip(np.floor((tables - low) / step + 0.5), 0, 2**bits - 1).astype(np.uint8)
    offset = np.broadcast_to(low.sum(axis=0), (1, tables.shape[-1]))
    return Tables(values=q, scale=step[0].astype(np.float32), offset=offset[0].astype(np.float32))


def grid(tables: F64, bits: int, scale: Scale, clip: float) -> tuple[F64, F64]:
    """Offsets (C, 1, M or 1) and steps (1, M) of :func:`quantise`."""
    top = 2**bits - 1
    axes = (1,) if scale == "output" else (1, 2)
    low = np.quantile(tables, clip, axis=axes, keepdims=True) if clip else tables.min(axis=axes, keepdims=True)
    high = np.quantile(tables, 1.0 - clip, axis=axes, keepdims=True) if clip else tables.max(axis=axes, keepdims=True)
    gap = (high - low).max(axis=0)
    gap = np.where(gap > 0, gap, 1.0)
    if scale == "power-of-two":
        gap = np.exp2(np.ceil(np.log2(gap)))
    return np.asarray(low), np.broadcast_to(gap / top, (1, tables.shape[-1]))


def largest_exact(bits: int) -> int:
    """Most codebooks whose sum of ``bits``-bit entries cannot overflow 16 bits (257 for 8 bits)."""
    return int((2**16 - 1) // (2**bits - 1))


def group(codebooks: int, upcast: int) -> int:
    """Codebooks averaged together: the largest power of two that divides C, at most ``upcast`` (a power of two)."""
    return min(codebooks & -codebooks, upcast)


def bias(codebooks: int, upcast: int) -> float:
    """Expected excess of averaged sums, C log2(U) / 4 table units: each rounded-up mean adds 1/4 on average."""
    return codebooks * math.log2(upcast) / 4.0
