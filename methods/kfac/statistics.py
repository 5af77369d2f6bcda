"""Second moments of a batch and their running means.

For a loss that is the mean of R terms, let b be the rows of the gradient that backward gives (already divided by R)
and a the input rows, over N samples and S shared positions. Martens and Grosse (arXiv 1503.05671); weight sharing by
Eschenhagen et al. (arXiv 2311.00636):

    expand:  A = 1 / (N S) sum_ns a a^T,          G = R sum_ns b b^T
    reduce:  A = 1 / N sum_n mean_s(a) mean_s(a)^T,   G = R sum_n (sum_s b)(sum_s b)^T

so that A x G is the Fisher of the mean loss, whatever the batch, the accumulation or the reduction. R is N
(``loss_terms="batch"``) or N S (``"batch+sequence"``, S of the layer at hand).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from harness.errors import Unsupported
from methods.kfac import packing, products
from methods.kfac.layers import Layer, averaged_rows, input_positions, input_rows, output_rows
from methods.kfac.moments import gram, output_moment, padded_moment, room
from methods.kfac.sharding import Sharing

INITIAL = ("identity", "first-batch", "bias-corrected")
SHARING = ("expand", "reduce")
LOSS_TERMS = ("batch", "batch+sequence")
REDUCTIONS = ("mean", "sum")


@dataclass
class Terms:
    """Counts a layer's loss terms R; calls of a tied module in one backward pass share their samples.

    Attributes:
        count: terms so far.
        backward: id of the backward pass that was counted last.
    """

    count: int = 0
    backward: int = -1

    def add(self, count: int, backward: int) -> None:
        """Count one call."""
        if backward < 0 or backward != self.backward:
            self.count += count
        self.backward = backward


@dataclass
class Sums:
    """Unscaled sums of one layer since the last step.

    Attributes:
        a: sum over rows of a a^T (groups, d_in, d_in).
        g: sum over rows of b b^T (groups, d_out, d_out).
        rows: rows in ``a``.
        terms: loss terms R.
    """

    a: Tensor
    g: Tensor
    rows: int = 0
    terms: Terms = field(default_factory=Terms)


def moment(rows: Tensor, bias: bool, half: torch.dtype | None = None) -> Tensor:
    """sum_n r r^T of rows (groups, n, d), r with a 1 appended if ``bias``: (groups, d (+ 1), d (+ 1))."""
    width = rows.shape[2] + bias
    return padded(rows, bias, half)[:, :width, :width]


def padded(rows: Tensor, bias: bool, half: torch.dtype | None) -> Tensor:
    """As :func:`moment`, with its padding if ``bias``."""
    product = gram(rows, half)
    if not bias:
        return product
    groups, count, width = rows.shape
    wide = room(width + 1)
    whole = (product.new_zeros if wide > width + 1 else product.new_empty)((groups, wide, wide))
    whole[:, :width, :width] = product
    whole[:, width, :width] = whole[:, :width, width] = rows.sum(1)
    whole[:, width, width] = float(count)
    return whole


#: Layer -> sums of A and of G, and what they are to be multiplied with.
_Batch = dict[Layer, tuple[Tensor, Tensor, Tensor | float, Tensor | float]]


class Factors:
    """Running means of one layer.

    Args:
        layer: the layer.
        held: A and G, (groups, d, d), wide ones padded with zeros, or packed flat (:mod:`methods.kfac.packing`).
        count: batches that have entered (a 0-d tensor on the device).
    """

    def __init__(self, layer: Layer, held: Sequence[Tensor], count: Tensor) -> None:
        self.held, self.count = list(held), count
        self._shapes = [(layer.groups, layer.d_in), (layer.groups, layer.d_out)]
        self._views: list[tuple[Tensor, Tensor] | None] = [None, None]

    @property
    def a(self) -> Tensor:
        """A (groups, d_in, d_in); a new tensor if it is packed."""
        return self._whole(0)

    @property
    def g(self) -> Tensor:
        """G (groups, d_out, d_out); a new tensor if it is packed."""
        return self._whole(1)

    def _whole(self, side: int) -> Tensor:
        held, (groups, size) = self.held[side], self._shapes[side]
        if held.ndim != 3:
            return packing.unpack(held, groups, size)
        if held.shape[1] == size:
            return held
        known = self._views[side]
        if known is None or known[0] is not held:
            known = self._views[side] = (held, held[:, :size, :size])
        return known[1]

    def compact(self, side: int) -> Tensor:
        """A (side 0) or G (1) as it is saved: packed if it is, else (groups, d, d)."""
        return self.held[side] if self.held[side].ndim != 3 else self._whole(side)


class Statistics:
    """Takes rows during backward and folds them into running means at the step.

    Args:
        sharing: ``expand`` or ``reduce``.
        decay: rho of M <- rho M + (1 - rho) batch.
        initial: start of M: ``identity`` (keeps rho^k I), ``first-batch``, or ``bias-corrected`` (zero, and read
            divided by 1 - rho^k).
        loss_terms: what the mean of the loss is taken over.
        reduction: the loss is the ``mean`` or the ``sum`` of its terms.
        subsample: share of the rows that is used, in (0, 1]; evenly strided.
        product: precision of the moments, see :mod:`methods.kfac.products`.
        packed: sums and running means of wide factors are kept as panels of their lower triangle.
    """

    def __init__(
        self,
        sharing: str,
        decay: float,
        initial: str,
        loss_terms: str,
        reduction: str,
        subsample: float,
        product: str = "as-set",
        packed: bool = False,
    ) -> None:
        self.packed = packed
        self.product = product
        self.sharing, self.decay, self.initial = sharing, decay, initial
        self.loss_terms, self.reduction, self.subsample = loss_terms, reduction, subsample
        self.ranks = Sharing((), (), "none")
        self.sums: dict[Layer, Sums] = {}
        self.factors: dict[Layer, Factors] = {}

    # -- a backward pass -----------------------------------------------------------------------------------------------

    def rows(self, layer: Layer, module: Any, inputs: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (groups, N, S, d) in the factors' dtype; S = 1 with ``reduce``. The bias' 1 is not in them."""
        b = output_rows(module, gradients).to(layer.dtype)
        if self.sharing == "reduce":
            return averaged_rows(module, inputs.to(layer.dtype)), b.sum(2, keepdim=True)
        return input_rows(module, inputs.to(layer.dtype)), b

    def take(self, layer: Layer, module: Any, inputs: Tensor, gradients: Tensor, backward: int) -> None:
        """Add one call of a module; a batch of several backward passes (accumulation) adds up."""
        half = torch.bfloat16 if self.product == "bfloat16" and layer.dtype == torch.float32 else None
        with products.scope(self.product):
            first, second, count = self._moments(layer, module, inputs, gradients, half)
            first, second = self.kept(first, layer.d_in), self.kept(second, layer.d_out)
        sums = self.sums.get(layer)
        if sums is None:
            sums = self.sums[layer] = Sums(first, second)
        else:
            sums.a += first
            sums.g += second
        sums.rows += count
        sums.terms.add(self.terms(module, gradients), backward)

    def kept(self, matrices: Tensor, size: int) -> Tensor:
        """Factors (groups, d, d), or padded with zeros, as they are kept: in one piece, all of one shape."""
        if self.packed and size >= packing.PACKED_FROM:
            return packing.pack(matrices[:, :size, :size])
        more = room(size) - matrices.shape[1]
        if more > 0:
            matrices = functional.pad(matrices, (0, more, 0, more))
        elif more < 0:
            matrices = matrices[:, : room(size), : room(size)]
        return matrices.contiguous()

    def enter(self, layer: Layer, a: Tensor, g: Tensor, count: Tensor) -> None:
        """Set a layer's running means, (groups, d, d) or flat."""
        whole = Factors(layer, (a, g), count)
        held = self.kept(whole.a, layer.d_in), self.kept(whole.g, layer.d_out)
        self.factors[layer] = Factors(layer, held, count)

    def _moments(
        self, layer: Layer, module: Any, inputs: Tensor, gradients: Tensor, half: torch.dtype | None
    ) -> tuple[Tensor, Tensor, int]:
        """Sums of A (maybe padded) and G over the rows of one call, and how many rows those of A are."""
        if self.sharing == "expand" and self.subsample == 1.0:
            outputs = output_rows(module, gradients)
            positions = outputs.shape[1] * outputs.shape[2]
            self._matching(layer, input_positions(module, inputs), outputs.shape[1:3])
            first, _ = padded_moment(module, inputs, layer.bias is not None, layer.dtype, half)
            return first, output_moment(module, gradients, layer.dtype, half), positions
        a, b = self.rows(layer, module, inputs, gradients)
        groups, samples, shared, _ = b.shape
        self._matching(layer, a.shape[1:3], b.shape[1:3])
        a, b = a.reshape(groups, samples * shared, -1), b.reshape(groups, samples * shared, -1)
        full = a.shape[1]
        if self.subsample < 1.0 and full > 1:
            chosen = self._chosen(full, a.device)
            a, b = a[:, chosen], b[:, chosen]
        first, second = padded(a, layer.bias is not None, half), gram(b, half)
        if a.shape[1] != full:
            second *= full / a.shape[1]
        return first, second, a.shape[1]

    def _matching(self, layer: Layer, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        if tuple(inputs) != tuple(outputs):
            raise Unsupported(f"{layer.name}: input rows {tuple(inputs)} do not match output rows {tuple(outputs)}.")

    def terms(self, module: Any, gradients: Tensor) -> int:
        """Loss terms that one call of a module has seen."""
        _, samples, shared, _ = output_rows(module, gradients).shape
        return samples * (shared if self.loss_terms == "batch+sequence" else 1)

    def _chosen(self, count: int, device: torch.device) -> Tensor:
        """Evenly strided row numbers, at least one."""
        wanted = max(1, round(count * self.subsample))
        return torch.arange(wanted, device=device) * count // wanted

    def forget(self) -> None:
        """Drop what has been taken since the last step."""
        self.sums.clear()

    # -- a step --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fold(self, scale: Tensor | float = 1.0, passes: int = 1, columns: bool = False) -> Tensor | None:
        """Enter the batch into the running means unless one of its statistics is not finite.

        Args:
            scale: factor that the loss was multiplied with (loss scaling); G is divided by its square.
            passes: how many times the whole batch went backward, each with other drawn targets.
            columns: the passes brought columns of a root of each term's Hessian, to be summed and not averaged, and
                not divided by R.

        Returns:
            Whether the batch was finite, a 0-d bool on the device; None when nothing was taken.
        """
        if not self.sums:
            return None
        batch = self._batch(scale, passes, columns)
        home = next(iter(self.sums)).weight.device
        finite = self.ranks.agree(_all_finite([m for entry in batch.values() for m in entry[:2]], home), home)
        if self.initial == "first-batch":
            self._mix_from_the_first(batch, finite)
        else:
            self._mix(batch, finite)
        self.forget()
        return finite

    def _mix_from_the_first(self, batch: _Batch, finite: Tensor) -> None:
        """M <- (1 - share) M + share batch, share = 1 for a layer's first good batch: the device alone knows."""
        for layer, (a, g, for_a, for_g) in batch.items():
            held = self.held(layer)
            old, good = held.count, finite.to(a.device, held.count.dtype)
            share = good * (1 - (old > 0).to(old.dtype) * self.decay)
            for running, new, weight in zip(held.held, (a, g), (for_a, for_g), strict=True):
                running.mul_(1 - share).addcmul_(new.nan_to_num_(0.0, 0.0, 0.0), share * weight)
            held.count = old + good

    def _mix(self, batch: _Batch, finite: Tensor) -> None:
        """M <- rho M + (1 - rho) batch of all layers at once, nothing if the batch is not finite.

        The fused kernel of SGD computes p - lr (wd p - g) for lists of tensors and skips all of it by a flag on the
        device: with lr = 1, wd = 1 - rho and g = (1 - rho) batch that is the running mean.
        """
        lists: dict[Any, tuple[list[Tensor], list[Tensor], list[Any], list[Tensor]]] = {}
        for layer, (a, g, for_a, for_g) in batch.items():
            held = self.held(layer)
            running, new, weights, counts = lists.setdefault((a.device, a.dtype), ([], [], [], []))
            running += held.held
            new += [a, g]
            weights += [(1 - self.decay) * for_a, (1 - self.decay) * for_g]
            counts.append(held.count)
        for (device, dtype), (running, new, weights, counts) in lists.items():
            _scale(new, weights)
            products.fused_mix(running, new, 1 - self.decay, (~finite).to(device, torch.float32))
            # A list: a single tensor would be read by the host.
            torch._foreach_add_(counts, [finite.to(device, dtype)] * len(counts))

    def _batch(self, scale: Tensor | float, passes: int, columns: bool) -> _Batch:
        """Sums over the ranks of each layer that this one keeps, and what they are to be multiplied with."""
        found: _Batch = {}
        for layer, (a, g, rows, terms) in self.ranks.collect(self.sums).items():
            weight = self.weight(terms, passes, columns, self.ranks.size)
            found[layer] = (a, g, 1.0 / rows, weight / scale**2)
        return found

    def weight(self, terms: Any, passes: int, columns: bool, ranks: int = 1) -> Any:
        """What turns sum b b^T over all passes into G.

        Args:
            terms: loss terms of all passes.
            passes: backward passes.
            columns: as for :meth:`fold`.
            ranks: processes whose rows are in the sum; with a mean loss theirs are so many times too long, as they
                belong to the mean over their own samples (:mod:`methods.kfac.sharding`).
        """
        if columns:
            return passes / terms
        return terms / (passes * ranks) ** 2 if self.reduction == "mean" else 1.0 / terms

    def held(self, layer: Layer) -> Factors:
        """The layer's running means, created at their start, on the weight's device."""
        device = layer.weight.device
        found = self.factors.get(layer)
        if found is None:
            made = [self._start(layer, size) for size in (layer.d_in, layer.d_out)]
            found = self.factors[layer] = Factors(layer, made, torch.zeros((), dtype=layer.dtype, device=device))
        elif found.count.device != device or found.count.dtype != layer.dtype:
            found.held = [tensor.to(device, layer.dtype) for tensor in found.held]
            found.count = found.count.to(device, layer.dtype)
        return found

    def _start(self, layer: Layer, size: int) -> Tensor:
        packed = self.packed and size >= packing.PACKED_FROM
        wide = room(size)
        shape: tuple[int, ...] = (packing.length(layer.groups, size),) if packed else (layer.groups, wide, wide)
        made = torch.zeros(shape, dtype=layer.dtype, device=layer.weight.device)
        if self.initial == "bias-corrected":
            return made
        if packed:
            return packing.add_to_diagonal(made, layer.groups, size, 1.0)
        made.diagonal(dim1=1, dim2=2)[:, :size].fill_(1.0)
        return made

    def read(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """A and G as inverses use them: bias-corrected if asked for; the identity before the first good batch."""
        held = self.held(layer)
        if self.initial != "bias-corrected":
            return held.a, held.g
        weight = 1 - self.decay**held.count
        return _corrected(held.a, weight), _corrected(held.g, weight)


def _all_finite(matrices: Sequence[Tensor], home: torch.device) -> Tensor | None:
    """Whether every number is finite, a 0-d bool; None of nothing."""
    if not matrices:
        return None
    largest = torch._foreach_norm(list(matrices), float("inf"))
    return torch.stack([one.to(home) for one in largest]).amax() < float("inf")


def _scale(tensors: list[Tensor], factors: list[Any]) -> None:
    """Multiply each in place, by numbers or by 0-d tensors."""
    if not any(isinstance(one, Tensor) for one in factors):
        torch._foreach_mul_(tensors, factors)
        return
    for tensor, factor in zip(tensors, factors, strict=True):
        tensor.mul_(factor)


def _corrected(running: Tensor, weight: Tensor) -> Tensor:
    eye = torch.eye(running.shape[1], dtype=running.dtype, device=running.device).expand_as(running)
    return torch.where(weight > 0, running / weight, eye)
