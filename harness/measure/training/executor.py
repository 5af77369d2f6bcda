"""The training executor: seeds are blocks, arms shuffled within each, every run written down, killed runs resumed."""

from __future__ import annotations

import contextlib
import datetime
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import __version__, units
from harness.catalogue import registry
from harness.errors import UserError
from harness.measure.executor import utc
from harness.measure.isolate import Ended, Worker
from harness.measure.plan import BUDGET_REASON
from harness.measure.session import cpu_lock, gpu_lock, unfinished
from harness.measure.training import checkpoint
from harness.measure.training.ahead import Crew, kind_of
from harness.measure.training.listener import Listener, Silent
from harness.measure.training.outcome import hyper_detail
from harness.measure.training.plan import Arm, Part, TrainPlan
from harness.measure.training.recipe import TASK
from harness.measure.training.spec import RunSpec
from harness.measure.worker import ordered
from harness.record import environment as machine
from harness.record import lines, nvidia, store
from harness.record.run import Measurement, Run

Key = tuple[str, str, int]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Where the runs are, and what was done."""

    path: Path
    resumed: bool
    elapsed_s: float
    runs: int


def execute(
    plan: TrainPlan, out: Path, command: str, listener: Listener | None = None, crew: Crew | None = None
) -> TrainResult:
    """Train a plan and append every run to one file under ``out``; a ``crew`` has workers that were started before.

    Raises:
        UserError: the folder cannot be written, or another measurement holds the GPU.
        KeyboardInterrupt: Ctrl-C; the run under way has its row, and the same command resumes it.
    """
    return TrainExecutor(plan, out, command, listener or Silent(), crew).run()


#: Why a run has no end.
INTERRUPTED = "interrupted by the user or a signal; the same command resumes it"


@dataclass
class _Walk:
    """Where a worker is in its job's runs: the one under way and when it began, and how many have been answered."""

    specs: Mapping[tuple[str, int], RunSpec]
    first: RunSpec
    current: RunSpec | None = None
    begun: float = 0.0
    answers: int = 0


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
        lost, over = None, False
        with Worker(job_of(plan, [], last=True), plan.request.deadline_s) as worker:
            for message in worker.messages():
                if isinstance(message, Ended):
                    lost = message.reason
                    break
                heard = time.monotonic()
                # The worker ends by itself: killed here, it would leave machine 0 waiting for it until its deadline.
                over |= message.get("kind") == "followed" and message["over"]
        if over:
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
    """Several processes, or runs at once, are another device: their times never stand beside those of one alone."""
    world, name, lanes = plan.request.world, environment["device_name"], plan.request.side_by_side
    if lanes > 1:
        gpus = gpus_of(plan)
        name = f"{gpus} x {name}" if gpus > 1 else name
        label, each = f"{name}, {lanes} runs at once", int(lane_environment(plan, 0)["OMP_NUM_THREADS"])
        return {**environment, "device_name": label, "side_by_side": lanes, "threads": each}
    if world.size == 1:
        return environment
    label = f"{world.size} x {name}" if plan.device == "cuda" else f"{name}, {world.size} processes"
    return {**environment, "device_name": label, "world": world.size, "nnodes": world.nnodes}


def gpus_of(plan: TrainPlan) -> int:
    """How many GPUs the plan uses on this machine."""
    if plan.device != "cuda":
        return 0
    lanes = plan.request.side_by_side
    return min(lanes, nvidia.visible()) if lanes > 1 else plan.request.world.nproc


def _other_gpus(plan: TrainPlan) -> list[dict[str, Any]]:
    return [{"gpu": nvidia.describe(place)} for place in range(1, gpus_of(plan))]


def lane_environment(plan: TrainPlan, lane: int) -> dict[str, str]:
    """What a lane's worker sees: its share of the threads, and one GPU in turn where there are several."""
    lanes, gpus = plan.request.side_by_side, gpus_of(plan)
    if lanes < 2:
        return {}
    found = {"OMP_NUM_THREADS": str(max(1, machine.threads() // lanes))}
    if gpus > 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        found["CUDA_VISIBLE_DEVICES"] = seen.split(",")[lane % gpus]
    return found


def hire(plan: TrainPlan, crew: Crew, runs: int) -> None:
    """Start the workers of a plan's ``runs``, each lane's with its own share of threads and its GPU."""
    for lane in range(min(plan.request.side_by_side, runs)):
        crew.start(kind_of(plan.request.world.size), lane, lane_environment(plan, lane))


class TrainExecutor:
    """Walks a plan; a worker takes all pending runs of a workload, and a new one takes over after a crash."""

    def __init__(self, plan: TrainPlan, out: Path, command: str, listener: Listener, crew: Crew | None = None) -> None:
        self.plan, self.out, self.command, self.listener = plan, out, command, listener
        self.crew = crew or Crew()
        self.done: set[Key] = set()
        self.skipped: set[tuple[str, str]] = set()
        self.count = 0
        self.start = time.monotonic()
        self.writer: store.Writer
        #: The newest progress of each run under way.
        self._last: dict[tuple[str, int], dict[str, Any]] = {}
        self._turn = threading.RLock()
        self._workers: set[Worker] = set()
        self._stopping = False
        self._seed_s: dict[tuple[str, int], float] = {}
        self._limit_s = 0.0

    def run(self) -> TrainResult:
        """Train whatever has no row yet."""
        with self.crew:
            return self._run()

    def _run(self) -> TrainResult:
        self.environment = _labelled(machine.collect(self.plan.device), self.plan)
        self.project = {"version": __version__, **machine.code()}
        self.hash = self.plan.hash(self.project, machine.identity(self.environment))
        with contextlib.ExitStack() as held:
            for environment in [self.environment, *_other_gpus(self.plan)]:
                held.enter_context(gpu_lock(environment))
            held.enter_context(cpu_lock(self.environment))
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
        for record in lines.read_lines(path):
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
        return self.plan.runs()

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
        if self.plan.request.side_by_side > 1:
            self._lanes(part)
            return
        while (pending := self._pending(part)) and self._time_for(part, pending[0]):
            self._work(part, pending)

    def _lanes(self, part: Part) -> None:
        """Several workers at once, each with its share of the runs."""
        pending = self._pending(part)
        count = min(self.plan.request.side_by_side, len(pending))
        self._at_once([(self._lane, (part, pending[lane::count], lane)) for lane in range(count)])

    def _at_once(self, tasks: Sequence[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
        """Each task in a thread of its own; the first failure stops the workers of all."""
        if not tasks:
            return
        with ThreadPoolExecutor(len(tasks)) as pool:
            lanes = [pool.submit(function, *arguments) for function, arguments in tasks]
            try:
                for lane in wait(lanes, return_when=FIRST_EXCEPTION).done:
                    lane.result()
            except BaseException:
                with self._turn:
                    self._stopping = True
                    for worker in self._workers:
                        worker.stop()
                raise

    def _lane(self, part: Part, mine: list[RunSpec], lane: int) -> None:
        while not self._stopping:
            with self._turn:
                left = [spec for spec in mine if (part.workload.name, spec.arm, spec.seed) not in self.done]
            if not left:
                return
            self._work(part, left, lane)

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

    def _work(self, part: Part, pending: list[RunSpec], lane: int = 0) -> None:
        """One worker over the pending runs; a crash or a hang costs the run under way."""
        with self._hired(lane) as worker:
            self._walk(part, pending, worker, last=True)

    @contextlib.contextmanager
    def _hired(self, lane: int) -> Iterator[Worker]:
        """A worker of its own process for a lane."""
        process = self.crew.take(kind_of(self.plan.request.world.size), lane, lane_environment(self.plan, lane))
        with Worker(None, self._deadline_s(), process=process) as worker:
            with self._turn:
                self._workers.add(worker)
            try:
                yield worker
            finally:
                with self._turn:
                    self._workers.discard(worker)

    def _walk(self, part: Part, pending: list[RunSpec], worker: Worker, last: bool) -> bool:
        """The worker's way through the pending runs; whether it can be given more, unless this was its ``last`` job."""
        walk = _Walk({(spec.arm, spec.seed): spec for spec in pending}, pending[0])
        with self._turn:
            if self._stopping:
                return False
            job = job_of(self.plan, [spec.to_json() for spec in pending], last=self._last_part(part))
        worker.give(job, last)
        try:
            for message in worker.messages():
                with self._turn:
                    if self._heard(part, walk, message):
                        return False
        except KeyboardInterrupt:
            if walk.current is not None:
                self._cut(part, walk.current, INTERRUPTED)
            raise
        if not walk.answers:
            with self._turn:
                self._failed(part, pending[0], "error", "the process ended without an answer")
        return True

    def _deadline_s(self) -> float:
        return self.plan.request.deadline_s * self.plan.request.crowd(self.plan.device)

    def _heard(self, part: Part, walk: _Walk, message: dict[str, Any] | Ended) -> bool:
        """Take in one message; True when the worker is done with."""
        if isinstance(message, Ended):
            if not self._stopping:
                self._failed(part, walk.current or walk.first, message.status, message.reason)
            elif walk.current is not None:
                self._cut(part, walk.current, INTERRUPTED)
            return True
        spec = walk.specs.get((message.get("arm", ""), message.get("seed", -1)), walk.current)
        if message["event"] == "start":
            if not self._time_for(part, spec or walk.first):
                return True
            walk.current, walk.begun = spec, time.monotonic()
            if spec is not None:
                self._last.pop((spec.arm, spec.seed), None)
            self.listener.begin(spec.label if spec else "")
        elif message.get("kind") == "progress":
            if walk.current is not None:
                self._last[walk.current.arm, walk.current.seed] = message
            self.listener.progress(walk.current.label if walk.current else "", message)
            if walk.current is not None and self._over(part, walk.current):
                return True
        elif spec is not None:
            self._result(part, spec, message["outcome"])
            walk.answers += 1
            key = (part.workload.name, spec.seed)
            self._seed_s[key] = self._seed_s.get(key, 0.0) + time.monotonic() - walk.begun
            walk.current = None
        return False

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
        last = self._last.get((spec.arm, spec.seed), {})
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
