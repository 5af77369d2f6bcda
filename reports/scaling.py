"""The page of scaling over processes: step time, bytes of each and communication on 1, 2, 4 … GPUs or processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.judge import scaling
from harness.judge.scaling import Finding
from reports import plain
from reports.figures import MUTED, Chart, canvas, styles, svg_of
from reports.suite_pages import Cell, Page, Table, slug

#: What a table says of each mode.
MODES = {
    "weak": "The same number of samples on every process: efficiency = t₁ ÷ t_N.",
    "strong": "The same number of samples for all together: efficiency = t₁ ÷ (N t_N).",
}
NOTE = (
    "Communication is the share of the training clock in collectives, waiting for slower processes included. Peak and "
    "state are those of the process that has most; “of one” is the state over that of a single process. Generated "
    "data; no accuracy is claimed here."
)
TONES = {"reproduced": "good", "not reproduced": "bad", "inconclusive": "half"}


def mine(runs: pd.DataFrame) -> pd.Series[bool]:
    """Which rows belong to scaling runs: no training to a target."""
    return runs["detail"].map(lambda detail: isinstance(detail, dict) and "scaling" in detail).astype(bool)


def pages(runs: pd.DataFrame, headers: list[dict[str, Any]]) -> list[Page]:
    """One page for each device with scaling runs."""
    if runs.empty or not (chosen := mine(runs)).any():
        return []
    rows = scaling.rows(scaling.cells(runs[chosen]))
    return [_page(device, [row for row in rows if row.key.device == device]) for device in dict.fromkeys(
        row.key.device for row in rows)]  # fmt: skip


def _page(device: str, rows: list[scaling.Row]) -> Page:
    found = scaling.findings(rows)
    places = list(dict.fromkeys((row.key.workload, row.key.mode) for row in rows))
    tables = [_verdicts(found)] if found else []
    tables += [_table(index, workload, mode, [r for r in rows if (r.key.workload, r.key.mode) == (workload, mode)])
               for index, (workload, mode) in enumerate(places)]  # fmt: skip
    charts = [chart for workload, mode in places if (chart := _chart(device, workload, mode, rows)) is not None]
    return Page(
        slug=slug("scaling", device),
        title=f"Scaling on {device}",
        device=device,
        suite="scaling_bench",
        lead=lead(rows, found),
        tables=[],
        sections=[("Efficiency", "The dashed line is ideal; the dotted one is nine tenths of it.", charts)],
        after=tables,
    )


def lead(rows: Sequence[scaling.Row], found: Sequence[Finding]) -> str:
    """What the record says in a few sentences."""
    most = max((row.key.world for row in rows), default=1)
    text = f"Updates of {plain.count(len({row.key.label for row in rows}), 'method')} on up to {most} processes. "
    best = [row for row in rows if row.key.mode == "weak" and row.key.world == most and row.efficiency is not None]
    for row in best:
        text += f"{row.key.label}: weak efficiency {row.efficiency:.2f}"
        text += f", state {row.state_ratio:.2f} of one process'. " if row.state_ratio and row.state_ratio < 1 else ". "
    if any(one.verdict == "inconclusive" and "fewer than" in one.reason for one in found):
        text += "Fewer than three repeats carry no verdict on time; bytes need no repeats. "
    return text.strip()


def _verdicts(found: Sequence[Finding]) -> Table:
    rows = []
    for one in found:
        verdict = Cell(text=one.verdict, tone=TONES.get(one.verdict, ""))
        rows.append((f"{one.subject}, {one.workload}", [Cell(text=one.claim), verdict, Cell(text=one.reason)]))
    note = f"“Near-linear” is read as a weak efficiency of at least {scaling.LINEAR:g}, “like” as at most "
    note += f"{scaling.MEMORY:g} times the bytes."
    return Table(id="scaling-verdicts", heading="Verdicts", note=note, first="method", rows=rows,
                 columns=["claim", "verdict", "why"])  # fmt: skip


def _table(index: int, workload: str, mode: str, rows: Sequence[scaling.Row]) -> Table:
    columns = ["processes", "samples each", "one update", "samples/s", "efficiency", "communication", "peak", "state",
               "of one"]  # fmt: skip
    return Table(
        id=f"scaling-{index}",
        heading=f"{mode.capitalize()} scaling of {workload}",
        note=f"{MODES[mode]} {NOTE}",
        first="method",
        columns=columns,
        rows=[(row.key.label, _cells(row)) for row in rows],
    )


def _cells(row: scaling.Row) -> list[Cell]:
    start = [_number(row.key.world, str(row.key.world)), _number(row.key.per_rank, str(row.key.per_rank))]
    if row.step_s is None:
        why = row.reason or "not measured"
        return [*start, Cell(text="failed", sub=(plain.shorten(why, 60),), tone="bad", title=why),
                *[Cell(text=plain.DASH)] * 6]  # fmt: skip
    spread = () if row.low is None or row.repeats < 2 else (f"{row.low:.3f} to {row.high:.3f}, n = {row.repeats}",)
    return [
        *start,
        _number(row.step_s, plain.seconds(row.step_s)),
        _number(row.rate, f"{row.rate:,.0f}"),
        Cell(text=plain.DASH if row.efficiency is None else f"{row.efficiency:.3f}", sub=spread, sort=row.efficiency,
             tone="" if row.efficiency is None or row.key.world == 1 else "good" if row.efficiency >= scaling.LINEAR
             else "half"),
        _number(row.share, plain.percent(row.share)),
        _number(row.peak, plain.size(row.peak)),
        _number(row.state, plain.size(row.state)),
        _number(row.state_ratio, plain.DASH if row.state_ratio is None else f"{row.state_ratio:.3f}"),
    ]  # fmt: skip


def _number(value: float | None, text: str) -> Cell:
    return Cell(text=text, sort=value)


def _chart(device: str, workload: str, mode: str, rows: Sequence[scaling.Row]) -> Chart | None:
    own = [row for row in rows if (row.key.workload, row.key.mode) == (workload, mode) and row.efficiency is not None]
    lines: dict[str, list[scaling.Row]] = {}
    for row in own:
        lines.setdefault(row.key.label, []).append(row)
    lines = {name: sorted(held, key=lambda row: row.key.world) for name, held in lines.items()}
    if max((row.key.world for row in own), default=1) == 1:
        return None
    name = plain.anchor("chart", "scaling", device, workload, mode)
    title = f"{mode.capitalize()} scaling of {workload}"
    last = {label: held[-1] for label, held in lines.items() if held[-1].key.world > 1}
    best = max(last, key=lambda label: last[label].efficiency or 0.0)
    sentence = (
        f"On {last[best].key.world} processes {best} keeps {last[best].efficiency:.3f} of the ideal rate, the most of "
    )
    sentence += f"{plain.count(len(last), 'line')}."
    data = [{"method": label, "processes": row.key.world, "efficiency": row.efficiency} for label, held in lines.items()
            for row in held]  # fmt: skip
    return Chart(id=name, title=title, sentence=sentence, svg=_draw(name, title, lines), rows=data)


def _draw(name: str, title: str, lines: dict[str, list[scaling.Row]]) -> str:
    looks = styles(list(lines))
    worlds = sorted({row.key.world for held in lines.values() for row in held})
    with canvas(6.4, 3.6) as (figure, axes):
        axes.axhline(1.0, color=MUTED, linewidth=1.2, linestyle="--")
        axes.axhline(scaling.LINEAR, color=MUTED, linewidth=1.0, linestyle=":")
        for label, held in lines.items():
            look = looks[label]
            places = [worlds.index(row.key.world) for row in held]
            axes.plot(places, [row.efficiency or 0.0 for row in held], label=label, color=look["color"],
                      marker=look["marker"], linestyle=look["linestyle"], linewidth=1.8, markersize=7)  # fmt: skip
        axes.set_xticks(range(len(worlds)), [str(world) for world in worlds])
        axes.set_ylim(0.0, 1.1)
        axes.set_xlabel("processes")
        axes.set_ylabel("efficiency, more is better")
        figure.legend(loc="outside upper center", fontsize=9, ncols=3)
        return svg_of(figure, name, title)
