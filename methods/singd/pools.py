"""Matrices of one class and any sizes in one padded stack, K and C of all layers together, so that one call moves all.

A member of size d is put into the class of the largest size with zero rows and columns (:meth:`Structure.within`);
products, projections and traces are those of the member, but for Toeplitz' means, which are told the sizes. Dense and
triangular matrices are not padded: each side of a stack is a pool of its own and its tensors are worked on directly.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from methods.kfac.layers import Layer
from methods.singd.rows import wide
from methods.singd.stacks import Side, Stack

#: Sizes below a quarter of the largest join its pool as long as that has no more numbers (32 MiB in float32).
_NUMBERS = 1 << 23

#: Layer -> sums of A and of G.
Sums = Mapping[Layer, tuple[Tensor, Tensor]]


@dataclass(eq=False)
class Member:
    """Matrices of one side of a stack.

    Attributes:
        stack: the stack.
        number: 0 for K, 1 for C.
        layers: those with statistics, in order.
        places: where theirs lie, None for all of the stack.
    """

    stack: Stack
    number: int
    layers: list[Layer]
    places: list[slice] | None

    @property
    def side(self) -> Side:
        """K or C."""
        return self.stack.g if self.number else self.stack.a

    @property
    def rows(self) -> int:
        """Matrices."""
        return len(self.layers) * self.layers[0].groups

    def pieces(self, tensor: Tensor) -> list[Tensor]:
        """The members of a tensor of the side, views."""
        return [tensor] if self.places is None else [tensor[place] for place in self.places]


class Pool:
    """Members that move together.

    Args:
        members: of one class, dtype and device.
        sums: of their layers, for their shapes; None where none will come.

    Attributes:
        kind: the class at the size they are padded to.
        rows: matrices.
        sizes: of each matrix (rows,).
        share: what the update divides by them, once it is known.
        value: factors (rows, count).
        momentum: alike, or None.
        sums: what was gathered (rows, any).
        buffers: scratch, empty between updates unless it is held for good.
        sources: what :attr:`targets` are copied from at the start of an update.
        back: copied from the pool to the sides at its end, as (side's, pool's).
    """

    def __init__(self, members: list[Member], sums: Sums | None) -> None:
        first = members[0].side
        self.members, self.rows = members, sum(member.rows for member in members)
        self.dtype, self.device = first.value.dtype, first.value.device
        sizes = [member.side.kind.d for member in members for _ in range(member.rows)]
        self.sizes = torch.tensor(sizes, dtype=wide(self.dtype)).to(self.device, non_blocking=True)
        self.padded = first.kind.alike is not None
        self.kind = first.kind.covering(max(sizes), self.sizes) if self.padded else first.kind
        self.buffers: list[Tensor] = []
        self.sources: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.flat: list[Tensor] = []
        self.back: list[tuple[Tensor, Tensor]] = []
        self.sums: Tensor | None = None
        self.share: Tensor | None = None
        self.value, self.momentum = first.value, first.momentum
        if self.padded or members[0].places is not None:
            self.value = self._room(self.dtype)
            self._connect("value", self.value)
            if self.momentum is not None:
                self.momentum = self._room(self.dtype)
                self._connect("momentum", self.momentum)
        if self.padded and sums is not None:
            self._connect_sums(sums)

    def _room(self, dtype: torch.dtype, numbers: int = 0) -> Tensor:
        shape = (numbers,) if numbers else (self.rows, self.kind.count)
        self.buffers.append(torch.empty(shape, dtype=dtype, device=self.device))
        return self.buffers[-1]

    def _spans(self) -> Iterator[tuple[Member, slice]]:
        start = 0
        for member in self.members:
            yield member, slice(start, start + member.rows)
            start += member.rows

    def _connect(self, name: str, room: Tensor) -> None:
        """Views of the sides' tensors and of the pool's."""
        for member, span in self._spans():
            kind, start = member.side.kind, span.start
            for piece in member.pieces(getattr(member.side, name)):
                mine = kind.within(room[start : start + len(piece)], self.kind)
                for there, here in zip(kind.parts(piece), mine, strict=True):
                    self.sources.append(there)
                    self.targets.append(here)
                    self.back.append((there, here))
                start += len(piece)

    def _connect_sums(self, sums: Sums) -> None:
        """The layers' sums as they come, in one piece of memory, and where they go from there."""
        found = [(layer, member.number, member) for member in self.members for layer in member.layers]
        shapes = [sums[layer][number].shape for layer, number, _ in found]
        kind = wide(self.dtype)
        flat = self._room(kind, sum(shape.numel() for shape in shapes))
        self.sums, start, place = self._room(kind), 0, 0
        for (layer, _, member), shape in zip(found, shapes, strict=True):
            own = member.side.kind
            self.flat.append(flat[place : place + shape.numel()].view(shape))
            self.sources += own.sum_parts(self.flat[-1])
            self.targets += own.sums_within(self.sums[start : start + layer.groups], self.kind)
            start, place = start + layer.groups, place + shape.numel()

    def hold(self) -> None:
        """Take the scratch memory, zeroed."""
        for buffer in self.buffers:
            buffer.untyped_storage().resize_(buffer.numel() * buffer.element_size())
            buffer.zero_()

    def release(self) -> None:
        """Give it back."""
        for buffer in self.buffers:
            buffer.untyped_storage().resize_(0)
        if not self.padded:
            self.sums = None

    def keep(self) -> tuple[list[Tensor], list[Tensor]]:
        """Every K K^T that is kept anew: where it lies, and the new one."""
        there: list[Tensor] = []
        here: list[Tensor] = []
        whole: Tensor | None = None
        for member, span in self._spans():
            side, start = member.side, span.start
            if side.kept is None:
                continue
            for kept, value in zip(member.pieces(side.kept), member.pieces(side.value), strict=True):
                if side.kind.keeps_within(self.kind):
                    whole = self.kind.keep(self.value) if whole is None else whole
                    there += side.kind.kept_within(kept, side.kind)
                    here += side.kind.kept_within(whole[start : start + len(kept)], self.kind)
                else:
                    there.append(kept)
                    here.append(side.kind.keep(value))
                start += len(kept)
        return there, here


def pools(stacks: Sequence[Stack], layers: Container[Layer], sums: Sums | None) -> list[Pool]:
    """Pools of all sides of these layers."""
    groups: dict[Hashable, list[Member]] = {}
    for stack in stacks:
        mine = [layer for layer in stack.layers if layer in layers]
        for number, side in enumerate((stack.a, stack.g)):
            if mine:
                alike = side.kind.alike
                key = (alike, side.value.dtype, side.value.device, side.momentum is None)
                member = Member(stack, number, mine, stack.chosen(mine))
                groups.setdefault((stack, number) if alike is None else key, []).append(member)
    return [Pool(part, sums) for members in groups.values() for part in _classes(members)]


def _classes(members: list[Member]) -> list[list[Member]]:
    """Members of sizes that may be padded to the largest of them, largest first."""
    found: list[list[Member]] = []
    rows, most, numbers = 0, 0, 0
    for member in sorted(members, key=lambda one: -one.side.kind.d):
        kind = member.side.kind
        if not found or (4 * kind.d < most and (rows + member.rows) * numbers > _NUMBERS):
            found.append([])
            rows, most, numbers = 0, kind.d, kind.count
        found[-1].append(member)
        rows += member.rows
    return found


def clusters(found: Sequence[Pool]) -> list[tuple[list[Pool], Tensor]]:
    """Pools that have to know each other's traces, with the row of the other factor for each of their rows."""
    parts: list[list[Pool]] = []
    for pool in found:
        stacks = {member.stack for member in pool.members}
        touching = [part for part in parts if any(m.stack in stacks for one in part for m in one.members)]
        parts = [part for part in parts if part not in touching]
        parts.append([*(one for part in touching for one in part), pool])
    return [(part, _partners(part)) for part in parts]


def _partners(part: Sequence[Pool]) -> Tensor:
    places: dict[Any, int] = {}
    for pool in part:
        for member in pool.members:
            for layer in member.layers:
                for group in range(layer.groups):
                    places[layer, member.number, group] = len(places)
    found = [places[layer, 1 - number, group] for layer, number, group in places]
    return torch.tensor(found).to(part[0].device, non_blocking=True)
