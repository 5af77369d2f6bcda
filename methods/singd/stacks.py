"""Layers of equal shape as one stack: their factors, updates and directions in one call each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from methods.kfac.layers import Layer
from methods.singd.options import Options, pair
from methods.singd.products import precision
from methods.singd.rows import wide
from methods.singd.structures import Structure, structure

#: Largest matrix of a stack in bytes: beyond, a layer keeps a GPU busy alone and a stack only costs copies.
_LARGEST = 1 << 26


@dataclass(eq=False)
class Side:
    """One factor (K or C) of a stack.

    Attributes:
        kind: its structure.
        value: the factors (B, count).
        momentum: Riemannian momentum (B, count), None if it is 0 or before the first update.
        kept: K K^T in its structure's form, where kept.
    """

    kind: Structure
    value: Tensor
    momentum: Tensor | None
    kept: Tensor | None

    @property
    def room(self) -> int:
        """The extent that :meth:`right` and :meth:`left` want."""
        return self.kind.d if self.kept is None else self.kind.room

    @property
    def wants(self) -> torch.dtype:
        """The dtype that they multiply in."""
        return self.value.dtype if self.kept is None or self.kept.is_complex() else self.kept.dtype

    def right(self, x: Tensor, out: torch.dtype) -> Tensor:
        """X K K^T for all members: (B, n, room) in ``out``."""
        if self.kept is None:
            return self.kind.apply(self.value, x.to(self.value.dtype).mT).mT.to(out)
        return self.kind.right(self.kept, x, out)

    def left(self, y: Tensor, out: torch.dtype) -> Tensor:
        """K K^T Y for all members: (B, room, n) in ``out``."""
        if self.kept is None:
            return self.kind.apply(self.value, y.to(self.value.dtype)).to(out)
        return self.kind.left(self.kept, y, out)


@dataclass(eq=False)
class Stack:
    """Layers of equal shape, dtype and device.

    Attributes:
        layers: members; each has ``groups`` matrices in a row.
        a: K of the inputs.
        g: C of the outputs.
        momentum: m_W (B, d_out, d_in) in the weights' dtype, None before the first step.
    """

    layers: list[Layer]
    a: Side
    g: Side
    momentum: Tensor | None = None
    places: dict[Layer, slice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        groups = self.layers[0].groups
        self.weight_dtype = self.layers[0].weight.dtype
        self.places = {layer: slice(i * groups, (i + 1) * groups) for i, layer in enumerate(self.layers)}
        #: K and C of each layer, views: factors are always written in place.
        self.factors = {layer: (self.a.value[place], self.g.value[place]) for layer, place in self.places.items()}

    @property
    def home(self) -> tuple[torch.dtype, torch.device]:
        """Of the weights when the stack was built."""
        return self.weight_dtype, self.a.value.device

    @property
    def scales(self) -> bool:
        """Both factors are kept diagonals of one group: a gradient is scaled where it is."""
        sides = (self.a, self.g)
        return self.layers[0].groups == 1 and all(s.kind.name == "diagonal" and s.kept is not None for s in sides)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, d_out, d_in)."""
        first = self.layers[0]
        return first.groups * len(self.layers), first.d_out, first.d_in

    def chosen(self, layers: Sequence[Layer]) -> list[slice] | None:
        """Places of some members, in order; None for all."""
        return None if len(layers) == len(self.layers) else [self.places[layer] for layer in layers]


def build(layers: Sequence[Layer], options: Options) -> list[Stack]:
    """Stacks of all layers, every factor the identity."""
    found: dict[object, list[list[Layer]]] = {}
    for layer in layers:
        weight = layer.weight
        key = (layer.groups, layer.d_out, layer.d_in, weight.dtype, weight.device)
        kinds = _kinds(layer, options)
        numbers = max(*(kind.count for kind in kinds), layer.d_in * layer.d_out) * layer.groups
        if kinds[0].name in _DENSE or kinds[1].name in _DENSE:
            numbers = max(numbers, layer.groups * max(layer.d_in, layer.d_out) ** 2)
        full = max(1, _LARGEST // (numbers * wide(weight.dtype).itemsize))
        piles = found.setdefault(key, [[]])
        if len(piles[-1]) == full:
            piles.append([])
        piles[-1].append(layer)
    return [_stack(pile, options) for piles in found.values() for pile in piles]


#: Structures whose updates handle whole matrices.
_DENSE = ("dense", "tril", "triu")


def _kinds(layer: Layer, options: Options) -> tuple[Structure, Structure]:
    first, second = pair(options.structures)
    return structure(first, layer.d_in, options.sizes), structure(second, layer.d_out, options.sizes)


def _stack(layers: list[Layer], options: Options) -> Stack:
    first = layers[0]
    batch, device = first.groups * len(layers), first.weight.device
    sides = []
    for kind, dtype in zip(_kinds(first, options), options.dtypes(first.weight.dtype), strict=True):
        value = kind.identity(batch, dtype, device)
        momentum = torch.zeros_like(value) if options.alpha1 else None
        with precision(options.products):
            kept = kind.keep(value) if options.cache and kind.keeps(dtype) else None
        sides.append(Side(kind, value, momentum, kept))
    return Stack(layers, sides[0], sides[1])


def zeros(stack: Stack) -> Tensor:
    """(B, d_out, d_in) for a stack's m_W."""
    return torch.zeros(stack.shape, dtype=stack.weight_dtype, device=stack.a.value.device)


def formula(layers: Sequence[Layer], options: Options) -> dict[str, int]:
    """Bytes of state that the structures' formulas give, before any tensor exists."""
    found = dict.fromkeys(("factors", "riemannian_momentum", "cache", "momentum"), 0)
    for layer in layers:
        kinds, dtypes = _kinds(layer, options), options.dtypes(layer.weight.dtype)
        for kind, dtype in zip(kinds, dtypes, strict=True):
            size = layer.groups * kind.nbytes(dtype)
            found["factors"] += size
            found["riemannian_momentum"] += size if options.alpha1 else 0
            found["cache"] += layer.groups * kind.kept_bytes(dtype, options.products) if options.cache else 0
        numbers = layer.groups * layer.d_in * layer.d_out
        found["momentum"] += numbers * layer.weight.dtype.itemsize if options.momentum else 0
    return found
