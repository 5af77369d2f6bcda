"""Registry cases for other fronts: the same ids, the same gate and the same timer as ``speedclaim run``.

A front that brings its own process calls :func:`samples`; one that brings its own timer calls :func:`prepare`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.catalogue import registry
from harness.catalogue.method import Method
from harness.catalogue.protocol import Protocol
from harness.catalogue.suite import Case, Problem, Suite, Tier
from harness.catalogue.task import TaskRuntime
from harness.errors import SpeedclaimError, UnknownName
from harness.measure import availability, gate, plan, session, worker
from harness.measure.device import Device, open_device
from harness.record import environment as machine

#: Gate seeds are 0, 1, 2, … and block contents start at 1000: fronts time content that neither has seen.
CONTENT_SEED = 500


class Failed(SpeedclaimError):
    """A case whose answer is wrong, or that died: it has no time."""


class Skipped(SpeedclaimError):
    """A case that cannot run here, with the reason."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a suite's grid on this machine; ``skip`` says why it cannot run."""

    id: str
    suite: str
    method: str
    problem: Problem
    protocol: Protocol
    skip: str | None = None


def cells(tier: Tier = "quick") -> list[Cell]:
    """Every cell of every suite on this machine's devices, skipped ones with their reason; imports no torch."""
    found = []
    for device in availability.devices():
        suites = tuple(name for name, suite in registry.suites().items() if suite.tier(tier, (device,)))
        if suites:
            found += _of_device(plan.Request(suites=suites, tier=tier, device=device))
    return found


def _of_device(request: plan.Request) -> list[Cell]:
    found = []
    for part in plan.build(request).suites:
        reasons = {method.name: None for method in part.methods} | part.broken
        for problem in part.problems:
            for name, broken in reasons.items():
                case = Case(method=name, problem=problem).id
                found.append(
                    Cell(
                        id=case,
                        suite=part.suite.name,
                        method=name,
                        problem=problem,
                        protocol=part.protocol,
                        skip=broken or part.skipped.get(case),
                    )
                )
    return found


def cell(case: str, tier: Tier = "quick") -> Cell:
    """The cell with this case id."""
    known = {found.id: found for found in cells(tier)}
    if case not in known:
        raise UnknownName("case", case, known)
    return known[case]


@dataclass(kw_only=True)
class Ready:
    """A case that passed the gate and may be timed: bound op, device, and content the gate has not seen."""

    cell: Cell
    suite: Suite
    method: Method
    runtime: TaskRuntime
    device: Device
    outcome: gate.Outcome
    content: Any
    environment: dict[str, Any] = field(default_factory=dict)

    def limit(self) -> float | None:
        """The gate's largest primary error: a timed output is held to it."""
        return max(self.outcome.errors.get(self.suite.task.primary_error, []), default=None)

    def bind(self) -> Callable[[Any], Any]:
        """The method as ``op(buffer) -> output``."""
        return self.runtime.bind(registry.resolve(self.method.impl), self.cell.problem, self.method.hyper)

    def warm_up(self) -> None:
        """Bring a GPU to its working clock; a CPU needs only the timer's own warm-up call."""
        if self.device.kind == "cuda":
            cell = self.cell
            worker._warm([cell.method], self.runtime, cell.problem, self.content, self.device, cell.protocol)

    def check(self, output: Any, content: Any) -> None:
        """Hold an output that was timed to what the gate saw.

        Raises:
            Failed: it is malformed, not finite or worse than at the gate.
        """
        problem = self.cell.problem
        oracle = self.runtime.oracle(content, problem)
        status, reason, _ = worker._judge_block(
            self.suite.task, self.runtime, problem, content, oracle, output, self.limit()
        )
        if status != "passed":
            raise Failed(f"{self.cell.id}: {status}: {reason}")

    def check_floor(self, seconds: float) -> None:
        """Refuse a time that no honest call can have on this machine.

        Raises:
            Failed: the time lies under the physical floor.
        """
        itemsize = worker._ITEMSIZE.get(self.cell.problem.dtype, 4)
        bound = worker._floor(self.method, self.cell.problem, {"environment": self.environment}, itemsize)
        if bound is not None and seconds < bound.seconds:
            raise Failed(
                f"{self.cell.id}: error: a time of {seconds:.3g} s lies under the physical floor of "
                f"{bound.seconds:.3g} s ({bound.basis})"
            )


@functools.cache
def _device(kind: Literal["cpu", "cuda"], needs_torch: bool, precision: str) -> Device:
    return open_device(kind, needs_torch, precision)


@contextlib.contextmanager
def prepare(cell: Cell) -> Iterator[Ready]:
    """Gate one case and hand it over for timing; the GPU stays locked meanwhile.

    Raises:
        Skipped: the case cannot run here, or the method refuses the input.
        Failed: it did not pass the gate.
    """
    if cell.skip:
        raise Skipped(cell.skip)
    suite = registry.suite(cell.suite)
    method = registry.method(cell.method)
    facts = machine.collect(cell.problem.device)
    with session.gpu_lock(facts):
        runtime: TaskRuntime = registry.resolve(suite.task.runtime)
        device = _device(cell.problem.device, "torch" in suite.task.needs, cell.protocol.precision)
        outcome = gate.check(
            method=method, runtime=runtime, problem=cell.problem, device=device, seeds=cell.protocol.gate_seeds
        )
        if outcome.status == "unsupported":
            raise Skipped(outcome.reason or "unsupported")
        if outcome.status != "passed":
            raise Failed(f"{cell.id}: {outcome.status}: {outcome.reason}")
        yield Ready(
            cell=cell,
            suite=suite,
            method=method,
            runtime=runtime,
            device=device,
            outcome=outcome,
            content=runtime.content(cell.problem, CONTENT_SEED),
            environment=facts,
        )


def samples(cell: Cell) -> list[float]:
    """Gate one case, then sample ``op_s`` with our own timer, in this very process.

    Raises:
        Skipped: the case cannot run here.
        Failed: a wrong answer at the gate or in the timed output, or a time under the physical floor.
    """
    with prepare(cell) as ready:
        problem, runtime, device, content = cell.problem, ready.runtime, ready.device, ready.content
        ready.warm_up()
        oracle = runtime.oracle(content, problem)
        result = worker._arm(
            cell.method, 0, ready.suite.task, runtime, problem, content, oracle, device, cell.protocol, ready.limit()
        )
        if result["status"] != "passed":
            raise Failed(f"{cell.id}: {result['status']}: {result['reason']}")
        _, taken = result["timings"]["op_s"]
        ready.check_floor(min(taken))
        return [float(value) for value in taken]
