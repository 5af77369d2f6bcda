"""The matrix of numerical robustness: who survives which statistics in which precision, and how exactly."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from reports import plain, theme
from reports.figures import INK, MUTED, Chart, canvas, svg_of
from reports.suite_pages import Cell, Page, Table, Told, slug, told

TASK = "robustness"
HALF = "+half"
#: What a cell's number is, in the order of preference.
NUMBER = "update_error"
#: Methods that the figure shows: those that the claim is about, and what it compares them with.
DRAWN = ("kfac-cholesky", "kfac-eigh", "ikfac", "singd-dense", "singd-block30", "singd-diagonal")
_CONDITION = re.compile(r"^cond1e(\d+)$")
_FAST = re.compile(r"^cond1e(\d+)_fast$")
#: Streams for people; a condition number is told by its power.
NAMES: Mapping[str, str] = {
    "large1e4": "A × 1e4, G ÷ 1e4",
    "large1e8": "A × 1e8, G ÷ 1e8",
    "small1e4": "A ÷ 1e4, G × 1e4",
    "small1e8": "A ÷ 1e8, G × 1e8",
    "rank_deficient": "a quarter of the rank",
    "jump_up": "A jumps × 1e4",
    "jump_down": "A jumps ÷ 1e4",
    "cond1e8_damped": "condition 1e8, damping 0.01",
    "jump_up_normalized": "A jumps × 1e4, normalized step",
    "large1e8_normalized": "A × 1e8, normalized step",
}
Setting = tuple[str, str]


def pages(runs: pd.DataFrame, headers: list[dict[str, Any]]) -> list[Page]:
    """One page per device with a record of the suite."""
    return [_page(device, rows) for device, rows in told(runs, headers, TASK).items()]


def setting(one: Told) -> Setting:
    """Arithmetic, and what the factors are kept in."""
    dtype = str(one.problem["dtype"])
    return dtype, dtype if str(one.problem["kind"]).endswith(HALF) else "float32"


def stream(one: Told) -> str:
    """The stream of statistics."""
    return str(one.problem["kind"]).removesuffix(HALF)


def spoken(name: str) -> str:
    """A stream for people."""
    if fast := _FAST.match(name):
        return f"condition 1e{int(fast.group(1))}, fast factors"
    found = _CONDITION.match(name)
    return f"condition 1e{int(found.group(1))}" if found else NAMES.get(name, name.replace("_", " "))


def label(one: Setting) -> str:
    """A setting for people."""
    dtype, held = one
    return f"{dtype}" if dtype == "float32" else f"{dtype}, factors in {held}"


def _page(device: str, rows: list[Told]) -> Page:
    settings = list(dict.fromkeys(sorted((setting(one) for one in rows), key=_order)))
    at = {(one.name, setting(one), stream(one)): one for one in rows}
    methods = list(dict.fromkeys(one.name for one in rows))
    streams = list(dict.fromkeys(stream(one) for one in rows))
    chart = conditions(device, rows, settings)
    return Page(
        slug=slug("robustness", device),
        title=f"Robustness on {device}",
        device=device,
        suite="robustness",
        lead=lead(rows, settings),
        tables=[_summary(methods, settings, rows)],
        sections=[("Error against condition number", CHART_NOTE, chart)] if chart else [],
        after=[_matrix(index, one, methods, streams, at) for index, one in enumerate(settings)],
    )


CHART_NOTE = (
    "Relative error of the last update against the same method in float64 on the same numbers. Crosses: the case "
    "failed. The dotted line is the limit."
)


def _order(one: Setting) -> tuple[int, bool, str]:
    known = ("float32", "bfloat16", "float16")
    return known.index(one[0]) if one[0] in known else len(known), one[1] != "float32", one[0]


def lead(rows: Sequence[Told], settings: Sequence[Setting]) -> str:
    """What the record says in a few sentences."""
    asked = [one for one in rows if one.status != "unsupported"]
    cases, methods = plain.count(len(asked), "case"), plain.count(len({one.name for one in rows}), "method")
    text = (
        f"{methods} driven through {plain.count(len({stream(one) for one in rows}), 'stream')} of ill-conditioned "
        f"statistics in {plain.count(len(settings), 'setting')} of precision, {cases}; nothing is timed. "
    )
    for dtype in ("bfloat16", "float16"):
        parts = [_share(rows, name, (dtype, held)) for name, held in _told_of(dtype)]
        told_parts = [part for part in parts if part]
        if told_parts:
            text += f"{dtype}: {'; '.join(told_parts)}. "
    return text.strip()


def _told_of(dtype: str) -> tuple[tuple[str, str], ...]:
    return (("kfac-cholesky", dtype), ("kfac-cholesky", "float32"), ("singd-dense", dtype), ("singd-diagonal", dtype))


def _share(rows: Sequence[Told], name: str, where: Setting) -> str:
    own = [one for one in rows if one.name == name and setting(one) == where and one.status != "unsupported"]
    stable = sum(one.status == "passed" for one in own)
    return f"{name} with {where[1]} factors is stable in {stable} of {len(own)} streams" if own else ""


def _summary(methods: Sequence[str], settings: Sequence[Setting], rows: Sequence[Told]) -> Table:
    made = []
    for method in methods:
        cells = []
        for one in settings:
            own = [r for r in rows if r.name == method and setting(r) == one and r.status != "unsupported"]
            stable = sum(r.status == "passed" for r in own)
            own_fault = sum("recursion's own" in r.reason for r in own)
            tone = "" if not own else "good" if stable == len(own) else "bad" if 2 * stable <= len(own) else "half"
            sub = (f"{own_fault} also in float64",) if own_fault else ()
            cells.append(
                Cell(text=f"{stable} of {len(own)}" if own else plain.DASH, sub=sub, tone=tone,
                     sort=stable / len(own) if own else None)
            )  # fmt: skip
        made.append((method, cells))
    note = (
        "Streams that a method survives: every update finite, none over ten times that of the same method in float64, "
        "the last one within half of its norm, no failed factorisation. Failures that float64 shares are the "
        "recursion's own."
    )
    return Table(id="robust-summary", heading="Stable streams", note=note, first="method",
                 columns=[label(one) for one in settings], rows=made)  # fmt: skip


def _matrix(
    index: int, where: Setting, methods: Sequence[str], streams: Sequence[str], at: Mapping[Any, Told]
) -> Table:
    made = []
    for method in methods:
        found = [at.get((method, where, name)) for name in streams]
        if any(found):
            made.append((method, [_cell(one) for one in found]))
    note = (
        "Error of the last update against float64; under it the update's largest growth, the twin's cosine with the "
        "exact solution (how much curvature was taken in), and failed factorisations."
    )
    return Table(id=f"robust-{index}", heading=label(where), note=note, first="method",
                 columns=[spoken(name) for name in streams], rows=made)  # fmt: skip


def _cell(one: Told | None) -> Cell:
    if one is None or one.status == "unsupported":
        return Cell(text=plain.DASH, title=one.reason if one else "")
    sign = theme.STATUSES.get(one.status, theme.UNKNOWN)
    error = one.metrics.get(NUMBER)
    text = "not finite" if one.status == "nonfinite" else plain.plain(error) if error is not None else one.status
    sub = []
    if (growth := one.metrics.get("growth")) is not None:
        sub.append(f"grows {growth:.2g}×")
    if (cosine := one.metrics.get("target_cosine")) is not None:
        sub.append(f"cos {cosine:.2f}")
    if failed := one.metrics.get("failed_factorisations"):
        sub.append(f"{failed:.0f} failed: {_rung(one)}")
    if "recursion's own" in one.reason:
        sub.append("in float64 too")
    return Cell(text=f"{sign.glyph} {text}", sub=tuple(sub), tone=sign.tone, title=one.reason, sort=error)


def _rung(one: Told) -> str:
    """The rung of the ladder that ended most failures."""
    rungs = {name: one.metrics.get(f"rung_{name}", 0.0) for name in ("direct", "damping", "float64", "kept")}
    words = {"direct": "mended", "damping": "more damping", "float64": "float64", "kept": "given up"}
    return words[max(rungs, key=lambda name: rungs[name])]


def conditions(device: str, rows: Sequence[Told], settings: Sequence[Setting]) -> list[Chart]:
    """Error over condition number, one figure for each half precision with factors kept in it."""
    charts = []
    for where in settings:
        if where[0] == "float32" or where[1] == "float32":
            continue
        lines: dict[str, list[tuple[int, float | None, bool]]] = {}
        for one in rows:
            found = _CONDITION.match(stream(one))
            if found and setting(one) == where and one.name in DRAWN:
                point = (int(found.group(1)), one.metrics.get(NUMBER), one.status == "passed")
                lines.setdefault(one.name, []).append(point)
        if not lines or max(len(points) for points in lines.values()) < 2:
            continue
        title = f"Error against condition number: {label(where)}"
        name = plain.anchor("chart", "robust", device, where[0])
        data = [
            {"method": method, "log10_condition": power, "update_error": value, "stable": good}
            for method, points in lines.items()
            for power, value, good in points
        ]
        charts.append(Chart(id=name, title=title, sentence=_sentence(lines), svg=_draw(name, title, lines), rows=data))
    return charts


def _sentence(lines: Mapping[str, Sequence[tuple[int, float | None, bool]]]) -> str:
    parts = []
    for method, points in lines.items():
        lost = [power for power, _, good in sorted(points) if not good]
        parts.append(f"{method} {f'fails from 1e{lost[0]} on' if lost else 'holds throughout'}")
    return "; ".join(parts) + "."


def _draw(name: str, title: str, lines: Mapping[str, Sequence[tuple[int, float | None, bool]]]) -> str:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    with canvas(5.8, 3.9) as (figure, axes):
        axes.set_xscale("log")
        axes.set_yscale("log")
        for place, (method, points) in enumerate(lines.items()):
            colour = theme.STAND_IN[f"s{place % theme.SERIES}"]
            drawn = [(10.0**power, value, good) for power, value, good in sorted(points) if value]
            axes.plot([x for x, _, _ in drawn], [y for _, y, _ in drawn], color=colour, linewidth=1.6,
                      linestyle=theme.DASHES[place % len(theme.DASHES)], label=method)  # fmt: skip
            for x, y, good in drawn:
                axes.plot([x], [y], theme.MARKERS[place] if good else "x", color=colour, markersize=7 if good else 9,
                          markeredgewidth=1.8)  # fmt: skip
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"1e{math.log10(value):.0f}"))
            axis.set_minor_formatter(NullFormatter())
        powers = sorted({power for points in lines.values() for power, _, _ in points})
        axes.set_xticks([10.0**power for power in powers])
        axes.axhline(0.5, color=MUTED, linewidth=1.2, linestyle=(0, (1, 2)))
        axes.set_xlabel("condition number of both factors", color=INK)
        axes.set_ylabel("error of the update, less is better")
        figure.legend(loc="outside upper center", fontsize=9, ncols=3, handlelength=3.0)
        return svg_of(figure, name, title)
