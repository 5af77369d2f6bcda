"""The executor: walks a plan through check and block workers, writes every run down, resumes where it was killed."""

from __future__ import annotations

import contextlib
import datetime
import os
import random
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import __version__
from harness.catalogue import registry
from harness.catalogue.suite import Case, Problem
from harness.errors import UserError
from harness.measure.forecast import Forecast, arithmetic
from harness.measure.isolate import Ended, Worker
from harness.measure.plan import BUDGET_REASON, Plan, SuitePlan
from harness.measure.progress import Progress, Silent
from harness.measure.session import State, cpu_lock, gpu_lock, unfinished
from harness.measure.worker import AA, PREPARATION
from harness.record import environment as machine
from harness.record import lines, store
from harness.record.run import Measurement, Run

#: Fresh blocks at most that make up for discarded ones.
MOST_REPLACED = 3


@dataclass(frozen=True, kw_only=True)
class Result:
    """Where the runs are, and what was done; ``planned_s`` is the estimate that was announced, of a fresh file."""

    path: Path
    resumed: bool
    elapsed_s: float
    planned_s: float | None
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


#: The clock of the budget and of the phases; no measurement is taken with it.
now = time.monotonic


class _Executor:
    def __init__(self, plan: Plan, out: Path, command: str, progress: Progress) -> None:
        self.plan, self.out, self.command, self.progress = plan, out, command, progress
        self.state = State()
        self.count = 0
        self.start = now()
        self.forecast = Forecast(plan)
        self.phases: dict[str, float] = {}
        self.begun = False
        self.writer: store.Writer

    def run(self) -> Result:
        self.environment = machine.collect(self.plan.device)
        self.project = {"version": __version__, **machine.code()}
        hash_ = self.plan.hash(self.project, machine.identity(self.environment))
        with gpu_lock(self.environment), cpu_lock(self.environment):
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
                self.begun = True
                self._record_skipped()
                with self._phase("gates"):
                    self._gates()
                with self._phase("blocks"):
                    self._blocks()
                spent, planned = self._spent(), None if resumed else round(self.plan.estimate_s, 1)
                self.writer.end(utc=utc(), elapsed_s=round(spent, 1), planned_s=planned, phases_s=self.phases)
        return Result(path=path, resumed=resumed, elapsed_s=spent, planned_s=planned, runs=self.count)

    def _spent(self) -> float:
        return now() - self.start

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Write down how long a part of the work took."""
        begin = now()
        yield
        self.phases[name] = round(now() - begin, 1)

    # -- beginning -------------------------------------------------------------------------------------------------

    def _new_path(self) -> Path:
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S%fZ")
        host = "".join(c if c.isalnum() else "-" for c in socket.gethostname()).strip("-") or "host"
        return self.out / f"{stamp}-{host}-{os.getpid()}.jsonl"

    def _load(self, path: Path) -> None:
        header: dict[str, Any] = {}
        for record in lines.read_lines(path):
            if record["record"] == "header":
                header = record
            elif record["record"] == "run":
                self.state.note(record)
                if record["phase"] == "gate":
                    self.forecast.gate(record)
        self.environment = header["environment"]
        self.forecast.start_s = float(self.environment.get("probe", {}).get("start_s", self.forecast.start_s))
        self.plan.blocks = header["plan"]["blocks"]
        left_out = {item["case"]: item["reason"] for item in header["plan"]["left_out"]}
        for part, stored in zip(self.plan.suites, header["plan"]["suites"], strict=True):
            kept = {problem["id"] for problem in stored["problems"]}
            part.problems = [p for p in part.problems if p.id in kept]
            own = {**left_out, **self.state.left_out}
            part.skipped |= {k: v for k, v in own.items() if k.split(".", 1)[0] == part.suite.task.name}

    def _probe(self) -> None:
        """Start-up time, product rates and device facts from one throw-away worker; then fit the plan to the budget."""
        begin = now()
        items = [self._item(part, methods=[m.name for m in part.methods],
                            problems=[p.describe() for p in part.problems]) for part in self.plan.suites]  # fmt: skip
        dtypes = sorted({arithmetic(registry.method(c.method), c.problem) for part in self.plan.suites
                         for c in part.cases()} | {"float64"})  # fmt: skip
        with Worker(self._job("probe", items, dtypes=dtypes), self._deadline()) as worker:
            for message in worker.messages():
                if isinstance(message, Ended):
                    raise UserError(f"the measuring process cannot start: {message.reason}")
                facts = message["facts"]
                self.forecast.probed(facts, max(0.2, now() - begin - facts["probe_s"]))
                rates = {"flops_per_s": facts.get("flops_per_s"), **facts.get("rates", {})}
                self.environment["probe"] = {**rates, "start_s": round(self.forecast.start_s, 2)}
                if self.environment.get("gpu"):
                    self.environment["gpu"] |= {k: v for k, v in facts.items() if k in ("sm_count", "l2_bytes")}
        self.phases["probe"] = round(now() - begin, 1)
        self._fit()
        self.plan.estimate_s = self._spent() + self.forecast.left_s()
        self.progress.note(
            f"plan: {sum(len(p.cases()) for p in self.plan.suites)} cases, {self.plan.blocks} blocks, "
            f"about {self.plan.estimate_s:.0f} s"
        )
        budget = self.plan.request.budget_s
        if budget is not None and self.plan.estimate_s > budget:
            self.progress.note(f"the least that can be measured takes longer than the budget of {budget:.0f} s")

    def _fit(self, blocks_done: int = 0) -> None:
        """Leave out what the budget has no time for, by all that is known now; say so and write it down."""
        blocks, whole = self.plan.blocks, {p.suite.name: len(p.problems) for p in self.plan.suites}
        lost = self.forecast.fit(self._spent(), blocks_done)
        for part, case in lost:
            reason, gate = BUDGET_REASON, self.state.gates.get(case)
            if gate is not None:
                reason += f" (timed in {blocks_done} of {blocks} blocks)" if blocks_done else " (gated, not timed)"
            if gate is None or gate["status"] == "passed":
                part.skipped[case] = reason
        if not self.begun:
            return  # the header will tell
        told = [f"{n} problems of {part.suite.name}" if part.problems else f"suite {part.suite.name}"
                for part in self.plan.suites if (n := whole[part.suite.name] - len(part.problems))]  # fmt: skip
        kept = {problem.id for part in self.plan.suites for problem in part.problems}
        told += [case for _, case in lost if case.partition("/")[2] in kept]
        if self.plan.blocks < blocks:
            told.append(f"blocks {self.plan.blocks + 1} to {blocks}")
        if told:
            left = self._spent() + self.forecast.left_s(blocks_done)
            self.progress.note(f"{BUDGET_REASON}: {', '.join(told)}; about {left:.0f} s in all")
            self._record_skipped()

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
        if self.plan.request.budget_s is not None and not self.state.gates:
            # The gates of each suite's first problem tell how slow this machine is today.
            self._check_all(first=True)
            self._fit()
        self._check_all()
        if not self.state.blocks:
            self._fit()

    def _check_all(self, first: bool = False) -> None:
        while pending := self._ungated(first):
            self._check(pending)

    def _ungated(self, first: bool) -> list[tuple[SuitePlan, str, list[Problem]]]:
        """Suite, method and problems without a gate; of every suite the first problem alone, if asked for."""
        found = []
        for part in self.plan.suites:
            wanted = part.problems[:1] if first else part.problems
            for method in part.methods:
                cells = [p for p in part.of_method(method.name) if p in wanted]
                if left := [p for p in cells if f"{method.name}/{p.id}" not in self.state.gates]:
                    found.append((part, method.name, left))
        return found

    def _check(self, pending: Sequence[tuple[SuitePlan, str, list[Problem]]]) -> None:
        """One check worker over all pending methods; a method that dies is taken up again at its next problem."""
        items = [self._item(part, method=name, problems=[p.describe() for p in ps]) for part, name, ps in pending]
        parts = {part.suite.name: part for part, _, _ in pending}
        asked = {(part.suite.name, name): problems[-1].id for part, name, problems in pending}
        current = (pending[0][0], pending[0][1], pending[0][2][0].id)
        done = len(self.state.gates)
        last: float | None = None
        with Worker(self._job("check", items), self._deadline()) as worker:
            for message in worker.messages():
                if isinstance(message, Ended):
                    self._lost(*current, message.status, message.reason)
                elif message["event"] == "start":
                    current = (parts[message["suite"]], message["method"], message["problem"])
                elif message["event"] == "finished":
                    wanted = asked[message["suite"], message["method"]]
                    if f"{message['method']}/{wanted}" not in self.state.gates:
                        self._lost(*current, "error", "the process ended without an answer")
                else:
                    self._gate_result(parts[message["suite"]], message["method"], message)
                if last is not None:  # the first answer waited for the worker's start
                    self.forecast.gate_took(f"{current[1]}/{current[2]}", now() - last)
                last = now()
        if len(self.state.gates) == done:
            self._lost(*current, "error", "the process ended without an answer")

    def _lost(self, part: SuitePlan, method: str, problem: str, status: str, reason: str) -> None:
        """The case that was under way when its process ended; one that has its record already keeps it."""
        if f"{method}/{problem}" not in self.state.gates:
            self._gate_record(part, method, problem, status, reason, {}, {})

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
        self.forecast.gate(self.state.gates[run.case])
        self.progress.step(f"{run.case}: {status}")

    # -- blocks ----------------------------------------------------------------------------------------------------

    def _arms(self, part: SuitePlan, problem: Problem) -> list[str]:
        passed = [
            method.name
            for method in part.methods
            if self.state.gates.get(case := f"{method.name}/{problem.id}", {}).get("status") == "passed"
            and case not in part.skipped
        ]
        if part.suite.baseline in passed:
            passed.append(part.suite.baseline + AA)
        return passed

    def _blocks(self) -> None:
        arms = sum(len(self._arms(part, problem)) for part in self.plan.suites for problem in part.problems)
        self.progress.phase("blocks", arms * self.plan.blocks, len(self.state.blocks))
        block = 0
        while block < self.plan.blocks:
            self._block(block)
            block += 1
            if block < self.plan.blocks:
                self._fit(block)
        self._replace_discarded()

    def _replace_discarded(self) -> None:
        """Problems that lost blocks (thermal or power brake, a slow clock) get as many fresh ones, within limits."""
        for block in range(self.plan.blocks, self.plan.blocks + MOST_REPLACED):
            lost = store.discarded_blocks(self.writer.path)
            short = {problem for problem in lost if block - len(lost[problem]) < self.plan.blocks}
            again = [(part, p) for part in self.plan.suites for p in part.problems if p.id in short]
            if not again:
                return
            budget = self.plan.request.budget_s
            needed = sum(self.forecast.block_s(part, problem) for part, problem in again) + self.forecast.start_s
            if budget is not None and self._spent() + needed > budget:
                self.progress.note(f"{BUDGET_REASON}: block {block} in place of discarded ones")
                return
            self.progress.note(f"block {block}: replaces discarded blocks of {len(again)} problems")
            self._block(block, short)

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

    def _block(self, block: int, only: Collection[str] | None = None) -> None:
        """One worker over what is pending in all suites; another one while a death has left something."""
        took: dict[tuple[str, str, str], float] = {}
        rest = 0.0
        while parts := [
            (part, items)
            for part in self.plan.suites
            if (items := [i for i in self._pending(part, block) if only is None or i["problem"]["id"] in only])
        ]:
            rest += self._block_worker(block, parts, took)
        if took:
            self.forecast.block_took(took, rest)

    def _block_worker(
        self,
        block: int,
        parts: Sequence[tuple[SuitePlan, list[dict[str, Any]]]],
        took: dict[tuple[str, str, str], float],
    ) -> float:
        """Run one worker and add each arm's wall time to ``took``; returns the seconds of none."""
        shared = {"block": block, "seed": self.writer.path.stem, "energy": self.plan.request.energy}
        items = [self._item(part, problems=pending, **shared) for part, pending in parts]
        named = {part.suite.name: part for part, _ in parts}
        waiting = {part.suite.name: pending for part, pending in parts}
        current = (parts[0][0].suite.name, parts[0][1][0]["problem"]["id"], PREPARATION)
        rest, last = 0.0, now()
        with Worker(self._job("block", items), self._deadline()) as worker:
            for message in worker.messages():
                before = current
                if isinstance(message, Ended):
                    suite, problem, arm = current
                    self._block_died(named[suite], block, problem, arm, waiting[suite], message)
                elif message["event"] == "start":
                    current = (message["suite"], message["problem"], message["arm"])
                elif message["event"] == "result":
                    self._block_result(named[message["suite"]], block, message)
                elapsed, last = now() - last, now()
                if isinstance(message, Ended) or message["event"] == "finished" or current[2] == PREPARATION:
                    rest += elapsed
                else:
                    took[before] = took.get(before, 0.0) + elapsed
        return rest + now() - last

    def _block_died(
        self, part: SuitePlan, block: int, problem: str, arm: str, pending: list[dict[str, Any]], ended: Ended
    ) -> None:
        """A crash or a hang costs that arm on that problem (every arm, when it struck before the first one)."""
        arms = [arm]
        if arm == PREPARATION:
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
        if timings and message.get("joules"):
            measurements["call_energy_j"] = ("J", message["joules"], None)
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

    def _item(self, part: SuitePlan, **fields: Any) -> dict[str, Any]:
        """One suite's part of a job."""
        return {"suite": part.suite.name, "protocol": part.protocol.describe(), **fields}

    def _job(self, kind: str, items: Sequence[Mapping[str, Any]], **fields: Any) -> dict[str, Any]:
        return {
            "kind": kind,
            "device": self.plan.device,
            "environment": self.environment,
            "items": list(items),
            **fields,
        }

    def _deadline(self) -> float:
        """Seconds that a worker over all suites may be silent."""
        return max(part.protocol.case_timeout_s for part in self.plan.suites)

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
