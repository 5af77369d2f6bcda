"""What one invocation holds while it measures: its unfinished file and what it says, the GPU, the cache folder."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.measure.plan import BUDGET_REASON
from harness.record import store


@dataclass(kw_only=True)
class State:
    """What a file already holds: gates by case, (case, block, arm) that are done, cases that had no time."""

    gates: dict[str, dict[str, Any]] = field(default_factory=dict)
    blocks: set[tuple[str, int, str]] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    planned: set[str] = field(default_factory=set)
    left_out: dict[str, str] = field(default_factory=dict)

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
            if record["reason"].startswith(BUDGET_REASON):
                self.left_out[record["case"]] = record["reason"]


def unfinished(out: Path, hash_: str) -> Path | None:
    """The newest file of ``out`` that was not finished and has the same plan hash."""
    if not out.is_dir():
        return None
    for path in sorted(out.glob("*.jsonl"), reverse=True):
        try:
            headers = store.read_headers(path)
        except UserError:
            continue
        if store.in_use(path):
            continue
        if headers and not headers[0]["complete"] and headers[0].get("plan", {}).get("hash") == hash_:
            return path
    return None


@contextlib.contextmanager
def gpu_lock(environment: Mapping[str, Any]) -> Iterator[None]:
    """One measurement per GPU: a file lock in the user's cache folder, keyed by the device's UUID."""
    gpu = environment.get("gpu")
    if not gpu:
        yield
        return
    import filelock

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / f"{gpu['uuid']}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"another Speedclaim measurement runs on {gpu['name']} ({gpu['uuid']}); wait for it, "
            f"or choose another device with CUDA_VISIBLE_DEVICES."
        ) from None
    try:
        yield
    finally:
        lock.release()


BESIDE = "another Speedclaim run measures on this CPU: times of both may be inflated; measure again when it is done"


@contextlib.contextmanager
def cpu_lock(environment: dict[str, Any]) -> Iterator[None]:
    """Tell of runs on one CPU at once: a file lock of this host in the user's cache folder.

    Whoever comes second goes on, with one warning and :data:`BESIDE` among the environment's warnings. A cache folder
    that cannot be written tells nothing.
    """
    if environment.get("device") != "cpu":
        yield
        return
    import filelock

    lock = None
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f"cpu-{environment.get('host') or 'host'}.lock")
        lock.acquire(timeout=0)
    except filelock.Timeout:
        environment["warnings"] = [*environment.get("warnings", ()), BESIDE]
        warnings.warn(f"{BESIDE}.", stacklevel=3)
    except OSError:
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def cache_folder() -> Path:
    """``$SPEEDCLAIM_CACHE``, else ``speedclaim`` in the user's cache folder."""
    chosen = os.environ.get("SPEEDCLAIM_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "speedclaim"
