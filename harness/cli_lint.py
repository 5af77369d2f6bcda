"""``speedclaim lint-claims``: published numbers recomputed from their own sources' tables; measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import Json, _print_json, app
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.judge.lint import Check


@app.command("lint-claims")
def lint_claims(
    source: Annotated[
        list[Path] | None, typer.Option("--source", help="Source file or folder of them; default: those shipped.")
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", envvar="SPEEDCLAIM_GPU_PRICE", help="Money per GPU-hour: adds the bill.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what is consistent.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 when something is flagged.")] = False,
    as_json: Json = False,
) -> None:
    """Recompute published ratios, sentences and ledger rows from the sources' own tables; flag what disagrees."""
    from harness.judge import claim, lint

    if price is not None and not 0 < price < float("inf"):
        raise UserError(f"--price {price:g}: expected money per GPU-hour, a finite number above 0.")
    sources = lint.load_sources(source)
    known = claim.load_claims()
    checks = [check for one in sources for check in lint.lint(one, known)]
    flagged = [check for check in checks if check.flagged]
    bills = [bill(row, price) for one in sources for row in lint.costs(one)]
    if as_json:
        _print_json({"checks": [check.model_dump() for check in checks], "costs": bills})
    else:
        for check in checks if everything else flagged:
            printed = f"printed {check.printed}; " if check.printed else ""
            print(f"{check.source} {check.group:<10} {check.found}: {check.place}: {check.says}")
            print(f"    {printed}recomputed {_brief(check)}")
        if price is not None:
            _table(f"Published cost at {price:g} per GPU-hour", *_bill_table(bills))
        print(f"{len(flagged)} of {len(checks)} published numbers disagree with their own source.")
    if strict and flagged:
        raise typer.Exit(1)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    drawn = Table(title=title, title_justify="left")
    for name in head:
        drawn.add_column(name, overflow="fold")
    for row in rows:
        drawn.add_row(*map(escape, row))
    Console().print(drawn)


def bill(row: dict[str, Any], price: float | None) -> dict[str, Any]:
    """A row of costs with its money."""
    return {**row, "price": price, "money": None if price is None else row["gpu_hours"] * price}


def _bill_table(bills: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    head = ["source", "run", "GPUs", "hours", "GPU-hours", "money", "speed-up in time", "cost ÷ baseline's"]
    rows = [
        [
            row["source"], f"{row['table']} {row['row']}", f"{row['gpus']:g}", f"{row['hours']:.2f}",
            f"{row['gpu_hours']:.2f}", f"{row['money']:.2f}", f"{row['speedup']:.2f}", f"{row['cost_ratio']:.3f}",
        ]
        for row in bills
    ]  # fmt: skip
    return head, rows


def _brief(check: Check) -> str:
    """The numbers without their formulas, and the note."""
    numbers = ", ".join(part.split(" = ", 1)[0] for part in check.recomputed.split(", "))
    return f"{numbers}. {check.note}" if check.note else numbers
