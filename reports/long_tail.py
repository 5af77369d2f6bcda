"""Long-tailed workloads: final errors beside the published ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from harness.judge import lint
from reports import plain
from reports.boards import Board, Cell, Section, Table, number
from reports.training import Place

#: ``cifar10lt-resnet32`` and ``…-f50``: the column of the published table for each factor.
_NAME = re.compile(r"^cifar(?P<classes>10|100)lt-.+?(?:-f(?P<factor>\d+))?$")
_SOURCE, _TABLE = "fop", "t4"


def column(workload: str) -> str | None:
    """``c10_100`` for ``cifar10lt-resnet32``; None for another workload."""
    found = _NAME.match(workload)
    return f"c{found['classes']}_{found['factor'] or 100}" if found else None


def made(places: Sequence[Place]) -> list[Board]:
    """One page per device with a long-tailed workload."""
    by_device: dict[str, list[Place]] = {}
    for place in places:
        if column(place.workload) and place.rows:
            by_device.setdefault(place.device, []).append(place)
    published = _published() if by_device else {}
    return [_board(device, own, published) for device, own in by_device.items()]


def _published() -> Mapping[str, Mapping[str, Any]]:
    source = next((one for one in lint.load_sources() if one.id == _SOURCE), None)
    table = next((one for one in source.table if one.id == _TABLE), None) if source is not None else None
    return {str(row["key"]): row for row in table.rows} if table is not None else {}


def _board(device: str, own: Sequence[Place], published: Mapping[str, Mapping[str, Any]]) -> Board:
    return Board(
        slug=plain.anchor("longtail", device),
        title=f"Long tails on {device}",
        lead=_lead(own),
        sections=tuple(_section(place, published) for place in own),
        links=tuple((f"{place.slug}.html", place.workload) for place in own),
    )


def error(row: Mapping[str, Any]) -> float | None:
    """Mean top-1 error at the end of training, in per cent."""
    final = plain.number(row["final_mean"])
    return None if final is None else 100 * (1 - final)


def _lead(own: Sequence[Place]) -> str:
    told = []
    for place in own:
        found = {row["arm"]: error(row) for row in place.rows}
        known = {arm: value for arm, value in found.items() if value is not None}
        if known:
            best = min(known, key=lambda arm: known[arm])
            told.append(f"{place.workload}: least error {known[best]:.2f} % with {best}.")
    return " ".join(told) or "No run reached the end of its schedule."


def _section(place: Place, published: Mapping[str, Mapping[str, Any]]) -> Section:
    name = column(place.workload) or ""
    measured = [
        (
            Cell(text=row["arm"], small=("measured here",)),
            number(_percent(error(row)), error(row), f"± {100 * row['final_sd']:.2f}" if row["final_sd"] else ""),
            number(str(row["n"]), row["n"], f"{row['stopped']} stopped early" if row["stopped"] else ""),
        )
        for row in place.rows
    ]
    printed = [
        (
            Cell(text=key, small=("published",)),
            number(_percent(float(row[name])), float(row[name])),
            Cell(text="5", number=True),
        )
        for key, row in published.items()
        if name in row
    ]
    head = ("method", "error at the end", "seeds")
    table = Table(id=plain.anchor("table", place.workload), caption=place.workload, head=head, rows=measured + printed)
    note = "Balanced test set. Published: arXiv 2508.13898, Table 4, without deviations."
    return Section(heading=place.workload, note=note, tables=(table,))


def _percent(value: float | None) -> str:
    return plain.DASH if value is None else f"{value:.2f}\u00a0%"
