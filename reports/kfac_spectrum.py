"""Eigenvalues of averaged Kronecker factors: how many matter, by layer width, factor decay and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.judge import stats
from reports import plain, theme
from reports.figures import MUTED, Chart, canvas, svg_of
from reports.suite_pages import Cell, Page, Table, Told, slug, told

TASK = "spectrum"
SIDES = {"a": "input factor", "g": "factor of output gradients"}
#: An exponent up to here counts as constant in width, as in the ledger of claims.
CONSTANT = 0.25
#: A mode counts from this share of the largest eigenvalue on.
SHARE = 1 / 33
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
NOTE = (
    "A mode counts while its eigenvalue is at least 1/33 of the largest. Averages are bias-corrected; the layer is the "
    "middle one of a head features - w - w - classes."
)

Point = dict[str, Any]


def pages(runs: pd.DataFrame, headers: list[dict[str, Any]]) -> list[Page]:
    """One page per device with a record of the suite."""
    return [_page(device, rows) for device, rows in told(runs, headers, TASK).items()]


def points(rows: Sequence[Told]) -> list[Point]:
    """One row a cell: workload, decay, width, modes on both sides."""
    found = []
    for one in rows:
        kind, _, decay = str(one.problem["kind"]).rpartition("_r")
        if one.status == "passed" and {"modes_a", "modes_g"} <= set(one.metrics):
            found.append(
                {
                    "workload": kind.replace("_", "-"),
                    "decay": int(decay) / 100,
                    "width": int(one.problem["shape"][-1]),
                    **{name: one.metrics.get(name) for name in ("modes_a", "modes_g", "tail_a", "tail_g")},
                    "detail": one.detail,
                }
            )
    return sorted(found, key=lambda point: (point["workload"], point["decay"], point["width"]))


def exponent(own: Sequence[Point], side: str) -> float | None:
    """Slope of ln modes on ln width; None below three widths."""
    if len(own) < 3:
        return None
    return stats.slope([float(p["width"]) for p in own], [float(p[f"modes_{side}"]) for p in own])


def _groups(found: Sequence[Point]) -> dict[tuple[str, float], list[Point]]:
    grouped: dict[tuple[str, float], list[Point]] = {}
    for point in found:
        grouped.setdefault((point["workload"], point["decay"]), []).append(point)
    return grouped


def lead(found: Sequence[Point]) -> str:
    """Is the number of kept modes constant in width? In one or two sentences."""
    slopes = [
        (value, side, *key)
        for key, own in _groups(found).items()
        for side in SIDES
        if (value := exponent(own, side)) is not None
    ]
    if not slopes:
        return "Fewer than three widths are stored: growth cannot be told."
    flat = [one for one in slopes if one[0] <= CONSTANT]
    worst = max(slopes)
    text = (
        f"Is the number of modes that matter constant in the layer's width? In {len(flat)} of {len(slopes)} series it "
        f"is (exponent at most {CONSTANT:g})"
    )
    most = max(found, key=lambda point: max(point["modes_a"], point["modes_g"]))
    return (
        f"{text}; the largest exponent is {worst[0]:.2f}, of the {SIDES[worst[1]]} on {worst[2]} with decay "
        f"{worst[3]:g}. The most modes are {max(most['modes_a'], most['modes_g']):.0f}, at width {most['width']}."
    )


def _page(device: str, rows: list[Told]) -> Page:
    found = points(rows)
    charts = [chart for side in SIDES if (chart := growth(device, found, side)) is not None]
    decays = [chart for name in dict.fromkeys(p["workload"] for p in found) for chart in curves(device, found, name)]
    return Page(
        slug=slug("spectrum", device),
        title=f"Modes of Kronecker factors on {device}",
        device=device,
        suite=TASK,
        lead=lead(found),
        tables=[_table(place, name, found) for place, name in enumerate(dict.fromkeys(p["workload"] for p in found))],
        sections=[("Modes against width", NOTE, charts), ("Eigenvalues by index", "", decays)],
    )


def _table(place: int, workload: str, found: Sequence[Point]) -> Table:
    own = [point for point in found if point["workload"] == workload]
    widths = sorted({point["width"] for point in own})
    made = []
    for (_, decay), series in _groups(own).items():
        for side, label in SIDES.items():
            by_width = {point["width"]: point for point in series}
            cells = [_cell(by_width.get(width), side) for width in widths]
            slope = exponent(series, side)
            tone = "" if slope is None else "good" if slope <= CONSTANT else "bad"
            cells.append(Cell(text=plain.DASH if slope is None else f"{slope:.2f}", tone=tone, sort=slope))
            made.append((f"{label}, decay {decay:g}", cells))
    columns = [*(f"width {width}" for width in widths), "exponent"]
    note = "Median over seeds; below: how the number moved along training of the first seed."
    return Table(
        id=f"modes-{place}", heading=f"Modes, {workload}", note=note, first="factor", columns=columns, rows=made
    )


def _cell(point: Point | None, side: str) -> Cell:
    if point is None:
        return Cell(text=plain.DASH)
    value = float(point[f"modes_{side}"])
    path = [str(int(entry[1 if side == "a" else 2])) for entry in point["detail"].get("path") or []]
    return Cell(text=f"{value:g}", sub=(" → ".join(path),) if path else (), sort=value)


def growth(device: str, found: Sequence[Point], side: str) -> Chart | None:
    """Modes over width, one line a workload and decay."""
    series = {key: own for key, own in _groups(found).items() if len(own) > 1}
    if not series:
        return None
    title = f"Modes of the {SIDES[side]} against width"
    name = plain.anchor("chart", "modes", side, device)
    slopes = [value for own in series.values() if (value := exponent(own, side)) is not None]
    sentence = (
        f"Exponents run from {min(slopes):.2f} to {max(slopes):.2f}; 0 is constant, 1 would be a fixed share of the "
        f"width (dotted)."
        if slopes
        else "Three widths are needed for an exponent."
    )
    rows = [{"workload": k[0], "decay": k[1], "width": p["width"], "modes": p[f"modes_{side}"]} for k, own in
            series.items() for p in own]  # fmt: skip
    return Chart(id=name, title=title, sentence=sentence, svg=_draw_growth(name, title, series, side), rows=rows)


def _draw_growth(name: str, title: str, series: dict[tuple[str, float], list[Point]], side: str) -> str:
    with canvas(7.6, 4.0) as (figure, axes):
        axes.set_xscale("log")
        axes.set_yscale("log")
        for place, ((workload, decay), own) in enumerate(series.items()):
            axes.plot(
                [p["width"] for p in own], [max(1.0, p[f"modes_{side}"]) for p in own],
                marker=theme.MARKERS[place % len(theme.MARKERS)], color=theme.STAND_IN[f"s{place % theme.SERIES}"],
                linewidth=1.5, markersize=5, label=f"{workload}, decay {decay:g}",
            )  # fmt: skip
        widths = sorted({p["width"] for own in series.values() for p in own})
        axes.plot(widths, [w * SHARE for w in widths], linestyle=":", color=MUTED, linewidth=1.2, label="width / 33")
        axes.set_xticks(widths, [str(width) for width in widths])
        top = max(max(p[f"modes_{side}"] for own in series.values() for p in own), widths[-1] * SHARE)
        ticks = [tick for tick in TICKS if tick <= 2 * top]
        axes.set_yticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("layer width")
        axes.set_ylabel("eigenvalues ≥ 1/33 of the largest")
        figure.legend(loc="outside right center", fontsize=9)
        return svg_of(figure, name, title)


def curves(device: str, found: Sequence[Point], workload: str) -> list[Chart]:
    """Eigenvalues over their index at the middle decay, one line a width; both sides."""
    own = [p for p in found if p["workload"] == workload]
    decays = sorted({p["decay"] for p in own})
    if not decays:
        return []
    decay = decays[len(decays) // 2]
    drawn = []
    for side, label in SIDES.items():
        lines = {p["width"]: p["detail"].get(f"spectrum_{side}") for p in own if p["decay"] == decay}
        lines = {width: line for width, line in lines.items() if line}
        if not lines:
            continue
        title = f"Eigenvalues of the {label}, {workload}, decay {decay:g}"
        name = plain.anchor("chart", "spectrum", side, workload, device)
        last = max(lines)
        falls = next((int(index) for index, value in lines[last] if value < SHARE), None)
        sentence = (
            f"At width {last} the spectrum falls under 1/33 of its largest value at or before index {falls}."
            if falls is not None
            else f"At width {last} the spectrum never falls under 1/33 of its largest value."
        )
        rows = [{"width": w, "index": i, "eigenvalue": v} for w, line in lines.items() for i, v in line]
        drawn.append(Chart(id=name, title=title, sentence=sentence, svg=_draw_curves(name, title, lines), rows=rows))
    return drawn


def _draw_curves(name: str, title: str, lines: dict[int, list[list[float]]]) -> str:
    with canvas(5.8, 3.9) as (figure, axes):
        axes.set_xscale("log")
        axes.set_yscale("log")
        for place, (width, line) in enumerate(sorted(lines.items())):
            axes.plot(
                [point[0] for point in line], [point[1] for point in line], linewidth=1.5,
                color=theme.STAND_IN[f"s{place % theme.SERIES}"], label=f"width {width}",
            )  # fmt: skip
        axes.axhline(SHARE, color=MUTED, linewidth=1.2, linestyle=":")
        axes.set_ylim(1e-8, 2)
        axes.set_yticks([10.0**-power for power in range(0, 9, 2)], ["1", *(f"1e-{p}" for p in range(2, 9, 2))])
        ticks = [10**power for power in range(5) if 10**power <= max(lines) + 1]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("index")
        axes.set_ylabel("eigenvalue ÷ largest")
        figure.legend(loc="outside right center", fontsize=9)
        return svg_of(figure, name, title)
