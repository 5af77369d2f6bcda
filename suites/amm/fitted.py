"""Fitted operators: chosen options, training outside every clock, and a copy on disk for the next worker.

Every block is a fresh process, and training a tree takes seconds: an operator that offers ``save`` and names its
``loader`` ("module:function", called with path and device) is stored under a key of everything that it depends on:
the method's source files, options, data, library versions and threads.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.catalogue.data import cache
from harness.catalogue.registry import resolve
from harness.catalogue.suite import Problem
from harness.errors import Unsupported, UserError
from suites.amm import contents, sources
from suites.amm.contents import Rows

#: Options that trade accuracy for size: a method that takes one of them is approximate by design.
SIZES = ("codebooks", "rank", "nonzeros")
#: Operators that fit faster than this are fitted again instead of stored.
WORTH_S = 0.3
#: The oldest files go when the folder grows beyond this.
FOLDER_BYTES = 2 * 2**30


class Operation:
    """``op(rows)`` of one method on one problem; fitted when first needed.

    Attributes:
        hyper: the options it is made with.
        approximate: whether an option trades accuracy for size.
        from_disk: whether the operator was read instead of fitted.
    """

    def __init__(self, impl: Callable[..., Any], problem: Problem, hyper: Mapping[str, Any]) -> None:
        self._impl, self.problem = impl, problem
        self.hyper = options(impl, problem, hyper)
        self.approximate = any(name in self.hyper for name in SIZES)
        self.from_disk = False
        self.fit_s = 0.0
        self._op: Any = None

    def fit(self) -> None:
        """Fit now, so that no timed call does."""
        if self._op is None:
            self._op = self._fitted()

    @property
    def op(self) -> Any:
        """The fitted operator."""
        if self._op is None:
            self._op = self._fitted()
        return self._op

    def __call__(self, rows: Rows) -> Any:
        """The approximate product of the buffer's rows."""
        return self._op(rows.a)

    def _fitted(self) -> Any:
        found = sources.source(self.problem)
        dtype = contents.learned_in(self.problem)
        train, b = (torch.from_numpy(m).to(self.problem.device, dtype) for m in (found.train, found.b))
        # A method that tries several calls at fit must try them on rows as they will lie.
        train = contents.stored(train, self.problem)
        path = cache.cache_folder() / "fitted" / f"{self._key(found.digest)}.npz"
        begin = time.perf_counter()
        stored = _read(path, self.problem.device)
        if stored is not None:
            self.from_disk = True
            return stored
        try:
            op = self._impl(**self.hyper).fit(train, b)
        except UserError as error:
            # The suite chose the options: a refusal is the method's limit, not the user's mistake.
            raise Unsupported(str(error)) from error
        self.fit_s = time.perf_counter() - begin
        if self.fit_s > WORTH_S:
            _write(path, op)
        return op

    def _key(self, digest: str) -> str:
        target = f"{self._impl.__module__}:{getattr(self._impl, '__qualname__', repr(self._impl))}"
        facts: list[Any] = [target, self.hyper, digest, self.problem.id, code(self._impl.__module__)]
        facts += [torch.__version__, np.__version__, torch.get_num_threads(), os.environ.get("SPEEDCLAIM_SIMD", "")]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def options(impl: Callable[..., Any], problem: Problem, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """The method's own options, those of the problem put in their place where the factory knows the name."""
    known = set(hyper)
    for name, parameter in inspect.signature(impl).parameters.items():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            known.add(name)
    wanted = problem.params.get("hyper", {})
    return {**hyper, **{name: value for name, value in wanted.items() if name in known}}


@functools.cache
def code(module: str) -> str:
    """Hash of every source file of the package that holds the method."""
    package = ".".join(module.split(".")[:2])
    origin = getattr(importlib.import_module(package), "__file__", None)
    if origin is None:
        return "unknown"
    place = Path(origin)
    files = sorted(place.parent.rglob("*")) if place.name == "__init__.py" else [place]
    total = hashlib.sha256()
    for file in files:
        if file.suffix in (".py", ".cpp", ".cc", ".h", ".hpp", ".cu") and file.is_file():
            total.update(file.read_bytes())
    return total.hexdigest()


def _read(path: Path, device: str) -> Any:
    """The stored operator, or None when there is none or it cannot be read: then it is fitted again."""
    try:
        loader = path.with_suffix(".loader").read_text(encoding="utf-8")
        op = resolve(loader)(path, device=device)
        os.utime(path)
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError, UserError):
        return None
    return op


def _write(path: Path, op: Any) -> None:
    loader = getattr(op, "loader", None)
    if loader is None or not hasattr(op, "save"):
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part.npz")
        os.close(handle)
        try:
            op.save(name)
            os.replace(name, path)
            path.with_suffix(".loader").write_text(str(loader), encoding="utf-8")
        finally:
            Path(name).unlink(missing_ok=True)
        _trim(path.parent)


def _trim(folder: Path) -> None:
    files = sorted(((p.stat(), p) for p in folder.glob("*.npz")), key=lambda item: item[0].st_mtime)
    excess = sum(stat.st_size for stat, _ in files) - FOLDER_BYTES
    for stat, path in files:
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= stat.st_size
