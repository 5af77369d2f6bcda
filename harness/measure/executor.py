"""The executor: walks a plan through check and block workers, writes every run down, resumes where it was killed."""

from __future__ import annotations

import datetime
import os
import random
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import __version__
from harness.catalogue import registry
from harness.catalogue.suite import Case, Problem
from harness.errors import UserError
from harness.measure import plan as planning
from harness.measure.isolate import Ended, Worker
from harness.measure.plan import BUDGET_REASON, Plan, SuitePlan
from harness.measure.progress import Progress, Silent
from harness.measure.session import gpu_lock, unfinished
from harness.measure.worker import AA
from harness.record import environment as machine
from harness.record import store
from harness.record.run import Measurement, Run

#: Part of the budget that is kept for writing, judging and rendering.
RESERVE = 0.04
#: Fresh blocks at most that make up for discarded ones.
MOST_REPLACED = 3


@dataclass(kw_only=True)
class State:
    """What a file already holds: gate records by case, and (case, block, arm) that are done."""

    gates: dict[str, dict[str, Any]] = field(default_factory=dict)
    blocks: set[tuple[str, int, str]] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    planned: set[str] = field(default_factory=set)

    def note(self, record: Mapping[str, Any]) -> None:
        """Take one stored run into account."""
        if record["phase"] == "gate":
            self.gates[record["case"]] = dict(record)
        elif record["phase"] == "block":
            self.blocks.add((record["case"], record["block"], record["arm"]))
            if record["status"] != "passed":
                self.failed[f"{record['arm']}/{record['problem']}"] = record["reason"]
        elif record["phase"] == "plan":
            self.planned.add(record["case"])


@dataclass(frozen=True, kw_only=True)
class Result:
    """Where the runs are, and what was done."""

    path: Path
    resumed: bool
    elapsed_s: float
    runs: int


def execute(plan: Plan, out: Path, command: str, progress: Progress | None = None) -> Result:
    """Measure a plan and append every run to one file under ``out``.

    Raises:
        UserError: the folder cannot be written, or another measurement holds the GPU.
    """
    return _Executor(plan, out, command, progress or Silent()).run()


def utc() -> str:
    """Now, in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Executor:
    def __init__(self, plan: Plan, out: Path, command: str, progress: Progress) -> None:
        self.plan, self.out, self.command, self.progress = plan, out, command, progress
        self.state = State()
        self.count = 0
        self.start = time.monotonic()
        self.start_s = 3.0
        self.flops: dict[str, float] = {}
        self.rate = 1e10
        self.writer: store.Writer

    def run(self) -> Result:
        self.environment = machine.collect(self.plan.device)
        self.project = {"version": __version__, **machine.git()}
        hash_ = self.plan.hash(self.project, machine.identity(self.environment))
        with gpu_lock(self.environment):
            path = unfinished(self.out, hash_)
            resumed = path is not None
            if path is not None:
                self._load(path)
            else:
                path = self._new_path()
            with store.Writer(path) as self.writer:
                if resumed:
                    self.progress.note(f"resuming {path.name}: {len(self.state.gates)} gates are done")
                else:
                    self._probe()
                    self._header(hash_)
                self._record_skipped()
                self._gates()
                self._fit_blocks()
                self._blocks()
                self.writer.end(utc=utc(), elapsed_s=round(time.monotonic() - self.start, 1))
        return Result(path=path, resumed=resumed, elapsed_s=time.monotonic() - self.start, runs=self.count)

    # -- beginning -------------------------------------------------------------------------------------------------

    def _new_path(self) -> Path:
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S%fZ")
        host = "".join(c if c.isalnum() else "-" for c in socket.gethostname()).strip("-") or "host"
        return self.out / f"{stamp}-{host}-{os.getpid()}.jsonl"

    def _load(self, path: Path) -> None:
        header: dict[str, Any] = {}
        for record in store.read_lines(path):
            if record["record"] == "header":
                header = record
            elif record["record"] == "run":
                self.state.note(record)
        self.environment = header["environment"]
        self.plan.blocks = header["plan"]["blocks"]
        left_out = {item["case"]: item["reason"] for item in header["plan"]["left_out"]}
        for part, stored in zip(self.plan.suites, header["plan"]["suites"], strict=True):
            kept = {problem["id"] for problem in stored["problems"]}
            part.problems = [p for p in part.problems if p.id in kept]
            part.skipped |= {k: v for k, v in left_out.items() if k.split(".", 1)[0] == part.suite.task.name}

    def _probe(self) -> None:
        """Start-up time, product rate and device facts from one throw-away worker; then fit the plan to the budget."""
        for part in self.plan.suites:
            begin = time.monotonic()
            job = self._job(part, "probe", problems=[p.describe() for p in part.problems])
            with Worker(job, part.protocol.case_timeout_s) as worker:
                for message in worker.messages():
                    if isinstance(message, Ended):
                        raise UserError(f"the measuring process cannot start: {message.reason}")
                    facts = message["facts"]
                    self.flops |= facts.pop("work_flops")
                    probe_s = facts.pop("probe_s", 0.0)
                    self.rate = facts.get("flops_per_s") or self.rate
                    self.start_s = max(0.2, time.monotonic() - begin - probe_s)
                    self.environment["probe"] = {"flops_per_s": self.rate, "start_s": round(self.start_s, 2)}
                    if self.environment.get("gpu"):
                        self.environment["gpu"] |= {k: v for k, v in facts.items() if k in ("sm_count", "l2_bytes")}
        planning.fit(self.plan, self.flops, self.rate, self.start_s)
        self.progress.note(
            f"plan: {sum(len(p.cases()) for p in self.plan.suites)} cases, {self.plan.blocks} blocks, "
            f"about {self.plan.estimate_s:.0f} s"
        )

    def _header(self, hash_: str) -> None:
        tasks = {part.suite.task.name for part in self.plan.suites}
        self.writer.header(
            {
                "utc": utc(),
                "command": self.command,
                "project": self.project,
                "environment": self.environment,
                "plan": self.plan.describe(hash_),
                "methods": [m.describe() for task in sorted(tasks) for m in registry.methods(task).values()],
            }
        )

    def _record_skipped(self) -> None:
        for part in self.plan.suites:
            for case_id, reason in part.skipped.items():
                self._skip(part, case_id, reason)
            for name, reason in part.broken.items():
                for problem in part.problems:
                    self._skip(part, f"{name}/{problem.id}", reason)

    def _skip(self, part: SuitePlan, case_id: str, reason: str) -> None:
        if case_id in self.state.planned:
            return
        method, _, problem = case_id.partition("/")
        self.state.planned.add(case_id)
        self._write(part, "plan", method, problem, arm=method, status="unsupported", reason=reason)

    # -- gate ------------------------------------------------------------------------------------------------------

    def _gates(self) -> None:
        total = sum(len(part.cases()) for part in self.plan.suites)
        self.progress.phase("gate", total, len(self.state.gates))
        for part in self.plan.suites:
            fresh = not self.state.gates and self.plan.request.budget_s is not None
            begin = time.monotonic()
            while fresh and (pending := self._ungated(part, part.problems[:1])):
                self._check(part, pending)
            if fresh and self.flops:
                self._rescale(part, time.monotonic() - begin)
            while pending := self._ungated(part, part.problems):
                self._check(part, pending)

    def _rescale(self, part: SuitePlan, elapsed_s: float) -> None:
        """The first problem's gate tells how slow this machine is today; the plan is fitted to the budget again."""
        expected = planning.gate_seconds(part, part.problems[0], self.flops, self.rate) + self.start_s
        slower = max(1.0, elapsed_s / expected)
        kept = list(part.problems)
        planning.fit(self.plan, self.flops, self.rate / slower, self.start_s * min(slower, 3.0))
        for problem in kept:
            if problem not in part.problems:
                for method in part.methods:
                    self._skip(part, f"{method.name}/{problem.id}", BUDGET_REASON)
        dropped = len(kept) - len(part.problems)
        if dropped:
            self.progress.note(f"{slower:.1f} times slower than estimated: {dropped} problems {BUDGET_REASON}")

    def _ungated(self, part: SuitePlan, problems: list[Problem]) -> dict[str, list[Problem]]:
        pending = {
            method.name: [
                p
                for p in part.of_method(method.name)
                if p in problems and f"{method.name}/{p.id}" not in self.state.gates
            ]
            for method in part.methods
        }
        return {name: wanted for name, wanted in pending.items() if wanted}

    def _check(self, part: SuitePlan, pending: Mapping[str, list[Problem]]) -> None:
        """One check worker over all pending methods; a method that dies is taken up again at its next problem."""
        jobs = [{"method": name, "problems": [p.describe() for p in problems]} for name, problems in pending.items()]
        first = next(iter(pending))
        current = (first, pending[first][0].id)
        done = len(self.state.gates)
        with Worker(self._job(part, "check", methods=jobs), part.protocol.case_timeout_s) as worker:
            for message in worker.messages():
                if isinstance(message, Ended):
                    self._lost(part, current, message.status, message.reason)
                elif message["event"] == "start":
                    current = (message["method"], message["problem"])
                elif message["event"] == "finished":
                    asked = pending[message["method"]]
                    if f"{message['method']}/{asked[-1].id}" not in self.state.gates:
                        self._lost(part, current, "error", "the process ended without an answer")
                else:
                    self._gate_result(part, message["method"], message)
        if len(self.state.gates) == done:
            self._lost(part, current, "error", "the process ended without an answer")

    def _lost(self, part: SuitePlan, current: tuple[str, str], status: str, reason: str) -> None:
        """The case that was under way when its process ended; one that has its record already keeps it."""
        if f"{current[0]}/{current[1]}" not in self.state.gates:
            self._gate_record(part, *current, status, reason, {}, {})

    def _gate_result(self, part: SuitePlan, method: str, message: Mapping[str, Any]) -> None:
        found = message["gate"]
        detail = dict(found["detail"])
        if found["status"] == "passed" and found["planning_s"] is not None:
            detail["planning_s"] = found["planning_s"]
        measurements: dict[str, tuple[str, list[float], str | None]] = {
            name: ("1", values, None) for name, values in found["errors"].items()
        }
        if found["status"] == "passed":
            for name, (values, unit) in found["facts"].items():
                measurements[name] = (unit, values, "host" if unit == "s" else None)
        if found["status"] == "passed" and found["first_call_s"] is not None:
            measurements["first_call_s"] = ("s", [found["first_call_s"]], "host")
        self._gate_record(part, method, message["problem"], found["status"], found["reason"], measurements, detail)
        memory = message["memory"]
        if memory:
            self._write(
                part,
                "memory",
                method,
                message["problem"],
                arm=method,
                status=memory["status"],
                reason=memory["reason"],
                measurements={
                    name: (unit, value if isinstance(value, list) else [value], None)
                    for name, (value, unit) in memory["measurements"].items()
                },
                detail=memory["detail"],
            )

    def _gate_record(
        self,
        part: SuitePlan,
        method: str,
        problem: str,
        status: str,
        reason: str | None,
        measurements: Mapping[str, tuple[str, list[float], str | None]],
        detail: Mapping[str, Any],
    ) -> None:
        run = self._write(
            part,
            "gate",
            method,
            problem,
            arm=method,
            status=status,
            reason=reason,
            measurements=measurements,
            detail=detail,
        )
        self.state.gates[run.case] = run.model_dump(mode="json")
        self.progress.step(f"{run.case}: {status}")

    # -- blocks ----------------------------------------------------------------------------------------------------

    def _arms(self, part: SuitePlan, problem: Problem) -> list[str]:
        passed = [
            method.name
            for method in part.methods
            if self.state.gates.get(f"{method.name}/{problem.id}", {}).get("status") == "passed"
        ]
        if part.suite.baseline in passed:
            passed.append(part.suite.baseline + AA)
        return passed

    def _gate_call_s(self, case_id: str) -> float:
        return float(self.state.gates[case_id]["detail"].get("planning_s") or 0.0)

    def _fit_blocks(self) -> None:
        """With the gate's times known, drop whole problems (the last first) until the blocks fit what is left."""
        budget = self.plan.request.budget_s
        if budget is None or self.state.blocks:
            return
        left = budget * (1 - RESERVE) - (time.monotonic() - self.start)
        weights = sum(part.suite.weight for part in self.plan.suites)
        for part in self.plan.suites:
            share = left * part.suite.weight / weights - self.plan.blocks * self.start_s
            while len(part.problems) > 1 and self._block_seconds(part) > share:
                if part.protocol.min_blocks < self.plan.blocks and len(part.problems) == 1:
                    break
                problem = part.problems[-1]
                timed = [arm for arm in self._arms(part, problem) if not arm.endswith(AA)]
                part.problems.pop()
                for arm in timed:
                    self._skip(part, f"{arm}/{problem.id}", f"{BUDGET_REASON} (gated, not timed)")
        while self.plan.blocks > max(p.protocol.min_blocks for p in self.plan.suites):
            if sum(self._block_seconds(p) + self.plan.blocks * self.start_s for p in self.plan.suites) <= left:
                break
            self.plan.blocks -= 1

    def _block_seconds(self, part: SuitePlan) -> float:
        total = 0.0
        for problem in part.problems:
            arms = self._arms(part, problem)
            if not arms:
                continue
            calls = [self._gate_call_s(f"{arm.removesuffix(AA)}/{problem.id}") for arm in arms]
            cuda = problem.device == "cuda"
            sampled = 3 * part.protocol.gpu_arm_s if cuda else part.protocol.inner_s
            # The oracle is about one slow call; one warm-up and one checked call precede the samples of each arm.
            total += max(calls) * 2 + (part.protocol.gpu_warmup_s if cuda else 0.0)
            total += sum(2 * call + max(sampled, call) + 0.01 for call in calls)
        return total * self.plan.blocks

    def _blocks(self) -> None:
        work = [
            (part, problem, arm) for part in self.plan.suites for problem in part.problems
            for arm in self._arms(part, problem)
        ]  # fmt: skip
        self.progress.phase("blocks", len(work) * self.plan.blocks, len(self.state.blocks))
        for block in range(self.plan.blocks):
            if self._out_of_time(block):
                break
            for part in self.plan.suites:
                while pending := self._pending(part, block):
                    self._block(part, block, pending)
        self._replace_discarded()

    def _replace_discarded(self) -> None:
        """Problems that lost blocks (thermal or power brake, a slow clock) get as many fresh ones, within limits."""
        for block in range(self.plan.blocks, self.plan.blocks + MOST_REPLACED):
            if self._out_of_time(block):
                return
            lost = store.discarded_blocks(self.writer.path)
            short = {problem for problem in lost if block - len(lost[problem]) < self.plan.blocks}
            for part in self.plan.suites:
                while pending := [item for item in self._pending(part, block) if item["problem"]["id"] in short]:
                    self.progress.note(f"block {block}: replaces discarded blocks of {len(pending)} problems")
                    self._block(part, block, pending)

    def _out_of_time(self, block: int) -> bool:
        budget = self.plan.request.budget_s
        least = max(part.protocol.min_blocks for part in self.plan.suites)
        if budget is None or block < least:
            return False
        used = time.monotonic() - self.start
        per_block = used / max(block, 1) if not self.state.gates else (used / (block + 1))
        if used + per_block <= budget:
            return False
        self.progress.note(f"{BUDGET_REASON}: blocks {block + 1} to {self.plan.blocks}")
        return True

    def _pending(self, part: SuitePlan, block: int) -> list[dict[str, Any]]:
        items = []
        for problem in part.problems:
            arms = []
            for arm in self._arms(part, problem):
                case_id = f"{arm.removesuffix(AA)}/{problem.id}"
                if (case_id, block, arm) in self.state.blocks or f"{arm}/{problem.id}" in self.state.failed:
                    continue
                arms.append(arm)
            if arms:
                limits = {arm.removesuffix(AA): self._limit(part, arm.removesuffix(AA), problem) for arm in arms}
                items.append({"problem": problem.describe(), "arms": arms, "limits": limits})
        return items

    def _limit(self, part: SuitePlan, method: str, problem: Problem) -> float | None:
        for measurement in self.state.gates[f"{method}/{problem.id}"].get("measurements", []):
            if measurement["metric"] == part.suite.task.primary_error:
                return float(max(measurement["samples"]))
        return None

    def _block(self, part: SuitePlan, block: int, pending: list[dict[str, Any]]) -> None:
        job = self._job(part, "block", block=block, problems=pending, seed=self.writer.path.stem)
        current: tuple[str, str] | None = None
        with Worker(job, part.protocol.case_timeout_s) as worker:
            for message in worker.messages():
                if isinstance(message, Ended):
                    self._block_died(part, block, current, pending, message)
                    return
                if message["event"] == "start":
                    current = (message["problem"], message["arm"])
                elif message["event"] == "result":
                    self._block_result(part, block, message)

    def _block_died(
        self,
        part: SuitePlan,
        block: int,
        current: tuple[str, str] | None,
        pending: list[dict[str, Any]],
        ended: Ended,
    ) -> None:
        """A crash or a hang costs that arm on that problem (every arm, when it struck before the first one)."""
        problem, arm = current or (pending[0]["problem"]["id"], "(preparation)")
        arms = [arm]
        if arm == "(preparation)":
            arms = next(item["arms"] for item in pending if item["problem"]["id"] == problem)
        for name in arms:
            done = (f"{name.removesuffix(AA)}/{problem}", block, name) in self.state.blocks
            if not done:
                reason = f"in block {block}: {ended.reason}"
                self._block_record(part, block, problem, name, ended.status, reason, {}, {})

    def _block_result(self, part: SuitePlan, block: int, message: Mapping[str, Any]) -> None:
        status, reason = message["status"], message["reason"]
        timings = message["timings"] if status == "passed" else {}
        problem, arm = message["problem"], message["arm"]
        case_id = f"{arm.removesuffix(AA)}/{problem}"
        bound = self.state.gates[case_id]["detail"].get("floor_s")
        fastest = fastest_call(timings)
        if bound is not None and fastest is not None and fastest < bound:
            basis = self.state.gates[case_id]["detail"].get("floor_basis")
            status, timings = "error", {}
            reason = f"a time of {fastest:.3g} s lies under the physical floor of {bound:.3g} s ({basis})"
        measurements = {name: ("s", samples, clock) for name, (clock, samples) in timings.items()}
        measurements |= {name: ("1", [value], None) for name, value in message["errors"].items()}
        detail = {**message["detail"], "order": message["order"]}
        self._block_record(part, block, problem, arm, status, reason, measurements, detail)

    def _block_record(
        self,
        part: SuitePlan,
        block: int,
        problem: str,
        arm: str,
        status: str,
        reason: str | None,
        measurements: Mapping[str, tuple[str, list[float], str | None]],
        detail: Mapping[str, Any],
    ) -> None:
        run = self._write(
            part,
            "block",
            arm.removesuffix(AA),
            problem,
            arm=arm,
            status=status,
            reason=reason,
            measurements=measurements,
            detail=detail,
            block=block,
        )
        self.state.note(run.model_dump(mode="json"))
        self.progress.step(f"block {block} {run.arm}/{problem}: {status}")

    # -- common ----------------------------------------------------------------------------------------------------

    def _job(self, part: SuitePlan, kind: str, **fields: Any) -> dict[str, Any]:
        return {
            "kind": kind,
            "suite": part.suite.name,
            "device": self.plan.device,
            "protocol": part.protocol.describe(),
            "environment": self.environment,
            **fields,
        }

    def _write(
        self,
        part: SuitePlan,
        phase: Any,
        method: str,
        problem: str,
        *,
        arm: str,
        status: Any,
        reason: str | None,
        measurements: Mapping[str, tuple[str, list[float], str | None]] | None = None,
        detail: Mapping[str, Any] | None = None,
        block: int | None = None,
    ) -> Run:
        self.count += 1
        run = Run(
            run=f"{os.getpid():x}-{random.getrandbits(48):012x}",
            phase=phase,
            case=f"{method}/{problem}",
            task=part.suite.task.name,
            method=method,
            problem=problem,
            block=block,
            arm=arm,
            status=status,
            reason=reason,
            measurements=[
                Measurement(metric=name, unit=unit, samples=samples, clock=clock)
                for name, (unit, samples, clock) in (measurements or {}).items()
                if samples
            ],
            detail=dict(detail or {}),
            utc=utc(),
        )
        self.writer.run(run)
        return run


def case_ids(plan: Plan) -> list[str]:
    """Ids of the cases that a plan would measure."""
    return [Case(method=c.method, problem=c.problem).id for part in plan.suites for c in part.cases()]


def fastest_call(timings: Mapping[str, tuple[str, Sequence[float]]]) -> float | None:
    """The shortest whole call on any device clock; a part of a call may lie under the floor of the whole."""
    whole = (samples for name, (clock, samples) in timings.items() if name.startswith("op_") and clock != "launch")
    return min((min(samples) for samples in whole), default=None)
