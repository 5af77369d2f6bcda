"""Where the time of a training step goes: statistics, refresh and application of the optimizer, and all the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import pandas as pd

from harness.judge.trained_runs import STEP_BUCKETS, Trained
from reports import plain, theme
from reports.figures import Chart, canvas, short, svg_of
from reports.suite_pages import Cell, Page, Table, slug
from reports.training import Place, places

_PART = re.compile(r"^bucket_optimizer_(?P<part>.+)_s$")
#: Parts in the order of a step; others follow. Statistics are also taken inside backward.
ORDER = ("factor", "refresh", "apply")
REST = "rest of the step"
#: Seconds in collectives, which are inside other parts (statistics, application): not a part of its own.
INSIDE = ("communication",)
NOTE = (
    "Milliseconds of one update on the training clock, median over seeds. Factor: statistics, wherever they are taken, "
    "inside backward too. The rest: data, forward, backward without statistics, and what of the optimizer is in "
    "none of its parts. Between processes each part holds its own collectives; their share is told under scaling."
)

Row = dict[str, Any]


def pages(runs: pd.DataFrame, headers: list[dict[str, Any]]) -> list[Page]:
    """One page per device with a run whose optimizer told its parts."""
    devices: dict[str, list[tuple[Place, list[Row]]]] = {}
    for place in places(runs, headers):
        rows = parts(place)
        if rows:
            devices.setdefault(place.device, []).append((place, rows))
    return [_page(device, found) for device, found in devices.items()]


def split(run: Trained) -> dict[str, float] | None:
    """Seconds of one update by part, ``rest of the step`` last; None without steps or buckets."""
    steps = run.metrics.get("steps")
    whole = sum(run.metrics.get(f"bucket_{name}_s", 0.0) for name in STEP_BUCKETS)
    if not steps or whole <= 0:
        return None
    own = {m["part"]: value for name, value in run.metrics.items() if (m := _PART.match(name))}
    own = {name: value for name, value in own.items() if name not in INSIDE}
    named = {name: own[name] for name in (*ORDER, *sorted(set(own) - set(ORDER))) if name in own}
    rest = max(0.0, whole - sum(named.values()))
    return {name: value / steps for name, value in {**named, REST: rest}.items()}


def parts(place: Place) -> list[Row]:
    """One row an arm: milliseconds by part, median over its runs; empty when no optimizer told any."""
    rows = []
    for row in place.rows:
        found = [one for run in place.arms[row["arm"]].values() if (one := split(run)) is not None]
        names = list(dict.fromkeys(name for one in found for name in one))
        if found:
            ms = {name: 1e3 * median(one.get(name, 0.0) for one in found) for name in names}
            rows.append({"arm": row["arm"], "ms": ms, "total": sum(ms.values()), "runs": len(found)})
    return rows if any(len(row["ms"]) > 1 for row in rows) else []


def lead(found: Sequence[tuple[Place, list[Row]]]) -> str:
    """The largest part of the optimizer's own time, for the dearest arm of each workload."""
    said = []
    for place, rows in found:
        told = [row for row in rows if len(row["ms"]) > 1]
        row = max(told, key=lambda one: one["total"] - one["ms"][REST])
        name, value = max(((n, v) for n, v in row["ms"].items() if n != REST), key=lambda item: item[1])
        said.append(
            f"On {place.workload} the optimizer costs most with {short(row['arm'])}: "
            f"{plain.percent(1 - row['ms'][REST] / row['total'])} of a step of {row['total']:.3g} ms, of which {name} "
            f"takes {value:.3g} ms."
        )
    return " ".join(said)


def _page(device: str, found: Sequence[tuple[Place, list[Row]]]) -> Page:
    return Page(
        slug=slug("time-parts", device),
        title=f"Where the time goes on {device}",
        device=device,
        suite="training",
        command=f"speedclaim train {found[0][0].workload}",
        lead=lead(found),
        tables=[_table(index, place, rows) for index, (place, rows) in enumerate(found)],
        sections=[("Parts of an update", NOTE, [_chart(place, rows) for place, rows in found])],
    )


def _names(rows: Sequence[Row]) -> list[str]:
    seen = list(dict.fromkeys(name for row in rows for name in row["ms"]))
    known = [name for name in ORDER if name in seen]
    return [*known, *(name for name in seen if name not in (*ORDER, REST)), REST]


def _table(index: int, place: Place, rows: Sequence[Row]) -> Table:
    names = _names(rows)
    made = [(row["arm"], [*(_cell(row, name) for name in names), _milli(row["total"])]) for row in rows]
    return Table(
        id=f"parts-{index}",
        heading=f"Milliseconds of an update, {place.workload}",
        note=NOTE,
        first="method",
        columns=[*names, "whole update"],
        rows=made,
    )


def _cell(row: Mapping[str, Any], name: str) -> Cell:
    value = row["ms"].get(name)
    if value is None:
        return Cell(text=plain.DASH)
    return _milli(value, plain.percent(value / row["total"]) if row["total"] else "")


def _milli(value: float, sub: str = "") -> Cell:
    return Cell(text=f"{value:.3g}", sub=(sub,) if sub else (), sort=value)


def _chart(place: Place, rows: Sequence[Row]) -> Chart:
    title, name = (
        f"Parts of an update on {place.workload}",
        plain.anchor("chart", "parts", place.workload, place.device),
    )
    flat = [{"arm": row["arm"], "part": part, "ms": value} for row in rows for part, value in row["ms"].items()]
    quick = min(rows, key=lambda row: row["total"])
    sentence = f"The shortest update is {short(quick['arm'])}'s with {quick['total']:.3g} ms."
    return Chart(id=name, title=title, sentence=sentence, svg=_draw(name, title, rows), rows=flat)


def _draw(name: str, title: str, rows: Sequence[Row]) -> str:
    names = _names(rows)
    with canvas(9.4, 1.5 + 0.42 * len(rows)) as (figure, axes):
        left = [0.0] * len(rows)
        for place, part in enumerate(names):
            widths = [row["ms"].get(part, 0.0) for row in rows]
            rest = part == REST
            axes.barh(
                range(len(rows)), widths, left=left, height=0.62, alpha=0.45 if rest else 0.9,
                color=theme.STAND_IN[f"s{place % theme.SERIES}"], hatch="////" if rest else None,
                edgecolor=theme.STAND_IN["paper"], linewidth=0.8, label=part,
            )  # fmt: skip
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(rows)), [short(row["arm"]) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.set_xlabel("milliseconds per update, median over seeds")
        figure.legend(loc="outside upper center", fontsize=9, ncols=5)
        return svg_of(figure, name, title)
