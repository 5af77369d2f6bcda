"""Sums over the rows of a batch, as each structure wants them, taken while backward runs.

As for K-FAC: for a loss that is the mean of R terms, with rows b of the gradient that backward gives and input rows a
over N samples and S shared positions (Eschenhagen et al., arXiv 2311.00636),

    expand:  A = 1 / (N S) sum_ns a a^T,              G = R sum_ns b b^T
    reduce:  A = 1 / N sum_n mean_s(a) mean_s(a)^T,   G = R sum_n (sum_s b)(sum_s b)^T

Rows are scaled before they are squared where factors are in half precision, so that it neither overflows nor vanishes:
by the first call's counts and the last known loss scale; the step corrects both. Else the sums are scaled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import Unsupported
from methods.kfac.layers import Layer, input_rows, output_rows, patches
from methods.kfac.statistics import Terms
from methods.singd.options import Options
from methods.singd.rows import HALF, PatchRows, PlainRows, Rows, one
from methods.singd.stacks import Stack


@dataclass
class Sums:
    """What one layer has gathered since the last step.

    Attributes:
        a: of the inputs (groups, any).
        g: of the outputs (groups, any).
        unit_rows: rows of the first call, which ``a`` is divided by.
        unit_terms: loss terms of the first call, which ``g`` is scaled by.
        scale_a: what ``a`` is still to be multiplied with.
        scale_g: what ``g`` is.
        rows: rows of all calls.
        terms: loss terms of all calls.
    """

    a: Tensor
    g: Tensor
    unit_rows: int
    unit_terms: int
    scale_a: float = 1.0
    scale_g: float = 1.0
    rows: int = 0
    terms: Terms = field(default_factory=Terms)


def _split(root: float, dtype: torch.dtype) -> tuple[float, float]:
    """What rows are multiplied with, and what the sums of their squares are."""
    return (root, 1.0) if dtype in HALF else (1.0, root**2)


class Gather:
    """Takes the rows of a module's call.

    Args:
        options: hyper-parameters.
        sums: where to put them.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.sums: dict[Layer, Sums] = {}

    def input(self, module: Any, inputs: Tensor, bias: bool, scale: float, dtype: torch.dtype) -> Rows:
        """Rows of the inputs."""
        reduce = self.options.sharing == "reduce"
        if not isinstance(module, nn.Conv2d):
            rows = input_rows(module, inputs)
            return PlainRows(rows.mean(2, keepdim=True) if reduce else rows, bias, scale, dtype)
        if not reduce:
            return PatchRows(module, inputs, bias, scale, dtype)
        found = patches(module, inputs if inputs.ndim == 4 else inputs[None]).mean(dim=(1, 2))
        return PlainRows(found.reshape(found.shape[0], module.groups, 1, -1).transpose(0, 1), bias, scale, dtype)

    def take(
        self, layer: Layer, stack: Stack, module: Any, inputs: Tensor, gradients: Tensor, backward: int, scale: Any
    ) -> None:
        """Add one call; ``scale`` is what the loss was multiplied with, as far as known."""
        opt, b = self.options, output_rows(module, gradients)
        samples, shared = b.shape[1:3]
        if opt.sharing == "reduce":
            b = b.sum(2, keepdim=True, dtype=torch.float32 if b.dtype.itemsize < 4 else None)
        rows = samples if opt.sharing == "reduce" else samples * shared
        terms = samples * (shared if opt.loss_average == "batch+sequence" else 1)
        held = self.sums.get(layer)
        unit_rows, unit_terms = (rows, terms) if held is None else (held.unit_rows, held.unit_terms)
        root = unit_terms**0.5 if opt.reduction == "mean" else unit_terms**-0.5
        k, c = stack.factors[layer]
        of_a, scale_a = _split(unit_rows**-0.5, k.dtype)
        of_g, scale_g = _split(root, c.dtype)
        for_a = self.input(module, inputs, layer.bias is not None, of_a, k.dtype)
        if isinstance(for_a, PlainRows) and for_a.x.shape[1] * for_a.x.shape[2] != rows:
            raise Unsupported(f"{layer.name}: input rows {tuple(for_a.x.shape)} do not match {rows} output rows.")
        a = stack.a.kind.gather(k, for_a)
        whole = c.dtype not in HALF
        g = stack.g.kind.gather(c, PlainRows(b, False, of_g if whole else of_g / scale, c.dtype))
        if whole and not one(scale):
            g = g.div_(scale**2)
        if held is None:
            held = self.sums[layer] = Sums(a, g, unit_rows, unit_terms, scale_a, scale_g)
        else:
            held.a += a
            held.g += g
        held.rows += rows
        held.terms.add(terms, backward)

    def read(self, layer: Layer, correction: Tensor | None) -> tuple[Tensor, Tensor]:
        """A's and G's sums; ``correction`` divides G by the squared error of the assumed loss scale."""
        held = self.sums[layer]
        ratio = held.terms.count / held.unit_terms
        g = held.g * (held.scale_g * (ratio if self.options.reduction == "mean" else 1 / ratio))
        if correction is not None:
            g = g * correction.to(g.device, g.dtype)
        return held.a * (held.scale_a * held.unit_rows / held.rows), g

    def read_all(self, correction: Tensor | None) -> dict[Layer, tuple[Tensor, Tensor]]:
        """:meth:`read` of every layer in few calls, in place; then nothing is pending."""
        mean, factors = self.options.reduction == "mean", []
        for held in self.sums.values():
            ratio = held.terms.count / held.unit_terms
            factors += [held.scale_a * held.unit_rows / held.rows, held.scale_g * (ratio if mean else 1 / ratio)]
        found = {layer: (held.a, held.g) for layer, held in self.sums.items()}
        if any(factor != 1.0 for factor in factors):
            torch._foreach_mul_([tensor for pair in found.values() for tensor in pair], factors)
        if correction is not None:
            by_device: dict[torch.device, list[Tensor]] = {}
            for _, g in found.values():
                by_device.setdefault(g.device, []).append(g)
            for device, tensors in by_device.items():
                torch._foreach_mul_(tensors, correction.to(device))
        self.forget()
        return found

    def forget(self) -> None:
        """Drop what has been taken since the last step."""
        self.sums.clear()
