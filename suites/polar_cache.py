"""Oracles kept on disk, so that the check worker of every method need not repeat the decomposition.

A cache may lose an entry at any time: nothing here raises for a missing, unreadable or damaged file, nor for a
folder that cannot be written. The result is then computed, which is the same number.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

VARIABLE = "SPEEDCLAIM_CACHE"
#: Larger oracles are not kept: reading them costs as much as a GPU needs to compute them.
ENTRY_BYTES = 128 * 2**20
#: The oldest entries go when the folder grows beyond this: about sixty oracles of a 2048 x 2048 input.
FOLDER_BYTES = 4 * 2**30


def folder() -> Path:
    """``$SPEEDCLAIM_CACHE/oracle`` or ``~/.cache/speedclaim/oracle``."""
    chosen = os.environ.get(VARIABLE)
    return (Path(chosen) if chosen else Path.home() / ".cache" / "speedclaim") / "oracle"


def load(key: str) -> dict[str, np.ndarray] | None:
    """The arrays stored under ``key``; None when there are none, or when the file's checksums do not hold."""
    path = folder() / f"{key}.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        os.utime(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return arrays


def save(key: str, arrays: Mapping[str, np.ndarray]) -> bool:
    """Store ``arrays`` under ``key`` in one atomic step; False when they are too large or the folder refuses."""
    if sum(array.nbytes for array in arrays.values()) > ENTRY_BYTES:
        return False
    home = folder()
    try:
        home.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=home, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            os.replace(name, home / f"{key}.npz")
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _trim(home)
    except OSError:
        return False
    return True


def _trim(home: Path) -> None:
    entries = sorted(((path.stat(), path) for path in home.glob("*.npz")), key=lambda entry: entry[0].st_mtime)
    excess = sum(stat.st_size for stat, _ in entries) - FOLDER_BYTES
    for stat, path in entries:
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= stat.st_size
