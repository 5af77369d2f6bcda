"""The training executor: seeds are blocks, arms shuffled within each, every run written down, killed runs resumed."""

from __future__ import annotations

import contextlib
import datetime
import os
import random
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import __version__, units
from harness.catalogue import registry
from harness.errors import UserError
from harness.measure.executor import utc
from harness.measure.isolate import Ended, Worker
from harness.measure.plan import BUDGET_REASON
from harness.measure.session import gpu_lock, unfinished
from harness.measure.training import checkpoint
from harness.measure.training.listener import Listener, Silent
from harness.measure.training.outcome import hyper_detail
from harness.measure.training.plan import Arm, Part, TrainPlan
from harness.measure.training.recipe import TASK
from harness.measure.training.spec import RunSpec
from harness.measure.worker import ordered
from harness.record import environment as machine
from harness.record import nvidia, store
from harness.record.run import Measurement, Run

Key = tuple[str, str, int]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Where the runs are, and what was done."""

    path: Path
    resumed: bool
    elapsed_s: float
    runs: int


def execute(plan: TrainPlan, out: Path, command: str, listener: Listener | None = None) -> TrainResult:
    """Train a plan and append every run to one file under ``out``.

    Raises:
        UserError: the folder cannot be written, or another measurement holds the GPU.
        KeyboardInterrupt: Ctrl-C; the run under way has its row, and the same command resumes it.
    """
    return TrainExecutor(plan, out, command, listener or Silent()).run()


def job_of(plan: TrainPlan, runs: list[dict[str, Any]], last: bool) -> dict[str, Any]:
    """A worker's job."""
    job: dict[str, Any] = {"kind": "train", "device": plan.device, "runs": runs}
    if plan.request.world.size > 1:
        job |= {"world": plan.request.world.to_json(), "timeout_s": plan.request.deadline_s, "last": last}
    return job


def follow(plan: TrainPlan, listener: Listener, patience_s: float = 120.0) -> int:
    """Work for machine 0 until it says that nothing is left; returns how many of its workers were served.

    Raises:
        UserError: machine 0 did not answer, or stopped answering, for ``patience_s``.
    """
    served, heard = 0, time.monotonic()
    while True:
        lost = None
        with Worker(job_of(plan, [], last=True), plan.request.deadline_s) as worker:
            for message in worker.messages():
                if isinstance(message, Ended):
                    lost = message.reason
                    break
                heard = time.monotonic()
                if message.get("kind") == "followed" and message["over"]:
                    return served + 1
        served += lost is None
        if lost is None:
            heard = time.monotonic()
            continue
        listener.note(f"machine {plan.request.world.node_rank}: {lost}")
        if time.monotonic() - heard > patience_s:
            raise UserError(
                f"machine 0 at {plan.request.world.rendezvous} has not answered for {patience_s:.0f} s ({lost}); start "
                f"the same command there with --node-rank 0."
            )


def _labelled(environment: dict[str, Any], plan: TrainPlan) -> dict[str, Any]:
    """Several processes are another device: their times never stand beside those of one."""
    world, name = plan.request.world, environment["device_name"]
    if world.size == 1:
        return environment
    label = f"{world.size} x {name}" if plan.device == "cuda" else f"{name}, {world.size} processes"
    return {**environment, "device_name": label, "world": world.size, "nnodes": world.nnodes}


def _other_gpus(plan: TrainPlan) -> list[dict[str, Any]]:
    if plan.device != "cuda":
        return []
    return [{"gpu": nvidia.describe(place)} for place in range(1, plan.request.world.nproc)]


class TrainExecutor:
    """Walks a plan; a worker takes all pending runs of a workload, and a new one takes over after a crash."""

    def __init__(self, plan: TrainPlan, out: Path, command: str, listener: Listener) -> None:
        self.plan, self.out, self.command, self.listener = plan, out, command, listener
        self.done: set[Key] = set()
        self.skipped: set[tuple[str, str]] = set()
        self.count = 0
        self.start = time.monotonic()
        self.writer: store.Writer
        self._last: dict[str, Any] = {}
        self._seed_s: dict[tuple[str, int], float] = {}
        self._limit_s = 0.0

    def run(self) -> TrainResult:
        """Train whatever has no row yet."""
        self.environment = _labelled(machine.collect(self.plan.device), self.plan)
        self.project = {"version": __version__, **machine.git()}
        self.hash = self.plan.hash(self.project, machine.identity(self.environment))
        with contextlib.ExitStack() as held:
            for environment in [self.environment, *_other_gpus(self.plan)]:
                held.enter_context(gpu_lock(environment))
            path = unfinished(self.out, self.hash)
            resumed = path is not None
            if path is not None:
                self._load(path)
            with store.Writer(path or self._new_path()) as self.writer:
                if not resumed:
                    self._header()
                self.listener.plan(self._total(), len(self.done))
                self._skip_arms()
                self._train()
                self.writer.end(utc=utc(), elapsed_s=round(time.monotonic() - self.start, 1))
        return TrainResult(
            path=self.writer.path, resumed=resumed, elapsed_s=time.monotonic() - self.start, runs=self.count
        )

    def _new_path(self) -> Path:
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S%fZ")
        host = "".join(c if c.isalnum() else "-" for c in socket.gethostname()).strip("-") or "host"
        return self.out / f"{stamp}-{host}-{os.getpid()}.jsonl"

    def _load(self, path: Path) -> None:
        for record in store.read_lines(path):
            if record["record"] != "run":
                continue
            if record.get("seed") is None or record["phase"] == "plan":
                self.skipped.add((record["workload"], record["arm"]))
            elif record["status"] != "interrupted":
                self.done.add((record["workload"], record["arm"], record["seed"]))
        self.listener.note(f"resuming {path.name}: {len(self.done)} runs are done")

    def _header(self) -> None:
        self.writer.header(
            {
                "utc": utc(),
                "command": self.command,
                "project": self.project,
                "environment": self.environment,
                "plan": self.plan.describe(self.hash),
                "methods": [m.describe() for m in registry.methods(TASK).values()],
            }
        )

    def _total(self) -> int:
        return sum(len(part.runnable()) * len(part.seeds) for part in self.plan.parts)

    def _skip_arms(self) -> None:
        for part in self.plan.parts:
            for arm in part.arms:
                if arm.why is not None and (part.workload.name, arm.name) not in self.skipped:
                    self._row(part, arm, "training", None, "unsupported", arm.why, {}, {})

    # -- one workload ----------------------------------------------------------------------------------------------

    def _train(self) -> None:
        """Every workload gets an equal share of what is left of the budget; what remains goes to those cut short."""
        for index, part in enumerate(self.plan.parts):
            used = time.monotonic() - self.start
            self._limit_s = used + ((self.plan.request.budget_s or 0.0) - used) / (len(self.plan.parts) - index)
            self._part(part)
        self._limit_s = self.plan.request.budget_s or 0.0
        for part in self.plan.parts:
            self._part(part)
            if pending := self._pending(part):
                self._left_out(part, pending)

    def _part(self, part: Part) -> None:
        while (pending := self._pending(part)) and self._time_for(part, pending[0]):
            self._work(part, pending)

    def _pending(self, part: Part) -> list[RunSpec]:
        """Runs without a row, seed after seed, the arms of each in a shuffled order of the file's own."""
        arms = {arm.name: arm for arm in part.runnable()}
        found: list[RunSpec] = []
        for block, seed in enumerate(part.seeds):
            names = ordered(list(arms), f"{self.writer.path.stem}/{part.workload.name}", block) if arms else []
            left = [name for name in names if (part.workload.name, name, seed) not in self.done]
            found.extend(self._with_checkpoint(self.plan.spec(part, arms[name], block)) for name in left)
        return found

    def _with_checkpoint(self, spec: RunSpec) -> RunSpec:
        return replace(spec, checkpoint=str(checkpoint.place(self.out, self.hash, spec)))

    def _time_for(self, part: Part, spec: RunSpec) -> bool:
        """Whether a whole seed still fits the budget; a seed that was begun is finished."""
        budget = self.plan.request.budget_s
        if self._seed_s.get((part.workload.name, spec.seed)) == float("inf"):
            return False
        if budget is None or any((part.workload.name, arm.name, spec.seed) in self.done for arm in part.runnable()):
            return True
        spent = [seconds for (name, _), seconds in self._seed_s.items() if name == part.workload.name]
        used = time.monotonic() - self.start
        return used < self._limit_s if not spent else used + max(spent[-3:]) <= self._limit_s

    def _work(self, part: Part, pending: list[RunSpec]) -> None:
        """One worker over the pending runs; a crash or a hang costs the run under way."""
        job = job_of(self.plan, [spec.to_json() for spec in pending], last=self._last_part(part))
        specs = {(spec.arm, spec.seed): spec for spec in pending}
        current: RunSpec | None = None
        before = len(self.done)
        begun = time.monotonic()
        try:
            with Worker(job, self.plan.request.deadline_s) as worker:
                for message in worker.messages():
                    if isinstance(message, Ended):
                        self._failed(part, current or pending[0], message.status, message.reason)
                        return
                    spec = specs.get((message.get("arm", ""), message.get("seed", -1)), current)
                    if message["event"] == "start":
                        if not self._time_for(part, spec or pending[0]):
                            return
                        current, self._last, begun = spec, {}, time.monotonic()
                        self.listener.begin(current.label if current else "")
                    elif message.get("kind") == "progress":
                        self._last = message
                        self.listener.progress(current.label if current else "", message)
                        if current is not None and self._over(part, current):
                            return
                    elif spec is not None:
                        self._result(part, spec, message["outcome"])
                        key = (part.workload.name, spec.seed)
                        self._seed_s[key] = self._seed_s.get(key, 0.0) + time.monotonic() - begun
                        current = None
        except KeyboardInterrupt:
            if current is not None:
                self._cut(part, current, "interrupted by the user or a signal; the same command resumes it")
            raise
        if len(self.done) == before:
            self._failed(part, pending[0], "error", "the process ended without an answer")

    def _last_part(self, part: Part) -> bool:
        """Whether nothing is left to do beside this workload: other machines may then go."""
        return not any(self._pending(other) for other in self.plan.parts if other is not part)

    def _over(self, part: Part, spec: RunSpec) -> bool:
        """The budget ended within a run: it is cut, and what is left of the plan is left out."""
        budget = self.plan.request.budget_s
        if budget is None or time.monotonic() - self.start <= budget:
            return False
        self._cut(part, spec, BUDGET_REASON)
        self._seed_s[part.workload.name, spec.seed] = float("inf")
        return True

    def _left_out(self, part: Part, pending: list[RunSpec]) -> None:
        seeds = sorted({spec.seed for spec in pending})
        self.listener.note(f"{part.workload.name}: {BUDGET_REASON}: seeds {', '.join(map(str, seeds))}")
        for spec in pending:
            self._row(part, spec, "plan", spec.seed, "unsupported", BUDGET_REASON, {}, {}, block=spec.block)

    # -- rows ------------------------------------------------------------------------------------------------------

    def _result(self, part: Part, spec: RunSpec, found: Mapping[str, Any]) -> None:
        """The run's row, then its checkpoint goes."""
        self._row(
            part,
            spec,
            "training",
            spec.seed,
            found["status"],
            found["reason"],
            found["measurements"],
            found["detail"],
            block=spec.block,
        )
        self._finish(part, spec)
        self.listener.end(spec.label, found["status"], self._text(found))

    def _finish(self, part: Part, spec: RunSpec) -> None:
        self.done.add((part.workload.name, spec.arm, spec.seed))
        if spec.checkpoint is not None:
            with contextlib.suppress(OSError):
                checkpoint.remove(Path(spec.checkpoint))

    @staticmethod
    def _text(found: Mapping[str, Any]) -> str:
        measured = found["measurements"]
        if "time_to_target_s" in measured:
            steps = measured["steps_to_target"][1][0]
            return f"in {units.seconds(measured['time_to_target_s'][1][0])}, {steps:.0f} updates"
        return f"({found['reason']})" if found["reason"] else ""

    def _failed(self, part: Part, spec: RunSpec, status: str, reason: str) -> None:
        """The run whose process ended."""
        self._broken(part, spec, status, reason)
        self._finish(part, spec)
        self.listener.end(spec.label, status, f"({reason})")

    def _cut(self, part: Part, spec: RunSpec, reason: str) -> None:
        """The run under way when the executor itself was stopped: a row, and it stays to be done."""
        self._broken(part, spec, "interrupted", reason)

    def _broken(self, part: Part, spec: RunSpec, status: str, reason: str) -> None:
        measured: dict[str, tuple[str, list[float], str | None]] = {}
        last = self._last
        detail = {**hyper_detail(spec), "updates": last.get("updates")}
        if last.get("train_s"):
            measured["elapsed_s"] = ("s", [last["train_s"]], "train")
            measured["steps"] = ("1", [float(last["done"])], None)
            updates = float(last["updates"])
            budget_s = last["train_s"] / last["done"] * updates
            if budget_s > spec.max_s:  # the budget in seconds would have ended it sooner
                updates, budget_s = updates * spec.max_s / budget_s, spec.max_s
            measured["censored_at_s"] = ("s", [budget_s], "train")
            detail["censored_at"] = {
                "steps_to_target": updates,
                "samples_to_target": updates * part.workload.batch,
                "time_to_target_s": budget_s,
            }
        self._row(part, spec, "training", spec.seed, status, reason, measured, detail, block=spec.block)

    def _row(
        self,
        part: Part,
        arm: Arm | RunSpec,
        phase: Any,
        seed: int | None,
        status: Any,
        reason: str | None,
        measured: Mapping[str, Any],
        detail: Mapping[str, Any],
        block: int | None = None,
    ) -> Run:
        self.count += 1
        run = Run(
            run=f"{os.getpid():x}-{random.getrandbits(48):012x}",
            phase=phase,
            case=f"{arm.method}/{part.workload.name}",
            task=TASK,
            method=arm.method,
            workload=part.workload.name,
            seed=seed,
            block=block,
            arm=arm.arm if isinstance(arm, RunSpec) else arm.name,
            status=status,
            reason=reason,
            measurements=[
                Measurement(metric=name, unit=unit, samples=samples, clock=clock)
                for name, (unit, samples, clock) in measured.items()
                if samples
            ],
            detail=dict(detail),
            utc=utc(),
        )
        self.writer.run(run)
        return run
