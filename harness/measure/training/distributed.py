"""What the processes of one run do together: average gradients, agree on decisions, share out evaluation.

Every rank runs the same loop. The stream of samples is a function of the sample counter alone, so a rank takes its
slice of each global batch and no order, batch or augmentation depends on how many ranks there are. Each rank's loss is
the mean over its slice times (slice x ranks / batch), and gradients are averaged: the usual convention of data
parallelism, whose result is the gradient of the mean over the global batch also where slices differ by one.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from harness.catalogue.workload import Batch
from harness.errors import Unsupported

#: Bytes of one flat piece of gradients: large enough that latency does not count, small enough to overlap copies.
BUCKET_BYTES = 25 * 2**20
#: Weights of ranks may differ by so much of their norm (kernels that add in any order) before a run is an error.
DRIFT = 1e-3


class Alone:
    """One process: every collective is the identity."""

    rank, size, local = 0, 1, 0
    backend: str | None = None

    def slice(self, offset: int, count: int) -> tuple[int, int]:
        """This rank's (offset, count) of ``count`` samples from ``offset``."""
        return offset, count

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average the parameters' gradients over the ranks, in place."""

    def average_parts(self, parameters: Sequence[nn.Parameter], own: int, parts: int) -> list[list[Tensor | None]]:
        """Gradients of each part of a batch, where every rank holds those of its ``own`` part alone."""
        return [[parameter.grad for parameter in parameters]]

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a 0-d tensor over the ranks."""
        return value

    def first(self, value: float) -> float:
        """Rank 0's number."""
        return value

    def meet(self) -> None:
        """Wait until every rank is here; the caller has synchronised its device."""

    def gather(self, value: Any) -> list[Any]:
        """Every rank's JSON value, by rank."""
        return [value]

    def spread(self, model: nn.Module) -> None:
        """Rank 0's parameters and buffers for all."""

    def average_buffers(self, model: nn.Module) -> None:
        """Running statistics: the mean over the ranks; whole numbers are rank 0's."""

    def drift(self, model: nn.Module) -> float:
        """How far the ranks' parameters are apart, over their norm."""
        return 0.0

    def seed(self, stream: int, position: int, own: bool) -> None:
        """Random numbers of what follows: the rank's own (dropout, drawn targets) or shared (the method's step)."""

    def synced(self, model: nn.Module) -> nn.Module:
        """The model with batch norms over the global batch."""
        raise Unsupported("sync_batch_norm needs several processes: --nproc 2 or more.")

    def shard(self, batches: Iterator[Batch], seen: Callable[[int], None]) -> Iterator[Batch]:
        """This rank's samples of each evaluation batch; ``seen`` is told their number."""
        return batches

    def merged(self, found: Mapping[str, Any], count: int) -> dict[str, float]:
        """Means over all samples from every rank's means over its ``count`` samples."""
        return {name: float(value) for name, value in found.items()}


ALONE = Alone()


class Ranks(Alone):
    """Several processes, joined by :func:`join`."""

    def __init__(self, store: Any, device: torch.device, local: int, timeout: datetime.timedelta) -> None:
        self.rank, self.size, self.local = distributed.get_rank(), distributed.get_world_size(), local
        self.backend = distributed.get_backend()
        self.store, self.device, self.timeout = store, device, timeout
        self._told = self._calls = 0
        self._at = -1

    def slice(self, offset: int, count: int) -> tuple[int, int]:
        """Slices differ by at most one sample.

        Raises:
            Unsupported: fewer samples than ranks.
        """
        if count < self.size:
            raise Unsupported(f"{count} samples cannot be shared out to {self.size} processes; lower --nproc.")
        start, stop = self.rank * count // self.size, (self.rank + 1) * count // self.size
        return offset + start, stop - start

    @torch.no_grad()
    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Flat buckets, last parameters first, all under way at once."""
        gradients = [parameter.grad for parameter in reversed(parameters) if parameter.grad is not None]
        under_way = []
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            under_way.append((distributed.all_reduce(flat, async_op=True), flat, bucket))
        for work, flat, bucket in under_way:
            work.wait()
            flat /= self.size
            parts = torch.split(flat, [gradient.numel() for gradient in bucket])
            torch._foreach_copy_(bucket, [part.view(g.shape) for part, g in zip(parts, bucket, strict=True)])

    @torch.no_grad()
    def average_parts(self, parameters: Sequence[nn.Parameter], own: int, parts: int) -> list[list[Tensor | None]]:
        """One all-reduce of all parts' gradients side by side, the others' places filled with zeros."""
        found: list[list[Tensor | None]] = [[None] * len(parameters) for _ in range(parts)]
        held = [(place, parameter.grad) for place, parameter in enumerate(parameters) if parameter.grad is not None]
        places = {id(gradient): place for place, gradient in held}
        under_way = []
        for bucket in _buckets([gradient for _, gradient in reversed(held)]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            side = flat.new_zeros(parts, flat.numel())
            side[own] = flat
            under_way.append((distributed.all_reduce(side, async_op=True), side, bucket))
        for work, side, bucket in under_way:
            work.wait()
            side /= self.size
            for part in range(parts):
                pieces = torch.split(side[part], [gradient.numel() for gradient in bucket])
                for gradient, piece in zip(bucket, pieces, strict=True):
                    found[part][places[id(gradient)]] = torch.empty_like(gradient).copy_(piece.view(gradient.shape))
        return found

    def mean(self, value: Tensor) -> Tensor:
        """In float64."""
        total = value.detach().to(self.device, torch.float64, copy=True)
        distributed.all_reduce(total)
        return total / self.size

    def first(self, value: float) -> float:
        """One broadcast."""
        told = torch.tensor(float(value), dtype=torch.float64, device=self.device)
        distributed.broadcast(told, 0)
        return float(told)

    def meet(self) -> None:
        """An all-reduce of one number, and the wait for it."""
        one = torch.zeros((), device=self.device)
        distributed.all_reduce(one)
        one.item()

    def gather(self, value: Any) -> list[Any]:
        """Through the rendezvous' store: no device, no pickles."""
        self._told += 1
        self.store.set(f"gather/{self._told}/{self.rank}", json.dumps(value))
        keys = [f"gather/{self._told}/{rank}" for rank in range(self.size)]
        self.store.wait(keys, self.timeout)
        return [json.loads(self.store.get(key)) for key in keys]

    @torch.no_grad()
    def spread(self, model: nn.Module) -> None:
        """One broadcast a tensor: once a run."""
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.numel():
                held = tensor.detach().contiguous()
                distributed.broadcast(held, 0)
                tensor.copy_(held)

    @torch.no_grad()
    def average_buffers(self, model: nn.Module) -> None:
        """Batch norm's running variance is then the mean of the ranks' variances, without what lies between ranks."""
        for buffer in model.buffers():
            if not buffer.numel():
                continue
            held = buffer.detach().clone(memory_format=torch.contiguous_format)
            if held.is_floating_point():
                distributed.all_reduce(held)
                held /= self.size
            else:
                distributed.broadcast(held, 0)
            buffer.copy_(held)

    @torch.no_grad()
    def drift(self, model: nn.Module) -> float:
        """Largest minus smallest over the ranks of the parameters' norm and of their sum, over the norm."""
        flat = [parameter.detach().double() for parameter in model.parameters()]
        sums = torch.stack([torch.stack([p.sum() for p in flat]).sum(), torch.stack([p.norm() for p in flat]).norm()])
        size = float(sums[1])
        extremes = torch.cat([sums, -sums]).to(self.device)
        distributed.all_reduce(extremes, op=distributed.ReduceOp.MAX)
        apart = float((extremes[:2] + extremes[2:]).max())
        return apart / size if size > 0 else 0.0

    def seed(self, stream: int, position: int, own: bool) -> None:
        """A function of stream, position, call and (for its own numbers) rank: nothing to save or to restore."""
        self._calls = self._calls + 1 if position == self._at else 0
        self._at = position
        words = (stream, position, self._calls, self.rank + 1 if own else 0)
        mixed = 0
        for word in words:
            mixed = (mixed * 6364136223846793005 + word + 1442695040888963407) % 2**63
        torch.manual_seed(mixed)

    def synced(self, model: nn.Module) -> nn.Module:
        """SyncBatchNorm of torch.

        Raises:
            Unsupported: on a CPU, where torch has none.
        """
        if self.device.type != "cuda":
            raise Unsupported("sync_batch_norm: torch's SyncBatchNorm needs CUDA; batch norm stays local on CPUs.")
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted

    def shard(self, batches: Iterator[Batch], seen: Callable[[int], None]) -> Iterator[Batch]:
        """A part of every batch; the first batch goes whole to ranks that would otherwise have nothing."""
        for inputs, targets in batches:
            count = len(targets)
            start, stop = self.rank * count // self.size, (self.rank + 1) * count // self.size
            if stop > start:
                seen(stop - start)
                yield Batch(inputs[start:stop], targets[start:stop])

    def merged(self, found: Mapping[str, Any], count: int) -> dict[str, float]:
        """One all-reduce in float64."""
        names = sorted(found)
        values = [float(found[name]) * count for name in names] + [float(count)]
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        sums = total.tolist()
        return {name: value / sums[-1] for name, value in zip(names, sums, strict=False)}


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one dtype and device, up to ``BUCKET_BYTES`` together."""
    held: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    sizes: dict[tuple[torch.dtype, torch.device], int] = {}
    for gradient in gradients:
        if gradient.is_sparse:
            raise Unsupported("sparse gradients cannot be averaged over processes; use dense ones.")
        key = (gradient.dtype, gradient.device)
        held.setdefault(key, []).append(gradient)
        sizes[key] = sizes.get(key, 0) + gradient.numel() * gradient.element_size()
        if sizes[key] >= BUCKET_BYTES:
            yield held.pop(key)
            del sizes[key]
    yield from held.values()


def join(kind: str, address: tuple[str, int], listening: int | None, timeout_s: float) -> Ranks:
    """Join the process group that the environment's RANK, WORLD_SIZE and LOCAL_RANK describe.

    Args:
        kind: ``cpu`` or ``cuda``; this process takes the CUDA device of its local rank.
        address: where rank 0's store listens.
        listening: rank 0's listening socket when it was opened beforehand.
        timeout_s: longest wait of a collective.
    """
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    timeout = datetime.timedelta(seconds=timeout_s)
    extra: dict[str, Any] = {} if listening is None else {"master_listen_fd": listening}
    store = distributed.TCPStore(  # type: ignore[attr-defined]
        *address, world_size=size, is_master=rank == 0, timeout=timeout, wait_for_workers=False, **extra
    )
    place = torch.device("cuda", local) if kind == "cuda" else torch.device("cpu")
    options: dict[str, Any] = {}
    if kind == "cuda":
        torch.cuda.set_device(place)
        options["device_id"] = place
    distributed.init_process_group(
        "nccl" if kind == "cuda" else "gloo", store=store, rank=rank, world_size=size, timeout=timeout, **options
    )
    return Ranks(store, place, local, timeout)


def leave() -> None:
    """Take the process group down; every rank does, when its device has done all collectives."""
    if distributed.get_backend() == "nccl":
        torch.cuda.synchronize()
    distributed.destroy_process_group()


#: Words of errors that torch's collectives raise when another rank has gone away.
_AWAY = ("Connection closed by peer", "Connection reset", "Broken pipe", "DistBackendError", "DistStoreError",
         "DistNetworkError", "gloo", "NCCL")  # fmt: skip


def of_communication(reason: str | None) -> bool:
    """Whether an error's text says that another rank went away, not that this one did something wrong."""
    return any(word in (reason or "") for word in _AWAY)
