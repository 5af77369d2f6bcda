"""MADDNESS on an NVIDIA GPU: learned as ``approximate_matmul.maddness`` is, run by Triton kernels.

Three designs of the same sums: tables read through the cache (``lut``), one-hot products on tensor cores (``onehot``),
and the latter with the encoding inside (``fused``), where codes never leave a multiprocessor. Codes, integers and
outputs have the bits of the NumPy twin.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from harness.errors import Unsupported, UserError
from methods.approximate_matmul import maddness as learned
from methods.approximate_matmul import save
from methods.approximate_matmul.checks import BYTES, matrix, one_of
from methods.approximate_matmul.cost import Layout, bytes_of_a
from methods.approximate_matmul.encoders import TreeEncoder
from methods.approximate_matmul.estimator import Estimator
from methods.approximate_matmul.files import place
from methods.approximate_matmul.gpu import _launch as launch
from methods.approximate_matmul.gpu._configs import KINDS, Kind
from methods.approximate_matmul.operator import LookupProduct

Design = Literal["lut", "onehot", "fused"]
_PREFIX = "maddness-triton-"
#: Tensor cores of Turing and later take int8; Triton's float8 e4m3 needs compute capability 8.9.
_FLOAT8_CAPABILITY = (8, 9)


class Backend:
    """The kernels of one design on one device.

    ``a`` may be float32, bfloat16 or float16 of any strides and is compared in float32.
    """

    name = "triton"

    def __init__(self, op: LookupProduct, design: Design, kind: Kind) -> None:
        if not isinstance(op.encoder, TreeEncoder) or not op.tables.quantised or op.upcast is not None:
            raise UserError(f"{op.name}: the kernels need trees, 8-bit tables and exact sums.")
        trees, tables = op.encoder.trees, op.tables
        self.design, self.kind, self.level = design, kind, design if design == "lut" else f"{design} {kind}"
        self.prepared = launch.prepare(
            trees.columns,
            trees.thresholds,
            cast(Any, tables.values),
            tables.scale,
            tables.offset,
            op.device,
        )

    def encode(self, a: Tensor) -> Tensor:
        """(N, C) uint8 codes."""
        return launch.encode(a, self.prepared)

    def codes(self, a: Tensor) -> Tensor:
        """The plain codes."""
        return self.encode(a)

    def scan(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """(N, M) outputs of plain codes; ``fused`` has no kernel of its own for that and runs the one-hot product."""
        if self.design == "lut":
            return launch.lookup(codes, self.prepared, dtype)
        return launch.onehot(codes, self.prepared, dtype, kind=self.kind)

    integer_totals = True

    def totals(self, codes: Tensor) -> Tensor:
        """(N, M) int32 sums of plain codes."""
        return self.scan(codes, torch.int32)

    def __call__(self, a: Tensor) -> Tensor:
        """(N, M) outputs in a's dtype."""
        if self.design == "fused":
            return launch.fused(a, self.prepared, a.dtype, kind=self.kind)
        return self.scan(self.encode(a), a.dtype)


class TritonProduct(LookupProduct):
    """A fitted product that Triton kernels run; interface of :class:`LookupProduct`."""

    loader = "methods.approximate_matmul.gpu.maddness:load"
    _backend: Backend

    def _chosen(self, wanted: str) -> Backend:
        del wanted
        return Backend(self, _design(self.name), self.hyper.get("kind", "int8"))

    def _rows(self, a: Tensor) -> Tensor:
        matrix(a, "a", self.name, BYTES)
        if a.shape[1] != self.inner:
            raise UserError(f"{self.name}: a must have the {self.inner} columns it was fitted with, got {a.shape[1]}.")
        if a.device != self.device:
            raise UserError(f"{self.name}: the operator is on {self.device}, a on {a.device}; use op.to('{a.device}').")
        return a.detach() if a.dtype in launch.DTYPES else a.detach().to(torch.float32)

    def to(self, device: str | torch.device) -> TritonProduct:
        """The same operator on another GPU."""
        where = torch.empty(0, device=device).device
        return TritonProduct(self.name, self.hyper, self.encoder, self.tables, self.upcast, where, self.times)

    def _code_bytes(self) -> float:
        """A byte for each code of the designs that store codes, none for ``fused``."""
        return 0.0 if self._backend.design == "fused" else 2.0 * self.encoder.codebooks

    def _bytes_of_a(self, n: int, layout: Layout, item_bytes: int) -> float:
        """Float64 and bytes are cast; the kernels read halves as they are."""
        if item_bytes in (1, 8):
            return super()._bytes_of_a(n, layout, item_bytes)
        return bytes_of_a(self.encoder.columns_touched, n, self.inner, layout, item_bytes, self.line_bytes)

    def describe(self) -> dict[str, Any]:
        """What really runs."""
        return {
            "method": f"approximate_matmul.{self.name}",
            "backend": self._backend.name,
            "level": self._backend.level,
            "kind": None if self._backend.design == "lut" else self._backend.kind,
            "interpreted": launch.INTERPRETED,
            "device": str(self.device),
            "threads": None,
            "dtype": str(self.tables.values.dtype),
            **self._told(),
        }


class TritonEstimator:
    """An unfitted product; ``fit`` learns as ``approximate_matmul.maddness`` does."""

    def __init__(self, design: Design, kind: Kind, hyper: Mapping[str, Any]) -> None:
        self.name = f"{_PREFIX}{design}"
        self._learner = learned.build(self.name, **{**hyper, "backend": "numpy"})
        self.hyper = {**self._learner.hyper, "kind": kind, "backend": "triton"}

    def fit(self, a_train: Tensor, b: Tensor) -> TritonProduct:
        """Learn codes from ``a_train`` (N', D) and tables from ``b`` (D, M), both on one GPU.

        Raises:
            UserError: as :meth:`Estimator.fit`.
            Unsupported: b is not on a GPU, or the GPU lacks the kind's products.
        """
        if isinstance(b, Tensor):
            _usable(b, self.hyper["kind"])
        op = self._learner.fit(a_train, b)
        return TritonProduct(self.name, self.hyper, op.encoder, op.tables, op.upcast, op.device, op.times)

    def __call__(self, a: Tensor) -> Tensor:
        """Refuse: there are no tables yet."""
        raise UserError(f"{self.name} is not fitted: call fit(a_train, b) and use the operator that it returns.")

    encode = __call__

    def save(self, path: str | Path) -> None:
        """Refuse: there is nothing to write yet."""
        raise UserError(
            f"{self.name} is not fitted, so {path} was not written: call fit(a_train, b) and save the operator that it "
            "returns."
        )


def load(path: str | Path, device: str = "cuda") -> TritonProduct:
    """Read an operator that ``op.save`` wrote; ``methods.approximate_matmul.save.load`` would run it by torch.

    Raises:
        UserError: the file is no operator of these designs.
        Unsupported: the device is no GPU.
    """
    op = save.load(path, device="cpu", backend="numpy")
    if not op.name.startswith(_PREFIX):
        raise UserError(f"{path}: holds {op.name!r}; read it with methods.approximate_matmul.save.load.")
    return TritonProduct(
        op.name, {**op.hyper, "backend": "triton"}, op.encoder, op.tables, op.upcast, place(device), op.times
    )


def make_lut(**hyper: Any) -> TritonEstimator:
    """Tables through the first-level cache, two 16-bit sums a word."""
    return _make("lut", hyper)


def make_onehot(**hyper: Any) -> TritonEstimator:
    """Encoding, then one-hot rows times tables on tensor cores; ``kind``: int8, bfloat16, float16 or float8."""
    return _make("onehot", hyper)


def make_fused(**hyper: Any) -> TritonEstimator:
    """As ``onehot``, encoding inside: A is read once for every 128 outputs."""
    return _make("fused", hyper)


def reference(**hyper: Any) -> Estimator:
    """The NumPy twin: the same learned parameters, encoded and summed by NumPy."""
    return learned.make(**{**{key: value for key, value in hyper.items() if key != "kind"}, "backend": "numpy"})


def _make(design: Design, hyper: Mapping[str, Any]) -> TritonEstimator:
    name = f"{_PREFIX}{design}"
    if "backend" in hyper or "upcast" in hyper:
        raise UserError(f"{name}: its back-end is Triton and its sums are exact; leave out backend and upcast.")
    if hyper.get("aggregation", "exact") != "exact":
        raise UserError(f"{name}: sums are exact; averages are an option of approximate_matmul.maddness.")
    if hyper.get("lut_bits", 8) is None:
        raise UserError(f"{name}: the kernels sum bytes; give lut_bits of 1 to 8, or use approximate_matmul.maddness.")
    if "kind" in hyper and design == "lut":
        raise UserError(f"{name}: kind chooses a tensor-core product; it has none.")
    kind = hyper.get("kind", "int8")
    one_of(name, "kind", kind, KINDS)
    return TritonEstimator(design, kind, {key: value for key, value in hyper.items() if key != "kind"})


def _usable(b: Tensor, kind: Kind) -> None:
    if launch.INTERPRETED:
        return
    if not b.is_cuda:
        raise Unsupported(f"needs CUDA: Triton kernels run on an NVIDIA GPU, b is on {b.device}")
    if kind == "float8" and torch.cuda.get_device_capability(b.device) < _FLOAT8_CAPABILITY:
        raise Unsupported("kind 'float8' needs compute capability 8.9 or later; use kind 'int8'")


def _design(name: str) -> Design:
    return cast(Design, name.removeprefix(_PREFIX))
