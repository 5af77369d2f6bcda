"""Cases as plain rows: the method × problem matrix, the long table and the downloads, without a word of HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from reports import plain, theme
from reports.cases import Case

Row = dict[str, Any]
#: Where the interval lies against the noise floor -> glyph and tone.
SIDES = {"faster": ("▲", "good"), "slower": ("▼", "bad"), "level": ("≈", "open"), "open": ("?", "open")}


#: Amounts of work that stand among the dimensionless metrics and are no errors.
AMOUNTS = ("codes", "lookups", "multiplies", "loss_bound")


@dataclass(frozen=True, kw_only=True)
class View:
    """One reading of the matrix (time, speed-up, …) and how its numbers are ordered."""

    key: str
    label: str
    better: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a cell shows in the views ``views``: a text, a smaller text under it, a tone and a sort key."""

    views: tuple[int, ...]
    text: str
    sub: tuple[str, ...] = ()
    tone: str = ""
    title: str = ""
    sort: float | None = None


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """One cell of the matrix: its readings and where its full row stands."""

    entries: list[Entry]
    link: str = ""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Method × problem grid of one device and task; ``rows`` are (method, cells in the order of ``problems``)."""

    views: list[View]
    problems: list[Row]
    rows: list[tuple[str, list[GridCell]]]
    hidden: int


def problem_index(headers: list[dict[str, Any]]) -> dict[str, Row]:
    """Problem id -> its description from any header."""
    found: dict[str, Row] = {}
    for header in headers:
        for suite in header.get("plan", {}).get("suites", []):
            for problem in suite.get("problems", []):
                found[problem["id"]] = problem
    return found


def describe_problem(problem: str, known: Mapping[str, Row]) -> Row:
    """Kind, shape, dtype and element count of a problem, read from its id where no header knows it."""
    described = known.get(problem)
    if described is None:
        kind, _, rest = problem.partition("-")
        shape_text, _, tail = rest.partition("-")
        sizes = [int(part) for part in shape_text.split("x")] if shape_text.replace("x", "").isdigit() else []
        described = {"id": problem, "kind": kind, "shape": sizes, "dtype": tail.split("-")[0], "params": {}}
    elements = 1
    for length in described["shape"]:
        elements *= length
    return {
        "id": problem,
        "kind": described["kind"],
        "shape": tuple(described["shape"]),
        "shape_text": " × ".join(str(length) for length in described["shape"]) or plain.DASH,
        "dtype": described["dtype"],
        "elements": elements,
        "params": described.get("params") or {},
    }


def error_names(cases: list[Case], headers: list[dict[str, Any]], task: str) -> dict[str, str]:
    """Error metrics of a task -> explanation; declared ones first, singular-value quantiles left to their plot."""
    declared: dict[str, str] = {}
    for header in headers:
        for suite in header.get("plan", {}).get("suites", []):
            if suite["task"] == task:
                declared.update(suite.get("task_errors") or {})
    seen = {name for case in cases for name in case.errors}
    names = [name for name in declared if name in seen] + sorted(seen - set(declared) - set(AMOUNTS))
    return {name: declared.get(name, "") for name in names if not name.startswith("sigma_")}


def matrix(
    cases: list[Case], errors: Mapping[str, str], problems: Mapping[str, Row], pages: Mapping[str, str], limit: int
) -> Matrix:
    """The grid of one device and task, at most ``limit`` problems wide; ``pages`` says where each case stands."""
    ids = list(dict.fromkeys(case.problem for case in cases))
    views = _views(cases, errors)
    shown = ids[:limit]
    at = {(case.method, case.problem): case for case in cases}
    rows = []
    for method in dict.fromkeys(case.method for case in cases):
        line = [_cell(at.get((method, problem)), views, pages) for problem in shown]
        rows.append((method, line))
    return Matrix(
        views=views,
        problems=[describe_problem(problem, problems) for problem in shown],
        rows=rows,
        hidden=len(ids) - len(shown),
    )


def _views(cases: list[Case], errors: Mapping[str, str]) -> list[View]:
    views = [
        View(key="speedup", label="speed-up", better="more is better"),
        View(key="time", label="time", better="less is better"),
    ]
    labels = {"op_hot_s": "time, hot L2", "op_graph_s": "time, graph replay", "first_call_s": "first call"}
    for metric, label in labels.items():
        if any(metric in case.times for case in cases):
            views.append(View(key=metric, label=label, better="less is better"))
    views.append(View(key="memory", label="peak memory", better="less is better"))
    if any(case.energy_j is not None for case in cases):
        views.append(View(key="energy", label="energy per call", better="less is better"))
    return views + [View(key=f"error:{name}", label=plain.spoken(name), better="less is better") for name in errors]


def _cell(case: Case | None, views: list[View], pages: Mapping[str, str]) -> GridCell:
    if case is None:
        everywhere = tuple(range(len(views)))
        nothing = Entry(views=everywhere, text="– not planned", sub=("no record names this case",), tone="open")
        return GridCell(entries=[nothing])
    entries: list[Entry] = []
    missing: list[int] = []
    for index, view in enumerate(views):
        entry = _entry(case, view, index)
        if entry is None:
            missing.append(index)
        else:
            entries.append(entry)
    if missing:
        entries.append(_missing(case, tuple(missing)))
    return GridCell(entries=entries, link=f"{pages.get(case.anchor, '')}#{case.anchor}")


def _entry(case: Case, view: View, index: int) -> Entry | None:
    if view.key == "speedup":
        return _speedup(case, index)
    lines: tuple[str, ...] = ()
    if view.key == "time":
        value, text = case.time_s, plain.seconds(case.time_s)
        lines = (f"{plain.seconds(case.low_s)} – {plain.seconds(case.high_s)}",)
    elif view.key in case.times:
        value, text = case.times[view.key], plain.seconds(case.times[view.key])
    elif view.key == "memory":
        where = "device" if case.peak_metric == "peak_device_bytes" else "host"
        value, text, lines = case.peak_bytes, plain.size(case.peak_bytes), (where,)
    elif view.key == "energy":
        value, text = case.energy_j, f"{case.energy_j:.3g} J" if case.energy_j is not None else ""
    else:
        value = case.errors.get(view.key.removeprefix("error:"))
        text = plain.plain(value)
        lines = () if case.status == "passed" else (case.status.replace("_", " "),)
    if value is None:
        return None
    return Entry(views=(index,), text=text, sub=lines, sort=value, title=case.note)


def _speedup(case: Case, index: int) -> Entry | None:
    floor = f"floor {plain.percent(case.noise)}" if case.noise is not None else "no A/A floor"
    if case.is_baseline and case.time_s is not None:
        return Entry(views=(index,), text="baseline", sub=(f"A/A {floor}",), sort=1.0, title=case.note)
    effect = case.effect
    if effect is None:
        return None
    glyph, tone = SIDES[effect.side]
    sub = (plain.interval(effect.low, effect.high), floor, *([case.note] if case.note else []))
    text = f"{glyph} {plain.times(effect.ratio)}"
    return Entry(views=(index,), text=text, sub=sub, tone=tone, sort=effect.ratio, title=case.note)


def _missing(case: Case, views: tuple[int, ...]) -> Entry:
    if case.status == "passed":
        reason = case.energy_reason or "passed, but this was not recorded"
        sub = (plain.shorten(reason),)
        return Entry(views=views, text="– not recorded", sub=sub, title=reason, tone="open")
    sign = theme.STATUSES.get(case.status, theme.UNKNOWN)
    reason = case.reason or sign.meaning
    text = f"{sign.glyph} {case.status.replace('_', ' ')}"
    return Entry(views=views, text=text, sub=(plain.shorten(reason),), title=reason, tone=sign.tone)


def case_row(case: Case, metrics: Iterable[str]) -> Row:
    """One case as flat text and numbers, for the long table and for its CSV."""
    effect = case.effect
    sign = theme.STATUSES.get(case.status, theme.UNKNOWN)
    return {
        "anchor": case.anchor,
        "method": case.method,
        "problem": case.problem,
        "status": case.status,
        "sign": sign,
        "reason": case.reason or case.note,
        "time_s": case.time_s,
        "time_text": plain.seconds(case.time_s),
        "clock": case.clock,
        "ratio": effect.ratio if effect else None,
        "ratio_text": plain.times(effect.ratio) if effect else ("baseline" if case.is_baseline else plain.DASH),
        "interval_text": plain.interval(effect.low, effect.high) if effect else "",
        "low": effect.low if effect else None,
        "high": effect.high if effect else None,
        "noise": case.noise,
        "noise_text": plain.percent(case.noise),
        "blocks": len(case.blocks),
        "level_text": f"{100 * effect.level:.1f} %" if effect else "",
        "peak_bytes": case.peak_bytes,
        "peak_text": plain.size(case.peak_bytes),
        "first_call_text": plain.seconds(case.times.get("first_call_s")),
        "floor_fraction": case.floor_fraction,
        "floor_text": plain.percent(case.floor_fraction),
        "floor_basis": case.floor_basis,
        "errors": [(name, case.errors.get(name), plain.plain(case.errors.get(name))) for name in metrics],
        "file": plain.base(case.file),
        "command": case.command,
    }


def flat(cases: list[Case]) -> list[Row]:
    """Cases as rows of numbers only, for downloads."""
    rows = []
    for case in cases:
        effect = case.effect
        rows.append(
            {
                "device": case.device,
                "task": case.task,
                "method": case.method,
                "problem": case.problem,
                "status": case.status,
                "reason": case.reason,
                "clock": case.clock,
                "time_s": case.time_s,
                "time_p10_s": case.low_s,
                "time_p90_s": case.high_s,
                "blocks": len(case.blocks),
                "ratio": effect.ratio if effect else None,
                "low": effect.low if effect else None,
                "high": effect.high if effect else None,
                "level": effect.level if effect else None,
                "noise_floor": case.noise,
                "peak_bytes": case.peak_bytes,
                "peak_metric": case.peak_metric or None,
                "energy_j": case.energy_j,
                "floor_s": case.floor_s,
                **case.times,
                **case.errors,
                "file": plain.base(case.file),
                "command": case.command,
            }
        )
    return rows
