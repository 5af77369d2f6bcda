"""Data-set cards: which bytes, from where, with which hash and licence. Cards only; bytes live elsewhere."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import Unavailable, UnknownName, UserError

ROOT_VARIABLE = "SPEEDCLAIM_DATASETS"


@dataclass(frozen=True, kw_only=True)
class Card:
    """One data set as its TOML card describes it; ``fields`` holds the card as read."""

    name: str
    title: str
    licence: str
    path: Path
    fields: Mapping[str, Any]

    def file(self, relative: str) -> Path:
        """A file committed beside the card."""
        path = self.path.parent / relative
        if not path.is_file():
            raise Unavailable(
                f"data set {self.name!r}: {path} is missing; restore it with git or set ${ROOT_VARIABLE}."
            )
        return path


def folder() -> Path:
    """The folder of cards: ``$SPEEDCLAIM_DATASETS`` or ``datasets/`` beside ``harness/``."""
    chosen = os.environ.get(ROOT_VARIABLE)
    root = Path(chosen) if chosen else Path(__file__).resolve().parents[2] / "datasets"
    if not root.is_dir():
        raise Unavailable(f"no data-set folder at {root}; set ${ROOT_VARIABLE} to the repository's datasets/ folder.")
    return root


def cards() -> dict[str, Card]:
    """Every card by name, sorted."""
    found = {}
    for path in sorted(folder().glob("*.toml")):
        found[path.stem] = _read(path)
    return found


def card(name: str) -> Card:
    """The card called ``name``."""
    known = cards()
    if name not in known:
        raise UnknownName("data set", name, known)
    return known[name]


def _read(path: Path) -> Card:
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
        return Card(name=path.stem, title=fields["title"], licence=fields["licence"], path=path, fields=fields)
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise UserError(f"{path}: a card needs valid TOML with title and licence; got {error!r}.") from error
