"""The exception tree. Every message says what was expected, what came, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SpeedclaimError(Exception):
    """Root of every error that Speedclaim raises on purpose."""


class UserError(SpeedclaimError):
    """A mistake the user can mend; the command line prints it in one line and ends with exit code 2."""


class UnknownName(UserError):
    """A name that nothing registered."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}.")
        self.kind, self.name, self.known = kind, name, names


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
