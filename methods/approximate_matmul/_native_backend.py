"""The native back-end: C++ kernels with run-time dispatch, for trees with 8-bit tables on the CPU."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from methods.approximate_matmul.encoders import Encoder, TreeEncoder
from methods.approximate_matmul.tables import Tables

_BINDING = "methods.approximate_matmul.native.binding"


def missing(encoder: Encoder, tables: Tables, device: torch.device) -> str | None:
    """Why these arrays cannot run natively here; None when they can."""
    if not isinstance(encoder, TreeEncoder):
        return "the native kernels encode by trees only"
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
    """Packed codes, byte-shuffle scans and a fused product."""

    name = "native"

    def __init__(self, encoder: TreeEncoder, tables: Tables, upcast: int | None) -> None:
        self._native = binding()
        self._forest = self._native.forest(encoder.trees.columns, encoder.trees.thresholds)
        aggregation = {"aggregation": "exact"} if upcast is None else {"aggregation": "average", "upcast": upcast}
        self._tables = self._native.prepare(tables.values, tables.scale, tables.offset, **aggregation)

    @property
    def level(self) -> str:
        """The instruction set that runs."""
        return str(self._native.level())

    @property
    def library(self) -> str:
        """Who compiled the kernels, and when."""
        told = self._native.describe()
        return f"{told['compiler']}, built {told['built']}"

    @property
    def threads(self) -> int:
        """Worker threads of a call."""
        return int(self._native.default_threads())

    def encode(self, a: Tensor) -> Tensor:
        """(N, C) uint8 codes, unpacked."""
        return torch.from_numpy(self._native.unpack(self.codes(a)))

    def codes(self, a: Tensor) -> Any:
        """Packed codes."""
        return self._native.encode(a, self._forest)

    integer_totals = True

    def totals(self, codes: Any) -> Any:
        """(N, M) uint16 sums of packed codes, output by output as the kernels make them: no fix-up, no turning."""
        return self._native.scan(codes, self._tables, "uint16", order="column")

    def scan(self, codes: Any) -> Tensor:
        """(N, M) float32 outputs of packed codes."""
        return torch.from_numpy(self._native.scan(codes, self._tables))

    def __call__(self, a: Tensor) -> Tensor:
        """(N, M) float32 outputs, encoded and scanned in one pass over the rows."""
        result: Tensor = self._native.matmul(a, self._forest, None, self._tables)
        return result
