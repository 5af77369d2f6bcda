"""The registry: methods, suites, claims and renderers found through entry points, without importing what they run.

When a ``pyproject.toml`` lies beside ``harness/``, its entry points are read from it and win over installed
metadata, so a bare clone works with nothing installed and a new method needs no reinstall.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.catalogue.method import Method
from harness.catalogue.suite import Suite
from harness.catalogue.workload import Workload
from harness.errors import DuplicateName, Unavailable, UnknownName

ROOT = Path(__file__).resolve().parents[2]
OURS = "speedclaim"
GROUPS = ("methods", "suites", "workloads", "claims", "datasets", "reports")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry point: ``owner`` is the distribution that declares it."""

    name: str
    target: str
    owner: str

    def load(self) -> Any:
        """Import the target. A missing third-party module becomes :class:`Unavailable`; ours propagates."""
        module, _, attribute = self.target.partition(":")
        try:
            with contextlib.redirect_stdout(sys.stderr):
                loaded: Any = importlib.import_module(module)
                for part in attribute.split(".") if attribute else ():
                    loaded = getattr(loaded, part)
        except (Exception, SystemExit) as error:
            if self.owner == OURS:
                raise
            raise Unavailable(
                f"{self.name!r} from package {self.owner!r} cannot be imported ({type(error).__name__}: {error}); "
                f"repair or uninstall that package."
            ) from error
        return loaded


@functools.cache
def entries(group: str) -> dict[str, Entry]:
    """Entry points of ``speedclaim.<group>`` by name; two owners of one name is an error naming both."""
    found: dict[str, Entry] = {}
    for entry in (*_from_pyproject(group), *_from_metadata(group)):
        known = found.get(entry.name)
        if known is None:
            found[entry.name] = entry
        elif known.owner != entry.owner:
            raise DuplicateName(
                f"{group[:-1]} {entry.name!r} is registered by {known.owner!r} ({known.target}) and by "
                f"{entry.owner!r} ({entry.target}); uninstall one of them or rename its entry point."
            )
    return dict(sorted(found.items()))


def _from_pyproject(group: str) -> Iterator[Entry]:
    path = ROOT / "pyproject.toml"
    if not path.is_file():
        return
    project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
    if project.get("name") != OURS:
        return
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    for name, target in project.get("entry-points", {}).get(f"speedclaim.{group}", {}).items():
        yield Entry(name=name, target=target, owner=OURS)


def _from_metadata(group: str) -> Iterator[Entry]:
    ours_is_local = (ROOT / "pyproject.toml").is_file()
    owners: dict[int, str] = {}  # a distribution's name is parsed from its metadata at every look
    for point in metadata.entry_points(group=f"speedclaim.{group}"):
        if id(point.dist) not in owners:
            owners[id(point.dist)] = point.dist.name if point.dist is not None else "unknown package"
        owner = owners[id(point.dist)]
        if owner.lower() == OURS and ours_is_local:
            continue
        yield Entry(name=point.name, target=point.value, owner=owner.lower() if owner.lower() == OURS else owner)


@functools.cache
def _method(name: str) -> Method:
    """Load one descriptor.

    Raises:
        Unavailable: a third party's entry point that cannot be imported or is no Method of that name.
        TypeError: the same fault of our own.
    """
    entry = entries("methods")[name]
    loaded = entry.load()
    if isinstance(loaded, Method) and loaded.name == name:
        return loaded
    got = f"a Method called {loaded.name!r}" if isinstance(loaded, Method) else type(loaded).__name__
    message = (
        f"entry point {name!r} ({entry.target}, package {entry.owner!r}) must be a Method called {name!r}, got {got}"
    )
    if entry.owner == OURS:
        raise TypeError(message)
    raise Unavailable(f"{message}; repair or uninstall that package.")


def _of_task(name: str, task: str | None) -> bool:
    return task is None or name.split(".", 1)[0] == task


def methods(task: str | None = None) -> dict[str, Method]:
    """Every importable descriptor by name, optionally of one task."""
    found = {}
    for name in entries("methods"):
        if _of_task(name, task):
            with contextlib.suppress(Unavailable):
                found[name] = _method(name)
    return found


def broken_methods(task: str | None = None) -> dict[str, str]:
    """Names of third-party methods whose descriptor cannot be imported, with the reason."""
    found = {}
    for name in entries("methods"):
        if _of_task(name, task):
            try:
                _method(name)
            except Unavailable as error:
                found[name] = str(error)
    return found


def method(name: str) -> Method:
    """The descriptor called ``name``; no other one is imported."""
    known = entries("methods")
    if name not in known:
        raise UnknownName("method", name, known)
    return _method(name)


def suites() -> dict[str, Suite]:
    """Every suite by name; one of a third party that cannot be imported is left out with a warning."""
    found = {}
    for name, entry in entries("suites").items():
        try:
            found[name] = _suite(entry)
        except Unavailable as error:
            warnings.warn(str(error), stacklevel=2)
    return found


def suite(name: str) -> Suite:
    """The suite called ``name``."""
    known = entries("suites")
    if name not in known:
        raise UnknownName("suite", name, known)
    return _suite(known[name])


def _suite(entry: Entry) -> Suite:
    loaded = entry.load()
    if not isinstance(loaded, Suite):
        message = f"entry point {entry.name!r} ({entry.target}) must be a Suite, got {type(loaded).__name__}"
        if entry.owner == OURS:
            raise TypeError(message)
        raise Unavailable(f"{message}; repair or uninstall package {entry.owner!r}.")
    return loaded


def workloads() -> dict[str, Workload]:
    """Every workload by name; one of a third party that cannot be imported is left out with a warning."""
    found = {}
    for name, entry in entries("workloads").items():
        try:
            found[name] = _workload(entry)
        except Unavailable as error:
            warnings.warn(str(error), stacklevel=2)
    return found


def workload(name: str) -> Workload:
    """The workload called ``name``."""
    known = entries("workloads")
    if name not in known:
        raise UnknownName("workload", name, known)
    return _workload(known[name])


def _workload(entry: Entry) -> Workload:
    loaded = entry.load()
    if isinstance(loaded, Workload) and loaded.name == entry.name:
        return loaded
    got = f"a Workload called {loaded.name!r}" if isinstance(loaded, Workload) else type(loaded).__name__
    message = f"entry point {entry.name!r} ({entry.target}) must be a Workload called {entry.name!r}, got {got}"
    if entry.owner == OURS:
        raise TypeError(message)
    raise Unavailable(f"{message}; repair or uninstall package {entry.owner!r}.")


def resolve(target: str) -> Any:
    """Import ``"module:attr"``; errors propagate."""
    module, _, attribute = target.partition(":")
    loaded: Any = importlib.import_module(module)
    for part in attribute.split("."):
        loaded = getattr(loaded, part)
    return loaded


def load(name: str) -> Any:
    """The implementation of a method, e.g. ``load("polar.aol-triton")`` -> a callable on tensors."""
    return resolve(method(name).impl)


def list_methods(task: str | None = None) -> list[str]:
    """Names of the registered methods."""
    return list(methods(task))


def forget() -> None:
    """Drop every cached look-up (tests that install a plug-in call it)."""
    entries.cache_clear()
    _method.cache_clear()
