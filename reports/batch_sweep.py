"""Batch-size sweeps: one target at several batch sizes, in updates, samples, seconds and device-seconds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from harness.judge.trained_runs import STALL_LIMIT, Trained
from reports import board_figures, boards, figures, plain, training
from reports.boards import Board, Section, Table, number
from reports.figures import Chart
from reports.training import Place

Row = dict[str, Any]
_SUFFIX = re.compile(r"^(?P<stem>.+?)(?:-b(?P<batch>\d+))?$")


def stem(workload: str) -> str:
    """``cifar10-resnet18-b2048`` -> ``cifar10-resnet18``."""
    found = _SUFFIX.match(workload)
    assert found is not None
    return found["stem"]


def batch_of(place: Place) -> int | None:
    """Samples of one update: of the workload, else of its name, else of a run."""
    told = plain.number(place.described.get("batch"))
    if told is not None:
        return int(told)
    found = _SUFFIX.match(place.workload)
    if found is not None and found["batch"]:
        return int(found["batch"])
    for run in place.runs:
        if (batch := plain.number((run.detail.get("spec") or {}).get("batch"))) is not None:
            return int(batch)
    return None


def sweeps(places: Sequence[Place]) -> dict[tuple[str, str], list[tuple[int, Place]]]:
    """(stem, device) -> places by batch size, where there are at least two sizes."""
    found: dict[tuple[str, str], dict[int, Place]] = {}
    for place in places:
        if place.rows and (batch := batch_of(place)) is not None:
            found.setdefault((stem(place.workload), place.device), {})[batch] = place
    return {key: sorted(sizes.items()) for key, sizes in found.items() if len(sizes) > 1}


def rows(sizes: Sequence[tuple[int, Place]]) -> list[Row]:
    """One row per arm and batch size: medians over seeds, infinite when most missed."""
    found = []
    for batch, place in sizes:
        for row in place.rows:
            runs = list(place.arms[row["arm"]].values())
            found.append(
                {
                    "arm": row["arm"],
                    "batch": batch,
                    "hits": row["hits"],
                    "n": row["n"],
                    "statuses": row["statuses"],
                    "steps": row["steps"],
                    "samples": row["samples"],
                    "epochs": row["samples"] / size if (size := set_size(runs, batch)) else None,
                    "time_s": row["median_s"],
                    "device_s": device_seconds(runs),
                    "step_s": row["step_s"],
                    "stall": row["stall"],
                    "budget_steps": max((run.detail.get("updates") or 0 for run in runs), default=0) or None,
                    "page": f"{place.slug}.html",
                }
            )
    return found


def set_size(runs: Sequence[Trained], batch: int) -> float | None:
    """Training samples of one epoch: updates x batch / epochs of a run's schedule, to a rounded update."""
    for run in runs:
        updates, epochs = plain.number(run.detail.get("updates")), plain.number(run.hyper.get("epochs"))
        if updates and epochs:
            return updates * batch / epochs
    return None


def device_seconds(runs: Sequence[Trained]) -> float:
    """Median device-seconds to the target; infinite when most runs missed."""
    values = sorted(
        run.metrics.get("device_s_to_target", run.metrics.get("time_to_target_s", math.inf))
        if run.reached
        else math.inf
        for run in runs
    )
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def front(found: Sequence[Row]) -> list[Row]:
    """Rows that reached their target, marked when none is better in both updates and device-seconds."""
    kept = [row for row in found if math.isfinite(row["steps"]) and math.isfinite(row["device_s"])]

    def beaten(row: Row) -> bool:
        return any(
            other["steps"] <= row["steps"]
            and other["device_s"] <= row["device_s"]
            and (other["steps"], other["device_s"]) != (row["steps"], row["device_s"])
            for other in kept
        )

    return [{**row, "front": not beaten(row)} for row in kept]


def made(places: Sequence[Place]) -> list[Board]:
    """One page per sweep."""
    return [_board(name, device, sizes) for (name, device), sizes in sweeps(places).items()]


def _board(name: str, device: str, sizes: Sequence[tuple[int, Place]]) -> Board:
    found = rows(sizes)
    looks = figures.styles(list(dict.fromkeys(row["arm"] for row in found)))
    last = sizes[-1][1]
    level = training.level_text(last.metric, last.level)
    return Board(
        slug=plain.anchor("sweep", name, device),
        title=f"Batch sizes of {name} on {device}",
        lead=_lead(found, f"{plain.spoken(last.metric)} {level}"),
        sections=(
            Section(
                heading="Updates against the batch size",
                note="Median over seeds, both axes logarithmic. Dotted: half the updates for twice the batch, which is "
                "the best there is. Crosses at the top: most seeds missed the target.",
                charts=(_steps(name, device, found, looks),),
            ),
            Section(
                heading="What the target costs",
                note="Device-seconds against updates in sequence; filled marks are beaten in both by none. Time in one "
                "sitting falls with the updates only as long as devices can be added.",
                charts=tuple(c for c in [_pareto(name, device, found, looks)] if c is not None),
            ),
            Section(
                heading="Every arm at every batch size",
                note='A median is "not reached" when half of the seeds or more missed. A stall over '
                f"{STALL_LIMIT:.0%} means that the clock measured the loader.",
                tables=(_table(found),),
            ),
        ),
        links=tuple((f"{place.slug}.html", f"batch {batch:,}") for batch, place in sizes),
    )


def _lead(found: Sequence[Row], goal: str) -> str:
    sizes = sorted({row["batch"] for row in found})
    text = f"{plain.count(len(sizes), 'batch size')} from {sizes[0]:,} to {sizes[-1]:,}, to {goal}. "
    largest: dict[str, int] = {}
    for row in found:
        if math.isfinite(row["steps"]):
            largest[row["arm"]] = max(row["batch"], largest.get(row["arm"], 0))
    if not largest:
        return text + "No arm reaches it in most of its seeds at any size."
    best = max(largest.values())
    names = [figures.short(arm) for arm, batch in largest.items() if batch == best]
    missing = [figures.short(arm) for arm in dict.fromkeys(row["arm"] for row in found) if arm not in largest]
    text += f"The largest size that most seeds reach it with is {best:,}, by {', '.join(names)}."
    return text + (f" {', '.join(missing)} reach it at no size." if missing else "")


def _steps(name: str, device: str, found: Sequence[Row], looks: Mapping[str, Row]) -> Chart:
    anchor = plain.anchor("chart", "sweep-steps", name, device)
    title = "Updates to the target against the batch size"
    return Chart(
        id=anchor,
        title=title,
        sentence=_shrink(found),
        svg=board_figures.sweep(anchor, title, list(found), looks),
        rows=boards.saved(found, ("arm", "batch", "hits", "n", "steps", "samples", "epochs", "time_s", "device_s")),
    )


def _shrink(found: Sequence[Row]) -> str:
    """How much of the ideal each arm keeps from its smallest to its largest reached size."""
    told = []
    for arm in dict.fromkeys(row["arm"] for row in found):
        own = [row for row in found if row["arm"] == arm and math.isfinite(row["steps"])]
        if len(own) > 1:
            first, last = own[0], own[-1]
            fewer, larger = first["steps"] / last["steps"], last["batch"] / first["batch"]
            told.append(f"{figures.short(arm)}: {fewer:.1f} times fewer updates for {larger:.0f} times the batch")
    return "; ".join(told) + "." if told else "No arm reaches the target at two sizes."


def _pareto(name: str, device: str, found: Sequence[Row], looks: Mapping[str, Row]) -> Chart | None:
    kept = front(found)
    if not kept:
        return None
    anchor, title = plain.anchor("chart", "sweep-pareto", name, device), "Device-seconds against updates"
    best = [f"{figures.short(row['arm'])} at {row['batch']:,}" for row in kept if row["front"]]
    return Chart(
        id=anchor,
        title=title,
        sentence=f"On the front: {', '.join(best)}.",
        svg=board_figures.pareto(anchor, title, kept, looks),
        rows=[{k: row[k] for k in ("arm", "batch", "steps", "device_s", "front")} for row in kept],
    )


def _table(found: Sequence[Row]) -> Table:
    made = []
    for row in found:
        lost = [
            f"{n} {status.replace('_', ' ')}" for status, n in row["statuses"].items() if status != "target_reached"
        ]
        samples = "not reached" if math.isinf(row["samples"]) else f"{row['samples'] / 1e3:,.0f}"
        epochs = row["epochs"]
        stalled = (row["stall"] or 0.0) > STALL_LIMIT
        made.append(
            (
                boards.Cell(text=row["arm"]),
                number(f"{row['batch']:,}", row["batch"]),
                number(f"{row['hits']} of {row['n']}", row["hits"] / row["n"], *lost),
                number(training.count_text(row["steps"]), _key(row["steps"])),
                number(samples, _key(row["samples"])),
                number(
                    plain.DASH if epochs is None else "not reached" if math.isinf(epochs) else f"{epochs:,.1f}",
                    _key(epochs),
                ),
                number(training.time_text(row["time_s"]), _key(row["time_s"])),
                number(training.time_text(row["device_s"]), _key(row["device_s"])),
                number(plain.seconds(row["step_s"]), row["step_s"]),
                number(
                    plain.percent(max(row["stall"], 0.0)) if row["stall"] is not None else plain.DASH,
                    row["stall"],
                    "times refused" if stalled else "",
                ),
            )
        )
    head = (
        "method",
        "batch",
        "hits",
        "updates",
        "thousand samples",
        "epochs",
        "time",
        "device time",
        "update",
        "stall",
    )
    return Table(id="sweep-table", caption="Arms by batch size", head=head, rows=made)


def _key(value: float | None) -> float | None:
    return 1e300 if value is not None and math.isinf(value) else value
