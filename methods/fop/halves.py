"""Gradients of the two halves of a batch, from two passes or from one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import Unsupported, UserError
from methods.kfac.kfac import KFAC
from methods.kfac.layers import Layer, input_rows, output_rows
from methods.kfac.sharding import average

Gradients = dict[nn.Parameter, Tensor]


class Halves(KFAC):
    """K-FAC that knows d = g1 - g2 of every layer; ``.grad`` holds g = (g1 + g2) / 2 when the step begins.

    ``split="passes"``: ``step(closure)`` calls ``closure(part=0)`` and ``closure(part=1)``; or, without a closure,
    :meth:`first_half` is called between the two backward passes. The statistics are those of both halves together.
    ``split="batch"``: the whole batch goes backward once (or in micro-batches), and ``step()`` is called as for K-FAC.

    With ``reduction="sum"`` all of this is for the sum: g = g1 + g2 and d = 2 (g1 - g2), so that ratios are the same.
    """

    #: Groups of processes may work on the two halves at the same time: the weights do not move between them.
    parts_at_once = True

    def __init__(self, model: nn.Module, lr: float, *, split: str, **options: Any) -> None:
        self.split = split
        self._first: Gradients | None = None
        self._half: dict[Layer, Tensor] = {}
        self._difference: dict[Layer, Tensor] = {}
        self._apart: Gradients = {}
        super().__init__(model, lr, **options)
        if split == "batch" and self.options.fisher != "empirical":
            raise UserError(
                f"split='batch' reads the ordinary backward; with fisher={self.options.fisher!r} use passes."
            )
        self.sub_batches = 2 if split == "passes" else 1
        if split == "passes":
            self.step_needs = self.step_needs | {"closure"}

    # -- two passes ----------------------------------------------------------------------------------------------------

    def first_half(self) -> None:
        """Call it between the backward passes of the two halves, each on the mean loss of its half.

        Raises:
            UserError: for ``split="batch"``, without a gradient, or twice.
        """
        if self.split != "passes":
            raise UserError("first_half() belongs to split='passes'; split='batch' takes one backward pass.")
        if self._first is not None:
            raise UserError("first_half() was called twice before the step.")
        found = {p: p.grad for group in self.param_groups for p in group["params"] if p.grad is not None}
        if not found:
            raise UserError("first_half(): no parameter has a gradient; call it after the first half's backward.")
        self.halves(found)
        for parameter in found:
            parameter.grad = None

    def halves(self, first: Mapping[nn.Parameter, Tensor]) -> None:
        """Give g1 directly (ranks of another group computed it); ``.grad`` is g2 when the step begins.

        The tensors are kept and changed.
        """
        self._first = dict(first)

    def step(self, closure: Callable[..., Any] | None = None) -> Any:  # type: ignore[override]
        """One update.

        Args:
            closure: ``closure(part=0|1)`` runs forward and backward on one half and returns its mean loss; it zeroes
                nothing. Not needed after :meth:`first_half`, nor for ``split="batch"``.

        Raises:
            UserError: no halves.
        """
        if self.split == "passes":
            closure = self._both(closure) if closure is not None else self._given()
        base: Any = KFAC.step
        # torch wraps the step of a class at its first instance; wrapped twice, a user's hooks would run twice.
        return (base.__wrapped__ if getattr(base, "hooked", False) else base)(self, closure)

    def _both(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        self._first = None

        def both(part: int | None = None, targets: str = "data") -> Any:
            if targets != "data":
                return closure(part=part, targets=targets)
            one = closure(part=0)
            self.first_half()
            two = closure(part=1)
            if not (isinstance(one, Tensor) and isinstance(two, Tensor)):
                return two
            total = one.detach() + two.detach()
            return total if self.options.reduction == "sum" else total / 2

        return both

    def _given(self) -> Callable[..., Any]:
        if self._first is None:
            raise UserError(
                "split='passes' needs both halves: step(closure) with closure(part), or backward, first_half(), "
                "backward, step(); split='batch' needs neither."
            )
        if self.options.fisher != "empirical":
            raise UserError(f"fisher={self.options.fisher!r} draws targets: call step(closure).")
        return lambda **_: None

    def _model_passes(self, closure: Callable[..., Any]) -> int:
        """The ordinary backward brings the statistics: of two half batches, each with its own mean."""
        return 2 if self.options.fisher == "empirical" else super()._model_passes(closure)

    def _loss_scale(self) -> Tensor | float | None:
        """As there; also between statistics, as the first half is caught at every step."""
        unscaled = hasattr(self, "found_inf") and getattr(self, "grad_scale", None) is None
        if unscaled and self.grad_scaler is None and (self._first is not None or self._half):
            raise Unsupported(
                "gradients were unscaled before the step (gradient clipping?), so the scale of the first half's is "
                "unknown; give the scaler to the constructor: grad_scaler=scaler."
            )
        if self._first is not None and hasattr(self, "found_inf") and not self._first_is_finite():
            return None
        scale = super()._loss_scale()
        if scale is not None:
            self._merge(scale)
        return scale

    def _first_is_finite(self) -> bool:
        """Loss scaling looks at ``.grad`` alone; that path waits for the device in any case."""
        assert self._first is not None
        return bool(torch.stack([g.isfinite().all() for g in self._first.values()]).all())

    def _merge(self, scale: Tensor | float) -> None:
        """``.grad`` becomes g, and every layer gets its d."""
        self._difference, self._apart = {}, {}
        if self.split == "batch":
            average(list(self._half.values()))
            pairs = [(layer, half, layer.gradient()) for layer, half in self._half.items()]
            known = [(layer, half, gradient) for layer, half, gradient in pairs if gradient is not None]
            self._half = {}
            if not known:
                return
            layers, halves, gradients = (list(column) for column in zip(*known, strict=True))
            # g1 = 2 half and g2 = 2 (g - half) for a mean loss; the same line for a sum.
            if isinstance(scale, Tensor):
                found = [4 * half / scale for half in halves]
            else:
                found = list(torch._foreach_mul(halves, 4.0 / scale))
            torch._foreach_sub_(found, gradients, alpha=2)
            self._difference = dict(zip(layers, found, strict=True))
            return
        first, self._first = self._first or {}, None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in first and parameter.grad is None:
                    parameter.grad = torch.zeros_like(first[parameter])
        present = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        ones = [first[p] if p in first else torch.zeros_like(p) for p in present]
        twos = [p.grad for p in present if p.grad is not None]
        if not present:
            return
        whole = 2.0 if self.options.reduction == "sum" else 1.0
        if isinstance(scale, Tensor) or scale != 1.0:
            for one in ones:
                one.div_(scale.to(one.device) if isinstance(scale, Tensor) else scale)
        torch._foreach_sub_(ones, twos)
        torch._foreach_add_(twos, ones, alpha=0.5)
        if whole != 1.0:
            torch._foreach_mul_([*ones, *twos], whole)
        self._apart = dict(zip(present, ones, strict=True))

    def _fill(self, layers: Sequence[Layer], rooms: Sequence[Tensor]) -> None:
        """Write every layer's d (groups, d_out, d_in) into its room, which holds zeros.

        Raises:
            UserError: a layer whose halves did not come.
        """
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for layer, room in zip(layers, rooms, strict=True):
            if layer in self._difference:
                targets.append(room)
                sources.append(self._difference[layer].to(room))
                continue
            found = [self._apart.get(p) for p in layer.parameters]
            if all(one is None for one in found):
                raise UserError(f"layer {layer.name} has a gradient, but not one of each half.")
            pairs = zip(layer.parameters, found, strict=True)
            sources += layer.parts([torch.zeros_like(p) if one is None else one for p, one in pairs])
            targets += [room] if layer.bias is None else [room[:, :, :-1], room[:, :, -1:]]
        torch._foreach_copy_(targets, sources)

    # -- one pass ------------------------------------------------------------------------------------------------------

    def captures(self, step: int) -> bool:
        """With ``split="batch"`` every backward is watched."""
        return self.split == "batch" or super().captures(step)

    def _take(self, layer: Layer, module: Any, inputs: Tensor, gradients: Tensor, backward: int) -> None:
        if super().captures(self.steps):
            super()._take(layer, module, inputs, gradients, backward)
        if self.split == "batch":
            with self._parts.span("halves", gradients.is_cuda):
                found = half_gradient(layer, module, inputs, gradients)
                held = self._half.get(layer)
                self._half[layer] = found if held is None else held + found

    def forget(self) -> None:
        """Drop what backward passes have brought since the last step."""
        self._first, self._half = None, {}
        super().forget()


def half_gradient(layer: Layer, module: Any, inputs: Tensor, gradients: Tensor) -> Tensor:
    """The first half of the samples' share of dW, (groups, d_out, d_in) in the factors' dtype.

    Raises:
        Unsupported: a batch of one sample.
    """
    batched = inputs.ndim > (3 if isinstance(module, nn.Conv2d) else 1)
    count = inputs.shape[0] // 2 if batched else 0
    if count == 0:
        raise Unsupported(f"layer {layer.name} saw a batch of {tuple(inputs.shape)}: FOP needs two samples or more.")
    a, b = inputs[:count], gradients[:count]
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        parts = [
            functional.grad.conv2d_weight(  # type: ignore[attr-defined]
                a.to(b.dtype), module.weight.shape, b, module.stride, module.padding, module.dilation, module.groups
            )
        ]
        if layer.bias is not None:
            parts.append(b.sum((0, 2, 3)))
        return layer.matrix(parts)
    rows_a, rows_b = input_rows(module, a.to(layer.dtype)), output_rows(module, b).to(layer.dtype)
    rows_a, rows_b = (rows.flatten(1, 2) for rows in (rows_a, rows_b))
    found = rows_b.mT @ rows_a
    return found if layer.bias is None else torch.cat([found, rows_b.sum(1)[:, :, None]], dim=2)
