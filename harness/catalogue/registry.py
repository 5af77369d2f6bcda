"""The registry: methods, suites, claims and renderers found through entry points, without importing what they run.

When a ``pyproject.toml`` lies beside ``harness/``, its entry points are read from it and win over installed
metadata, so a bare clone works with nothing installed and a new method needs no reinstall.
"""

from __future__ import annotations

import functools
import importlib
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.catalogue.method import Method
from harness.catalogue.suite import Suite
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
            loaded: Any = importlib.import_module(module)
            for part in attribute.split(".") if attribute else ():
                loaded = getattr(loaded, part)
        except Exception as error:
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
    for point in metadata.entry_points(group=f"speedclaim.{group}"):
        owner = point.dist.name if point.dist is not None else "unknown package"
        if owner.lower() == OURS and ours_is_local:
            continue
        yield Entry(name=point.name, target=point.value, owner=owner.lower() if owner.lower() == OURS else owner)


@functools.cache
def _methods() -> tuple[dict[str, Method], dict[str, str]]:
    usable: dict[str, Method] = {}
    broken: dict[str, str] = {}
    for name, entry in entries("methods").items():
        try:
            loaded = entry.load()
        except Unavailable as error:
            broken[name] = str(error)
            continue
        if not isinstance(loaded, Method) or loaded.name != name:
            got = f"a Method called {loaded.name!r}" if isinstance(loaded, Method) else type(loaded).__name__
            message = f"entry point {name!r} ({entry.target}, package {entry.owner!r}) must be a Method called {name!r}, got {got}"
            if entry.owner == OURS:
                raise TypeError(message)
            broken[name] = message
            continue
        usable[name] = loaded
    return usable, broken


def methods(task: str | None = None) -> dict[str, Method]:
    """Every importable descriptor by name, optionally of one task."""
    return {name: m for name, m in _methods()[0].items() if task is None or m.task == task}


def broken_methods(task: str | None = None) -> dict[str, str]:
    """Names of third-party methods whose descriptor cannot be imported, with the reason."""
    return {name: why for name, why in _methods()[1].items() if task is None or name.split(".")[0] == task}


def method(name: str) -> Method:
    """The descriptor called ``name``."""
    usable, broken = _methods()
    if name in usable:
        return usable[name]
    if name in broken:
        raise Unavailable(broken[name])
    raise UnknownName("method", name, usable)


def suites() -> dict[str, Suite]:
    """Every suite by name."""
    found = {}
    for name, entry in entries("suites").items():
        loaded = entry.load()
        if not isinstance(loaded, Suite):
            raise TypeError(f"entry point {name!r} ({entry.target}) must be a Suite, got {type(loaded).__name__}")
        found[name] = loaded
    return found


def suite(name: str) -> Suite:
    """The suite called ``name``."""
    found = suites()
    if name not in found:
        raise UnknownName("suite", name, found)
    return found[name]


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
    _methods.cache_clear()
