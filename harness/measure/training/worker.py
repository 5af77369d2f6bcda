"""The job ``train`` of a worker process: pending runs one after another, data and compiled graphs kept between them."""

from __future__ import annotations

import contextlib
import functools
import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from harness.catalogue import registry
from harness.catalogue.workload import Workload
from harness.errors import UserError
from harness.measure.training import distributed, outcome, state
from harness.measure.training import world as worlds
from harness.measure.training.loop import Run
from harness.measure.training.outcome import Outcome
from harness.measure.training.spec import RunSpec, from_json
from harness.measure.training_device import TrainingCPU, open_training

#: At most so many block reports a second reach the parent.
REPORT_S = 0.1


class _Room:
    """What runs of one worker share: the device, the last workload's data, its compiled loss and model."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._device: TrainingCPU | None = None
        self._precision = ""
        self._data: tuple[tuple[str, bool, bool], Any] | None = None
        self.costs: dict[tuple[str, ...], float] = {}
        self._graph: tuple[tuple[str, str], Callable[..., Any], nn.Module | None, int] | None = None

    def device(self, precision: str) -> TrainingCPU:
        """The device in a precision mode."""
        if self._device is None or self._precision != precision:
            self._device, self._precision = open_training(self.kind, precision), precision
        return self._device

    def data(self, spec: RunSpec, workload: Workload, runtime: Any) -> Any:
        """The workload's data, loaded once for all of its runs in a row."""
        key = (spec.workload, spec.validation, spec.synthetic)
        if self._data is None or self._data[0] != key:
            self._data = None
            self._data = (key, runtime.data(workload, self.kind, spec.validation))
        return self._data[1]

    def loss(self, spec: RunSpec, runtime: Any, device: TrainingCPU) -> tuple[Callable[..., Any], nn.Module | None]:
        """Forward with loss, compiled if the run asks for it, and the model that the compiled graph belongs to."""

        def forward(model: nn.Module, inputs: Any, targets: Any) -> Any:
            return runtime.loss(model(inputs), targets)

        if not spec.compile:
            return forward, None
        key = (spec.workload, str(spec.trainer["precision"]))
        if self._graph is None or self._graph[0] != key:
            device.forget_graphs()
            self._graph = (key, device.compiled(forward), None, 0)
        return self._graph[1], self._graph[2]

    def keep(self, run: Run, spec: RunSpec, fresh: bool) -> None:
        """Keep the compiled model for the next arm, unless the method left hooks in it."""
        if not spec.compile or self._graph is None or run.model is None:
            return
        key, function, _, allowed = self._graph
        found = state.hooks(run.model)
        if fresh:
            allowed = found
        clean = found == allowed == 0
        self._graph = (key, function, run.model, allowed) if clean else None


@functools.cache
def _room(kind: str) -> _Room:
    """The room of this process, which later jobs find as earlier ones left it."""
    return _Room(kind)


def rank(job: Mapping[str, Any], pipe: Any, address: tuple[str, int], listening: int | None) -> None:
    """One rank of several over the runs of rank 0's job; what became of each is compared before the next begins."""
    ranks = distributed.join(job["device"], address, listening, job["timeout_s"])
    runs, last = ranks.gather([job["runs"], job.get("last", True)] if ranks.rank == 0 else None)[0]
    room, leader = _Room(job["device"]), ranks.rank == 0
    follows = not leader and ranks.local == 0

    def report(message: Mapping[str, Any]) -> None:
        if leader:
            pipe.send(event="result", kind="progress", **message)
        elif follows:
            pipe.send(event="result", kind="followed", over=False)

    for fields in runs:
        spec = from_json(fields)
        if leader:
            pipe.send(event="start", arm=spec.arm, seed=spec.seed, workload=spec.workload)
        found = one(room, spec, report, ranks)
        _compared(found, ranks, pipe)
        if leader:
            _answer(spec, found, pipe)
    if follows:
        pipe.send(event="result", kind="followed", over=last)
    # A rank that has gone breaks the last exchange of a slower one; past this point nothing can be lost any more.
    with contextlib.suppress(RuntimeError):
        ranks.gather([None])
    distributed.leave()
    pipe.send(event="done")


def _compared(found: Outcome, ranks: distributed.Ranks, pipe: Any) -> None:
    """Tell the launcher how the run ended here, wait for all, and let another rank's own failure speak for the run."""
    failed = found.status in outcome.FAILED
    away = failed and distributed.of_communication(found.reason)
    pipe.send(event="ended", failed=failed, status=found.status, reason=found.reason, communication=away)
    ends = ranks.gather([found.status, found.reason, failed, away])
    pipe.send(event="agreed")
    worst = min(range(len(ends)), key=lambda one: (not ends[one][2], ends[one][3], one))
    status, reason, any_failed, _ = ends[worst]
    if any_failed and worst != ranks.rank:
        found.status, found.reason = status, f"rank {worst} of {ranks.size}: {reason}"
        for name in [name for name in found.measurements if name in outcome.OF_TARGET]:
            del found.measurements[name]


def _answer(spec: RunSpec, found: Outcome, pipe: Any) -> None:
    pipe.send(event="result", kind="run", workload=spec.workload, arm=spec.arm, seed=spec.seed, outcome=found.to_json())


def train(job: Mapping[str, Any], pipe: Any) -> None:
    """Walk the job's runs; each ends with one message, whatever became of it."""
    if worlds.from_json(job.get("world") or {}).size > 1:
        from harness.measure.training.launch import launch

        launch(job, pipe)
        return
    room = _room(job["device"])
    for fields in job["runs"]:
        spec = from_json(fields)
        pipe.send(event="start", arm=spec.arm, seed=spec.seed, workload=spec.workload)
        found = one(room, spec, lambda message: pipe.send(event="result", kind="progress", **message))
        _answer(spec, found, pipe)


def one(
    room: _Room, spec: RunSpec, send: Callable[[Mapping[str, Any]], None], ranks: distributed.Alone = distributed.ALONE
) -> Outcome:
    """One run in this process."""
    last = [0.0]

    def report(**message: Any) -> None:
        if (now := time.monotonic()) - last[0] >= REPORT_S or message.get("what") != "training":
            last[0] = now
            send(message)

    device = room.device(spec.trainer["precision"])
    try:
        workload = spec.found_workload()
        runtime = registry.resolve(workload.runtime)
        data = room.data(spec, workload, runtime)
        loss, model = room.loss(spec, runtime, device)
    except UserError as error:
        return Outcome(status="unsupported", reason=str(error), detail=outcome.hyper_detail(spec))
    except Exception as error:
        status, reason = outcome.failure(device, error)
        return Outcome(status=status, reason=reason, detail=outcome.hyper_detail(spec))
    run = Run(
        spec=spec,
        workload=workload,
        runtime=runtime,
        data=data,
        device=device,
        loss=loss,
        report=report,
        model=model,
        costs=room.costs,
        ranks=ranks,
    )
    found = run.run()
    room.keep(run, spec, model is None)
    del run, model
    gc.collect()
    device.clear()
    return found


def open_room(kind: str) -> _Room:
    """Shared things of several runs in one process."""
    return _Room(kind)
