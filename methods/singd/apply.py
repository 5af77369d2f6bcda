"""The step of the weights: gradients to directions to momenta to weights, in few calls for all layers.

Every stack has a matrix X (B, room of C, room of K), all of them in one buffer that exists during a step alone: its
storage is given back behind it, so that views of it may be kept and no step has to make them again. Gradients are
copied in by one call, then each stack takes the one or two products that K K^T and C C^T need, and momenta and weights
move by one call each. Where both factors are diagonal, the gradients are scaled where they are and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from methods.kfac.layers import Layer
from methods.singd.stacks import Stack, zeros
from methods.singd.tensors import unpadded

if TYPE_CHECKING:
    from methods.singd.static import StaticStep


@dataclass(eq=False)
class Entry:
    """One parameter: where its gradient goes, what scales it (two diagonals alone), where its momentum lies."""

    parameter: nn.Parameter
    layer: Layer
    target: Tensor
    shape: tuple[int, ...] | None
    scales: tuple[Tensor, Tensor] | None


@dataclass(eq=False)
class Active:
    """What a step works on, for one set of parameters with a gradient.

    Attributes:
        stacks: stacks with an active layer, and those layers; None for all.
        entries: parameters with a gradient, those that are only scaled last.
        parts: momenta to decay: whole stacks or single layers.
        views: momenta in the shapes of the entries' parameters.
    """

    stacks: list[tuple[Stack, list[Layer] | None]]
    entries: list[Entry]
    copied: list[Entry]
    scaled: list[Entry]
    parts: list[Tensor] = field(default_factory=list)
    views: list[Tensor] = field(default_factory=list)


class Apply:
    """The step of all stacks.

    Args:
        stacks: of layers.
        momentum: alpha_2.
        weight_decay: wd.

    Attributes:
        buffers: what the gradients go to.
        static: takes steps by graphs, None for never.
    """

    def __init__(self, stacks: Sequence[Stack], momentum: float, weight_decay: float) -> None:
        self.stacks, self.mu, self.decay = list(stacks), momentum, weight_decay
        self.buffers: list[Tensor] = []
        self.static: StaticStep | None = None
        self._holding = False
        self._x: dict[Stack, Tensor] = {}
        self._entries: list[Entry] = []
        self._known: dict[tuple[bool, ...], Active] = {}
        self._lay_out()

    def _lay_out(self) -> None:
        """X of every stack as a part of a buffer for its dtype and device."""
        sizes: dict[tuple[torch.dtype, torch.device], int] = {}
        places = []
        for stack in self.stacks:
            key = (stack.a.wants, stack.a.value.device)
            shape = (stack.shape[0], stack.g.room, stack.a.room)
            places.append((stack, key, shape, sizes.get(key, 0)))
            # 64 numbers keep every stack at a multiple of 128 bytes.
            sizes[key] = sizes.get(key, 0) + -(-torch.Size(shape).numel() // 64) * 64
        buffers = {key: torch.empty(size, dtype=key[0], device=key[1]) for key, size in sizes.items()}
        self.buffers = list(buffers.values())
        for stack, key, shape, start in places:
            self._x[stack] = buffers[key][start : start + torch.Size(shape).numel()].view(shape)
            for layer in stack.layers:
                self._entries += _entries(stack, layer, self._x[stack])
        self._release()

    @property
    def parameters(self) -> int:
        """How many there are."""
        return len(self._entries)

    def nbytes(self) -> int:
        """Bytes of the buffers that are held."""
        return sum(buffer.untyped_storage().nbytes() for buffer in self.buffers)

    def hold(self) -> None:
        """Hold the buffers, zero where no gradient goes, until a step that gives them back."""
        if not self._holding:
            self._hold()
            self._holding = True

    def _release(self) -> None:
        self._holding = False
        for buffer in self.buffers:
            buffer.untyped_storage().resize_(0)

    def _hold(self) -> None:
        for buffer in self.buffers:
            buffer.untyped_storage().resize_(buffer.numel() * buffer.element_size())
            buffer.zero_()

    # -- what is active ------------------------------------------------------------------------------------------------

    def _active(self) -> Active | None:
        pattern = tuple(entry.parameter.grad is not None for entry in self._entries)
        if not any(pattern):
            return None
        found = self._known.get(pattern)
        if found is None:
            self._known = {pattern: self._find(pattern)}
            found = self._known[pattern]
        return found

    def _find(self, pattern: tuple[bool, ...]) -> Active:
        entries = [entry for entry, has in zip(self._entries, pattern, strict=True) if has]
        layers = {entry.layer for entry in entries}
        stacks: list[tuple[Stack, list[Layer] | None]] = []
        for stack in self.stacks:
            mine = [layer for layer in stack.layers if layer in layers]
            if mine:
                stacks.append((stack, None if len(mine) == len(stack.layers) else mine))
        copied = [entry for entry in entries if entry.scales is None]
        scaled = [entry for entry in entries if entry.scales is not None]
        found = Active(stacks, copied + scaled, copied, scaled)
        if self.mu:
            places: dict[Layer, Tensor] = {}
            for stack, some in stacks:
                if stack.momentum is None:
                    stack.momentum = zeros(stack)
                places |= {layer: stack.momentum[stack.places[layer]] for layer in stack.layers}
                found.parts += _parts(stack, some, stack.momentum)
            found.views = [matrix_view(places[entry.layer], entry) for entry in found.entries]
        return found

    # -- a step --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, lr: float, good: Tensor | None) -> None:
        """Move momenta and weights; nothing changes unless ``good`` (a 0-d bool on a device, None for yes)."""
        active = self._active()
        if active is None or (self.static is not None and self.static.step(self, active, lr, good)):
            return
        # A batch that is not good has to be zeroed in one place, so that then every gradient is copied.
        copied = active.copied if good is None else active.entries
        scaled = active.scaled if good is None else []
        whole = [one for one in active.stacks if good is not None or not one[0].scales]
        try:
            if copied:
                self._hold()
                sources = [_gradient(e) if e.shape is None else _gradient(e).view(e.shape) for e in copied]
                torch._foreach_copy_([entry.target for entry in copied], sources)
                if good is not None:
                    for buffer in self.buffers:
                        buffer.masked_fill_(~good.to(buffer.device), 0)
            found = [(stack, mine, self.direction(stack)) for stack, mine in whole]
            alone = _scale(scaled)
            if self.mu:
                self._with_momentum(active, found, scaled, alone, lr, good)
            else:
                self._without(found, copied, scaled, alone, lr, good)
        finally:
            self._release()

    def direction(self, stack: Stack) -> Tensor:
        """C C^T X K K^T (B, d_out, d_in) in the weights' dtype."""
        found = stack.a.right(self._x[stack], stack.g.wants)
        return unpadded(stack.g.left(found, stack.weight_dtype), stack.shape)

    def _with_momentum(
        self,
        active: Active,
        found: list[tuple[Stack, list[Layer] | None, Tensor]],
        scaled: list[Entry],
        alone: list[Tensor],
        lr: float,
        good: Tensor | None,
    ) -> None:
        weights: list[Tensor] = [entry.parameter for entry in active.entries]
        gains = [part for stack, mine, v in found for part in _parts(stack, mine, v)]
        if good is None:
            torch._foreach_mul_(active.parts, self.mu)
            if gains:
                held = [part for stack, mine, _ in found for part in _parts(stack, mine, _held(stack))]
                torch._foreach_add_(held, gains)
            if alone:
                torch._foreach_add_(active.views[-len(scaled) :], alone)
            if self.decay:
                torch._foreach_add_(active.views, weights, alpha=self.decay)
            torch._foreach_add_(weights, active.views, alpha=-lr)
            return
        moved = torch._foreach_mul(active.parts, self.mu)
        torch._foreach_add_(moved, gains)
        for old, new in zip(active.parts, moved, strict=True):
            torch.where(good.to(old.device), new, old, out=old)
        if self.decay:
            torch._foreach_add_(active.views, _masked(weights, good), alpha=self.decay)
        torch._foreach_add_(weights, _masked(active.views, good), alpha=-lr)

    def _without(
        self,
        found: list[tuple[Stack, list[Layer] | None, Tensor]],
        copied: list[Entry],
        scaled: list[Entry],
        alone: list[Tensor],
        lr: float,
        good: Tensor | None,
    ) -> None:
        places = {layer: v[stack.places[layer]] for stack, _, v in found for layer in stack.layers}
        views = [matrix_view(places[entry.layer], entry) for entry in copied] + alone
        weights: list[Tensor] = [entry.parameter for entry in [*copied, *scaled]]
        if self.decay:
            torch._foreach_add_(views, weights if good is None else _masked(weights, good), alpha=self.decay)
        torch._foreach_add_(weights, views, alpha=-lr)


# -- entries -----------------------------------------------------------------------------------------------------------


def _entries(stack: Stack, layer: Layer, x: Tensor) -> list[Entry]:
    _, d_out, d_in = stack.shape
    place, bias = stack.places[layer], layer.bias
    mine = x[place][:, :d_out]
    found = []
    # Groups lie side by side in the parameter, but apart in X where its rows are padded.
    apart = layer.groups > 1 and x.shape[1] != d_out
    for parameter in layer.parameters:
        part = mine[:, :, d_in - 1] if parameter is bias else mine[:, :, : d_in - (bias is not None)]
        scales = None
        if stack.scales:
            k, c = (side.kept[place.start] for side in (stack.a, stack.g) if side.kept is not None)
            if parameter is bias:
                scales = (k[-1], c)
            else:
                row = k[: d_in - (bias is not None)].view(1, *parameter.shape[1:])
                scales = (row, c.view(-1, *[1] * (parameter.ndim - 1)))
        shape = tuple(part.shape) if apart else None
        found.append(Entry(parameter, layer, part if apart else part.view(parameter.shape), shape, scales))
    return found


def _gradient(entry: Entry) -> Tensor:
    found = entry.parameter.grad
    assert found is not None
    return found.contiguous() if entry.shape is not None else found


def matrix_view(matrix: Tensor, entry: Entry) -> Tensor:
    """The part of a layer's (groups, d_out, d_in) in its parameter's shape; a view where the strides allow."""
    if entry.parameter is entry.layer.bias:
        return matrix[:, :, -1].reshape(entry.parameter.shape)
    return (matrix if entry.layer.bias is None else matrix[:, :, :-1]).reshape(entry.parameter.shape)


def _parts(stack: Stack, mine: list[Layer] | None, tensor: Tensor) -> list[Tensor]:
    return [tensor] if mine is None else [tensor[stack.places[layer]] for layer in mine]


def _held(stack: Stack) -> Tensor:
    assert stack.momentum is not None
    return stack.momentum


def _scale(entries: Sequence[Entry]) -> list[Tensor]:
    """Gradients times both diagonals."""
    if not entries:
        return []
    pairs = [entry.scales for entry in entries if entry.scales is not None]
    found = torch._foreach_mul([_gradient(entry) for entry in entries], [pair[0] for pair in pairs])
    # A bias' gradient may meet a wider dtype here for the first time: no place in which to multiply.
    same = all(one.dtype == pair[1].dtype for one, pair in zip(found, pairs, strict=True))
    if not same:
        return list(torch._foreach_mul(found, [pair[1] for pair in pairs]))
    torch._foreach_mul_(found, [pair[1] for pair in pairs])
    return list(found)


def _masked(tensors: Sequence[Tensor], good: Tensor) -> list[Tensor]:
    """The tensors, or zeros where ``good`` is false; they are finite."""
    devices = {tensor.device for tensor in tensors}
    if len(devices) == 1:
        return list(torch._foreach_mul(list(tensors), good.to(devices.pop(), tensors[0].dtype)))
    return [tensor * good.to(tensor.device, tensor.dtype) for tensor in tensors]
