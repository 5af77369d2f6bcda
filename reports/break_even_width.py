"""Where one way to invert a factor overtakes another as layers grow, and how fast each grows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pandas as pd

from harness.judge import stats
from reports import figures, plain
from reports.cases import Case, cases
from reports.figures import Chart
from reports.suite_pages import Cell, Page, Table, slug
from reports.tables import describe_problem, problem_index

TASK = "preconditioning"
#: Exponent that is claimed for each back-end: K-FAC cubic, randomized quadratic (arXiv 2206.15397), online and
#: sketched linear (arXiv 2210.08494).
CLAIMED: Mapping[str, int] = {
    "cholesky": 3,
    "cholesky-solve": 3,
    "torch-inv": 3,
    "eigh": 3,
    "newton-schulz": 3,
    "rsvd": 2,
    "sre": 2,
    "subspace": 2,
    "brand": 1,
    "seng": 1,
}
#: Operation -> heading.
OPERATIONS = {"refresh": "One refresh", "apply": "One application", "update": "One update of the factor"}

Series = dict[str, dict[int, Case]]


def pages(runs: pd.DataFrame, headers: list[dict[str, Any]]) -> list[Page]:
    """One page per device with timed refreshes of two widths or more."""
    if runs.empty or not (runs["task"] == TASK).any():
        return []
    index = problem_index(headers)
    found = cases(runs[runs["task"] == TASK], headers)
    made = []
    for device in dict.fromkeys(case.device for case in found):
        sets = series([case for case in found if case.device == device], index)
        if sets:
            made.append(_page(device, sets))
    return made


def series(found: Sequence[Case], index: Mapping[str, Any]) -> dict[tuple[str, int], Series]:
    """(kind, rows) -> method -> width -> timed case; only where two widths or more were timed."""
    sets: dict[tuple[str, int], Series] = {}
    for case in found:
        row = describe_problem(case.problem, index)
        if case.time_s is None or len(row["shape"]) != 2:
            continue
        first, width = row["shape"]
        name = case.method.split(".", 1)[-1]
        sets.setdefault((str(row["kind"]), first), {}).setdefault(name, {})[width] = case
    kept = {
        key: {name: dict(sorted(own.items())) for name, own in own_series.items() if len(own) > 1}
        for key, own_series in sets.items()
    }
    return {key: own for key, own in kept.items() if len(own) > 1}


def slopes(own: Mapping[int, Case]) -> dict[int, float]:
    """Width -> local exponent from the width before: d ln time / d ln width."""
    widths = list(own)
    values = stats.local_slopes([float(w) for w in widths], [_time(own[w]) for w in widths])
    return dict(zip(widths[1:], values, strict=True))


def _time(case: Case) -> float:
    assert case.time_s is not None
    return case.time_s


def break_even(slow: Mapping[int, Case], fast: Mapping[int, Case]) -> list[float]:
    """Widths at which ``fast`` overtakes ``slow`` for good or not, interpolated in both logarithms between widths."""
    shared = [width for width in slow if width in fast]
    logs = [(math.log(w), math.log(_time(slow[w]) / _time(fast[w]))) for w in shared]
    found = []
    for (x1, y1), (x2, y2) in pairwise(logs):
        if y1 <= 0 < y2:
            found.append(math.exp(x1 + (x2 - x1) * -y1 / (y2 - y1)))
    return found


def told(slow: Mapping[int, Case], fast: Mapping[int, Case]) -> Cell:
    """At which widths ``fast`` takes less time than ``slow``."""
    shared = [width for width in slow if width in fast]
    if len(shared) < 2:
        return Cell(text=plain.DASH, title="fewer than two shared widths")
    ratios = [_time(slow[w]) / _time(fast[w]) for w in shared]
    first, last = ratios[0], ratios[-1]
    ratio = f"{plain.times(last)} at {shared[-1]}"
    crossings = break_even(slow, fast)
    if last <= 1 and max(ratios) > 1:
        ends = break_even(fast, slow)
        end = _rounded(ends[-1]) if ends else str(shared[-1])
        start = f" from about {_rounded(crossings[-1])}" if crossings else ""
        text = f"only{start} up to about {end}"
        return Cell(text=text, sub=(ratio,), sort=math.inf)
    if last <= 1:
        return Cell(text=f"never up to {shared[-1]}", sub=(ratio,), tone="bad", sort=math.inf)
    if not crossings:
        return Cell(text=f"from {shared[0]} or less", sub=(ratio,), tone="good", sort=float(shared[0]))
    text = f"from about {_rounded(crossings[-1])}"
    return Cell(text=text, sub=(ratio,), tone="good" if first > 1 else "", sort=crossings[-1])


def _rounded(width: float) -> str:
    return f"{float(f'{width:.2g}'):,.0f}"


def _page(device: str, sets: Mapping[tuple[str, int], Series]) -> Page:
    main = _main(sets)
    tables: list[Table] = []
    after: list[Table] = []
    charts: list[Chart] = []
    for key, own in sets.items():
        kind, rows = key
        place = plain.anchor(kind, str(rows))
        heading = _heading(kind, rows)
        (tables if key == main else after).append(_slope_table(place, heading, own))
        if kind.partition("_")[0] != "update":
            (tables if key == main else after).append(_pair_table(place, heading, own))
        charts.append(_chart(device, place, heading, own))
    return Page(
        slug=slug("break-even-width", device),
        title=f"Break-even widths on {device}",
        device=device,
        suite=TASK,
        command="speedclaim run --suite preconditioning",
        lead=lead(sets[main]),
        tables=tables,
        sections=[("Time against width", "Median over blocks; bands hold 80 % of the blocks.", charts)],
        after=after,
    )


def _main(sets: Mapping[tuple[str, int], Series]) -> tuple[str, int]:
    return max(sets, key=lambda key: (key[0] == "refresh", max(len(own) for own in sets[key].values())))


def _heading(kind: str, rows: int) -> str:
    operation, _, spectrum = kind.partition("_")
    what = OPERATIONS.get(operation, operation)
    side = f"{rows} outputs" if operation == "apply" else f"{rows} rows"
    return f"{what}, {side}{', slow spectrum' if spectrum else ''}"


def lead(own: Series) -> str:
    """Growth against what is claimed, and the one break-even that decides the randomized variant's use."""
    over, told_ = [], []
    for name, cells in own.items():
        local = slopes(cells)
        if name in CLAIMED and local:
            last = list(local.values())[-1]
            told_.append(f"{name} {last:.1f}")
            over += [name] if last > CLAIMED[name] + 0.2 else []
    text = f"Exponents of a refresh's time in width, between the two largest widths: {', '.join(told_)}. "
    text += (
        f"Above the claimed exponent: {', '.join(over)}. " if over else "None is above the exponent claimed for it. "
    )
    for slow, fast in (("cholesky", "rsvd"), ("eigh", "rsvd")):
        if slow in own and fast in own:
            cell = told(own[slow], own[fast])
            text += f"Widths at which {fast} takes less time than {slow}: {cell.text.replace('never', 'none')}. "
    return text.strip()


def _slope_table(place: str, heading: str, own: Series) -> Table:
    widths = sorted({width for cells in own.values() for width in cells})
    made = []
    for name, cells in own.items():
        local = slopes(cells)
        columns = []
        for width in widths:
            if width not in cells:
                columns.append(Cell(text=plain.DASH))
                continue
            slope = local.get(width)
            sub = () if slope is None else (f"exponent {slope:.2f}",)
            error = cells[width].errors.get("solve_error")
            title = "" if error is None else f"solve error {error:.2g}"
            columns.append(
                Cell(text=plain.seconds(cells[width].time_s), sub=sub, title=title, sort=_time(cells[width]))
            )
        claimed = CLAIMED.get(name) if heading.startswith(OPERATIONS["refresh"]) else None
        columns.append(Cell(text=str(claimed) if claimed else plain.DASH))
        made.append((name, columns))
    note = "Small lines: the local exponent from the width before. Claimed: of the published methods' refresh."
    return Table(
        id=f"growth-{place}",
        heading=f"{heading}: time and growth",
        note=note,
        first="back-end",
        columns=[*(str(width) for width in widths), "claimed exponent"],
        rows=made,
    )


def _pair_table(place: str, heading: str, own: Series) -> Table:
    names = list(own)
    made = [
        (slow, [Cell(text=plain.DASH) if fast == slow else told(own[slow], own[fast]) for fast in names])
        for slow in names
    ]
    note = (
        "At which widths the column's back-end takes less time than the row's; small: ratio at the largest shared "
        "width. Interpolated between measured widths, never extrapolated."
    )
    return Table(
        id=f"pairs-{place}",
        heading=f"{heading}: break-even widths",
        note=note,
        first="slower than …",
        columns=names,
        rows=made,
    )


def _chart(device: str, place: str, heading: str, own: Series) -> Chart:
    rows = {
        name: [
            {
                "method": name,
                "size": width,
                "label": str(width),
                "time_s": case.time_s,
                "low_s": case.low_s,
                "high_s": case.high_s,
            }
            for width, case in cells.items()
        ]
        for name, cells in own.items()
    }
    title, name = f"{heading}: time against width", plain.anchor("chart", "width", place, device)
    widest = max(max(cells) for cells in own.values())
    there = sorted((_time(cells[widest]), method) for method, cells in own.items() if widest in cells)
    sentence = (
        f"At width {widest} the fastest is {there[0][1]} with {plain.seconds(there[0][0])}; the slowest, "
        f"{there[-1][1]}, takes {plain.seconds(there[-1][0])}."
    )
    svg = figures.time_against_size(name, title, rows, figures.styles(list(own)), "layer width (log scale)")
    return Chart(id=name, title=title, sentence=sentence, svg=svg, rows=[row for own_ in rows.values() for row in own_])
