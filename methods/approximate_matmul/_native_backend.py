"""The native back-end: C++ kernels with run-time dispatch, for 4-bit codes and 8-bit tables on the CPU."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from methods.approximate_matmul.encoders import CentroidEncoder, Encoder, TreeEncoder
from methods.approximate_matmul.tables import Tables
from methods.approximate_matmul.tree import LEAVES

_BINDING = "methods.approximate_matmul.native.binding"


def missing(encoder: Encoder, tables: Tables, device: torch.device) -> str | None:
    """Why these arrays cannot run natively here; None when they can."""
    if encoder.entries != LEAVES:
        return f"the native kernels know codebooks of {LEAVES} entries, not of {encoder.entries}"
    if not tables.quantised:
        return "the native kernels need 8-bit tables (lut_bits)"
    if device.type != "cpu":
        return f"the native kernels run on the CPU, not on {device.type}"
    native = binding()
    if encoder.codebooks > native.MAX_CODEBOOKS:
        return f"the native kernels sum at most {native.MAX_CODEBOOKS} codebooks"
    reason = native.available()
    return None if reason is None else str(reason)


def binding() -> Any:
    """The binding's module; it builds or loads the library when first asked."""
    return importlib.import_module(_BINDING)


class NativeBackend:
    """Packed codes, byte-shuffle scans and, for trees, a fused product."""

    name = "native"

    def __init__(self, encoder: Encoder, tables: Tables, upcast: int | None) -> None:
        self._native = binding()
        self._forest = self._centroids = None
        self._rotation: Tensor | None = None
        if isinstance(encoder, TreeEncoder):
            self._forest = self._native.forest(encoder.trees.columns, encoder.trees.thresholds)
        else:
            self._of_centroids(encoder)
        aggregation = {"aggregation": "exact"} if upcast is None else {"aggregation": "average", "upcast": upcast}
        self._tables = self._native.prepare(tables.values, tables.scale, tables.offset, **aggregation)

    @property
    def reads_bytes(self) -> bool:
        """Whether rows of uint8 are encoded as they are."""
        return self._forest is not None

    @property
    def level(self) -> str:
        """The instruction set that encodes trees."""
        return str(self._native.level())

    @property
    def levels(self) -> dict[str, str]:
        """What encodes and what looks up: not every level has kernels of its own for everything."""
        encodes = self.level if self._forest is not None else self._native.encoder_of_centroids()
        return {"encoding": encodes, "look_ups": self._native.sums(self._tables.aggregation)}

    @property
    def library(self) -> str:
        """Who compiled the kernels, and when."""
        told = self._native.describe()
        return f"{told['compiler']}, built {told['built']}"

    @property
    def threads(self) -> int:
        """Worker threads of a call."""
        return int(self._native.default_threads())

    @property
    def pool(self) -> str | None:
        """Whose threads a call shares its rows among; None for one thread."""
        return str(self._native.pool()) if self.threads > 1 else None

    def encode(self, a: Tensor) -> Tensor:
        """(N, C) uint8 codes, unpacked."""
        return torch.from_numpy(self._native.unpack(self.codes(a)))

    def _of_centroids(self, encoder: CentroidEncoder) -> None:
        self._centroids = self._native.centroids(encoder.centroids, encoder.starts)
        if encoder.rotation is not None:
            self._rotation = torch.from_numpy(encoder.rotation)

    def codes(self, a: Tensor) -> Any:
        """Packed codes."""
        if self._forest is not None:
            return self._native.encode(a, self._forest)
        return self._native.nearest(a if self._rotation is None else a @ self._rotation, self._centroids)

    integer_totals = True

    def totals(self, codes: Any) -> Any:
        """(N, M) uint16 sums of packed codes, output by output as the kernels make them: no fix-up, no turning."""
        return self._native.scan(codes, self._tables, "uint16", order="column")

    def scan(self, codes: Any) -> Tensor:
        """(N, M) float32 outputs of packed codes."""
        return torch.from_numpy(self._native.scan(codes, self._tables))

    def __call__(self, a: Tensor) -> Tensor:
        """(N, M) float32 outputs; trees encode rows of float32 and scan in one pass over them."""
        if self._forest is None or a.dtype is torch.uint8:
            return self.scan(self.codes(a))
        result: Tensor = self._native.matmul(a, self._forest, None, self._tables)
        return result
