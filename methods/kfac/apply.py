"""The update: layers of one shape in one padded stack, so that a step is a few large kernels.

A stack holds L layers as (L groups, height, width), height and width being d_out and d_in rounded up to full vectors
of a GPU's memory access; the padding is zero and stays zero, so every product and sum is that of the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from methods.kfac import clipping
from methods.kfac.inverse.base import State
from methods.kfac.layers import Layer
from methods.kfac.products import fused_mix

if TYPE_CHECKING:
    from methods.kfac.kfac import KFAC
    from methods.kfac.refresh import Slot

#: Row lengths are multiples of it: 8 numbers of 16 bits are the 16 bytes that a tensor core's operand needs to be
#: aligned to (NVIDIA, cuBLAS, "Tensor Core Usage").
ALIGN = 8


def padded(size: int, align: int = ALIGN) -> int:
    """``size`` rounded up."""
    return -(-size // align) * align


class Stack:
    """Layers of one shape, and where their gradients, directions, momenta and inverses lie together.

    Attributes:
        layers: of one shape, dtype and device.
        inverses: for A and for G, the back-end's state of all layers; None before it is known to be stackable.
    """

    def __init__(self, layers: Sequence[Layer], align: int = ALIGN) -> None:
        first = layers[0]
        self.layers = list(layers)
        self.groups, self.d_out, self.d_in = first.groups, first.d_out, first.d_in
        self.height, self.width = padded(first.d_out, align), padded(first.d_in, align)
        self.inverses: list[State | None] = [None, None]
        self._views: list[list[State]] = [[], []]
        self._known: dict[int, tuple[list[Tensor], Tensor]] | None = None
        self._momentum: Tensor | None = None
        self._momenta: list[Tensor] = []
        self._pieces: list[list[Tensor] | None] = []
        self._gradients: tuple[Tensor, list[Tensor], list[list[Tensor]]] | None = None

    def zeros(self, count: int | None = None) -> Tensor:
        """A new stack in the factors' dtype, of ``count`` layers."""
        first = self.layers[0]
        shape = ((count or len(self.layers)) * self.groups, self.height, self.width)
        return torch.zeros(shape, dtype=first.dtype, device=first.weight.device)

    def one(self, stack: Tensor, index: int) -> Tensor:
        """Layer ``index``, padding and all."""
        return stack[index * self.groups : (index + 1) * self.groups]

    def view(self, stack: Tensor, index: int) -> Tensor:
        """(groups, d_out, d_in) of layer ``index``."""
        if not stack.is_contiguous():
            return self.one(stack, index)[:, : self.d_out, : self.d_in]
        area = self.height * self.width
        place = stack.storage_offset() + index * self.groups * area
        return stack.as_strided((self.groups, self.d_out, self.d_in), (area, self.width, 1), place)

    def views(self, stack: Tensor, count: int) -> list[Tensor]:
        """(groups, d_out, d_in) of the first ``count`` layers of a stack; in a step they are known to be its parts."""
        found = [self.view(stack, index) for index in range(count)]
        if self._known is not None:
            self._known[id(found[0])] = (found, stack)
        return found

    def know(self, stepping: bool) -> None:
        """Begin or end a step: outside, nothing is kept."""
        self._known = {} if stepping else None

    def gathered(self, matrices: Sequence[Tensor]) -> Tensor:
        """Matrices (groups, d_out, d_in) as one stack: the one that they are the known parts of, or a copy."""
        known = self._known.get(id(matrices[0])) if self._known is not None else None
        if known is not None and len(known[0]) == len(matrices) and all(map(is_, matrices, known[0])):
            return known[1]
        made = self.zeros(len(matrices))
        for index, matrix in enumerate(matrices):
            self.view(made, index).copy_(matrix)
        return made

    # -- gradients -----------------------------------------------------------------------------------------------------

    def gradients(self) -> tuple[Tensor, list[Tensor], list[list[Tensor]]]:
        """A stack that is kept between steps, every layer's part of it, and that in the parameters' shapes."""
        if self._gradients is None:
            whole = self.zeros()
            parts = [self.view(whole, index) for index in range(len(self.layers))]
            pairs = zip(self.layers, parts, strict=True)
            self._gradients = whole, parts, [_like_parameters(layer, part) for layer, part in pairs]
        whole, parts, _ = self._gradients
        if self._known is not None:
            self._known[id(parts[0])] = (parts, whole)
        return self._gradients

    def release(self) -> None:
        """Give the kept gradients' memory back."""
        self._gradients = None

    # -- inverses ------------------------------------------------------------------------------------------------------

    def allocate(
        self, side: int, index: int, start: State, wide: Mapping[str, tuple[int, ...]], half: torch.dtype | None
    ) -> State:
        """Room for one layer's inverse, filled with ``start``: in the stack, or alone if its shape is not the stack's.

        Args:
            side: 0 for A, 1 for G.
            index: of the layer.
            start: the state to put there; the stack's shape follows the first one.
            wide: see :class:`methods.kfac.inverse.base.Inverse`.
            half: dtype of the wide tensors, None for their own.
        """
        held = self.inverses[side]
        if held is not None and not self._fits(held, start, wide):
            return {
                key: value.to(half if key in wide and half else value.dtype, copy=True) for key, value in start.items()
            }
        if held is None:
            held = self.inverses[side] = {}
            for key, value in start.items():
                shape = (len(self.layers) * self.groups, *_room(value, wide.get(key, ())))
                held[key] = value.new_zeros(shape, dtype=half if key in wide and half else None)
            self._views[side] = [{}] * len(self.layers)
        made: State = {}
        for key, value in start.items():
            room = self.one(held[key], index)
            for dim, size in enumerate(value.shape):
                room = room.narrow(dim, 0, size)
            made[key] = room.copy_(value)
        self._views[side][index] = made
        return made

    def _fits(self, held: State, start: State, wide: Mapping[str, tuple[int, ...]]) -> bool:
        return set(held) == set(start) and all(
            held[key].shape[1:] == _room(value, wide.get(key, ())) for key, value in start.items()
        )

    def whole(self, side: int, slots: Sequence[Slot]) -> State | None:
        """The stacked state of one side, if every slot still lies in it."""
        views = self._views[side]
        if len(views) != len(slots):
            return None
        for view, slot in zip(views, slots, strict=True):
            state = slot.state
            if not view or state is None or any(state.get(key) is not value for key, value in view.items()):
                return None
        return self.inverses[side]

    # -- momentum ------------------------------------------------------------------------------------------------------

    def momentum(self, momenta: dict[Layer, Tensor], layers: Sequence[Layer]) -> Tensor:
        """The stacked momentum; entries of ``momenta`` become views of it, new ones start at 0."""
        if self._momentum is None:
            self._momentum = self.zeros()
            self._momenta = [self.view(self._momentum, index) for index in range(len(self.layers))]
            self._pieces = [None] * len(self.layers)
        for layer, mine in zip(self.layers, self._momenta, strict=True):
            held = momenta.get(layer)
            if held is mine or layer not in layers:
                continue
            if held is None:
                mine.zero_()
            else:
                mine.copy_(held)
            momenta[layer] = mine
        return self._momentum

    def pieces(self, stack: Tensor, first: int, index: int) -> list[Tensor]:
        """What goes to the parameters of layer ``first + index``, ``index`` counted in ``stack``; kept for momenta."""
        layer = self.layers[first + index]
        if self._momentum is None or not _same_memory(stack, self._momentum):
            return layer.views(self.view(stack, index))
        held = self._pieces[first + index]
        if held is None:
            held = layer.views(self._momenta[first + index])
            if all(_same_memory(piece, self._momentum) for piece in held):
                self._pieces[first + index] = held
        return held


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
            owner = self.optimizer.ranks.owner[layer]
            key = (owner, layer.groups, layer.d_out, layer.d_in, layer.dtype, layer.weight.device)
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
                targets += _split(layer, views[layer])
        if targets:
            torch._foreach_copy_(targets, sources)
        return active, [views[layer] for layer in active]

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
        units = self._units(active, gradients, self.optimizer._combine(active, gradients)) if active else []
        _clip(units, opt.clip, opt.clip_value, lr, total, seen[0].weight.device)
        if decays and units and opt.weight_decay_mode == "coupled":
            _add_weights([one for u in units for one in u.layers], [view for u in units for view in u.views()], decays)
        if units:
            self._move(units, lr, 1 - lr * decays if opt.weight_decay_mode == "decoupled" else 1.0, finite)

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


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _room(value: Tensor, dims: Sequence[int]) -> torch.Size:
    return torch.Size(padded(n) if i in dims else n for i, n in enumerate(value.shape) if i > 0)


def gathered(stack: Stack, matrices: Sequence[Tensor]) -> Tensor:
    """:meth:`Stack.gathered`."""
    return stack.gathered(matrices)


def _checked(held: Sequence[Tensor], new: Sequence[Tensor], mu: float, finite: Tensor) -> list[Tensor]:
    """held <- mu held + new unless the batch was not finite; what the weights move by, zero then."""
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


def _like_parameters(layer: Layer, matrix: Tensor) -> list[Tensor]:
    """Views of a matrix (groups, d_out, d_in) that gradients are copied into: in the parameters' shapes where a view
    of it can have them, else as :meth:`Layer.parts`.
    """
    weight = matrix if layer.bias is None else matrix[:, :, :-1]
    if layer.groups > 1:
        return _split(layer, matrix)
    if layer.channels_last:
        out, channels, *kernel = layer.weight.shape
        found = [weight[0].unflatten(1, (*kernel, channels)).permute(0, 3, 1, 2)]
    else:
        found = [weight[0].unflatten(1, layer.weight.shape[1:])]
    return found if layer.bias is None else [*found, matrix[0, :, -1]]


def _split(layer: Layer, matrix: Tensor) -> list[Tensor]:
    """Views of the weight's and the bias' columns."""
    return [matrix] if layer.bias is None else [matrix[:, :, :-1], matrix[:, :, -1:]]


def _add_weights(layers: Sequence[Layer], matrices: Sequence[Tensor], decays: float) -> None:
    targets = [part for layer, matrix in zip(layers, matrices, strict=True) for part in _split(layer, matrix)]
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
