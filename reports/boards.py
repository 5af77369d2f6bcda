"""Pages that look across workloads, sources or arms: what each shows, on one template.

A board is built from the same places as the pages of single workloads; a board without anything to show is not made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reports.figures import Chart
from reports.training import Place

Row = dict[str, Any]
#: Pages that an earlier rendering may have left.
EARLIER = ("sweep--*.html", "ablation--*.html", "longtail--*.html")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell: its text, what it sorts by, small lines below, and a link."""

    text: str
    sort: float | str = ""
    small: tuple[str, ...] = ()
    number: bool = False
    #: Device-hours that a price turns into money on the page.
    gpu_hours: float | None = None
    tone: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A sortable table; the first cell of a row is its header."""

    id: str
    caption: str
    head: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, a note, tables and charts."""

    heading: str
    note: str = ""
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Board:
    """One page."""

    slug: str
    title: str
    lead: str
    sections: tuple[Section, ...]
    #: Whether the page has an input for a price per GPU-hour.
    priced: bool = False
    links: tuple[tuple[str, str], ...] = ()


def number(text: str, value: float | None, *small: str, tone: str = "") -> Cell:
    """A right-aligned cell that sorts by its value; without a value it sorts last."""
    return Cell(
        text=text, sort="" if value is None else value, small=tuple(s for s in small if s), number=True, tone=tone
    )


def saved(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Columns of rows for a download; what is infinite or not a number is empty, as JSON has neither."""
    return [{name: _plain(row[name]) for name in names} for row in rows]


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def boards(places: Sequence[Place]) -> list[Board]:
    """Every page across workloads that the stored runs, and the shipped sources, allow."""
    from reports import ablation, batch_sweep, long_tail, published

    return [*batch_sweep.made(places), *ablation.made(places), *long_tail.made(places), *published.made()]
