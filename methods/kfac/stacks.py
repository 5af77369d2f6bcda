"""Layers of one shape in one padded stack: where their gradients, directions, momenta and inverses lie together.

A stack holds L layers as (L groups, height, width), height and width being d_out and d_in rounded up to full vectors
of a GPU's memory access; the padding is zero and stays zero, so every product and sum is that of the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from methods.kfac.inverse.base import State
from methods.kfac.layers import Layer

if TYPE_CHECKING:
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
        self._rooms: tuple[list[list[Tensor]], list[Tensor], bool] | None = None

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
            self._gradients = whole, parts, [like_parameters(layer, part) for layer, part in pairs]
        whole, parts, _ = self._gradients
        if self._known is not None:
            self._known[id(parts[0])] = (parts, whole)
        return self._gradients

    def rooms(self) -> tuple[list[Tensor], bool]:
        """Every parameter's place in :meth:`gradients`, and whether it has the parameter's own shape."""
        found = self.gradients()[2]
        if self._rooms is None or self._rooms[0] is not found:
            direct = all(room[0].shape == layer.weight.shape for room, layer in zip(found, self.layers, strict=True))
            self._rooms = found, [one for room in found for one in room], direct
        return self._rooms[1:]

    def kept(self) -> list[Tensor]:
        """The stack of gradients, if it is kept between steps now."""
        return [] if self._gradients is None else [self._gradients[0]]

    def release(self) -> None:
        """Give the kept gradients' memory back."""
        self._gradients = self._rooms = None

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


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _room(value: Tensor, dims: Sequence[int]) -> torch.Size:
    return torch.Size(padded(n) if i in dims else n for i, n in enumerate(value.shape) if i > 0)


def like_parameters(layer: Layer, matrix: Tensor) -> list[Tensor]:
    """Views of a matrix (groups, d_out, d_in) for gradients, in the parameters' shapes or as :meth:`Layer.parts`."""
    weight = matrix if layer.bias is None else matrix[:, :, :-1]
    if layer.groups > 1:
        return split(layer, matrix)
    if layer.channels_last:
        _, channels, *kernel = layer.weight.shape
        found = [_split_columns(weight[0], (*kernel, channels)).permute(0, 3, 1, 2)]
    else:
        found = [_split_columns(weight[0], layer.weight.shape[1:])]
    return found if layer.bias is None else [*found, matrix[0, :, -1]]


def split(layer: Layer, matrix: Tensor) -> list[Tensor]:
    """Views of the weight's and the bias' columns."""
    return [matrix] if layer.bias is None else [matrix[:, :, :-1], matrix[:, :, -1:]]


def _split_columns(matrix: Tensor, sizes: Sequence[int]) -> Tensor:
    """(d_out, columns) as (d_out, *sizes), a view."""
    _, across = matrix.stride()
    strides = [across]
    for size in reversed(sizes[1:]):
        strides.insert(0, strides[0] * size)
    return matrix.as_strided((len(matrix), *sizes), (matrix.stride(0), *strides))


def gathered(stack: Stack, matrices: Sequence[Tensor]) -> Tensor:
    """:meth:`Stack.gathered`."""
    return stack.gathered(matrices)
