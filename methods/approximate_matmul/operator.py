"""The fitted operator: an encoder and tables, run by one back-end that :meth:`LookupProduct.describe` names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from harness.errors import Unsupported, UserError
from methods.approximate_matmul import scan
from methods.approximate_matmul._native_backend import NativeBackend, missing
from methods.approximate_matmul._torch_backend import TorchBackend
from methods.approximate_matmul.checks import BYTES, answer_dtype, matrix
from methods.approximate_matmul.cost import LINE, SECTOR, Layout, bytes_of_a
from methods.approximate_matmul.encoders import Encoder, TreeEncoder
from methods.approximate_matmul.tables import Tables

BACKENDS = ("auto", "native", "torch", "numpy")


class Backend(Protocol):
    """What runs the arrays."""

    name: str

    def encode(self, a: Tensor) -> Tensor:
        """(N, C) uint8 codes of (N, D) float32 rows."""

    def codes(self, a: Tensor) -> Any:
        """Codes in the back-end's own form, as :meth:`scan` reads them."""

    @property
    def integer_totals(self) -> bool:
        """Whether :meth:`totals` stops before a fix-up of its own."""

    def totals(self, codes: Any) -> Any:
        """(N, M) integer sums of what :meth:`codes` gave, before scale and offset."""

    def scan(self, codes: Any) -> Tensor:
        """(N, M) float32 outputs of what :meth:`codes` gave."""

    def __call__(self, a: Tensor) -> Tensor:
        """(N, M) float32 outputs of (N, D) float32 rows."""


class NumpyBackend:
    """The plain twin: NumPy on the CPU, outputs on the input's device."""

    name = "numpy"

    def __init__(self, encoder: Encoder, tables: Tables, upcast: int | None) -> None:
        self._encoder, self._tables, self._upcast = encoder, tables, upcast

    def encode(self, a: Tensor) -> Tensor:
        """(N, C) uint8 codes."""
        return torch.from_numpy(self._encoder.encode(a.cpu().numpy())).to(a.device)

    def codes(self, a: Tensor) -> Tensor:
        """The plain codes."""
        return self.encode(a)

    @property
    def integer_totals(self) -> bool:
        """Whether the tables are integers."""
        return self._tables.quantised

    def totals(self, codes: Tensor) -> Any:
        """(N, M) uint16 sums."""
        if not self._tables.quantised:
            raise Unsupported("float32 tables give no integer totals; use scan(codes).")
        plain, values = codes.cpu().numpy(), self._tables.values.astype(np.uint8, copy=False)
        return scan.exact(plain, values) if self._upcast is None else scan.averaged(plain, values, self._upcast)

    def scan(self, codes: Tensor) -> Tensor:
        """(N, M) float32 outputs of plain codes."""
        return torch.from_numpy(scan.scan(codes.cpu().numpy(), self._tables, self._upcast)).to(codes.device)

    def __call__(self, a: Tensor) -> Tensor:
        """(N, M) float32 outputs."""
        return self.scan(self.codes(a))


class LookupProduct:
    """A B by look-ups. ``op(a)`` returns a new (N, M) tensor in a's dtype on a's device; a is left untouched.

    Rows are encoded in float32 whatever a's dtype, rows of bytes (uint8, float32 outputs) as they are where the native
    kernels walk trees. A NaN compares false, so a row with NaN still gets some code:
    the output is finite and means nothing.

    Attributes:
        name: the method's name, without the task.
        hyper: the options that it was made with.
        encoder: what turns rows into codes.
        tables: what the codes look up.
        upcast: codebooks averaged together, or None for exact sums.
        times: seconds of training (``train_s``) and of building tables from B (``table_s``).
        device: where it runs; :meth:`to` gives a copy elsewhere.
        loader: "module:function" that reads what :meth:`save` wrote, called with path and device.
        fallback: why ``auto`` did not take the native kernels; None when it did or was not asked.
    """

    loader = "methods.approximate_matmul.save:load"

    def __init__(
        self,
        name: str,
        hyper: Mapping[str, Any],
        encoder: Encoder,
        tables: Tables,
        upcast: int | None,
        device: torch.device,
        times: Mapping[str, float],
    ) -> None:
        self.name, self.hyper, self.times = name, dict(hyper), dict(times)
        self.encoder, self.tables, self.upcast, self.device = encoder, tables, upcast, device
        self.inner, self.outer = encoder.width, int(tables.values.shape[2])
        self.fallback: str | None = None
        self._backend = self._chosen(str(self.hyper.get("backend", "auto")))

    def _chosen(self, wanted: str) -> Backend:
        if wanted == "numpy":
            return NumpyBackend(self.encoder, self.tables, self.upcast)
        if wanted in ("auto", "native"):
            self.fallback = missing(self.encoder, self.tables, self.device)
            if self.fallback is None:
                return NativeBackend(self.encoder, self.tables, self.upcast)
            if wanted == "native":
                raise Unsupported(f"{self.name}: back-end 'native' cannot run: {self.fallback}; use 'torch'.")
        return TorchBackend(self.encoder, self.tables, self.upcast, self.device)

    def __call__(self, a: Tensor) -> Tensor:
        """Approximate ``a @ b``.

        Raises:
            UserError: a is no matrix of floats or bytes of the fitted width on the operator's device.
        """
        rows = self._rows(a)
        if not len(a):
            return a.new_empty((0, self.outer), dtype=answer_dtype(a))
        return self._backend(rows).to(answer_dtype(a))

    def encode(self, a: Tensor) -> Tensor:
        """(N, C) uint8 codes of the rows of ``a`` (N, D)."""
        rows = self._rows(a)
        if not len(a):
            return torch.empty((0, self.encoder.codebooks), dtype=torch.uint8, device=a.device)
        return self._backend.encode(rows)

    def codes(self, a: Tensor) -> Any:
        """Codes in the back-end's own form (packed when native): what encoding alone costs, and input of :meth:`scan`.

        ``a`` must have at least one row.
        """
        return self._backend.codes(self._rows(a))

    def scan(self, codes: Any) -> Tensor:
        """(N, M) float32 outputs of what :meth:`codes` gave: what look-ups, sums and the fix-up cost."""
        return self._backend.scan(codes)

    @property
    def integer_totals(self) -> bool:
        """Whether the back-end sums integers and undoes the tables' scale afterwards, so that :meth:`totals` exists."""
        return self._backend.integer_totals

    def totals(self, codes: Any) -> Any:
        """(N, M) integer sums in the back-end's own form: look-ups and sums without the fix-up to float32.

        Raises:
            Unsupported: the back-end sums dequantised tables; see :attr:`integer_totals`.
        """
        return self._backend.totals(codes)

    def _rows(self, a: Tensor) -> Tensor:
        matrix(a, "a", self.name, BYTES)
        if a.shape[1] != self.inner:
            raise UserError(f"{self.name}: a must have the {self.inner} columns it was fitted with, got {a.shape[1]}.")
        if a.device != self.device:
            raise UserError(f"{self.name}: the operator is on {self.device}, a on {a.device}; use op.to('{a.device}').")
        a = a.detach().resolve_neg()
        return a if a.dtype in BYTES and self.reads_bytes else a.to(torch.float32)

    @property
    def reads_bytes(self) -> bool:
        """Whether rows of uint8 are encoded as they are, not as float32."""
        return isinstance(self._backend, NativeBackend) and self._backend.reads_bytes

    def to(self, device: str | torch.device) -> LookupProduct:
        """The same operator on another device, its back-end chosen anew."""
        place = torch.empty(0, device=device).device
        return LookupProduct(self.name, self.hyper, self.encoder, self.tables, self.upcast, place, self.times)

    def describe(self) -> dict[str, Any]:
        """What really runs."""
        level = {None: "embedding_bag", 1: "embedding and sums"}.get(self.upcast, "embedding and averages")
        levels = {"numpy": "numpy", "torch": level}
        threads = {"numpy": 1, "torch": torch.get_num_threads() if self.device.type == "cpu" else None}
        name = self._backend.name
        return {
            "method": f"approximate_matmul.{self.name}",
            "backend": name,
            "level": self._backend.level if isinstance(self._backend, NativeBackend) else levels[name],
            **({"levels": self._backend.levels} if isinstance(self._backend, NativeBackend) else {}),
            "library": self._backend.library if isinstance(self._backend, NativeBackend) else None,
            "not_native_because": self.fallback,
            "device": str(self.device),
            "threads": self._backend.threads if isinstance(self._backend, NativeBackend) else threads[name],
            **({"pool": self._backend.pool} if isinstance(self._backend, NativeBackend) else {}),
            "dtype": str(self.tables.values.dtype),
            **self._told(),
        }

    def _told(self) -> dict[str, Any]:
        """What :meth:`describe` says of the algorithm, whatever runs it."""
        told: dict[str, Any] = {
            "aggregation": "exact" if self.upcast in (None, 1) else "average",
            "upcast": self.upcast,
            "codebooks": self.encoder.codebooks,
            "entries": self.encoder.entries,
            "hyper": self.hyper,
        }
        if self.upcast == 1:
            told["not_averaged_because"] = (
                "upcast is 1"
                if self.hyper.get("upcast") == 1
                else f"{self.encoder.codebooks} codebooks do not split into groups of a power of two"
            )
        if isinstance(self.encoder, TreeEncoder):
            told["compares"] = "float32"
            grid = self.hyper.get("thresholds") == "int8"
            told["thresholds"] = "float32, rounded to an 8-bit grid when learned" if grid else "float32"
        return told

    def bytes_read(self, n: int, layout: Layout = "rows", item_bytes: int = 4) -> float:
        """Bytes of A that encoding brings from memory, codes written and read, and tables: a model, each byte once.

        Of an A stored row by row whole lines are counted (64 bytes on a CPU, sectors of 32 on a GPU), each different
        one that holds an entry of a touched column; of one stored column by column the touched columns alone. A in
        another dtype than float32 (and than bytes that are encoded as they are) is read whole to be cast, and its
        float32 copy counted as above.

        Args:
            n: rows of A.
            layout: how A lies in memory, ``rows`` or ``columns``.
            item_bytes: bytes of an entry of A.
        """
        return self._bytes_of_a(n, layout, item_bytes) + n * self._code_bytes() + float(self.tables.values.nbytes)

    @property
    def line_bytes(self) -> int:
        """Bytes that :meth:`bytes_read` takes to come together from a row."""
        return SECTOR if self.device.type == "cuda" else LINE

    def _bytes_of_a(self, n: int, layout: Layout, item_bytes: int) -> float:
        if item_bytes == 1 and self.reads_bytes:
            return bytes_of_a(self.encoder.columns_touched, n, self.inner, layout, 1, self.line_bytes)
        cast = 0.0 if item_bytes == 4 else float(n) * self.inner * item_bytes
        return cast + bytes_of_a(self.encoder.columns_touched, n, self.inner, layout, 4, self.line_bytes)

    def _code_bytes(self) -> float:
        """Bytes of a row's codes, written and read."""
        return 2 * self.encoder.codebooks * math.log2(self.encoder.entries) / 8

    def multiplies(self, n: int) -> float:
        """Multiply-adds: those of the encoder, and one per output to undo quantised tables."""
        return float(n) * (self.encoder.multiplies + (self.outer if self.tables.quantised else 0))

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """All learned arrays by name."""
        tables = {"values": self.tables.values, "scale": self.tables.scale, "offset": self.tables.offset}
        return {**self.encoder.arrays(), **tables}

    def save(self, path: str | Path) -> None:
        """Write an .npz of plain arrays; read it back with :meth:`load` or ``methods.approximate_matmul.load``."""
        from methods.approximate_matmul.save import write

        write(self, path)

    @classmethod
    def load(cls, path: str | Path, device: str | None = None, backend: str | None = None) -> Self:
        """What :meth:`save` wrote; :func:`methods.approximate_matmul.load` reads any method's file.

        Args:
            path: the file.
            device: where it shall run; by default the CPU, a GPU for what Triton kernels run.
            backend: in the place of the stored one.

        Raises:
            UserError: the file is damaged, or holds another kind of operator.
        """
        from methods.approximate_matmul.files import load_as

        return load_as(cls, path, device, backend)
