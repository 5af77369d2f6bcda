"""The exception tree. Every message says what was expected, what came, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SpeedclaimError(Exception):
    """Root of every error that Speedclaim raises on purpose."""


class UserError(SpeedclaimError):
    """A mistake the user can mend; the command line prints it in one line and ends with exit code 2."""


#: Names at most that an error lists.
SHOWN = 10
#: Where all names of a kind stand.
LISTED = {"method": "speedclaim list", "problem": "speedclaim plan", "data set": "speedclaim data list"}


class UnknownName(UserError):
    """A name that nothing registered; of many known ones the nearest are shown, of the same task where it has one."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Known: {_shown(kind, name, names)}.")
        self.kind, self.name, self.known = kind, name, names


def _shown(kind: str, name: str, names: list[str]) -> str:
    """All names, or those most like the unknown one, nearest first, and where the others stand."""
    if len(names) <= SHOWN:
        return ", ".join(names) or "none"
    task, dot, _ = name.partition(".")
    fitting = [one for one in names if dot and one.startswith(f"{task}.")] or names
    nearest = difflib.get_close_matches(name, fitting, n=SHOWN, cutoff=0.0)
    where = f" ({LISTED[kind]})" if kind in LISTED else ""
    return f"{', '.join(nearest)} and {len(names) - len(nearest)} more{where}"


class DuplicateName(UserError):
    """Two owners registered one name."""


class BadRecord(UserError):
    """A stored file that is not a Speedclaim record."""


class Unavailable(UserError):
    """A registered thing that cannot be used here (missing package, hardware or file)."""


class Unsupported(SpeedclaimError):
    """Raised by a method that refuses an input; recorded as status ``unsupported`` with this text as its reason."""


class MissingDependency(UserError):
    """An optional package is needed for what was asked."""
