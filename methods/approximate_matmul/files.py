"""Operators on disk, of every method of the task: reading the arrays, and the one function that loads any file.

``op.save(path)`` writes an .npz of plain arrays (no pickles) that names its reader; ``load(path)`` gives the operator
back, ``Kind.load(path)`` too if the file holds one of that kind.
"""

from __future__ import annotations

import importlib
import json
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from harness.errors import UserError

if TYPE_CHECKING:
    from methods.approximate_matmul.linear.base import Op
    from methods.approximate_matmul.operator import LookupProduct

Arrays = dict[str, NDArray[Any]]
T = TypeVar("T")

LOOKUP = "methods.approximate_matmul.save:load"
LINEAR = "methods.approximate_matmul.linear.base:load"
TRITON = "methods.approximate_matmul.gpu.maddness:load"
#: A file names its reader; no other code than these is run because a file says so.
READERS = (LOOKUP, LINEAR, TRITON)
#: What the standard library, NumPy and JSON raise on files that are damaged or are something else.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error)


def load(path: str | Path, device: str | None = None, backend: str | None = None) -> LookupProduct | Op:
    """Read what ``op.save`` of any method of the task ``approximate_matmul`` wrote.

    Args:
        path: the file.
        device: where it shall run; by default the CPU, a GPU for what Triton kernels run.
        backend: of a look-up product, in the place of the stored one.

    Raises:
        UserError: the file is damaged or something else, there is no such device, or a linear method got a back-end.
    """
    found = read(path, "product")
    try:
        linear = "module" in found
        reader = LINEAR if linear else str(json.loads(str(found["about"])).get("loader", LOOKUP))
    except DAMAGE as error:
        raise damaged(path, "product", error) from error
    if reader not in READERS:
        raise UserError(
            f"{path}: names the reader {reader!r}, known are {', '.join(READERS)}; call that reader yourself."
        )
    if backend is not None:
        if linear:
            raise UserError(f"{path}: holds {found['method']}, no look-up product; leave out backend={backend!r}.")
        reader = LOOKUP
    module, _, name = reader.partition(":")
    options = {"backend": backend, "device": device}
    given = {key: value for key, value in options.items() if value is not None}
    op: LookupProduct | Op = getattr(importlib.import_module(module), name)(path, **given)
    return op


def load_as(kind: type[T], path: str | Path, device: str | None, backend: str | None = None) -> T:
    """As :func:`load`, for a file that must hold a ``kind``.

    Raises:
        UserError: it holds another.
    """
    op = load(path, device, backend)
    if not isinstance(op, kind):
        raise UserError(
            f"{path}: expected a {kind.__name__}, it holds a {type(op).__name__} ({op.describe()['method']}); "
            "methods.approximate_matmul.load reads them all."
        )
    return op


def read(path: str | Path, what: str) -> Arrays:
    """All arrays of an .npz.

    Raises:
        UserError: there is no such file, or it is truncated or no .npz.
    """
    try:
        stored = np.load(Path(path), allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("a single array, not an .npz")
        with stored:
            return {key: stored[key] for key in stored.files}
    except DAMAGE as error:
        raise damaged(path, what, error) from error


def damaged(path: str | Path, what: str, error: Exception) -> UserError:
    """The error for a file that cannot be read."""
    return UserError(f"{path}: not a saved {what} ({type(error).__name__}: {error}); write one with op.save.")


def place(device: str | torch.device) -> torch.device:
    """The device by its full name.

    Raises:
        UserError: there is none of that name here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        told = str(error).splitlines()[0]
        raise UserError(
            f"no device {str(device)!r} here ({told}); use 'cpu', or 'cuda' where there is a GPU."
        ) from error
