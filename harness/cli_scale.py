"""``speedclaim scale``: step time, memory and communication of methods on 1, 2, 4 … processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import DeviceOption, Json, OutOption, _print_json, app
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.judge.scaling import Finding, Row
    from harness.measure.training.scaling import Asked


@app.command()
def scale(
    workload: Annotated[str, typer.Argument(help="Workload that can generate its data.")],
    methods: Annotated[list[str], typer.Argument(help="Methods, e.g. sgd kfac-cholesky.")],
    worlds: Annotated[str, typer.Option("--worlds", help="Numbers of processes.")] = "1,2,4",
    modes: Annotated[str, typer.Option("--modes", help="weak, strong or both.")] = "weak,strong",
    per_rank: Annotated[
        int, typer.Option("--per-rank", help="Samples: of each process (weak), of all (strong).")
    ] = 2048,
    rounds: Annotated[int, typer.Option("--rounds", help="Repeats; 3 or more for a verdict.")] = 3,
    blocks: Annotated[int, typer.Option("--blocks", help="Blocks of a run; the first one is not counted.")] = 3,
    period: Annotated[int, typer.Option("--period", help="Updates of a block: whole refresh periods.")] = 100,
    sharded: Annotated[
        list[str] | None, typer.Option("--sharded", help="Method to measure with sharding=owner too (repeat).")
    ] = None,
    hyper: Annotated[
        list[str] | None, typer.Option("--hyper", help="name=value, or method.name=value (repeat).")
    ] = None,
    device: DeviceOption = None,
    precision: Annotated[str | None, typer.Option("--precision", help="Instead of the workload's.")] = None,
    compile_: Annotated[bool | None, typer.Option("--compile/--no-compile", help="torch.compile.")] = None,
    out: OutOption = Path("results"),
    as_json: Json = False,
) -> None:
    """Measure how step time, memory and communication change with the number of processes; no training target."""
    from harness.measure.training.scaling import MODES, Asked

    chosen = tuple(one.strip() for one in modes.split(",") if one.strip())
    if not chosen or set(chosen) - set(MODES):
        raise UserError(f"--modes {modes}: expected weak, strong or weak,strong.")
    asked = Asked(
        workload=workload,
        methods=tuple(methods),
        sharded=tuple(sharded or ()),
        worlds=_whole(worlds),
        modes=chosen,
        per_rank=per_rank,
        rounds=rounds,
        blocks=blocks,
        period=period,
        hyper=tuple(hyper or ()),
        device=device,
        precision=precision,
        compile=compile_,
    )
    rows, _ = measure(asked, out, as_json)
    if rows and all(row.step_s is None for row in rows):
        print(f"speedclaim: no point was measured; the first says: {rows[0].reason}.", file=sys.stderr)
        raise typer.Exit(1)


def _whole(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--worlds {text}: expected numbers of processes, e.g. 1,2,4.")
    return tuple(sorted({int(part) for part in parts}))


def measure(asked: Asked, out: Path, as_json: bool) -> tuple[list[Row], list[Finding]]:
    """Run, print, return the table and the findings."""
    from harness.judge import scaling as judged
    from harness.measure.training import listener, scaling
    from harness.record import folders, store

    folders.check(out, "the record")
    command = "speedclaim " + " ".join(sys.argv[1:])

    def say(text: str) -> None:
        if not as_json:
            print(text, flush=True)

    with listener.for_terminal(quiet=as_json) as shown:
        files, failed = scaling.measure(asked, out, command, shown, say)
    if failed and not files:
        raise UserError(f"nothing could be measured: {next(iter(failed.values()))}")
    rows = judged.rows(judged.cells(store.read_runs(files))) if files else []
    found = judged.findings(rows)
    if as_json:
        _print_json({"files": [str(path.resolve()) for path in files], "left_out": failed,
                     "rows": [asdict(row) for row in rows], "findings": [asdict(one) for one in found]})  # fmt: skip
    else:
        for line in lines(rows, found):
            print(line, flush=True)
        for label, why in failed.items():
            print(f"left out: {label}: {why}")
    return rows, found


def lines(rows: Sequence[Row], found: Sequence[Finding]) -> list[str]:
    """The table and the verdicts as text."""
    from harness import units

    def size(value: float | None) -> str:
        return "-" if value is None else units.size(value)

    titles = ("mode", "method", "ranks", "each", "a step", "samples/s", "effic.", "comm.", "peak/rank", "state/rank")
    table: list[tuple[Any, ...]] = [(*titles, "of one")]
    for row in rows:
        key = row.key
        start = (key.mode, key.label, str(key.world), str(key.per_rank))
        if row.step_s is None:
            table.append((*start, f"- ({row.reason})", *[""] * 6))
            continue
        table.append(
            (
                *start,
                units.seconds(row.step_s),
                f"{row.rate or 0:,.0f}",
                "-" if row.efficiency is None else f"{row.efficiency:.3f}",
                f"{100 * (row.share or 0):.1f} %",
                size(row.peak),
                size(row.state),
                "-" if row.state_ratio is None else f"{row.state_ratio:.3f}",
            )
        )
    widths = [max(len(str(line[column])) for line in table if line[-1] != "" or column < 4) for column in range(11)]
    text = [
        "  ".join(str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    ]
    return text + [f"{one.claim}: {one.subject} on {one.device}: {one.verdict} ({one.reason})" for one in found]
