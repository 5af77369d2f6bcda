"""Refreshing inverses: equal sizes together, without waiting for the device; failures climb a ladder.

A failed matrix keeps its old inverse at once, on the device. The host learns of it at the next step (an asynchronous
copy of one flag; on a CPU and the first time at once) and climbs, rung by rung: ``direct`` (the back-end's most
robust way), ``damping`` (ten and a hundred times the damping), ``float64``, ``kept`` (the old inverse stays).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from methods.kfac.inverse.base import Inverse, State
from methods.kfac.products import HALVES

#: Matrices up to this size are stacked in one call: below it a call is bound by latency, above it stacking only costs
#: memory (own measurement is left to the suite ``preconditioning``; cuSOLVER's batched kernels stop near it).
BATCH_UP_TO = 640
#: Factors on the damping of the ladder's second rung.
MORE = (10.0, 100.0)
RUNGS = ("direct", "damping", "float64", "kept")


#: New state of a job and whether each of its matrices is good.
Found = tuple[State, Tensor]


@dataclass
class Slot:
    """Where one side of one layer keeps its inverse.

    Attributes:
        state: None before the first refresh.
        place: gives a first state its place in memory; None leaves it where it is.
    """

    state: State | None = None
    place: Callable[[State], State] | None = None


@dataclass
class Job:
    """One refresh: matrix (k, d, d), damping (k,), and where the result goes."""

    slot: Slot
    matrix: Tensor
    damping: Tensor


@dataclass
class Late:
    """Refreshes that have been started and are taken over at the step ``due``.

    Attributes:
        due: the step.
        tag: whatever the caller wants back then.
        jobs: with the matrices as they were.
        found: new state and whether it is good, for each job.
        event: end of the work on the side stream; None when it is done.
    """

    due: int
    tag: Any
    jobs: list[Job]
    found: list[Found]
    event: Any


@dataclass
class _Pending:
    jobs: list[Job]
    goods: list[Tensor]
    flag: Tensor
    event: Any


class Refresher:
    """Runs refreshes of one back-end and counts the rungs that failures needed."""

    def __init__(self, backend: Inverse) -> None:
        self.backend = backend
        self.counters: dict[str, int] = dict.fromkeys(RUNGS, 0)
        self.late: list[Late] = []
        self._pending: list[_Pending] = []
        self._side: Any = None

    def refresh(self, jobs: Sequence[Job]) -> None:
        """Refresh all jobs, equal sizes in one call, or all of them in one if the back-end takes any sizes."""
        if jobs:
            self._take_over(list(jobs), self._compute(jobs))

    def start(self, jobs: Sequence[Job], due: int, tag: Any) -> None:
        """Begin refreshes whose results are taken over by :meth:`arrive` at the step ``due``.

        On a GPU they run on a stream of their own beside the steps until then; the result is the same.
        """
        copies = [Job(job.slot, job.matrix.clone(), job.damping.clone()) for job in jobs]
        home = copies[0].matrix.device
        if home.type != "cuda":
            self.late.append(Late(due, tag, copies, self._compute(copies), None))
            return
        cuda: Any = torch.cuda
        if self._side is None:
            self._side = cuda.Stream(home)
        self._side.wait_stream(cuda.current_stream(home))
        with cuda.stream(self._side):
            found = self._compute(copies)
            event = cuda.Event()
            event.record()
        for job in copies:
            job.matrix.record_stream(self._side)
            job.damping.record_stream(self._side)
        self.late.append(Late(due, tag, copies, found, event))

    def arrive(self, step: int) -> list[Any]:
        """Take over what is due by this step; returns the tags."""
        ready, self.late = [one for one in self.late if one.due <= step], [one for one in self.late if one.due > step]
        for one in ready:
            if one.event is not None:
                cuda: Any = torch.cuda
                stream = cuda.current_stream(one.jobs[0].matrix.device)
                stream.wait_event(one.event)
                for state, good in one.found:
                    for tensor in (*state.values(), good):
                        tensor.record_stream(stream)
            self._take_over(one.jobs, one.found)
        return [one.tag for one in ready]

    def _compute(self, jobs: Sequence[Job]) -> list[Found]:
        """New states in the order of the jobs; nothing is stored."""
        if self.backend.takes_all:
            return list(self.backend.refresh_all([(job.matrix, job.damping, job.slot.state) for job in jobs]))
        buckets: dict[Any, list[int]] = {}
        for index, job in enumerate(jobs):
            size = job.matrix.shape[1]
            single = index if size > BATCH_UP_TO else -1
            key = (size, job.matrix.dtype, job.matrix.device, _shapes(job.slot.state), single)
            buckets.setdefault(key, []).append(index)
        found: dict[int, Found] = {}
        for bucket in buckets.values():
            found.update(zip(bucket, self._stacked([jobs[index] for index in bucket]), strict=True))
        return [found[index] for index in range(len(jobs))]

    def _stacked(self, jobs: list[Job]) -> list[Found]:
        matrices = _joined([job.matrix for job in jobs])
        damping = _joined([job.damping for job in jobs])
        held = [job.slot.state for job in jobs]
        states = [state for state in held if state is not None and self.backend.uses_state]
        old = {key: self._old([state[key] for state in states], matrices) for key in states[0]} if states else None
        new, good = self.backend.refresh(matrices, damping, old)
        if len(jobs) == 1:
            return [(new, good)]
        counts = [len(job.matrix) for job in jobs]
        parts = {key: value.split(counts) for key, value in new.items()}  # type: ignore[no-untyped-call]
        goods = good.split(counts)  # type: ignore[no-untyped-call]
        return [({key: part[i] for key, part in parts.items()}, goods[i]) for i in range(len(jobs))]

    def _take_over(self, jobs: list[Job], found: Sequence[Found]) -> None:
        for job, (new, good) in zip(jobs, found, strict=True):
            self._store(job, new, good)
        self._watch(jobs, [good for _, good in found])

    def _old(self, tensors: list[Tensor], matrices: Tensor) -> Tensor:
        """States before, in the matrices' dtype also where they are kept half-width."""
        joined = _joined(tensors)
        return joined.to(matrices.dtype) if joined.dtype in HALVES else joined

    def _store(self, job: Job, new: State, good: Tensor) -> None:
        """Write where good; keep the old inverse (the identity at first) elsewhere."""
        if job.slot.state is None:
            start = self.backend.allocate(job.matrix)
            job.slot.state = start if job.slot.place is None else job.slot.place(start)
        held_state = job.slot.state
        for key, value in new.items():
            held = held_state[key]
            if held.shape != value.shape:
                held = held_state[key] = _fitted(held, value)
            mask = good.view(-1, *[1] * (held.ndim - 1))
            if held.dtype == value.dtype:
                torch.where(mask, value, held, out=held)
            else:
                held.copy_(torch.where(mask, value, held))

    # -- failures ------------------------------------------------------------------------------------------------------

    def _watch(self, jobs: list[Job], goods: list[Tensor]) -> None:
        home = goods[0].device
        flag = torch.cat([good.to(home) for good in goods]).all()
        if home.type != "cuda":
            self._climb_all(_Pending(jobs, goods, flag, None))
            return
        host = torch.empty((), dtype=torch.bool, pin_memory=True)
        host.copy_(flag, non_blocking=True)
        cuda: Any = torch.cuda
        event = cuda.Event()
        event.record()
        # ``settle`` runs before the next batch is folded in, so the jobs' matrices are still those that failed.
        self._pending.append(_Pending(jobs, goods, host, event))

    def settle(self) -> None:
        """Let failed refreshes of earlier steps climb the ladder. Waits for those refreshes, not for later work."""
        pending, self._pending = self._pending, []
        for one in pending:
            one.event.synchronize()
            self._climb_all(one)

    def forget(self) -> None:
        """Drop what is pending, when other states have been loaded."""
        self._pending, self.late = [], []

    def _climb_all(self, pending: _Pending) -> None:
        if bool(pending.flag):
            return
        for job, good in zip(pending.jobs, pending.goods, strict=True):
            for index in (~good).nonzero().flatten().tolist():
                self.counters[self._climb(job, int(index))] += 1

    def _climb(self, job: Job, index: int) -> str:
        """Try the rungs for one matrix; returns the one that held."""
        part = slice(index, index + 1)
        matrix, damping = job.matrix[part], job.damping[part]
        tries = [("direct", matrix, damping), *(("damping", matrix, factor * damping) for factor in MORE)]
        tries.append(("float64", matrix.double(), damping.double()))
        for rung, one, amount in tries:
            new, good = self.backend.direct(one, amount)
            if bool(good.all()):
                assert job.slot.state is not None
                for key, held in job.slot.state.items():
                    held[part] = _fitted(new[key].to(held.dtype), held[part])
                return rung
        return "kept"


def _shapes(state: State | None) -> tuple[Any, ...] | None:
    """What states must share to be joined: names and shapes of one matrix."""
    return None if state is None else tuple((key, *value.shape[1:]) for key, value in state.items())


def _fitted(value: Tensor, like: Tensor) -> Tensor:
    """``value`` in the shape of ``like``: cut, or filled up with zeros (a low-rank state's rank may change)."""
    if value.shape == like.shape:
        return value
    found = torch.zeros_like(like)
    both = tuple(slice(min(a, b)) for a, b in zip(value.shape, like.shape, strict=True))
    found[both] = value[both]
    return found


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
