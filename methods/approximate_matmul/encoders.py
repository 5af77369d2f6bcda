"""Encoders as plain arrays: what turns a row into C codes, whatever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from methods.approximate_matmul import tree
from methods.approximate_matmul.tree import F32, LEAVES, U8

#: Elements of a distance array that a chunk of rows may need.
_CHUNK = 2**22


@dataclass(frozen=True, kw_only=True)
class TreeEncoder:
    """Hash trees: 4 compares a code, at most 4 C columns of A are read."""

    kind: ClassVar[str] = "tree"
    entries: ClassVar[int] = LEAVES
    trees: tree.Trees

    @property
    def codebooks(self) -> int:
        """C."""
        return len(self.trees.columns)

    @property
    def width(self) -> int:
        """D."""
        return int(self.trees.starts[-1])

    @property
    def columns_touched(self) -> NDArray[np.int32]:
        """Different columns of A that encoding touches, in order."""
        return np.unique(self.trees.columns)

    @property
    def columns_read(self) -> int:
        """How many they are."""
        return len(self.columns_touched)

    @property
    def multiplies(self) -> int:
        """Multiply-adds per row."""
        return 0

    def encode(self, a: F32) -> U8:
        """(N, C) codes by NumPy."""
        return tree.encode(a, self.trees)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything that must be saved."""
        return {"columns": self.trees.columns, "thresholds": self.trees.thresholds, "starts": self.trees.starts}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> TreeEncoder:
        """The inverse of :meth:`arrays`."""
        return cls(trees=tree.Trees(**{key: arrays[key] for key in ("columns", "thresholds", "starts")}))


@dataclass(frozen=True, kw_only=True)
class CentroidEncoder:
    """Nearest centroid of each subspace, after an optional rotation of the whole row.

    Attributes:
        centroids: (C, K, d) float32, d the widest subspace; narrower ones are padded with zeros.
        starts: (C + 1,) int32.
        rotation: (D, D) float32, or None.
    """

    kind: ClassVar[str] = "centroid"
    centroids: F32
    starts: NDArray[np.int32]
    rotation: F32 | None = None

    @property
    def codebooks(self) -> int:
        """C."""
        return len(self.centroids)

    @property
    def entries(self) -> int:
        """K."""
        return int(self.centroids.shape[1])

    @property
    def width(self) -> int:
        """D."""
        return int(self.starts[-1])

    @property
    def columns_touched(self) -> NDArray[np.int32]:
        """All of A's."""
        return np.arange(self.width, dtype=np.int32)

    @property
    def columns_read(self) -> int:
        """How many they are."""
        return self.width

    @property
    def multiplies(self) -> int:
        """Multiply-adds per row: K distances in every subspace, and the rotation."""
        return self.entries * self.width + (self.width**2 if self.rotation is not None else 0)

    def padded(self) -> NDArray[np.intp]:
        """(C, d) columns of A (or of the column of zeros behind them, index D) that each subspace reads."""
        size = self.centroids.shape[2]
        columns = self.starts[:-1, None] + np.arange(size)
        return np.where(columns < self.starts[1:, None], columns, self.width).astype(np.intp)

    def encode(self, a: F32) -> U8:
        """(N, C) codes by NumPy: argmin over k of |c_k|^2 - 2 x.c_k."""
        codes = np.empty((len(a), self.codebooks), dtype=np.uint8)
        rows = max(_CHUNK // self.entries, 1)
        for first in range(0, len(a), rows):
            part = a[first : first + rows]
            part = part if self.rotation is None else part @ self.rotation
            for c in range(self.codebooks):
                low, high = self.starts[c], self.starts[c + 1]
                centroids = self.centroids[c, :, : high - low]
                score = (centroids**2).sum(axis=1) - 2 * (part[:, low:high] @ centroids.T)
                codes[first : first + rows, c] = score.argmin(axis=1)
        return codes

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything that must be saved."""
        arrays: dict[str, NDArray[Any]] = {"centroids": self.centroids, "starts": self.starts}
        return arrays if self.rotation is None else {**arrays, "rotation": self.rotation}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> CentroidEncoder:
        """The inverse of :meth:`arrays`."""
        return cls(centroids=arrays["centroids"], starts=arrays["starts"], rotation=arrays.get("rotation"))


Encoder = TreeEncoder | CentroidEncoder
KINDS: dict[str, type[TreeEncoder] | type[CentroidEncoder]] = {"tree": TreeEncoder, "centroid": CentroidEncoder}
