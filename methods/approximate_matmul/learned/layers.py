"""Trainable look-up layers: drop-in replacements of ``nn.Linear`` and ``nn.Conv2d``.

    y = (sum_c q[c, code_c(x)]) scale + offset + bias

What is trained: thresholds, and either the tables or the prototypes and weights that they are the products of. The
split columns are fixed. The hard forward is what the exported operator computes; see :mod:`.soft` for the gradients.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from harness.errors import UserError
from methods.approximate_matmul import maddness, tree
from methods.approximate_matmul.checks import one_of
from methods.approximate_matmul.encoders import TreeEncoder
from methods.approximate_matmul.learned import soft
from methods.approximate_matmul.learned.geometry import Geometry, geometry, spread, unsupported
from methods.approximate_matmul.operator import LookupProduct
from methods.approximate_matmul.tables import Tables

Trains = Literal["tables", "prototypes"]
NAME = "maddness-learned"
#: Width of the surrogate's sigmoids in standard deviations of their column. Chosen here on digits.
TEMPERATURE = 0.3


class MaddnessLayer(nn.Module):
    """What both layers share: a product of (R, D) rows with a (D, M) matrix.

    Args:
        inner: D.
        outer: M.
        codebooks: C <= D; at most 257 with 8-bit tables, whose sums are exact in 16 bits.
        bias: whether something is added to the product.
        lut_bits: bits of a table entry, or None for float tables.
        trains: ``tables``, or ``prototypes`` (then tables = prototypes times weight, both trained).
        temperature: width of the surrogate's sigmoids in standard deviations of their column.

    Attributes:
        thresholds: (C, 15) parameter; meaningless where ``dead``.
        tables: (C, 16, M) parameter when trained directly.
        prototypes: (C, 16, D) parameter otherwise.
        weight: (M, D) parameter otherwise.
        columns: (C, 4) int64, the split columns.
        dead: (C, 15) nodes that do not split.
        spread: (C, 4) standard deviation of the split columns in the training rows.
        temperature: scalar buffer; assign with :meth:`set_temperature`.
    """

    thresholds: Tensor
    columns: Tensor
    dead: Tensor
    spread: Tensor
    temperature: Tensor

    def __init__(
        self,
        inner: int,
        outer: int,
        codebooks: int,
        *,
        bias: bool = True,
        lut_bits: int | None = 8,
        trains: Trains = "tables",
        temperature: float = TEMPERATURE,
    ) -> None:
        super().__init__()
        one_of(NAME, "trains", trains, ("tables", "prototypes"))
        maddness.make(codebooks=codebooks, lut_bits=lut_bits)
        if codebooks > inner:
            raise UserError(f"{NAME}: {codebooks} codebooks need as many columns, there are {inner}; use fewer.")
        self.inner, self.outer, self.codebooks, self.lut_bits, self.trains = inner, outer, codebooks, lut_bits, trains
        self.thresholds = nn.Parameter(torch.zeros(codebooks, tree.NODES))
        if trains == "tables":
            self.tables = nn.Parameter(torch.zeros(codebooks, tree.LEAVES, outer))
        else:
            self.prototypes = nn.Parameter(torch.zeros(codebooks, tree.LEAVES, inner))
            self.weight = nn.Parameter(torch.zeros(outer, inner))
        self.bias = nn.Parameter(torch.zeros(outer)) if bias else None
        starts = torch.from_numpy(tree.subspaces(inner, codebooks)[:-1].astype(np.int64))
        self.register_buffer("columns", starts[:, None].repeat(1, tree.DEPTH))
        self.register_buffer("dead", torch.ones(codebooks, tree.NODES, dtype=torch.bool))
        self.register_buffer("spread", torch.ones(codebooks, tree.DEPTH))
        self.register_buffer("temperature", torch.tensor(1.0))
        self.set_temperature(temperature)

    def set_temperature(self, value: float) -> None:
        """Set the surrogate's temperature (the forward value does not depend on it).

        Raises:
            UserError: not a positive number.
        """
        if not value > 0:
            raise UserError(f"{NAME}: temperature must be positive, got {value!r}.")
        self.temperature.fill_(float(value))

    @torch.no_grad()
    def fit(self, rows: Tensor, weight: Tensor, bias: Tensor | None, **hyper: Any) -> None:
        """Start from MADDNESS fitted to ``rows`` (N', D) and ``weight`` (M, D); ``hyper`` are options of its ``make``.

        Raises:
            UserError: rows that are empty, not finite or of another width; an option that MADDNESS refuses.
        """
        fixed = sorted(set(hyper) & {"codebooks", "lut_bits", "backend"})
        if fixed:
            raise UserError(f"{NAME}: {', '.join(fixed)} belong to the layer, not to its fit.")
        estimator = maddness.make(codebooks=self.codebooks, lut_bits=None, backend="torch", **hyper)
        direct = self.trains == "tables"
        if not direct and hyper.get("tables", "prototype") == "direct":
            raise UserError(f"{NAME}: tables='direct' has no prototypes to train; use trains='tables'.")
        factor = weight.T if direct else torch.eye(self.inner, dtype=weight.dtype, device=weight.device)
        op = estimator.fit(rows, factor)
        assert isinstance(op.encoder, TreeEncoder)
        trees, values = op.encoder.trees, torch.from_numpy(op.tables.values.astype(np.float32))
        dead = torch.from_numpy(~np.isfinite(trees.thresholds))
        self.dead.copy_(dead)
        self.thresholds.copy_(torch.from_numpy(trees.thresholds).masked_fill(dead, 0.0))
        self.columns.copy_(torch.from_numpy(trees.columns.astype(np.int64)))
        spread = rows.float().std(0, correction=0)[self.columns.flatten().to(rows.device)].view_as(self.columns)
        self.spread.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))
        if direct:
            self.tables.copy_(values)
        else:
            self.prototypes.copy_(values)
            self.weight.copy_(weight)
        if self.bias is not None:
            self.bias.copy_(torch.zeros_like(self.bias) if bias is None else bias)

    @property
    def split_values(self) -> Tensor:
        """(C, 15) thresholds, +inf where a node does not split."""
        return torch.where(self.dead, torch.inf, self.thresholds)

    @property
    def table(self) -> Tensor:
        """(C, 16, M) float tables."""
        return self.tables if self.trains == "tables" else self.prototypes @ self.weight.T

    def _product(self, x: Tensor) -> Tensor:
        """(R, M) outputs of the split columns' values (R, C, 4)."""
        wide = torch.promote_types(self.thresholds.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            widths = (self.temperature * self.spread).to(wide)
            y = soft.lookup_product(x.to(wide), self.split_values.to(wide), widths, self.table.to(wide), self.lut_bits)
            y = y if self.bias is None else y + self.bias
        return y.to(x.dtype)

    @torch.no_grad()
    def to_operator(self, backend: str = "auto") -> LookupProduct:
        """The layer's product as plain arrays run by any back-end; the bias stays outside.

        Args:
            backend: ``auto``, ``native``, ``torch`` or ``numpy``.
        """
        values = self.table.float()
        if self.lut_bits is None:
            ones = np.ones(self.outer, dtype=np.float32)
            tables = Tables(values=_array(values), scale=ones, offset=np.zeros_like(ones))
        else:
            q, scale, offset, _ = soft.quantise(values, self.lut_bits)
            tables = Tables(values=_array(q).astype(np.uint8), scale=_array(scale), offset=_array(offset))
        trees = tree.Trees(
            columns=_array(self.columns).astype(np.int32),
            thresholds=_array(self.split_values.float()),
            starts=tree.subspaces(self.inner, self.codebooks),
        )
        hyper = {"codebooks": self.codebooks, "lut_bits": self.lut_bits, "trains": self.trains, "backend": backend}
        device = self.thresholds.device
        return LookupProduct(NAME, hyper, TreeEncoder(trees=trees), tables, None, device, {})

    def options(self) -> dict[str, Any]:
        """What a layer of the same structure is made from, JSON-ready."""
        return {"codebooks": self.codebooks, "lut_bits": self.lut_bits, "trains": self.trains}

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"{self.inner} x {self.outer}, codebooks={self.codebooks}, lut_bits={self.lut_bits}"


def _array(value: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(value.detach().cpu().numpy())


class MaddnessLinear(MaddnessLayer):
    """``nn.Linear`` by look-ups: (..., D) -> (..., M)."""

    @classmethod
    def like(cls, linear: nn.Linear, codebooks: int, **options: Any) -> MaddnessLinear:
        """An unfitted layer of the same shape, on the same device."""
        made = cls(linear.in_features, linear.out_features, codebooks, bias=linear.bias is not None, **options)
        return made.to(linear.weight.device, linear.weight.dtype)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, inputs: Tensor, codebooks: int, *, hyper: dict[str, Any] | None = None, **options: Any
    ) -> MaddnessLinear:
        """A layer that starts from MADDNESS fitted to ``inputs`` (..., D) of ``linear``.

        Args:
            linear: what is replaced; it stays as it is.
            inputs: captured activations.
            codebooks: C.
            hyper: options of MADDNESS: ``candidates``, ``ridge``, ``tables``, ``nonzeros``, ``min_leaf``, ``compare``.
            options: ``lut_bits``, ``trains``, ``temperature``.
        """
        made = cls.like(linear, codebooks, **options)
        made.fit(inputs.flatten(0, -2), linear.weight.detach(), linear.bias, **(hyper or {}))
        return made

    def rows(self, x: Tensor) -> Tensor:
        """(R, D) rows of the product."""
        return x.reshape(-1, self.inner)

    def some_rows(self, x: Tensor, wanted: int) -> Tensor:
        """About ``wanted`` of :meth:`rows`, evenly spread."""
        rows = self.rows(x)
        return rows[:: spread(len(rows), wanted)]

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., M)."""
        if x.shape[-1] != self.inner:
            raise UserError(f"{NAME}: expected {self.inner} columns, got shape {tuple(x.shape)}.")
        split = self.rows(x).index_select(1, self.columns.flatten())
        return self._product(split.view(-1, self.codebooks, tree.DEPTH)).view(*x.shape[:-1], self.outer)


class MaddnessConv2d(MaddnessLayer):
    """``nn.Conv2d`` by look-ups: windows are rows, a codebook sees a patch of them.

    Columns of a row are ordered by channel, so that C = channels gives each codebook one channel's window.

    Args:
        channels: of the input.
        outer: channels of the output.
        codebooks: C.
        shape: kernel, stride, padding and dilation.
        options: of :class:`MaddnessLayer`.
    """

    def __init__(self, channels: int, outer: int, codebooks: int, *, shape: Geometry, **options: Any) -> None:
        super().__init__(channels * shape.kernel[0] * shape.kernel[1], outer, codebooks, **options)
        self.channels, self.shape = channels, shape

    @classmethod
    def like(cls, conv: nn.Conv2d, codebooks: int, **options: Any) -> MaddnessConv2d:
        """An unfitted layer of the same shape, on the same device.

        Raises:
            UserError: a convolution that is not one matrix product.
        """
        if why := unsupported(conv):
            raise UserError(f"{NAME}: this convolution cannot be replaced: {why}.")
        shape, biased = geometry(conv), conv.bias is not None
        made = cls(conv.in_channels, conv.out_channels, codebooks, shape=shape, bias=biased, **options)
        return made.to(conv.weight.device, conv.weight.dtype)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv2d,
        inputs: Tensor,
        codebooks: int | None = None,
        *,
        hyper: dict[str, Any] | None = None,
        **options: Any,
    ) -> MaddnessConv2d:
        """A layer that starts from MADDNESS fitted to all windows of ``inputs`` (B, channels, H, W).

        Args:
            conv: what is replaced; it stays as it is.
            inputs: captured activations.
            codebooks: C; None is one per input channel.
            hyper: options of MADDNESS, as for :meth:`MaddnessLinear.from_linear`.
            options: ``lut_bits``, ``trains``, ``temperature``.
        """
        made = cls.like(conv, conv.in_channels if codebooks is None else codebooks, **options)
        made.fit(made.rows(inputs), conv.weight.detach().flatten(1), conv.bias, **(hyper or {}))
        return made

    def rows(self, x: Tensor) -> Tensor:
        """(B L, D) rows of the product."""
        return self.shape.rows(x)

    def some_rows(self, x: Tensor, wanted: int) -> Tensor:
        """About ``wanted`` of :meth:`rows`, evenly spread."""
        return self.shape.some_rows(x, wanted)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, M, H', W')."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise UserError(f"{NAME}: expected (batch, {self.channels}, height, width), got shape {tuple(x.shape)}.")
        split = self.shape.split(x, self.columns.flatten())
        return self.shape.image(self._product(split.view(-1, self.codebooks, tree.DEPTH)), x)
