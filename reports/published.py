"""Published figures per device and in money, and what the claims lint found in them. Needs no run."""

from __future__ import annotations

from typing import Any

from harness.judge import claim, lint
from reports import plain
from reports.boards import Board, Cell, Section, Table, number

TONES = {"contradiction": "bad", "not alike": "half", "absent": "bad", "last digit": "open"}


def made() -> list[Board]:
    """The page of published figures; none when no source is shipped."""
    sources = lint.load_sources()
    if not sources:
        return []
    claims = claim.load_claims()
    checks = [check for source in sources for check in lint.lint(source, claims)]
    flagged = sorted((check for check in checks if check.flagged), key=lambda check: lint.FLAGGED.index(check.found))
    sections = [_flags(flagged)] if flagged else []
    sections += [section for source in sources for section in _costs(source, lint.costs(source))]
    return [
        Board(
            slug="published",
            title="Published figures",
            lead=f"{plain.count(len(checks), 'published number')} recomputed from the sources' own tables; "
            f"{len(flagged)} disagree with their source. Nothing on this page was measured here.",
            sections=tuple(sections),
            priced=True,
        )
    ]


def _flags(flagged: list[lint.Check]) -> Section:
    rows = [
        (
            Cell(text=check.says, small=(check.place,)),
            Cell(text=check.printed or plain.DASH, number=True),
            Cell(text=_numbers(check), small=(check.note,) if check.note else ()),
            Cell(text=check.found, tone=TONES[check.found]),
        )
        for check in flagged
    ]
    head = ("statement", "printed", "recomputed", "found")
    return Section(
        heading="Where a source disagrees with itself",
        note="contradiction: another number follows from the source's table. not alike: the two sides of a comparison "
        "differ in what should be equal. absent: the source has no such number. last digit: off by one there.",
        tables=(Table(id="lint-table", caption="Disagreements", head=head, rows=rows),),
    )


def _numbers(check: lint.Check) -> str:
    return ", ".join(part.split(" = ", 1)[0] for part in check.recomputed.split(", "))


def _costs(source: lint.Source, rows: list[dict[str, Any]]) -> list[Section]:
    found = []
    for table in dict.fromkeys(row["table"] for row in rows):
        own = [row for row in rows if row["table"] == table]
        first = own[0]
        base = _name(next(row for row in own if row["row"] == row["baseline"]))
        note = (
            f"{source.citation}, {first['place']}. Ratios against {base}. "
            "Scaling: epochs per GPU-hour against the method's run on the fewest GPUs."
        )
        drawn = Table(
            id=plain.anchor("costs", source.id, table),
            caption=first["title"],
            head=_HEAD,
            rows=[_cost(row) for row in own],
        )
        found.append(Section(heading=first["title"], note=note, tables=(drawn,)))
    return found


_HEAD = (
    "method",
    "batch",
    "GPUs",
    "hours",
    "faster in time",
    "GPU-hours",
    "faster per GPU",
    "bill",
    "update",
    "scaling",
)


def _name(row: dict[str, Any]) -> str:
    columns = row["columns"]
    batch = f" at batch {columns['batch']:g}" if "batch" in columns else ""
    return f"{columns.get('method', row['row'])}{batch}"


def _cost(row: dict[str, Any]) -> tuple[Cell, ...]:
    columns, efficiency = row["columns"], row["efficiency"]
    batch = plain.number(columns.get("batch"))
    return (
        Cell(text=str(columns.get("method", row["row"]))),
        number(f"{batch:,.0f}" if batch is not None else plain.DASH, batch),
        number(f"{row['gpus']:g}", row["gpus"]),
        number(f"{row['hours']:.3g}", row["hours"]),
        number(f"{row['speedup']:.2f}×", row["speedup"]),
        number(f"{row['gpu_hours']:.3g}", row["gpu_hours"]),
        number(f"{1 / row['cost_ratio']:.2f}×", 1 / row["cost_ratio"]),
        Cell(text=plain.DASH, number=True, gpu_hours=row["gpu_hours"]),
        number(plain.seconds(row["step_s"]), row["step_s"]),
        number(plain.percent(efficiency), efficiency),
    )
