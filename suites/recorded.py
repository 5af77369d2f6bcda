"""An ordinary record file written by a command of a suite that times nothing: header, runs, end. Imports no torch."""

from __future__ import annotations

import datetime
import os
import random
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import __version__
from harness.catalogue.method import Method
from harness.catalogue.suite import Problem, Suite
from harness.measure.executor import utc
from harness.record import environment
from harness.record.run import Measurement, Phase, Run, Status
from harness.record.store import Writer

#: Metric name -> value and unit.
Measured = Mapping[str, tuple[float, str]]


class Recorder:
    """Writes runs of one suite."""

    def __init__(self, writer: Writer, suite: Suite, device: str) -> None:
        self._writer, self._suite, self.device = writer, suite, device
        self.count = 0

    @property
    def path(self) -> Path:
        """The record file."""
        return self._writer.path

    def run(
        self,
        phase: Phase,
        method: str,
        problem: Problem,
        status: Status,
        reason: str | None,
        measured: Measured,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """One line; a value that is not finite is left out, its absence is the status' to explain."""
        self.count += 1
        self._writer.run(
            Run(
                run=f"{os.getpid():x}-{random.getrandbits(48):012x}",
                phase=phase,
                case=f"{method}/{problem.id}",
                task=self._suite.task.name,
                method=method,
                problem=problem.id,
                arm=method,
                status=status,
                reason=reason,
                measurements=[
                    Measurement(metric=name, unit=unit, samples=[float(value)])
                    for name, (value, unit) in measured.items()
                ],
                detail=dict(detail or {}),
                utc=utc(),
            )
        )


@contextmanager
def recording(
    suite: Suite, problems: Iterable[Problem], methods: Iterable[Method], out: Path, tier: str, device: str
) -> Iterator[Recorder]:
    """A new record file under ``out`` whose header describes the suite; the end line comes when nothing was raised.

    Raises:
        UserError: the folder cannot be written.
    """
    chosen = list(methods)
    start = time.monotonic()
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S%fZ")
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname()).strip("-") or "host"
    with Writer(out / f"{stamp}-{host}-{os.getpid()}.jsonl") as writer:
        writer.header(
            {
                "utc": utc(),
                "command": " ".join([f"python -m suites.{suite.name}", *sys.argv[1:]]),
                "project": {"version": __version__, **environment.code()},
                "environment": environment.collect(device),
                "plan": _plan(suite, problems, chosen, tier),
                "methods": [method.describe() for method in chosen],
            }
        )
        yield Recorder(writer, suite, device)
        writer.end(utc=utc(), elapsed_s=round(time.monotonic() - start, 1))


def _plan(suite: Suite, problems: Iterable[Problem], methods: Iterable[Method], tier: str) -> dict[str, Any]:
    task = suite.task
    return {
        "hash": "",
        "tier": tier,
        "blocks": 0,
        "suites": [
            {
                "name": suite.name,
                "task": task.name,
                "task_summary": task.summary,
                "task_contract": task.contract,
                "task_oracle": task.oracle,
                "task_errors": dict(task.errors),
                "primary_error": task.primary_error,
                "baseline": suite.baseline,
                "protocol": suite.protocol.describe(),
                "problems": [problem.describe() for problem in problems],
                "methods": [method.name for method in methods],
            }
        ],
        "left_out": [],
    }
