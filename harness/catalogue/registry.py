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
#: Groups whose entries are chosen by name.
NAMED = ("methods", "suites", "workloads")


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
def _declared(group: str) -> dict[str, list[Entry]]:
    """Every declaration of ``speedclaim.<group>`` by name, one an owner: more than one is a contest."""
    found: dict[str, list[Entry]] = {}
    for entry in (*_from_pyproject(group), *_from_metadata(group)):
        claimed = found.setdefault(entry.name, [])
        if entry.owner not in {one.owner for one in claimed}:
            claimed.append(entry)
    return dict(sorted(found.items()))


@functools.cache
def entries(group: str) -> dict[str, Entry]:
    """Entry points of ``speedclaim.<group>`` by name.

    A method, suite or workload that two packages own is no entry: who looks for it by its name gets an error that names
    both, who looks at all of them a warning, and all others can be used.

    Raises:
        DuplicateName: two packages own one name in a group whose verbs need every entry (claims, reports).
    """
    if group not in NAMED and (names := contested(group)):
        raise DuplicateName(next(iter(names.values())))
    return {name: claimed[0] for name, claimed in _declared(group).items() if len(claimed) == 1}


def contested(group: str) -> dict[str, str]:
    """Names of ``speedclaim.<group>`` that several packages own, with a sentence naming them."""
    return {name: _contest(group, claimed) for name, claimed in _declared(group).items() if len(claimed) > 1}


def _contest(group: str, claimed: list[Entry]) -> str:
    owners = " and by ".join(f"{one.owner!r} ({one.target})" for one in claimed)
    return (
        f"{group[:-1]} {claimed[0].name!r} is registered by {owners}; uninstall one of them or rename its entry point."
    )


def refuse_contested(group: str, name: str) -> None:
    """Raise :class:`DuplicateName` when several packages own the name."""
    if why := contested(group).get(name):
        raise DuplicateName(why)


def _entry(group: str, name: str) -> Entry:
    """The entry point called ``name``.

    Raises:
        DuplicateName: two packages own it.
        UnknownName: nobody does.
    """
    refuse_contested(group, name)
    known = entries(group)
    if name not in known:
        raise UnknownName(group[:-1], name, known)
    return known[name]


@functools.cache
def _warn_of_contests(group: str) -> None:
    """Once a process."""
    for why in contested(group).values():
        warnings.warn(f"{why} Until then it is left out.", stacklevel=3)


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
        DuplicateName: two packages own the name.
        UnknownName: nobody does.
        Unavailable: a third party's entry point that cannot be imported or is no Method of that name.
        TypeError: the same fault of our own.
    """
    entry = _entry("methods", name)
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
    _warn_of_contests("methods")
    found = {}
    for name in entries("methods"):
        if _of_task(name, task):
            with contextlib.suppress(Unavailable):
                found[name] = _method(name)
    return found


def broken_methods(task: str | None = None) -> dict[str, str]:
    """Names of methods whose descriptor a third party broke or that several packages own, with the reason."""
    found = {name: why for name, why in contested("methods").items() if _of_task(name, task)}
    for name in entries("methods"):
        if _of_task(name, task):
            try:
                _method(name)
            except Unavailable as error:
                found[name] = str(error)
    return found


def method(name: str) -> Method:
    """The descriptor called ``name``; no other one is imported."""
    return _method(name)


def suites() -> dict[str, Suite]:
    """Every suite by name; one that cannot be imported or that two packages own is left out with a warning."""
    _warn_of_contests("suites")
    found = {}
    for name, entry in entries("suites").items():
        try:
            found[name] = _suite(entry)
        except Unavailable as error:
            warnings.warn(str(error), stacklevel=2)
    return found


def suite(name: str) -> Suite:
    """The suite called ``name``."""
    return _suite(_entry("suites", name))


def _suite(entry: Entry) -> Suite:
    loaded = entry.load()
    if not isinstance(loaded, Suite):
        message = f"entry point {entry.name!r} ({entry.target}) must be a Suite, got {type(loaded).__name__}"
        if entry.owner == OURS:
            raise TypeError(message)
        raise Unavailable(f"{message}; repair or uninstall package {entry.owner!r}.")
    return loaded


def workloads() -> dict[str, Workload]:
    """Every workload by name; one that cannot be imported or that two packages own is left out with a warning."""
    _warn_of_contests("workloads")
    found = {}
    for name, entry in entries("workloads").items():
        try:
            found[name] = _workload(entry)
        except Unavailable as error:
            warnings.warn(str(error), stacklevel=2)
    return found


def workload(name: str) -> Workload:
    """The workload called ``name``."""
    return _workload(_entry("workloads", name))


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
    """The implementation of a method, e.g. ``load("polar.aol-triton")`` -> a callable on tensors.

    A method that is an implementation with options of its own comes with them set (``functools.partial``); keyword
    arguments of the call go before them.
    """
    found = method(name)
    made = resolve(found.impl)
    return functools.partial(made, **found.hyper) if found.hyper else made


def list_methods(task: str | None = None) -> list[str]:
    """Names of the registered methods."""
    return list(methods(task))


def forget() -> None:
    """Drop every cached look-up (tests that install a plug-in call it)."""
    _declared.cache_clear()
    entries.cache_clear()
    _warn_of_contests.cache_clear()
    _method.cache_clear()
