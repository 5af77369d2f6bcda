"""What a training worker does before its first job needs it: imports, the compiler's among them, and a CUDA context.

Starting a worker before its runs are planned hides the seconds that its imports take behind the planning; opening the
device while they go on hides the device's own. Nothing here touches a GPU before the job has come: it is sent once
the invocation holds the GPU's lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

from harness.measure.isolate import Process


class _Lines(Protocol):
    def read(self) -> bytes:
        """The next line; empty at the end."""


def first_job(kind: str, lines: _Lines) -> bytes:
    """The first job's line, imports done.

    Args:
        kind: ``train`` for runs in this process; ``ranks`` for runs in processes that are forked from it, which must
            find no thread and no CUDA context.
        lines: where the job comes from.
    """
    found: list[bytes] = []

    def wait() -> None:
        found.append(lines.read())
        if kind == "train" and found[0] and json.loads(found[0]).get("device") == "cuda":
            open_context()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    imports(kind)
    waiting.join()
    return found[0]


def imports(kind: str) -> None:
    """Import torch and the trainer; for ``train`` also what torch's first optimizer imports (half as much again).

    What imports leave stays for ever: the collector goes through it neither now (a tenth of the time) nor in the
    collections of every run.
    """
    gc.disable()
    try:
        import torch

        from harness.measure.training import worker  # noqa: F401

        if kind == "train":
            torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        gc.freeze()
    finally:
        gc.enable()


def open_context() -> None:
    """The primary context of the first visible CUDA device, which torch then finds open.

    Through the driver, in C code that holds no lock of Python's, so that imports go on. A failure is left to torch,
    which says what is wrong.
    """
    # The runtime's own choice, which it makes too late for a context that is there already.
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
    with contextlib.suppress(OSError, AttributeError):
        driver = ctypes.CDLL("libcuda.so.1")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)


class Crew:
    """Worker processes that were started before anybody knew their jobs; those that nobody takes end with it."""

    def __init__(self) -> None:
        self._waiting: dict[int, Process] = {}

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._waiting.values():
            process.stop()
        for process in self._waiting.values():
            process.close()
        self._waiting.clear()

    def start(self, kind: str, lane: int = 0, environment: Mapping[str, str] | None = None) -> None:
        """Start the process of a lane, unless it waits already."""
        if lane not in self._waiting:
            self._waiting[lane] = Process(environment, kind)

    def take(self, kind: str, lane: int = 0, environment: Mapping[str, str] | None = None) -> Process:
        """The lane's process if it waits, lives and is such a one, else a new one; the caller owns it."""
        process = self._waiting.pop(lane, None)
        if process is not None:
            if process.alive() and (process.ahead, process.environment) == (kind, dict(environment or {})):
                return process
            process.close()
        return Process(environment, kind)

    def give_back(self, process: Process, lane: int = 0) -> None:
        """A process that was taken and has no job; one that has died is closed."""
        if process.alive() and lane not in self._waiting:
            self._waiting[lane] = process
        else:
            process.close()


def kind_of(world: int) -> str:
    """What the worker of runs in ``world`` processes imports ahead."""
    return "ranks" if world > 1 else "train"
