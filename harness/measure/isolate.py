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


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A worker that ended before it was done: status and reason for the case it was at."""

    status: str
    reason: str


class Worker:
    """One worker process. Iterate over its messages; a crash, a hang or garbage ends with :class:`Ended`."""

    def __init__(self, job: Mapping[str, Any], deadline_s: float, environment: Mapping[str, str] | None = None) -> None:
        self._environment = environment or {}
        self._job = {**job, "path": [path for path in sys.path if path]}
        self._deadline_s = deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._read = -1

    def __enter__(self) -> Worker:
        self._read, write = os.pipe()
        own = {"PYTHONPATH": _python_path(), "PYTHONFAULTHANDLER": "1"}
        environment = {**os.environ, **own, **self._environment}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.measure.worker", str(write)],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=self._output,
            pass_fds=(write,),
            env=environment,
            start_new_session=True,
        )
        os.close(write)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(self._job).encode())
            self._process.stdin.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()
        os.close(self._read)
        self._output.close()

    def stop(self) -> None:
        """End the process from another thread; the one that reads its messages gets :class:`Ended` and waits for it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _kill(self) -> None:
        if self._process is None:
            return
        self.stop()
        self._process.wait()

    def messages(self) -> Iterator[dict[str, Any] | Ended]:
        """Messages until ``done``; :class:`Ended` says that the case begun last is lost.

        It is the last message, unless the process that died was one of several that a check worker forks.
        """
        selector = selectors.DefaultSelector()
        selector.register(self._read, selectors.EVENT_READ)
        pending = b""
        limit = self._deadline_s + START_GRACE_S
        deadline = time.monotonic() + limit
        while True:
            if not selector.select(timeout=max(0.0, deadline - time.monotonic())):
                self._kill()
                yield Ended(status="timeout", reason=f"no answer within {self._deadline_s:.0f} s")
                return
            chunk = os.read(self._read, 1 << 16)
            if not chunk:
                yield self._ended()
                return
            pending += chunk
            *lines, pending = pending.split(b"\n")
            for line in lines:
                message = _message(line)
                if message is None:
                    self._kill()
                    yield Ended(status="error", reason="something wrote to the harness's own pipe")
                    return
                if message["event"] == "done":
                    return
                if message["event"] == "lost":
                    yield Ended(status=message["status"], reason=message["reason"])
                    return
                yield self._died(message["code"]) if message["event"] == "died" else message
            deadline = time.monotonic() + self._deadline_s

    def _ended(self) -> Ended:
        assert self._process is not None
        return self._died(self._process.wait())

    def _died(self, code: int) -> Ended:
        tail = self._tail()
        if code == -signal.SIGKILL:
            return Ended(
                status="out_of_memory", reason="the process was killed (signal 9), most likely for lack of memory"
            )
        if code < 0:
            name = signal.Signals(-code).name
            return Ended(status="error", reason=f"the process died of {name}{tail}")
        return Ended(status="error", reason=f"the process ended with exit code {code}{tail}")

    def _tail(self) -> str:
        size = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, size - 4000))
        lines = self._output.read().decode(errors="replace").strip().splitlines()
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
