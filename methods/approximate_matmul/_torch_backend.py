"""The torch back-end: vectorised encoding and ``embedding_bag`` as the scan, on CPU and CUDA."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from harness.errors import Unsupported
from methods.approximate_matmul.encoders import CentroidEncoder, Encoder, TreeEncoder
from methods.approximate_matmul.tables import Tables, bias
from methods.approximate_matmul.tree import DEPTH

#: Elements of a chunk of rows in the steps that expand them (distances, averages).
_CHUNK = 2**23
#: Rows encoded together on a CPU, so that what they touch stays in a second-level cache (256 KiB at 16 codebooks).
_CPU_ROWS = 1024


class TorchBackend:
    """Encode and scan with torch operations on one device."""

    name = "torch"

    def __init__(self, encoder: Encoder, tables: Tables, upcast: int | None, device: torch.device) -> None:
        self.device, self.upcast = device, upcast
        self._encode = _Trees(encoder, device) if isinstance(encoder, TreeEncoder) else _Centroids(encoder, device)
        codebooks, entries, self._outputs = tables.values.shape
        self._rows = (entries * torch.arange(codebooks, dtype=torch.int32)).to(device)
        if upcast is None:
            self._table = _on(tables.dequantised().reshape(codebooks * entries, -1), device)
        else:
            self._values = _on(tables.values.reshape(codebooks * entries, -1), device)
            self._scale, self._offset = _on(tables.scale, device), _on(tables.offset, device)
            self._bias = bias(codebooks, upcast)

    def encode(self, a: Tensor) -> Tensor:
        """(N, C) uint8 codes of float32 rows."""
        return self._encode(a).to(torch.uint8)

    def codes(self, a: Tensor) -> Tensor:
        """(N, C) codes in the integer type that encoding gives."""
        return self._encode(a)

    def scan(self, codes: Tensor) -> Tensor:
        """(N, M) float32 outputs of (N, C) integer codes."""
        rows = codes.to(torch.int32) + self._rows
        if self.upcast is None:
            return functional.embedding_bag(rows, self._table, mode="sum")
        step = max(_CHUNK // max(rows.shape[1] * self._outputs, 1), 1)
        return torch.cat([self._averaged(part, self.upcast) for part in torch.split(rows, step)])

    @property
    def integer_totals(self) -> bool:
        """``embedding_bag`` sums tables whose scale was undone beforehand; averages are of integers."""
        return self.upcast is not None

    def totals(self, codes: Tensor) -> Tensor:
        """(N, M) int32 sums of group means."""
        if self.upcast is None:
            raise Unsupported("embedding_bag sums float32 tables: it makes no integer totals; use scan(codes).")
        rows = codes.to(torch.int32) + self._rows
        step = max(_CHUNK // max(rows.shape[1] * self._outputs, 1), 1)
        return torch.cat([self._means(part, self.upcast) for part in torch.split(rows, step)])

    def _means(self, rows: Tensor, upcast: int) -> Tensor:
        looked_up = functional.embedding(rows, self._values).to(torch.int16)
        means = looked_up.view(len(rows), -1, upcast, self._outputs)
        while means.shape[2] > 1:
            means = (means[:, :, ::2] + means[:, :, 1::2] + 1) >> 1
        return means.squeeze(2).sum(dim=1, dtype=torch.int32)

    def _averaged(self, rows: Tensor, upcast: int) -> Tensor:
        groups = self._means(rows, upcast).to(torch.float32)
        return (upcast * groups - self._bias) * self._scale + self._offset

    def __call__(self, a: Tensor) -> Tensor:
        """(N, M) float32 outputs of (N, D) float32 rows."""
        return self.scan(self._encode(a))


class _Trees:
    """i <- 2 i + [x >= v] for all codebooks at once; on a CPU in chunks of rows that stay in its caches."""

    def __init__(self, encoder: TreeEncoder, device: torch.device) -> None:
        trees = encoder.trees
        self._codebooks = encoder.codebooks
        self._columns = _on(trees.columns.T.reshape(-1).astype(np.int64), device)  # level by level
        levels = [trees.thresholds[:, 2**t - 1 : 2 ** (t + 1) - 1] for t in range(DEPTH)]
        self._levels = [_on(level.reshape(-1), device) for level in levels]
        codebooks = torch.arange(self._codebooks, dtype=torch.int32)
        self._first = [(2**t * codebooks).to(device) for t in range(DEPTH)]

    def __call__(self, a: Tensor) -> Tensor:
        if a.device.type != "cpu":
            return self._walk(a)
        return torch.cat([self._walk(part) for part in torch.split(a, _CPU_ROWS)])

    def _walk(self, a: Tensor) -> Tensor:
        x = a.index_select(1, self._columns).view(len(a), DEPTH, self._codebooks)
        node = (x[:, 0] >= self._levels[0]).to(torch.int32)
        for level in range(1, DEPTH):
            at = (node + self._first[level]).view(-1)
            node = 2 * node + (x[:, level] >= self._levels[level].index_select(0, at).view_as(node))
        return node


class _Centroids:
    """Nearest centroid of every subspace, in one batched product."""

    def __init__(self, encoder: CentroidEncoder, device: torch.device) -> None:
        self._columns = _on(encoder.padded().reshape(-1), device)
        self._shape = encoder.centroids.shape
        self._padded = bool((encoder.padded() == encoder.width).any())
        centroids = _on(encoder.centroids, device)
        self._centroids = -2 * centroids.transpose(1, 2)  # (C, d, K)
        self._norms = centroids.square().sum(dim=2)[:, None]
        self._rotation = None if encoder.rotation is None else _on(encoder.rotation, device)

    def __call__(self, a: Tensor) -> Tensor:
        codebooks, entries, size = self._shape
        step = max(_CHUNK // max(codebooks * entries, 1), 1)
        return torch.cat([self._nearest(part, codebooks, size) for part in torch.split(a, step)])

    def _nearest(self, a: Tensor, codebooks: int, size: int) -> Tensor:
        x = a if self._rotation is None else a @ self._rotation
        if self._padded:
            x = functional.pad(x, (0, 1)).index_select(1, self._columns)
        blocks = x.reshape(-1, codebooks, size).transpose(0, 1)
        scores = torch.baddbmm(self._norms, blocks, self._centroids)
        return scores.argmin(dim=2).T


def _on(array: np.ndarray, device: torch.device) -> Tensor:  # type: ignore[type-arg]
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
