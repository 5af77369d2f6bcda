"""Conformance: what any method must survive, as a check that third parties can call from their own tests.

    from harness import conformance
    assert not [f for f in conformance.check("polar.mine") if not f.passed]

The task's run-time side lists its edge cases (zeros, NaN, extreme scales, degenerate shapes); each is one finding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from harness.catalogue import registry
from harness.catalogue.suite import Problem
from harness.errors import Unsupported, UserError
from harness.measure import availability, gate
from harness.measure.device import open_device

Expectation = Literal["judged", "finite", "nan"]


@dataclass(frozen=True, kw_only=True)
class EdgeCase:
    """One input that is never timed.

    ``expect``: ``judged`` (as accurate as any other input), ``finite`` (no NaN or infinity, no exception), or ``nan``
    (NaN must come out where NaN went in).
    """

    name: str
    problem: Problem
    content: Any
    expect: Expectation


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Outcome of one check; a method may refuse an edge case with Unsupported, which is reported and passes."""

    check: str
    passed: bool
    reason: str | None = None


def check(name: str, device: str = "cpu", dtype: str | None = None) -> list[Finding]:
    """Every conformance check of one registered method.

    Args:
        name: ``"task.method"``.
        device: ``cpu`` or ``cuda``.
        dtype: only edge cases of this dtype; default every dtype that the method declares.

    Raises:
        UserError: the task declares no edge cases, or the method cannot run here.
    """
    method = registry.method(name)
    suite = next((s for s in registry.suites().values() if s.task.name == method.task), None)
    if suite is None:
        raise UserError(f"no suite measures task {method.task!r}: conformance needs its oracle.")
    if why := availability.reason(method, device):
        raise UserError(f"{name} cannot run here: {why}.")
    runtime = registry.resolve(suite.task.runtime)
    if not hasattr(runtime, "edge_cases"):
        raise UserError(f"task {method.task!r} lists no edge cases: its run-time side needs edge_cases(device).")
    opened = open_device(device, "torch" in suite.task.needs, suite.protocol.precision)
    op = registry.resolve(method.impl)
    reference = registry.resolve(method.reference) if method.reference else None
    findings: list[Finding] = []
    for case in runtime.edge_cases(device):
        if case.problem.dtype in method.dtypes and dtype in (None, case.problem.dtype):
            findings.extend(_edge(case, runtime, opened, op, reference, method.hyper))
    return findings


def _edge(case: EdgeCase, runtime: Any, device: Any, impl: Any, reference_impl: Any, hyper: Any) -> Iterator[Finding]:
    label = f"{case.name} {case.problem.dtype}"
    buffer = runtime.buffer_like(case.content)
    runtime.fill(buffer, case.content)
    try:
        output = runtime.bind(impl, case.problem, hyper)(buffer)
        device.synchronize()
    except Unsupported as error:
        yield Finding(check=label, passed=True, reason=f"refused: {error}")
        return
    except Exception as error:
        yield Finding(check=label, passed=False, reason=gate.failure(device, error)[1])
        return
    if not runtime.same(buffer, case.content):
        yield Finding(check=label, passed=False, reason="the input was changed")
    if why := runtime.malformed(output, buffer, case.problem):
        yield Finding(check=label, passed=False, reason=why)
        return
    why = runtime.nonfinite(output)
    if case.expect == "nan":
        yield Finding(check=label, passed=why is not None, reason=None if why else "NaN went in, none came out")
        return
    if why or case.expect == "finite":
        yield Finding(check=label, passed=why is None, reason=why)
        return
    reference = None if reference_impl is None else runtime.bind(reference_impl, case.problem, hyper)
    judged = runtime.judge(output, case.content, runtime.oracle(case.content, case.problem), case.problem, reference)
    yield Finding(check=label, passed=judged.status == "passed", reason=judged.reason)
