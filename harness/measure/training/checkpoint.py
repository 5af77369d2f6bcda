"""Checkpoints: written at once or not at all, read without running code, removed once the run has its row."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.measure.training.spec import RunSpec

FORMAT = 1


def key(spec: RunSpec) -> str:
    """What must be the same for a checkpoint to belong to a run."""
    fields = {k: v for k, v in spec.to_json().items() if not k.startswith("checkpoint")}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def save(path: Path, spec: RunSpec, content: Mapping[str, Any], ready: Callable[[], None] = lambda: None) -> None:
    """Write to a neighbour, flush it to the disk, then take its place; ``ready`` waits for other ranks in between."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            torch.save({"format": FORMAT, "key": key(spec), **content}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        ready()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path, spec: RunSpec) -> dict[str, Any] | None:
    """The checkpoint of this very run, None when there is none (or it is another run's, or unreadable)."""
    import torch

    if not path.is_file():
        return None
    try:
        stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    if stored.get("format") != FORMAT or stored.get("key") != key(spec):
        return None
    return stored


def remove(path: Path) -> None:
    """Remove a run's checkpoint and its ranks' parts, what killed writers left, and folders that are empty then."""
    for other in [*path.parent.glob(f"{path.name}.*.partial"), *path.parent.glob(f"{path.name}.rank*")]:
        other.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()
        path.parent.parent.rmdir()


def of_rank(path: Path, rank: int) -> Path:
    """The part of one rank: its own optimizer state may be a share of the whole."""
    return path if rank == 0 else path.with_name(f"{path.name}.rank{rank}")


def place(out: Path, plan_hash: str, spec: RunSpec) -> Path:
    """``<out>/checkpoints/<plan hash>/<workload>-<arm>-<seed>.pt``."""
    name = f"{spec.workload}-{spec.arm}-{spec.seed}".replace("/", "-").replace("#", "-")
    return out / "checkpoints" / plan_hash[:16] / f"{name}.pt"
