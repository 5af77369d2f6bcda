"""The update: layers of one shape in one padded stack (:mod:`methods.kfac.stacks`), so it is a few large kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from methods.kfac import clipping, products
from methods.kfac.inverse.base import State
from methods.kfac.layers import Layer
from methods.kfac.products import fused_mix
from methods.kfac.stacks import ALIGN, Stack, split

if TYPE_CHECKING:
    from methods.kfac.kfac import KFAC


@dataclass
class Unit:
    """A whole stack, or one layer of it: contiguous, padding and all.

    Attributes:
        layers: in it.
        v: direction.
        x: gradient.
        stack: where it lies.
        first: index of the first layer.
    """

    layers: list[Layer]
    v: Tensor
    x: Tensor
    stack: Stack
    first: int

    def views(self) -> list[Tensor]:
        """(groups, d_out, d_in) of every layer's direction."""
        return [self.stack.view(self.v, index) for index in range(len(self.layers))]


class Update:
    """Gradients to directions to weights, for one optimizer."""

    def __init__(self, optimizer: KFAC) -> None:
        self.optimizer = optimizer
        self.build()

    def build(self) -> None:
        """Sort the layers into stacks; again after the model has been moved or cast."""
        buckets: dict[Any, list[Layer]] = {}
        for layer in self.optimizer.layers:
            ranks = (self.optimizer.ranks.owner[layer], self.optimizer.ranks.keeper[layer])
            key = (ranks, layer.groups, layer.d_out, layer.d_in, layer.dtype, layer.weight.device)
            buckets.setdefault(key, []).append(layer)
        align = ALIGN if self.optimizer.backend.wide else 1
        self.stacks = [Stack(layers, align) for layers in buckets.values()]
        self.place = {layer: (stack, i) for stack in self.stacks for i, layer in enumerate(stack.layers)}

    def allocate(self, layer: Layer, side: int, start: State) -> State:
        """A place for the inverse of a layer's A (side 0) or G (1), filled with ``start``."""
        stack, index = self.place[layer]
        half = self.optimizer.half if layer.dtype == torch.float32 else None
        return stack.allocate(side, index, start, self.optimizer.backend.wide, half)

    def release(self) -> None:
        """Give back what is kept between steps to spare views: before a backward that needs the memory more."""
        for stack in self.stacks:
            stack.release()

    def adopt(self, layer: Layer) -> None:
        """Move a layer's states (loaded, or cast) into their stack."""
        for side, slot in enumerate(self.optimizer.slots[layer]):
            if slot.state is not None:
                slot.state = self.allocate(layer, side, slot.state)

    def directions(self, layers: Sequence[Layer], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Preconditioned gradients: a stack at once where all of its layers are asked for and have inverses."""
        wanted = dict(zip(layers, gradients, strict=True))
        found: dict[Layer, Tensor] = {}
        for stack in self.stacks:
            if len(wanted) != len(layers) or not all(layer in wanted for layer in stack.layers):
                continue
            slots = [self.optimizer.slots[layer] for layer in stack.layers]
            a, g = stack.whole(0, [pair[0] for pair in slots]), stack.whole(1, [pair[1] for pair in slots])
            if a is not None and g is not None:
                columns = stack.gathered([wanted[layer] for layer in stack.layers])
                out = self.optimizer.precondition(a, g, columns).contiguous()
                found.update(zip(stack.layers, stack.views(out, len(stack.layers)), strict=True))
        pairs = zip(layers, gradients, strict=True)
        return [found[one] if one in found else self.optimizer.direction(one, x) for one, x in pairs]

    # -- a step --------------------------------------------------------------------------------------------------------

    def seen(self) -> list[Layer]:
        """Layers with a gradient."""
        return [layer for layer in self.optimizer.layers if layer.weight.grad is not None or _bias_gradient(layer)]

    def gradients(self) -> tuple[list[Layer], list[Tensor]]:
        """Layers with a gradient that this rank updates, and their gradients as views of stacks."""
        active = [layer for layer in self.seen() if self.optimizer.ranks.mine(layer)]
        chosen = set(active)
        views: dict[Layer, Tensor] = {}
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for stack in self.stacks:
            mine = [layer for layer in stack.layers if layer in chosen]
            if not mine:
                continue
            if len(mine) == len(stack.layers):
                _, parts, rooms = stack.gradients()
                for layer, part, room in zip(mine, parts, rooms, strict=True):
                    views[layer] = part
                    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in layer.parameters]
                    sources += grads if room[0].shape == layer.weight.shape else layer.parts(grads)
                    targets += room
                continue
            for layer, view in zip(mine, stack.views(stack.zeros(len(mine)), len(mine)), strict=True):
                views[layer] = view
                grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in layer.parameters]
                sources += layer.parts(grads)
                targets += split(layer, views[layer])
        if targets:
            torch._foreach_copy_(targets, sources)
        return active, [views[layer] for layer in active]

    def bring(self) -> None:
        """All gradients into their stacks, where every parameter has one; :meth:`gradients` takes the host longer."""
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for stack in self.stacks:
            rooms, direct = stack.rooms()
            targets += rooms
            for layer in stack.layers:
                grads = [p.grad for p in layer.parameters if p.grad is not None]
                sources += grads if direct else layer.parts(grads)
        torch._foreach_copy_(targets, sources)

    def step(self, lr: float, decays: float, finite: Tensor | None) -> None:
        """Move the weights; nothing moves when the batch was not finite."""
        seen = self.seen()
        if not seen:
            return
        for stack in self.stacks:
            stack.know(True)
        try:
            self._step(seen, lr, decays, finite)
        finally:
            for stack in self.stacks:
                stack.know(False)
        self.optimizer.ranks.spread(seen)

    def _step(self, seen: Sequence[Layer], lr: float, decays: float, finite: Tensor | None) -> None:
        opt, total = self.optimizer.options, self.optimizer.ranks.total
        active, gradients = self.gradients()
        if decays and active and opt.weight_decay_mode == "gradient":
            _add_weights(active, gradients, decays)
        units = self._stacked(active, gradients) if active else []
        _clip(units, opt.clip, opt.clip_value, lr, total, seen[0].weight.device)
        if decays and units and opt.weight_decay_mode == "coupled":
            _add_weights([one for u in units for one in u.layers], [view for u in units for view in u.views()], decays)
        units = self._handed(units, set(seen))
        if units:
            self._move(units, lr, 1 - lr * decays if opt.weight_decay_mode == "decoupled" else 1.0, finite)

    def _handed(self, units: list[Unit], seen: set[Layer]) -> list[Unit]:
        """What this rank moves: directions go to the rank that keeps the momenta, where that is another one."""
        ranks = self.optimizer.ranks
        if not any(ranks.apart(stack.layers[0]) for stack in self.stacks):
            return units
        places = {id(stack): place for place, stack in enumerate(self.stacks)}
        mine = [unit for unit in units if not ranks.apart(unit.layers[0])]
        leaving = [unit for unit in units if ranks.apart(unit.layers[0])]
        leaving.sort(key=lambda unit: (places[id(unit.stack)], unit.first))
        coming: list[Unit] = []
        for stack in self.stacks:
            if not ranks.apart(stack.layers[0]) or not ranks.keeps(stack.layers[0]):
                continue
            # As on the owner: a whole stack at once, or what has a gradient one by one.
            whole = all(layer in seen for layer in stack.layers)
            parts = [(0, stack.layers)] if whole else [(i, [x]) for i, x in enumerate(stack.layers) if x in seen]
            for first, layers in parts:
                room = stack.zeros(len(layers))
                coming.append(Unit(list(layers), room, room, stack, first))
        ranks.hand_over(
            [(unit.v.to(unit.layers[0].dtype), ranks.keeper[unit.layers[0]]) for unit in leaving],
            [(unit.v, ranks.owner[unit.layers[0]]) for unit in coming],
        )
        return mine + coming

    def _stacked(self, active: Sequence[Layer], gradients: Sequence[Tensor]) -> list[Unit]:
        """Directions, without a view of each layer's where nobody but K-FAC itself looks at them."""
        wanted, rest, units = dict(zip(active, gradients, strict=True)), list(active), []
        for stack in self.stacks if self.optimizer.plain else []:
            if not all(layer in wanted for layer in stack.layers):
                continue
            slots = [self.optimizer.slots[layer] for layer in stack.layers]
            a, g = stack.whole(0, [pair[0] for pair in slots]), stack.whole(1, [pair[1] for pair in slots])
            if a is not None and g is not None:
                x = stack.gathered([wanted[layer] for layer in stack.layers])
                with products.scope(self.optimizer.options.product_dtype):
                    v = self.optimizer.precondition(a, g, x).contiguous()
                units.append(Unit(stack.layers, v, x, stack, 0))
                rest = [layer for layer in rest if layer not in stack.layers]
        if rest:
            chosen = [wanted[layer] for layer in rest]
            units += self._units(rest, chosen, self.optimizer._combine(rest, chosen))
        return units

    def _units(self, active: Sequence[Layer], gradients: Sequence[Tensor], found: Sequence[Tensor]) -> list[Unit]:
        x, v = dict(zip(active, gradients, strict=True)), dict(zip(active, found, strict=True))
        units: list[Unit] = []
        for stack in self.stacks:
            if all(layer in v for layer in stack.layers):
                whole = [stack.gathered([one[layer] for layer in stack.layers]) for one in (v, x)]
                units.append(Unit(stack.layers, whole[0], whole[1], stack, 0))
                continue
            for index, layer in enumerate(stack.layers):
                if layer in v:
                    units.append(Unit([layer], stack.gathered([v[layer]]), stack.gathered([x[layer]]), stack, index))
        return units

    def _move(self, units: Sequence[Unit], lr: float, shrink: float, finite: Tensor | None) -> None:
        moving = [unit.v for unit in units]
        if mu := self.optimizer.options.momentum:
            held = []
            for unit in units:
                whole = unit.stack.momentum(self.optimizer.momenta, unit.layers)
                held.append(whole[unit.first * unit.stack.groups :][: len(unit.v)])
            if finite is None:
                torch._foreach_mul_(held, mu)
                torch._foreach_add_(held, moving)
                moving = held
            else:
                moving = _checked(held, moving, mu, finite)
        elif finite is not None:
            moving = [torch.where(finite.to(v.device), v, 0.0) for v in moving]
        self._weights(units, moving, lr, shrink, finite)

    def _weights(
        self, units: Sequence[Unit], moving: Sequence[Tensor], lr: float, shrink: float, finite: Tensor | None
    ) -> None:
        weights: list[Tensor] = []
        parts: list[Tensor] = []
        for unit, v in zip(units, moving, strict=True):
            for index, layer in enumerate(unit.layers):
                pieces = unit.stack.pieces(v, unit.first, index)
                for parameter, part in zip(layer.parameters, pieces, strict=True):
                    if parameter.grad is not None:
                        weights.append(parameter)
                        parts.append(part)
        if shrink != 1.0 and finite is None:
            torch._foreach_mul_(weights, shrink)
        elif shrink != 1.0 and finite is not None:
            for weight in weights:
                weight.mul_(1.0 + finite.to(weight.device, weight.dtype) * (shrink - 1.0))
        torch._foreach_add_(weights, parts, alpha=-lr)


# -- stacks and lists --------------------------------------------------------------------------------------------------


def _bias_gradient(layer: Layer) -> bool:
    return layer.bias is not None and layer.bias.grad is not None


def _checked(held: Sequence[Tensor], new: Sequence[Tensor], mu: float, finite: Tensor) -> list[Tensor]:
    """Held <- mu held + new unless the batch was not finite; what the weights move by, zero then."""
    where: dict[Any, list[int]] = {}
    for index, one in enumerate(held):
        where.setdefault((one.device, one.dtype), []).append(index)
    found: dict[int, Tensor] = {}
    for (device, dtype), members in where.items():
        kept = [held[index] for index in members]
        fused_mix(kept, [new[index] for index in members], 1 - mu, (~finite).to(device, torch.float32))
        # What is kept is finite, whatever ``new`` has.
        found.update(zip(members, torch._foreach_mul(kept, finite.to(device, dtype)), strict=True))
    return [found[index] for index in range(len(held))]


def _add_weights(layers: Sequence[Layer], matrices: Sequence[Tensor], decays: float) -> None:
    targets = [part for layer, matrix in zip(layers, matrices, strict=True) for part in split(layer, matrix)]
    sources = [part for layer in layers for part in layer.parts(layer.parameters)]
    sources = [source.to(target.dtype) for source, target in zip(sources, targets, strict=True)]
    torch._foreach_add_(targets, sources, alpha=decays)


def _clip(
    units: Sequence[Unit],
    mode: str,
    clip: float,
    lr: float,
    total: Callable[[Tensor], Tensor],
    device: torch.device,
) -> None:
    if mode == "rms":
        views = [view for unit in units for view in unit.views()]
        for view, factor in zip(views, clipping.factors(mode, clip, lr, views, views), strict=True):
            view.mul_(factor)
        return
    if mode == "kl" and not units:  # the other ranks' layers wait for this one's share
        total(torch.zeros((), device=device))
        return
    factors = clipping.factors(mode, clip, lr, [unit.v for unit in units], [unit.x for unit in units], total)
    if factors:
        torch._foreach_mul_([unit.v for unit in units], factors[0])
