"""The gate: a method is timed only after its answers were shown to be right on new inputs.

shape, dtype, device → input unchanged → finite → fidelity or accuracy on every seed → no cached or overwritten output.
"""

from __future__ import annotations

import contextlib
import functools
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.catalogue.method import Method
from harness.catalogue.registry import resolve
from harness.catalogue.suite import Problem
from harness.catalogue.task import Described, Stateful, TaskRuntime
from harness.errors import Unavailable, Unsupported
from harness.measure.device import Device
from harness.record.run import worst

OVERWRITTEN = (
    "a later call overwrote an output that was returned earlier: outputs share memory, and each call must return "
    "new memory"
)


@dataclass(kw_only=True)
class Outcome:
    """What the gate found on one case; ``planning_s`` is the second call's time, used for the plan alone.

    ``facts`` are numbers with units that the task's runtime tells about the bound operation.
    """

    status: str = "passed"
    reason: str | None = None
    errors: dict[str, list[float]] = field(default_factory=dict)
    first_call_s: float | None = None
    planning_s: float | None = None
    facts: dict[str, tuple[list[float], str]] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)

    def mark(self, status: str, reason: str | None) -> None:
        """Keep the worst status seen and its reason."""
        if worst([self.status, status]) != self.status:
            self.status, self.reason = status, reason

    def to_json(self) -> dict[str, Any]:
        """For the pipe between worker and parent."""
        return {**self.__dict__}


def failure(device: Device, error: BaseException) -> tuple[str, str]:
    """Status and one-line reason of an exception that a method raised."""
    text = " ".join(str(error).split())[:400]
    if isinstance(error, Unsupported | Unavailable):
        return "unsupported", text or "unsupported"
    if device.is_out_of_memory(error):
        return "out_of_memory", text or type(error).__name__
    frame = traceback.extract_tb(error.__traceback__)
    place = f" at {frame[-1].filename.rsplit('/', 1)[-1]}:{frame[-1].lineno}" if frame else ""
    return "error", f"{type(error).__name__}: {text}{place}"


def check(
    *,
    method: Method,
    runtime: TaskRuntime,
    problem: Problem,
    device: Device,
    seeds: int,
    now: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Run the gate for one case; never raises for a fault of the method."""
    outcome = Outcome()
    before = device.settings()
    try:
        with device.strict():
            _check(outcome, method, runtime, problem, device, seeds, now)
    except Exception as error:
        outcome.mark(*failure(device, error))
    if why := device.changed(before):
        outcome.mark("impure", why)
    return outcome


def _check(
    outcome: Outcome,
    method: Method,
    runtime: TaskRuntime,
    problem: Problem,
    device: Device,
    seeds: int,
    now: Callable[[], float],
) -> None:
    op = runtime.bind(resolve(method.impl), problem, method.hyper)
    reference = runtime.bind(resolve(method.reference), problem, method.hyper) if method.reference else None
    buffer: Any = None
    earlier: tuple[Any, Any, Any] | None = None
    for seed in range(seeds):
        content = runtime.content(problem, seed)
        if buffer is None:
            buffer = runtime.buffer_like(content)
        runtime.fill(buffer, content)
        if isinstance(runtime, Stateful):
            runtime.rewind(op)
        device.poison()
        device.synchronize()
        start = now()
        output = op(buffer)
        late = None if output is None else device.late(functools.partial(runtime.snapshot, output), runtime.same)
        device.synchronize()
        elapsed = now() - start
        if seed == 0:
            outcome.first_call_s = elapsed
        else:
            outcome.planning_s = min(elapsed, outcome.planning_s or elapsed)
        if late:
            outcome.mark("impure", late)
        _check_output(outcome, runtime, problem, buffer, content, output, reference)
        if earlier is not None and outcome.status == "passed":
            _check_history(outcome, runtime, earlier, output)
        if outcome.status in ("error", "nonfinite", "impure"):
            return
        earlier = (output, runtime.snapshot(output), content)
    if earlier is not None:
        _check_repeat(outcome, runtime, problem, op, earlier)
        if isinstance(runtime, Described) and outcome.status == "passed":
            numbers, detail = runtime.facts(op, earlier[2], problem)
            outcome.facts = {name: ([float(v) for v in values], unit) for name, (values, unit) in numbers.items()}
            outcome.detail |= detail


def _check_output(
    outcome: Outcome,
    runtime: TaskRuntime,
    problem: Problem,
    buffer: Any,
    content: Any,
    output: Any,
    reference: Callable[[Any], Any] | None,
) -> None:
    if why := runtime.malformed(output, buffer, problem):
        outcome.mark("error", why)
        return
    if not runtime.same(buffer, content):
        outcome.mark("impure", "the input was changed")
        return
    if why := runtime.nonfinite(output):
        outcome.mark("nonfinite", why)
        return
    oracle = runtime.oracle(content, problem)
    judgement = runtime.judge(output, content, oracle, problem, reference)
    outcome.mark(judgement.status, judgement.reason)
    _collect(outcome.errors, judgement.errors)


def _check_history(outcome: Outcome, runtime: TaskRuntime, earlier: tuple[Any, Any, Any], output: Any) -> None:
    kept, snapshot, _ = earlier
    if runtime.same(output, snapshot):
        outcome.mark("impure", "new content in the same buffer gave the earlier output: results are cached by address")
    elif output is kept or not runtime.same(kept, snapshot):
        outcome.mark("impure", OVERWRITTEN)


def _check_repeat(
    outcome: Outcome, runtime: TaskRuntime, problem: Problem, op: Callable[[Any], Any], earlier: tuple[Any, Any, Any]
) -> None:
    """The last content once more, from another address: a cached object shows by identity."""
    kept, snapshot, content = earlier
    again = runtime.buffer_like(content)
    runtime.fill(again, content)
    if isinstance(runtime, Stateful):
        runtime.rewind(op)
    output = op(again)
    if output is kept:
        outcome.mark("impure", "repeated content gave the very object returned before: results are cached by content")
    elif not runtime.same(kept, snapshot):
        outcome.mark("impure", OVERWRITTEN)
    elif why := runtime.malformed(output, again, problem):
        outcome.mark("error", f"on a repeated input: {why}")


def _collect(into: dict[str, list[float]], errors: Mapping[str, float]) -> None:
    for name, value in errors.items():
        with contextlib.suppress(TypeError, ValueError):
            into.setdefault(name, []).append(float(value))
