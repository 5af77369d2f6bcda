"""``speedclaim data list|fetch|verify|path``: the data sets of the cards, each with ``--json``.

``list`` imports neither numpy nor torch. ``fetch`` tries the routes of a card in order, checks every hash and leaves
nothing half-written; data sets that are here already are kept, so that the same command finishes what was interrupted.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import Unavailable, UserError

if TYPE_CHECKING:
    from harness.catalogue.data.library import Progress

app = typer.Typer(no_args_is_help=True, help="Data sets: what is known, what is here, fetch it, hash it, find it.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Names = Annotated[list[str] | None, typer.Argument(help="Data sets; default: what the default training tier needs.")]
#: What the default training tier needs: ``speedclaim data fetch`` and ``make data`` without names.
DEFAULT = ("digits", "fashion-mnist", "cifar10", "sotu")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Every data set: whether it is here, and what to do when it is not."""
    from harness.catalogue import dataset
    from harness.catalogue.data import cards, library

    rows = []
    for name, raw in dataset.cards().items():
        card = cards.parse(raw)
        reason = library.status(name)
        rows.append(
            {
                "name": name,
                "kind": card.kind,
                "ready": reason is None,
                "reason": reason,
                "title": card.title,
                "licence": card.licence,
                "base": card.base or None,
                "routes": [route.label for route in card.routes],
                "download_bytes": next((route.bytes for route in card.routes if route.bytes), 0),
            }
        )
    if as_json:
        _print_json(rows)
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("data set", "kind", "here", "title"):
        table.add_column(title)
    for row in rows:
        here = "[green]yes" if row["ready"] else f"[dim]{escape(str(row['reason']))}"
        table.add_row(str(row["name"]), str(row["kind"]), here, escape(str(row["title"])))
    _console().print(table)


@app.command()
def fetch(names: Names = None, as_json: Json = False) -> None:
    """Bring data sets into the cache by the first route that works, and check their hashes."""
    from harness.catalogue.data import cards, library

    chosen = list(dict.fromkeys(names or DEFAULT))
    for name in chosen:
        cards.read(name)  # a misspelt name stops before the first byte
    rows: list[dict[str, Any]] = []
    failed = []
    for name in chosen:
        started = time.monotonic()
        try:
            with _shown(name, quiet=as_json) as progress:
                place = library.fetch(name, progress)
        except UserError as error:
            failed.append(str(error))
            rows.append({"name": name, "ok": False, "path": None, "reason": str(error)})
            continue
        rows.append({"name": name, "ok": True, "path": str(place), "reason": None})
        if not as_json:
            print(f"{name}: {place} ({time.monotonic() - started:.1f} s)")
    if as_json:
        _print_json(rows)
    if failed:
        raise UserError(" ".join(failed))


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="One data set; default: all that are here.")] = None,
    as_json: Json = False,
) -> None:
    """Hash the arrays that are here again. Exit 1: they are not the card's; 2: the named one is not here."""
    from harness.catalogue import dataset
    from harness.catalogue.data import library

    rows = []
    for one in [name] if name else dataset.cards():
        try:
            rows.append(library.verify(one))
        except Unavailable as error:
            if name:
                raise
            rows.append({"name": one, "ok": None, "reason": str(error), "arrays": {}})
    if as_json:
        _print_json(rows[0] if name else rows)
    else:
        for row in rows:
            word = {True: "ok", False: "WRONG", None: "not here"}[row["ok"]]
            print(f"{row['name']}: {word}" + (f" ({row['reason']})" if row["ok"] is False else ""))
            for key, value in row["arrays"].items():
                print(f"  {key:<13} {value}")
    if any(row["ok"] is False for row in rows):
        raise typer.Exit(1)


@app.command("path")
def path_(name: Annotated[str, typer.Argument(help="A data set.")], as_json: Json = False) -> None:
    """The folder that holds a data set here."""
    from harness.catalogue.data import library

    place = library.path(name)
    if as_json:
        _print_json({"name": name, "path": str(place)})
    else:
        print(place)


def _console() -> Any:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=240)


@contextmanager
def _shown(name: str, quiet: bool) -> Iterator[Progress | None]:
    """Progress of one fetch: a bar on a terminal, a line per route elsewhere (both on standard error)."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda name, text, done, total: bar.update(
            task, description=f"{name}: {text}", completed=done, total=total
        )


def _lines() -> Progress:
    """One line for each new step."""
    last = ""

    def tell(name: str, text: str, done: int, total: int | None) -> None:
        nonlocal last
        if text != last:
            size = f" ({total / 1e6:.1f} MB)" if total else ""
            print(f"{name}: {text}{size}", file=sys.stderr, flush=True)
            last = text

    return tell
