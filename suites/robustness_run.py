"""The command of suite ``robustness``: every case once, in order, into one record; a failure is a row, not the end."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.catalogue import registry
from harness.catalogue.method import Method
from harness.catalogue.suite import Problem, Suite
from suites.recorded import Recorder, recording
from suites.robustness_drive import Finding, Trace, measure


def run(
    suite: Suite,
    problems: Sequence[Problem],
    methods: Sequence[Method],
    hyper: Mapping[str, Mapping[str, Any]],
    steps: int,
    out: Path,
    tier: str,
) -> Path:
    """Measure the cases; returns the record file."""
    device = problems[0].device if problems else "cpu"
    with recording(suite, problems, methods, out, tier, device) as recorder:
        for method in methods:
            _method(recorder, problems, method, hyper[method.name], steps)
    print(f"{recorder.count} cases: {recorder.path}", flush=True)
    return recorder.path


def _method(
    recorder: Recorder, problems: Sequence[Problem], method: Method, hyper: Mapping[str, Any], steps: int
) -> None:
    twins: dict[Any, Trace] = {}
    impl = registry.resolve(method.impl)
    counts: dict[str, int] = {}
    for problem in problems:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = measure(impl, hyper, problem, steps, twins, method.name)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            found = Finding(status="error", reason=reason, measured={}, detail={})
        counts[found.status] = counts.get(found.status, 0) + 1
        recorder.run("gate", method.name, problem, found.status, found.reason, found.measured, found.detail)
    told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    print(f"{method.name}: {told}", flush=True)
