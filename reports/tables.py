"""Stored runs, headers and verdicts as plain rows: what a page shows, without a word of HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from statistics import median
from typing import Any

import pandas as pd

from reports import plain, theme
from reports.cases import Case, prepare

Row = dict[str, Any]
#: Where the interval lies against the noise floor -> glyph and tone.
SIDES = {"faster": ("▲", "good"), "slower": ("▼", "bad"), "level": ("≈", "open"), "open": ("?", "open")}


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


def base(file: str | None) -> str:
    """A record file's name without its folder."""
    return PurePath(str(file)).name if file else plain.DASH


# ---------------------------------------------------------------- claims


def ledger(verdicts: Iterable[Mapping[str, Any]]) -> list[Row]:
    """One row per claim and device, numbers as numbers and as text."""
    return [_ledger_row(verdict) for verdict in verdicts]


def by_verdict(rows: list[Row]) -> list[Row]:
    """Ledger rows in the order of the legend: what was tested first, what could not be tested last."""
    order = {word: place for place, word in enumerate(theme.VERDICTS)}
    return sorted(rows, key=lambda row: order.get(row["verdict"], len(order)))


TEXTS = (
    *("id", "phrase", "reason", "command", "group", "title", "words", "source", "kind", "metric", "candidate"),
    *("baseline", "likeness", "note", "hardware"),
)


def _ledger_row(verdict: Mapping[str, Any]) -> Row:
    word = str(verdict.get("verdict", "inconclusive"))
    numbers = {name: plain.number(verdict.get(name)) for name in ("claimed", "ratio", "low", "high", "floor", "level")}
    texts = {name: str(verdict.get(name) or "") for name in TEXTS}
    device = str(verdict.get("device") or "")
    ratio, kind, blocks = numbers["ratio"], texts["kind"], plain.number(verdict.get("n")) or None
    return {
        **texts,
        **numbers,
        "anchor": plain.anchor("claim", texts["id"], device),
        "title": texts["title"] or texts["words"] or texts["id"],
        "verdict": word,
        "sign": theme.VERDICTS.get(word, theme.UNKNOWN),
        "device": device or "no device",
        "authors": _authors(verdict.get("authors")),
        "file": base(verdict.get("file")),
        "counter": bool(verdict.get("counter")),
        "n": blocks,
        "quantity": {"growth": "exponent", "often": "rate", "only-reaches": "rate"}.get(kind, "ratio"),
        "claimed_text": claimed_text(kind, numbers["claimed"]),
        "ratio_text": quantity(kind, ratio),
        "interval_text": _claim_interval(kind, numbers["low"], numbers["high"]) if ratio is not None else "",
        "floor_text": plain.percent(numbers["floor"]),
        "blocks_text": f"{blocks:.0f}" if blocks else plain.DASH,
        "level_text": f"{100 * numbers['level']:.1f} %" if numbers["level"] is not None else "",
        "phrase": _phrase(word, texts["phrase"]),
        "likeness": "likeness unknown" if texts["likeness"] == "unknown" else texts["likeness"],
        "why": _beyond(texts["phrase"], texts["reason"]),
        "problems": [_claim_cell(cell) for cell in verdict.get("problems") or []],
    }


def _authors(authors: Any) -> str:
    if isinstance(authors, Mapping):
        if len(authors) > 1 and len(set(authors.values())) == 1:
            return f"both: {next(iter(authors.values()))}"
        return "; ".join(f"{side}: {who}" for side, who in authors.items())
    return str(authors or "")


def _phrase(word: str, phrase: str) -> str:
    """The phrase without the verdict word that already stands beside it."""
    rest = phrase.removeprefix(word).removeprefix(":").strip()
    return rest[1:-1] if rest.startswith("(") and rest.endswith(")") else rest


def _beyond(phrase: str, reason: str) -> str:
    """What the reason says that the phrase does not."""
    return "; ".join(part for part in reason.split("; ") if part and part not in phrase)


def quantity(kind: str, value: float | None) -> str:
    """A claim's measured number in the sense of its kind: a ratio, an exponent or a rate."""
    if value is None:
        return plain.DASH
    if kind == "growth":
        return f"{value:.3g}"
    return plain.percent(value) if kind in ("often", "only-reaches") else plain.times(value)


def _claim_interval(kind: str, low: float | None, high: float | None) -> str:
    if kind in ("often", "only-reaches"):
        return f"[{plain.percent(low)}, {plain.percent(high)}]"
    return plain.interval(low, high)


def claimed_text(kind: str, claimed: float | None) -> str:
    """A claimed number in the sense of its kind: a limit, an exponent, a ratio, or only a direction."""
    if claimed is None or (kind == "on-par" and claimed == 1):
        return {"on-par": "on par", "metric-better": "better"}.get(kind, plain.DASH)
    prefix = {"at-most": "≤ ", "speedup-up-to": "up to "}.get(kind, "")
    return f"exponent ≤ {claimed:.3g}" if kind == "growth" else prefix + plain.times(claimed)


def _claim_cell(cell: Mapping[str, Any]) -> Row:
    ratio, low, high, floor = (plain.number(cell.get(name)) for name in ("ratio", "low", "high", "floor"))
    return {
        "problem": str(cell.get("problem", "")),
        "ratio": ratio,
        "low": low,
        "high": high,
        "floor": floor,
        "ratio_text": plain.times(ratio),
        "interval_text": plain.interval(low, high),
        "floor_text": plain.percent(floor),
    }


def verdict_counts(rows: list[Row]) -> list[Row]:
    """Every verdict word with its count, in the order of the legend."""
    words = [*theme.VERDICTS, *sorted({row["verdict"] for row in rows} - set(theme.VERDICTS))]
    return [
        {
            "word": word,
            "sign": theme.VERDICTS.get(word, theme.UNKNOWN),
            "count": sum(row["verdict"] == word for row in rows),
        }
        for word in words
    ]


# ---------------------------------------------------------------- matrix


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
    names = [name for name in declared if name in seen] + sorted(seen - set(declared))
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


# ---------------------------------------------------------------- case table


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
        "file": base(case.file),
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
                "file": base(case.file),
                "command": case.command,
            }
        )
    return rows


# ---------------------------------------------------------------- audit


def files(headers: list[dict[str, Any]], cases: list[Case]) -> list[Row]:
    """One row per record file: what it is, whether it is whole, how quiet its machine was."""
    rows = []
    for header in headers:
        own = [case for case in cases if case.file == header["file"]]
        floors = {(case.task, case.problem): case.noise for case in own if case.noise is not None}
        environment, project = header.get("environment", {}), header.get("project", {})
        noisy = list(floors.values())
        spread = f"{plain.percent(median(noisy))} (worst {plain.percent(max(noisy))})" if noisy else plain.DASH
        rows.append(
            {
                "anchor": plain.anchor("file", base(header["file"])),
                "file": base(header["file"]),
                "utc": str(header.get("utc", "")),
                "device": environment.get("device_name") or plain.DASH,
                "command": str(header.get("command", "")),
                "complete": bool(header.get("complete", True)),
                "dirty": bool(project.get("diff")),
                "commit": str(project.get("commit") or "")[:12] or plain.DASH,
                "warnings": [str(w) for w in environment.get("warnings") or []],
                "noise_text": spread,
                "noise": max(noisy, default=None),
                "speaks_for": len(own),
                "hash": str(header.get("plan", {}).get("hash", ""))[:12],
            }
        )
    return rows


def environment(header: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The hardware and software of one file as label and text."""
    env = header.get("environment", {})
    gpu = env.get("gpu") or {}
    rows = [
        ("device", env.get("device_name")),
        ("kind", env.get("device")),
        ("CPU", env.get("cpu")),
        ("SIMD", ", ".join(env.get("simd") or [])),
        ("cores", _cores(env)),
        ("threads used", env.get("threads")),
        ("load average at start", env.get("load1")),
        ("memory", plain.size(plain.number(env.get("memory_bytes")))),
        ("GPU", gpu.get("name")),
        ("GPU driver", gpu.get("driver")),
        ("GPU memory", plain.size(plain.number(gpu.get("memory_bytes"))) if gpu else None),
        ("multiprocessors", gpu.get("sm_count")),
        ("compute capability", ".".join(map(str, gpu.get("capability") or []))),
        ("top SM clock", f"{gpu['max_sm_mhz']} MHz" if gpu.get("max_sm_mhz") else None),
        *((name, env.get(name)) for name in ("python", "torch", "triton", "numpy", "os", "host")),
    ]
    return [(label, str(value)) for label, value in rows if value not in (None, "", [])]


def _cores(env: Mapping[str, Any]) -> str:
    physical, logical = env.get("cores_physical"), env.get("cores_logical")
    return f"{physical} physical, {logical} logical" if physical else ""


def protocol(header: Mapping[str, Any]) -> list[Row]:
    """Each suite of a file with the protocol it ran under."""
    plan = header.get("plan", {})
    rows = []
    for suite in plan.get("suites", []):
        described = {
            "tier": plan.get("tier"),
            "blocks": plan.get("blocks"),
            "budget": plain.seconds(plain.number(plan.get("budget_s"))) if plan.get("budget_s") else "none",
            "estimate": plain.seconds(plain.number(plan.get("estimate_s"))),
            "baseline": suite.get("baseline"),
            "base seeds": ", ".join(sorted({str(p.get("seed", 0)) for p in suite.get("problems", [])})),
        }
        rules = {plain.spoken(k): v for k, v in (suite.get("protocol") or {}).items() if k != "blocks"}
        fields = {**described, **rules}
        rows.append({"suite": suite["name"], "fields": [(k, str(v)) for k, v in fields.items() if v is not None]})
    return rows


def left_out(headers: list[dict[str, Any]]) -> list[Row]:
    """Cells that a plan dropped, with its reason."""
    return [
        {"file": base(header["file"]), "case": str(cell.get("case", "")), "reason": str(cell.get("reason", ""))}
        for header in headers
        for cell in header.get("plan", {}).get("left_out") or []
    ]


def discarded(runs: pd.DataFrame, headers: list[dict[str, Any]]) -> list[Row]:
    """Blocks that do not count, one row per file, problem and block, with the number of arms lost."""
    if runs.empty or not runs["discarded"].notna().any():
        return []
    frame = prepare(runs, headers)
    frame = frame[frame["discarded"].notna() & (frame["phase"] == "block")]
    lost: dict[tuple[str, str, str, int], tuple[set[str], dict[str, None]]] = {}
    columns = ("file", "device", "problem", "block", "arm", "discarded")
    for file, device, problem, block, arm, reason in zip(*(frame[name] for name in columns), strict=True):
        arms, reasons = lost.setdefault((file, device, problem, int(block)), (set(), {}))
        arms.add(arm)
        reasons[str(reason)] = None
    return [
        {
            "file": base(file),
            "device": device,
            "problem": problem,
            "block": block,
            "arms": len(arms),
            "reason": "; ".join(reasons),
        }
        for (file, device, problem, block), (arms, reasons) in lost.items()
    ]


def method_cards(headers: list[dict[str, Any]], cases: list[Case]) -> list[Row]:
    """One card per method known to any header or run, with what happened to it on each device."""
    described: dict[str, Row] = {}
    for header in headers:
        for method in header.get("methods") or []:
            described[method["name"]] = method
    for case in cases:
        described.setdefault(case.method, {"name": case.method, "task": case.task})
    return [_card(method, [case for case in cases if case.method == method["name"]]) for method in described.values()]


def _card(method: Mapping[str, Any], cases: list[Case]) -> Row:
    where = []
    for device in dict.fromkeys(case.device for case in cases):
        own = [case for case in cases if case.device == device]
        timed = sum(case.time_s is not None for case in own)
        why = next((case.reason for case in own if case.time_s is None and case.reason), "")
        where.append({"device": device, "timed": timed, "of": len(own), "why": why if timed < len(own) else ""})
    text = {name: str(method.get(name) or "") for name in ("name", "task", "impl", "summary", "source", "formula")}
    return {
        **text,
        "anchor": plain.anchor("method", text["name"]),
        "origin": str(method.get("origin") or "unknown"),
        "needs": [str(need) for need in method.get("needs") or []],
        "reference": str(method.get("reference") or ""),
        "hyper": ", ".join(f"{k} = {v}" for k, v in (method.get("hyper") or {}).items()),
        "dtypes": ", ".join(method.get("dtypes") or []),
        "devices": ", ".join(method.get("devices") or []),
        "tags": ", ".join(method.get("tags") or []),
        "where": where,
    }
