"""What a look-up product costs besides its time: fitting, the parts of a call, bytes, cache lines, joules.

Only what a record holds is shown: a column that no case has is left out, and the note says why it could not be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from reports import plain, products
from reports.cases import Case
from reports.suite_pages import Cell, Table
from reports.tables import describe_problem

Row = dict[str, Any]
Column = tuple[str, Callable[[Case], Cell]]
#: Rows of one table.
ROWS = 400
#: Column -> metric of the seconds that stand in it.
PARTS = {"training": "train_s", "tables": "table_s", "encode": "encode_s", "scan": "scan_s", "scan, hot": "scan_hot_s"}
COUNTED = {
    "cache_misses": "cache lines missed",
    "l1d_misses": "first-level lines missed",
    "instructions": "instructions",
}


def tables(cases: Sequence[Case], problems: Mapping[str, Row]) -> list[Table]:
    """Where the time goes, and what is read and spent; an empty list when no case tells anything of the kind."""
    parts = [case for case in cases if any(case.times.get(metric) for metric in PARTS.values())]
    read = [case for case in cases if case.time_s is not None and _tells(case)]
    made = [_times(parts, problems)] if parts else []
    return [*made, _amounts(read, problems)] if read else made


def fix_up(case: Case) -> float | None:
    """Seconds of scale, offset and order of rows: scanning to outputs less scanning to integers; None when unknown."""
    whole, scan = case.times.get("scan_fix_up_s"), case.times.get("scan_s")
    return None if whole is None or scan is None else whole - scan


def _times(cases: Sequence[Case], problems: Mapping[str, Row]) -> Table:
    columns: list[Column] = [(name, _timed(metric)) for name, metric in PARTS.items()]
    columns += [("fix-up", _fix_up), ("whole call", lambda case: _seconds(case.time_s))]
    note = (
        "Training learns from rows like A's; tables, or whatever else a method makes of B, follow: once, outside every "
        "clock. Encode, scan and fix-up are timed apart, medians over blocks: the scan sums to integers, the fix-up "
        "makes float outputs of them (difference of two medians). A fused call keeps codes in a core's cache and may "
        "take less than its parts."
    )
    return _table("parts", "Where the time goes", note, columns, cases, problems)


def _amounts(cases: Sequence[Case], problems: Mapping[str, Row]) -> Table:
    exact = {case.problem: case for case in cases if case.is_baseline}
    columns: list[Column] = [
        ("bytes read", lambda case: _share(case, exact, "bytes_read", plain.size)),
        ("multiply-adds", lambda case: _share(case, exact, "multiplies", plain.amount)),
    ]
    for metric, name in COUNTED.items():
        if any(metric in case.amounts for case in cases):
            columns.append((name, partial(_share, exact=exact, metric=metric, text=plain.amount)))
    if any(case.energy_j is not None for case in cases):
        columns.append(("energy of a call", lambda case: _energy(case, exact.get(case.problem))))
    note = (
        "Bytes and multiply-adds are a model of what one call must do, each byte once; under them, the share of the "
        "exact product's. Of an A stored row by row whole lines are counted (64 bytes, on a GPU 32), of one stored "
        f"column by column the touched columns. {_narrower(cases)}{_unread(cases)}"
    ).strip()
    return _table("locality", "Locality and energy", note, columns, cases, problems)


def _table(
    name: str, heading: str, note: str, columns: list[Column], cases: Sequence[Case], problems: Mapping[str, Row]
) -> Table:
    rest = f" Shown: the first {ROWS} of {len(cases)} rows." if len(cases) > ROWS else ""
    return Table(
        id=name,
        heading=heading,
        note=note + rest,
        first="method",
        columns=["problem", *(title for title, _ in columns)],
        rows=[
            (products.short(case.method), [_problem(case, problems), *(cell(case) for _, cell in columns)])
            for case in cases[:ROWS]
        ],
    )


def _problem(case: Case, problems: Mapping[str, Row]) -> Cell:
    row = describe_problem(case.problem, problems)
    shape = "×".join(str(side) for side in row["shape"])
    return Cell(text=str(row["kind"]).replace("_", " "), sub=(f"{shape} {row['dtype']}",), title=case.problem)


def _seconds(value: float | None) -> Cell:
    return Cell(text=plain.seconds(value), sort=value)


def _timed(metric: str) -> Callable[[Case], Cell]:
    return lambda case: _seconds(case.times.get(metric))


def _fix_up(case: Case) -> Cell:
    value = fix_up(case)
    if value is None:
        return Cell(text="in the scan" if case.times.get("scan_s") else plain.DASH)
    # Rows of float32 are stored by whole lines, those of 16-bit sums by shorter ones, so that outputs may come sooner.
    less = f"outputs {plain.seconds(-value)} sooner than sums"
    return _seconds(value) if value > 0 else Cell(text="none", sub=(less,), sort=value)


def _share(case: Case, exact: Mapping[str, Case], metric: str, text: Callable[[float | None], str]) -> Cell:
    value = _amount(case, metric)
    base = exact.get(case.problem)
    whole = _amount(base, metric) if base is not None else None
    if value is None:
        return Cell(text=plain.DASH)
    share = (plain.percent(value / whole),) if whole and base is not case else ()
    return Cell(text=text(value), sub=share, sort=value)


def _energy(case: Case, base: Case | None) -> Cell:
    value = case.energy_j
    if value is None:
        return Cell(text=plain.DASH, title=case.energy_reason)
    whole = base.energy_j if base is not None and base is not case else None
    return Cell(text=f"{value:.3g} J", sub=(plain.percent(value / whole),) if whole else (), sort=value)


def _amount(case: Case, metric: str) -> float | None:
    return case.amounts.get(metric, case.errors.get(metric))


def _tells(case: Case) -> bool:
    return case.energy_j is not None or any(_amount(case, name) is not None for name in ("bytes_read", *COUNTED))


def _narrower(cases: Sequence[Case]) -> str:
    """How many rows are of records older than the count of lines."""
    look_ups = (case for case in cases if "codebooks" in case.detail.get("hyper", {}))
    old = sum(_amount(case, "bytes_read") is not None and "bytes_read" not in case.detail for case in look_ups)
    return f"Bytes of {old} rows, from earlier records, are those of touched columns in any case. " if old else ""


def _unread(cases: Sequence[Case]) -> str:
    """Why there are no counters, and no joules, in the cases' own words."""
    texts = []
    reasons = list(dict.fromkeys(str(case.detail["counters"]) for case in cases if case.detail.get("counters")))
    if reasons:
        texts.append(f"Hardware counters: {'; '.join(reasons[:2])}.")
    if any("cache_misses" in case.amounts for case in cases):
        texts.append("Cache lines and instructions are counted in user mode, medians of calls on changing buffers.")
    if not any(case.energy_j is not None for case in cases):
        why = list(dict.fromkeys(case.energy_reason for case in cases if case.energy_reason))
        texts.append(f"Energy: {'; '.join(why[:2]) or 'not read'}.")
    return " ".join(texts)
