"""Operators on disk: an .npz of plain arrays, with the method's name and options as JSON. No pickles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import UserError
from methods.approximate_matmul import consistent
from methods.approximate_matmul.checks import one_of
from methods.approximate_matmul.encoders import KINDS
from methods.approximate_matmul.files import DAMAGE, damaged, place, read
from methods.approximate_matmul.operator import BACKENDS, LookupProduct
from methods.approximate_matmul.tables import Tables

_VERSION = 1


def write(op: LookupProduct, path: str | Path) -> None:
    """Write ``op`` to exactly ``path``."""
    about = {"version": _VERSION, "kind": op.encoder.kind, "upcast": op.upcast, "times": op.times, "loader": op.loader}
    arrays: dict[str, Any] = op.arrays()
    with Path(path).open("wb") as file:
        np.savez(
            file,
            method=np.array(op.name),
            hyper=np.array(json.dumps(op.hyper)),
            about=np.array(json.dumps(about)),
            **arrays,
        )


def load(path: str | Path, device: str = "cpu", backend: str | None = None) -> LookupProduct:
    """Read an operator that ``op.save`` wrote; the back-end is chosen anew for this machine.

    Args:
        path: the file.
        device: where it shall run.
        backend: replaces the stored option when given.

    Raises:
        UserError: the file is no such operator, damaged, of another version, one whose arrays do not fit each other, or
            one whose method has a reader of its own and no ``backend`` was named: it would run another engine under
            that method's name.
    """
    files = read(path, "look-up product")
    try:
        about, hyper = json.loads(str(files["about"])), json.loads(str(files["hyper"]))
        if about["version"] != _VERSION:
            raise UserError(f"{path}: format version {about['version']}, this code reads {_VERSION}; save it again.")
        own = about.get("loader", LookupProduct.loader)
        if backend is None and own != LookupProduct.loader:
            raise UserError(
                f"{path}: holds {files['method']}, which {own} reads; name backend='numpy', 'torch' or 'native' to run "
                f"its tables by that engine instead."
            )
        encoder = KINDS[about["kind"]].from_arrays(files)
        tables = Tables(values=files["values"], scale=files["scale"], offset=files["offset"])
        name, upcast, times = str(files["method"]), about["upcast"], dict(about["times"])
        hyper = dict(hyper)
        consistent.lookup(encoder, tables, upcast)
    except DAMAGE as error:
        raise damaged(path, "look-up product", error) from error
    if backend is not None:
        hyper["backend"] = backend
    one_of(f"{path}: {name}", "backend", hyper.get("backend", "auto"), BACKENDS)
    return LookupProduct(name, hyper, encoder, tables, upcast, place(device), times)
