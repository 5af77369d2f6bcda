"""Which figures a device's cases allow: rows chosen, a sentence generated from the numbers, then drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reports import figures, ledger, plain
from reports.cases import Case
from reports.figures import Chart
from reports.tables import describe_problem

Row = dict[str, Any]
#: Heading, note and charts.
Section = tuple[str, str, list[Chart]]
SIGMAS = ("min", "p02", "p50", "p98", "max")
STRIP_LIMIT = 8
#: Sizes that one figure shows, problems that the floor's figure shows, families of problems drawn on a page.
SIZES = 16
FLOOR_PROBLEMS = 24
FAMILIES = 5
#: Share of the best-covered problem's methods that a problem needs to stand for its device.
MOST = 0.8


def claims(rows: list[Row], device: str) -> Chart | None:
    """Claims of one device as interval bars; None when none has a ratio."""
    drawn = [row for row in rows if row["device"] == device and row["ratio"] and row["quantity"] == "ratio"]
    if not drawn:
        return None
    title = f"Claims on {device}"
    name = plain.anchor("chart", "claims", device)
    gains = [row for row in drawn if row["kind"].startswith("speedup") and row["claimed"]]
    settled = [row for row in gains if row["verdict"] in ledger.DECIDED]
    above = sum(bool(row["low"] and row["low"] > 1 + (row["floor"] or 0)) for row in settled)
    reached = sum(bool(row["low"] and row["low"] >= row["claimed"]) for row in settled)
    sentence = (
        f"Of {plain.count(len(gains), 'claimed speed-up')} measured on {device}, {len(settled) or 'none'} could be "
        f"decided: {above or 'none'} clear the noise floor with the whole interval and {reached or 'none'} reach the "
        f"claimed number in full. Rows marked ? are still open."
    )
    data = [
        {key: row[key] for key in ("id", "title", "verdict", "claimed", "ratio", "low", "high", "floor", "n")}
        for row in drawn
    ]
    return Chart(id=name, title=title, sentence=sentence, svg=figures.intervals(name, title, drawn), rows=data)


def families(cases: list[Case], problems: Mapping[str, Row]) -> list[tuple[str, list[Row]]]:
    """Problems that differ only in size (same kind, dtype, batch and aspect), widest range first."""
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for case in cases:
        if case.time_s is None:
            continue
        row = describe_problem(case.problem, problems)
        if len(row["shape"]) < 2:
            continue
        *batch, m, n = row["shape"]
        key = (row["kind"], row["dtype"], tuple(batch), round(m / n, 3) if n else 0)
        groups.setdefault(key, {})[case.problem] = row
    named = []
    for (kind, dtype, batch, aspect), found in groups.items():
        if len(found) < 2:
            continue
        shape = "square" if aspect == 1 else f"aspect {aspect:g}"
        label = " ".join([kind, shape, *([f"batch {'×'.join(map(str, batch))}"] if batch else []), dtype])
        named.append((label, _thinned(sorted(found.values(), key=lambda r: r["elements"]))))
    return sorted(named, key=lambda item: (-len(item[1]), item[0]))


def _thinned(members: list[Row]) -> list[Row]:
    """At most ``SIZES`` members, evenly spaced, both ends kept."""
    if len(members) <= SIZES:
        return members
    step = (len(members) - 1) / (SIZES - 1)
    return [members[round(place * step)] for place in range(SIZES)]


def time_against_size(cases: list[Case], label: str, members: list[Row], device: str) -> Chart:
    """Time over size of one family of problems."""
    sizes = {row["id"]: row for row in members}
    series: dict[str, list[Row]] = {}
    for case in cases:
        if case.problem in sizes and case.time_s is not None:
            row = sizes[case.problem]
            short = (
                row["shape_text"].replace(" ", "") if row["shape"][-1] != row["shape"][-2] else f"{row['shape'][-1]}²"
            )
            series.setdefault(case.method, []).append(
                {
                    "method": case.method,
                    "problem": case.problem,
                    "size": row["elements"],
                    "label": short,
                    "time_s": case.time_s,
                    "low_s": case.low_s,
                    "high_s": case.high_s,
                }
            )
    for points in series.values():
        points.sort(key=lambda point: point["size"])
    title = f"Time against size: {label}"
    name = plain.anchor("chart", "size", device, label)
    largest = members[-1]
    at_top = sorted((p[-1]["time_s"], m) for m, p in series.items() if p[-1]["problem"] == largest["id"])
    fast, slow = at_top[0], at_top[-1]
    sentence = (
        f"At {largest['shape_text']} the fastest method is {fast[1]} with {plain.seconds(fast[0])}; the slowest, "
        f"{slow[1]}, takes {plain.seconds(slow[0])}. Bands hold 80 % of the blocks."
    )
    rows = [point for points in series.values() for point in points]
    svg = figures.time_against_size(name, title, series, _looks(cases), "size of the matrix (elements, log scale)")
    return Chart(id=name, title=title, sentence=sentence, svg=svg, rows=rows)


def strips(cases: list[Case], problem: str, device: str) -> Chart | None:
    """Per-block ratios to the baseline on one problem."""
    own = [case for case in cases if case.problem == problem and case.effect is not None]
    if not own:
        return None
    aliases = [(f"{case.method}#aa", case.alias) for case in cases if case.problem == problem and case.alias]
    arms = [*((case.method, case.effect) for case in own if case.effect), *aliases]
    rows = [
        {"method": name, "block": block, "ratio": ratio}
        for name, effect in sorted(arms, key=lambda arm: -arm[1].ratio)
        for block, ratio in effect.per_block.items()
    ]
    noise = next((case.noise for case in own if case.noise is not None), None)
    title = f"Blocks of {problem}"
    name = plain.anchor("chart", "blocks", device, problem)
    best = max(own, key=lambda c: (c.effect.enough, c.effect.ratio) if c.effect else (False, 0.0))
    assert best.effect is not None
    clear = sum(case.effect is not None and case.effect.side == "faster" for case in own)
    judged = sum(case.effect is not None and case.effect.enough for case in own)
    largest = f"the largest speed-up is {plain.times(best.effect.ratio)} by {best.method}"
    sentence = (
        f"{plain.count(clear, 'method')} of {judged} judged beat the baseline beyond the noise floor of "
        f"{plain.percent(noise)}; {largest}."
    )
    if not judged:
        sentence = f"No method has blocks enough to be judged here; {largest}, which proves nothing yet."
    elif judged < len(own):
        sentence += f" {len(own) - judged} have too few blocks to be judged."
    return Chart(id=name, title=title, sentence=sentence, svg=figures.strips(name, title, rows, noise), rows=rows)


def representative(cases: list[Case]) -> list[str]:
    """Problems on which most methods were timed, the longest running first, then the rest in the same order."""
    timed: dict[str, list[float]] = {}
    for case in cases:
        if case.time_s is not None:
            timed.setdefault(case.problem, []).append(case.time_s)
    enough = MOST * max((len(values) for values in timed.values()), default=0)
    return sorted(timed, key=lambda p: (len(timed[p]) < enough, -max(timed[p]), p))


def pareto(cases: list[Case], problem: str, metric: str, device: str) -> Chart | None:
    """Error against time on one problem."""
    own = [c for c in cases if c.problem == problem and c.time_s is not None and metric in c.errors]
    if len(own) < 2:
        return None
    rows: list[Row] = [
        {
            "method": case.method,
            "time_s": case.time_s,
            "error": case.errors[metric],
            "front": _on_front(case, own, metric),
        }
        for case in own
    ]
    front = [row["method"] for row in sorted(rows, key=lambda r: r["time_s"]) if row["front"]]
    title = f"{plain.spoken(metric).capitalize()} against time: {problem}"
    name = plain.anchor("chart", "pareto", device, problem, metric)
    sentence = f"No other method is both faster and more accurate than {_listed(front)}."
    return Chart(
        id=name, title=title, sentence=sentence, svg=figures.pareto(name, title, rows, _looks(cases), metric), rows=rows
    )


def _looks(cases: list[Case]) -> dict[str, Row]:
    """One look per method, the same in every figure of a device."""
    return figures.styles(list(dict.fromkeys(case.method for case in cases)))


def _on_front(case: Case, others: list[Case], metric: str) -> bool:
    def better(other: Case) -> bool:
        faster, finer = (other.time_s or 0) <= (case.time_s or 0), other.errors[metric] <= case.errors[metric]
        strict = (other.time_s or 0) < (case.time_s or 0) or other.errors[metric] < case.errors[metric]
        return faster and finer and strict

    return not any(better(other) for other in others)


def singular_values(cases: list[Case], problem: str, device: str) -> Chart | None:
    """Spread of singular values per method on one problem."""
    names = [f"sigma_{part}" for part in SIGMAS]
    own = [case for case in cases if case.problem == problem and all(name in case.errors for name in names)]
    if not own:
        return None
    rows: list[Row] = [
        {"method": case.method, "status": case.status, **{part: case.errors[f"sigma_{part}"] for part in SIGMAS}}
        for case in own
    ]
    rows.sort(key=lambda row: max(abs(row["p02"] - 1), abs(row["p98"] - 1)))
    title = f"Singular values: {problem}"
    name = plain.anchor("chart", "sigma", device, problem)
    best, worst = rows[0], rows[-1]
    sentence = (
        f"The output of {best['method']} keeps 96 % of the singular values within {best['p02']:.3g} to "
        f"{best['p98']:.3g}; "
        f"{worst['method']} spreads them furthest, {worst['p02']:.3g} to {worst['p98']:.3g}. "
        "Line: smallest to largest; bar: 2 % to 98 %; dot: median."
    )
    return Chart(id=name, title=title, sentence=sentence, svg=figures.singular_values(name, title, rows), rows=rows)


def floor_fractions(cases: list[Case], device: str) -> Chart | None:
    """Share of the physical floor in each measured time."""
    shown = set(representative(cases)[:FLOOR_PROBLEMS])
    rows: list[Row] = [
        {"method": case.method, "problem": case.problem, "fraction": case.floor_fraction, "basis": case.floor_basis}
        for case in cases
        if case.floor_fraction is not None and case.problem in shown
    ]
    if not rows:
        return None
    title = "Share of the physical floor"
    name = plain.anchor("chart", "floor", device)
    best = max(rows, key=lambda row: row["fraction"])
    top: dict[str, float] = {}
    for row in rows:
        top[row["method"]] = max(top.get(row["method"], 0.0), row["fraction"])
    rows.sort(key=lambda row: -top[row["method"]])
    sentence = (
        f"The nearest to its physical floor is {best['method']} on {best['problem']}: the floor explains "
        f"{plain.percent(best['fraction'])} of its time."
    )
    return Chart(id=name, title=title, sentence=sentence, svg=figures.floor_fractions(name, title, rows), rows=rows)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def sections(cases: list[Case], errors: list[str], problems: Mapping[str, Row], device: str) -> list[Section]:
    """Heading, note and charts of a task's page; a section without a figure says why."""
    first = representative(cases)
    sizes = [
        time_against_size(cases, label, members, device) for label, members in families(cases, problems)[:FAMILIES]
    ]
    fronts = [pareto(cases, problem, metric, device) for problem in first[:2] for metric in errors[:1]]
    sigmas = [singular_values(cases, problem, device) for problem in first[:2]]
    blocks = [strips(cases, problem, device) for problem in first[:STRIP_LIMIT]]
    rest = f" Shown: {STRIP_LIMIT} of {len(first)} problems." if len(first) > STRIP_LIMIT else ""
    note = "Each dot is one block: baseline time ÷ method time in the same process."
    found: list[tuple[str, str, str, list[Chart | None]]] = [
        ("Time against size", "", "No two timed problems differ in size alone.", list(sizes)),
        ("Error against time", "", "No problem has two timed methods with an error.", list(fronts)),
        ("Singular values of the outputs", "", "No singular values were recorded.", list(sigmas)),
        ("Blocks", note + rest, "No method was timed beside the baseline.", list(blocks)),
        ("Physical floor", "", "No physical floor was recorded.", [floor_fractions(cases, device)]),
    ]
    return [_section(heading, text, nothing, drawn) for heading, text, nothing, drawn in found]


def _section(heading: str, text: str, nothing: str, drawn: list[Chart | None]) -> Section:
    kept = [chart for chart in drawn if chart is not None]
    return (heading, text, kept) if kept else (heading, nothing, [])
