"""K-FAC over several processes: sums of statistics go to who needs them, and each layer may have one owner.

``none``: every rank receives every layer's statistics and keeps the whole state (an all-reduce each).
``owner``: a layer's statistics are reduced to its owner alone, which holds its running means, inverses and momentum,
computes its step and sends the new weights to the others. Layers go to the least loaded rank, largest first, by their
share of the cost d^3 of the factorisations plus their share of the bytes, so that neither piles up on one rank
(after the partitions of Pauloski et al., arXiv 2107.01739, "MEM-OPT", and of Osawa et al., arXiv 2305.04684; sending
weights instead of directions also leaves the momentum with one rank). Where layers are too large to be shared out
evenly (VGG16: five factors of 4,609 on four ranks), the fullest rank hands the directions of some layers to an emptier
one, which keeps their momenta, moves their weights and sends them.

A rank's loss is the mean over its own samples times (its samples x ranks / all samples), and gradients are averaged:
what data-parallel training does. So a row b of a rank is ``ranks`` times that of the mean loss over all samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from harness.errors import UserError
from methods.kfac.timing import Parts

if TYPE_CHECKING:
    from methods.kfac.layers import Layer

MODES = ("none", "owner")
#: Bytes of one broadcast of weights.
BUCKET_BYTES = 64 * 2**20
#: Momenta leave a rank that keeps more than so many times the mean; own choice, below the third of the state that a
#: rank may keep of four (4/3).
UNEVEN = 1.3


def world() -> int:
    """Processes of the default group, 1 without one."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def average(tensors: Sequence[Tensor]) -> None:
    """Mean over the ranks, in place: for what a method takes from its own backward besides ``.grad``."""
    if (size := world()) == 1:
        return
    pieces = [tensor.contiguous() for tensor in tensors]
    works = [distributed.all_reduce(piece, async_op=True) for piece in pieces]
    for work, tensor, piece in zip(works, tensors, pieces, strict=True):
        work.wait()
        tensor.copy_(piece / size)


def gathered(parts: Sequence[Tensor], dim: int) -> list[Tensor]:
    """Every tensor of all ranks, one rank after the other along ``dim``; waits for the device.

    The ranks have equally many tensors (:meth:`Sharing.compare` tells before). Other dimensions grow to the largest of
    any rank, with zeros behind.
    """
    size = world()
    if size == 1 or not parts:
        return list(parts)
    longest = max(part.ndim for part in parts)
    own = torch.tensor([[*part.shape, *[0] * (longest - part.ndim)] for part in parts], device=parts[0].device)
    tables = [torch.empty_like(own) for _ in range(size)]
    distributed.all_gather(tables, own)
    shapes = torch.stack(tables).cpu()
    found = []
    for index, part in enumerate(parts):
        most = [int(n) for n in shapes[:, index].amax(0)[: part.ndim]]
        after = [n - held for n, held in zip(most, part.shape, strict=True)]
        filled = torch.nn.functional.pad(part, [pad for more in reversed(after) for pad in (0, more)]).contiguous()
        pieces = [torch.empty_like(filled) for _ in range(size)]
        distributed.all_gather(pieces, filled)
        counts = [int(n) for n in shapes[:, index, dim]]
        found.append(torch.cat([piece.narrow(dim, 0, n) for piece, n in zip(pieces, counts, strict=True)], dim))
    return found


def summed(counts: Sequence[int], device: torch.device) -> list[int]:
    """Sums of whole numbers over the ranks; waits for the device."""
    if world() == 1 or not counts:
        return list(counts)
    total = torch.tensor(list(counts), dtype=torch.int64, device=device)
    distributed.all_reduce(total)
    return [int(one) for one in total.tolist()]


def assign(costs: Sequence[float], ranks: int) -> list[int]:
    """The owner of each layer: largest first, to the rank with the least so far (Graham's rule)."""
    load, owners = [0.0] * ranks, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owners[index] = min(range(ranks), key=lambda rank: (load[rank], rank))
        load[owners[index]] += costs[index]
    return owners


def keepers(owners: Sequence[int], states: Sequence[float], momenta: Sequence[float], ranks: int) -> list[int]:
    """The rank of each layer's momentum: its owner, or where that rank is much fuller than the mean, the emptiest.

    Args:
        owners: of each layer's factors and inverses.
        states: size of those.
        momenta: size of each layer's momentum.
        ranks: how many there are.
    """
    found, load = list(owners), [0.0] * ranks
    for owner, state, momentum in zip(owners, states, momenta, strict=True):
        load[owner] += state + momentum
    while True:
        full = max(range(ranks), key=lambda rank: (load[rank], -rank))
        empty = min(range(ranks), key=lambda rank: (load[rank], rank))
        fits = [i for i, at in enumerate(found) if at == full == owners[i] and load[empty] + momenta[i] < load[full]]
        if load[full] <= UNEVEN * sum(load) / ranks or not fits:
            return found
        chosen = max(fits, key=lambda i: (momenta[i], -i))
        found[chosen] = empty
        load[full] -= momenta[chosen]
        load[empty] += momenta[chosen]


class Sharing:
    """Who keeps which layer, and what the ranks tell each other in a step.

    Args:
        layers: of the optimizer, in an order that is the same on every rank.
        costs: work of each layer's refresh.
        mode: ``none`` or ``owner``.
        momentum: whether there are momenta, which may lie on another rank than the layer's owner.

    Attributes:
        owner: rank of a layer's running means and inverses; it computes the layer's direction.
        keeper: rank of its momentum; it moves and sends the layer's weights.

    Raises:
        UserError: another mode.
    """

    def __init__(self, layers: Sequence[Layer], costs: Sequence[float], mode: str, momentum: bool = False) -> None:
        if mode not in MODES:
            raise UserError(f"sharding is one of {', '.join(MODES)}; got {mode!r}.")
        self.mode, self.size = mode, world()
        self._parts = Parts(("communication",))
        self.rank = distributed.get_rank() if self.size > 1 else 0
        self.sharded = mode == "owner" and self.size > 1
        owners, kept = shared_out(layers, costs, self.size if self.sharded else 1, momentum)
        self.owner: dict[Layer, int] = dict(zip(layers, owners, strict=True))
        self.keeper: dict[Layer, int] = dict(zip(layers, kept, strict=True))
        self._layers = list(layers)

    def mine(self, layer: Layer) -> bool:
        """Whether this rank keeps the layer's state."""
        return not self.sharded or self.owner[layer] == self.rank

    def apart(self, layer: Layer) -> bool:
        """Whether the layer's direction and momentum are on two ranks."""
        return self.owner[layer] != self.keeper[layer]

    def keeps(self, layer: Layer) -> bool:
        """Whether this rank has the layer's momentum."""
        return not self.sharded or self.keeper[layer] == self.rank

    # -- statistics ----------------------------------------------------------------------------------------------------

    def collect(self, sums: Mapping[Layer, Any]) -> dict[Layer, tuple[Tensor, Tensor, Any, Any]]:
        """Sums over all ranks as (a, g, rows, terms) of every layer that this rank keeps; the tensors are used up.

        Args:
            sums: :class:`methods.kfac.statistics.Sums` of the layers that this rank's backward has seen; the same
                layers everywhere.
        """
        size = world()
        if size == 1:
            return {layer: (one.a, one.g, one.rows, one.terms.count) for layer, one in sums.items()}
        layers = [layer for layer in self.owner if layer in sums] or list(sums)
        home = sums[layers[0]].a.device
        counts = torch.tensor([[sums[one].rows, sums[one].terms.count] for one in layers], dtype=torch.float64).to(home)
        with self._parts.span("communication", home.type == "cuda"):
            works = [distributed.all_reduce(counts, async_op=True)]
            # In one piece each: collectives do not write into a part of a larger matrix.
            pairs = {layer: (sums[layer].a.contiguous(), sums[layer].g.contiguous()) for layer in layers}
            for layer, pair in pairs.items():
                works += [self._reduce(tensor, layer) for tensor in pair]
            for work in works:
                work.wait()
        found: dict[Layer, tuple[Tensor, Tensor, Any, Any]] = {}
        for layer, (rows, terms) in zip(layers, counts.unbind(), strict=True):
            if self.mine(layer):
                a, g = pairs[layer]
                found[layer] = (a, g, rows.to(a), terms.to(g))
        return found

    def compare(self, codes: Sequence[int], device: torch.device) -> None:
        """Refuse, on every rank, that they have seen different layers; waits for the device.

        To be called at the same steps everywhere, also by a rank that has seen nothing: without it the ranks would wait
        for each other, or take one layer's statistics for another's.

        Args:
            codes: one number for each layer, saying what has been seen of it.
            device: of the collective.

        Raises:
            UserError: naming the layers.
        """
        if self.size == 1:
            return
        with self._parts.span("communication", device.type == "cuda"):
            own = torch.tensor(list(codes), device=device)
            others = [torch.empty_like(own) for _ in range(self.size)]
            distributed.all_gather(others, own)
            table = torch.stack(others).cpu()
        unequal = (table != table[0]).any(0).tolist()
        if names := [layer.name for layer, odd in zip(self._layers, unequal, strict=True) if odd]:
            raise UserError(
                f"the ranks have different statistics of {', '.join(names)}: every rank has to send a batch through "
                f"the same layers in each step that takes statistics, the first of them of the same size."
            )

    def gathered(self, parts: Sequence[Tensor], counts: Sequence[int], dim: int) -> tuple[list[Tensor], list[int]]:
        """:func:`gathered` and :func:`summed`, their time counted."""
        if self.size == 1 or not parts:
            return list(parts), list(counts)
        with self._parts.span("communication", parts[0].is_cuda):
            return gathered(parts, dim), summed(counts, parts[0].device)

    def _reduce(self, tensor: Tensor, layer: Layer) -> Any:
        """Start to sum one tensor over the ranks, to its owner or to all."""
        if self.sharded:
            return distributed.reduce(tensor, self.owner[layer], async_op=True)
        return distributed.all_reduce(tensor, async_op=True)

    def agree(self, finite: Tensor | None, device: torch.device) -> Tensor:
        """Whether every rank's statistics were finite (``None``: this rank keeps no layer of the batch)."""
        if not self.sharded:
            return torch.ones((), dtype=torch.bool, device=device) if finite is None else finite
        flag = torch.ones((), device=device) if finite is None else finite.float()
        distributed.all_reduce(flag, op=distributed.ReduceOp.MIN)
        return flag > 0.5

    # -- the step ------------------------------------------------------------------------------------------------------

    def total(self, value: Tensor) -> Tensor:
        """Sum over the ranks of a sum over their own layers (0-d)."""
        if not self.sharded:
            return value
        whole = value.double()
        distributed.all_reduce(whole)
        return whole.to(value.dtype)

    @torch.no_grad()
    def hand_over(self, sent: Sequence[tuple[Tensor, int]], received: Sequence[tuple[Tensor, int]]) -> None:
        """Send tensors to ranks and fill others from ranks; between two ranks both sides have the same order."""
        ops = [distributed.P2POp(distributed.isend, tensor.contiguous(), rank) for tensor, rank in sent]
        ops += [distributed.P2POp(distributed.irecv, tensor, rank) for tensor, rank in received]
        if not ops:
            return
        with self._parts.span("communication", (sent or received)[0][0].is_cuda):
            # Together they use the communicator of all ranks; one by one NCCL would open one for each pair.
            for work in distributed.batch_isend_irecv(ops):
                work.wait()

    @torch.no_grad()
    def spread(self, layers: Sequence[Layer]) -> None:
        """Send the keepers' new weights of these layers to all, one flat broadcast a keeper and dtype or more."""
        if not self.sharded or not layers:
            return
        with self._parts.span("communication", layers[0].weight.is_cuda):
            self._broadcast(layers)

    def _broadcast(self, layers: Sequence[Layer]) -> None:
        pieces: dict[tuple[int, torch.dtype, torch.device], list[Tensor]] = {}
        for layer in layers:
            for parameter in layer.parameters:
                key = (self.keeper[layer], parameter.dtype, parameter.device)
                pieces.setdefault(key, []).append(parameter.detach())
        under_way = []
        for (keeper, _, _), tensors in pieces.items():
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                work: Any = distributed.broadcast(flat, keeper, async_op=True)
                under_way.append((keeper, work, flat, bucket))
        for keeper, work, flat, bucket in under_way:
            work.wait()
            if keeper != self.rank:
                parts = torch.split(flat, [tensor.numel() for tensor in bucket])
                torch._foreach_copy_(bucket, [part.view(t.shape) for part, t in zip(parts, bucket, strict=True)])

    # -- the outside ---------------------------------------------------------------------------------------------------

    def seconds(self) -> dict[str, float]:
        """Seconds in collectives since the last call, which other parts contain; empty on one process."""
        return self._parts.read() if self.size > 1 else {}

    def describe(self) -> dict[str, Any]:
        """Mode, ranks, the layers' owners, and the keepers of momenta that are on another rank."""
        owners = {layer.name: owner for layer, owner in self.owner.items()} if self.sharded else {}
        keepers_ = {layer.name: keeper for layer, keeper in self.keeper.items() if self.apart(layer)}
        return {"mode": self.mode, "ranks": self.size, "owners": owners, "keepers": keepers_}

    def mark(self) -> list[int]:
        """What a saved state must agree with: this rank and how many there are; empty when nothing is sharded."""
        return [self.rank, self.size] if self.sharded else []

    def check(self, mark: Sequence[int]) -> None:
        """Refuse a state that belongs to another rank or to another number of ranks.

        Raises:
            UserError: with what to do.
        """
        if list(mark) != self.mark():
            was = f"rank {mark[0]} of {mark[1]}" if mark else "a process that kept all layers"
            now = f"rank {self.rank} of {self.size}" if self.sharded else "a process that keeps all layers"
            raise UserError(
                f"the saved optimizer is the share of {was}, this one is {now}: load each rank's own file with as many "
                f"ranks as it was saved with."
            )


def numbers(layer: Layer) -> tuple[float, float]:
    """Numbers of a layer's factors and inverses (two matrices a side), and of its momentum."""
    squares = float(layer.d_in**2 + layer.d_out**2)
    return layer.groups * 2.0 * squares, float(layer.groups * layer.d_in * layer.d_out)


def shared_out(
    layers: Sequence[Layer], costs: Sequence[float], ranks: int, momentum: bool
) -> tuple[list[int], list[int]]:
    """Each layer's owner and the keeper of its momentum; a layer weighs its share of the work plus of the state."""
    if ranks == 1 or not layers:
        return [0] * len(layers), [0] * len(layers)
    states, momenta = (list(column) for column in zip(*map(numbers, layers), strict=True))
    momenta = momenta if momentum else [0.0] * len(layers)
    work, state = sum(costs), sum(states) + sum(momenta)
    sizes = [one + other for one, other in zip(states, momenta, strict=True)]
    owners = assign([cost / work + size / state for cost, size in zip(costs, sizes, strict=True)], ranks)
    return owners, keepers(owners, states, momenta, ranks) if momentum else owners


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    found: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if size >= BUCKET_BYTES:
            found.append([])
            size = 0
        found[-1].append(tensor)
        size += tensor.numel() * tensor.element_size()
    return found
