"""Isolation: a fresh process per worker, its answers read from a pipe of its own, with a deadline per case."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
#: Importing torch and triton on a loaded two-core machine was seen to take 25 s.
START_GRACE_S = 90.0
TAIL = 300


KILLED = "killed by signal 9 (SIGKILL); lack of memory is one cause"
#: Counters of processes that the kernel killed for lack of memory: of this control group (version 2, 1) or machine.
OOM_COUNTERS = (
    "/sys/fs/cgroup/memory.events",
    "/sys/fs/cgroup/memory/memory.oom_control",
    "/proc/vmstat",
)


def oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory, by the nearest counter; 0 where there is none."""
    for path in OOM_COUNTERS:
        with contextlib.suppress(OSError, ValueError):
            for line in Path(path).read_text(encoding="ascii").splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    return 0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A worker that ended before it was done: status and reason for the case it was at."""

    status: str
    reason: str


class Process:
    """A worker process without a job yet. With ``ahead`` it imports meanwhile what a job of that kind needs.

    Args:
        environment: added to this process' own.
        ahead: ``train`` or ``ranks`` (see :mod:`harness.measure.training.ahead`); None = it waits for its job.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, ahead: str | None = None) -> None:
        self.environment, self.ahead = dict(environment or {}), ahead
        self.output = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        self.read, write = os.pipe()
        own = {"PYTHONPATH": _python_path(), "PYTHONFAULTHANDLER": "1"}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "harness.measure.worker", str(write), *([ahead] if ahead else [])],
                stdin=subprocess.PIPE,
                stdout=self.output,
                stderr=self.output,
                pass_fds=(write,),
                env={**os.environ, **own, **self.environment},
                start_new_session=True,
            )
        finally:
            os.close(write)
        self._oom_kills = oom_kills()

    def short_of_memory(self) -> bool:
        """Whether the kernel has killed a process for lack of memory since this one began, or since the last answer."""
        before, self._oom_kills = self._oom_kills, oom_kills()
        return self._oom_kills > before

    def give(self, job: Mapping[str, Any], last: bool = True) -> None:
        """Hand over a job; after the ``last`` one the process ends. One that has died says so in its messages."""
        line = json.dumps({**job, "path": [path for path in sys.path if path]}) + "\n"
        stream = self._process.stdin
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):
            stream.write(line.encode())
            stream.flush()
        if last:
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def stop(self) -> None:
        """End it, from any thread; the one that reads its messages gets :class:`Ended` and waits for it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait(self) -> int:
        """Its exit code, negative for a signal."""
        return self._process.wait()

    def kill(self) -> None:
        """End it and wait."""
        self.stop()
        self.wait()

    def close(self) -> None:
        """End it, and give its descriptors back."""
        self.kill()
        os.close(self.read)
        self.output.close()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()


class Worker:
    """A worker process with jobs. Iterate over its messages; a crash, a hang or garbage ends with :class:`Ended`.

    Args:
        job: the first job; None when :meth:`give` hands over all of them.
        deadline_s: the longest silence.
        environment: added to this process' own.
        process: one that was started before; the worker owns it from now on.
    """

    def __init__(
        self,
        job: Mapping[str, Any] | None,
        deadline_s: float,
        environment: Mapping[str, str] | None = None,
        process: Process | None = None,
    ) -> None:
        self._environment, self._job, self._deadline_s = environment, job, deadline_s
        self._process: Process | None = process
        self._grace_s = START_GRACE_S

    def __enter__(self) -> Worker:
        self._process = self._process or Process(self._environment)
        if self._job is not None:
            self.give(self._job)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own.close()

    @property
    def _own(self) -> Process:
        assert self._process is not None
        return self._process

    def give(self, job: Mapping[str, Any], last: bool = True) -> None:
        """Hand over a job, once the messages of the one before have been read; after the ``last`` there is no more."""
        self._own.give(job, last)

    def stop(self) -> None:
        """End the process from another thread; the one that reads its messages gets :class:`Ended` and waits for it."""
        if self._process is not None:
            self._process.stop()

    def messages(self) -> Iterator[dict[str, Any] | Ended]:
        """Messages until the job is ``done``; :class:`Ended` says that the case begun last is lost.

        It is the last message, unless the process that died was one of several that a check worker forks.
        """
        pending = b""
        deadline = time.monotonic() + self._deadline_s + self._grace_s
        self._grace_s = 0.0
        while True:
            if not self._readable(max(0.0, deadline - time.monotonic())):
                self._own.kill()
                yield Ended(status="timeout", reason=f"no answer within {self._deadline_s:.0f} s")
                return
            chunk = os.read(self._own.read, 1 << 16)
            if not chunk:
                yield self._ended()
                return
            pending += chunk
            *lines, pending = pending.split(b"\n")
            for line in lines:
                message = _message(line)
                if message is None:
                    self._own.kill()
                    yield Ended(status="error", reason="something wrote to the harness's own pipe")
                    return
                if message["event"] == "done":
                    return
                if message["event"] == "lost":
                    yield Ended(status=message["status"], reason=message["reason"])
                    return
                yield self._died(message["code"]) if message["event"] == "died" else message
            deadline = time.monotonic() + self._deadline_s

    def _readable(self, timeout_s: float) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self._own.read, selectors.EVENT_READ)
            return bool(selector.select(timeout=timeout_s))

    def _ended(self) -> Ended:
        return self._died(self._own.wait())

    def _died(self, code: int) -> Ended:
        tail = self._tail()
        if code == -signal.SIGKILL and self._own.short_of_memory():
            return Ended(
                status="out_of_memory",
                reason="killed by signal 9 (SIGKILL) while the kernel killed for lack of memory",
            )
        if code == -signal.SIGKILL:
            return Ended(status="error", reason=f"{KILLED}{tail}")
        if code < 0:
            name = signal.Signals(-code).name
            return Ended(status="error", reason=f"the process died of {name}{tail}")
        return Ended(status="error", reason=f"the process ended with exit code {code}{tail}")

    def _tail(self) -> str:
        output = self._own.output
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - 4000))
        lines = output.read().decode(errors="replace").strip().splitlines()
        text = " | ".join(line.strip() for line in lines[-3:] if line.strip())
        return f": {text[-TAIL:]}" if text else ""


def _message(line: bytes) -> dict[str, Any] | None:
    """A worker's message, None for anything else."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    known = ("start", "result", "died", "finished", "done", "lost")
    return message if isinstance(message, dict) and message.get("event") in known else None


def _python_path() -> str:
    parts = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.pathsep.join(dict.fromkeys(parts))
