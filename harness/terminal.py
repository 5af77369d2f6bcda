"""What people see in a terminal: plain tables through rich, which falls back to plain text without a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness import units

UNTESTED = "not testable here"
_STYLE = {
    "reproduced": "green",
    "partly": "yellow",
    "not reproduced": "red",
    "inconclusive": "magenta",
    UNTESTED: "dim",
    "invalid": "red",
}


def _console() -> Console:
    """Full width without a terminal, so that logs and pipes are not cut at 80 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def methods(rows: Sequence[Mapping[str, Any]]) -> None:
    """The catalogue."""
    table = Table(box=None, pad_edge=False)
    for title in ("method", "here", "summary"):
        table.add_column(title)
    for row in rows:
        here = "[green]yes" if row["available"] else f"[dim]{escape(str(row['reason']))}"
        table.add_row(escape(row["name"]), here, escape(row["summary"]))
    _console().print(table)


def doctor(facts: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> None:
    """Machine and methods."""
    console = _console()
    table = Table(box=None, pad_edge=False, show_header=False)
    caches = " ".join(f"{level} {units.size(size)}" for level, size in facts["caches_bytes"].items())
    gpu = facts["gpu"]
    lines = {
        "CPU": facts["cpu"],
        "SIMD": " ".join(facts["simd"]) or "none known",
        "cores": f"{facts['cores_physical']} physical, {facts['cores_logical']} logical, uses {facts['threads']}",
        "caches": caches or "unknown",
        "memory": units.size(facts["memory_bytes"]),
        "load": f"{facts['load1']} (1 minute)",
        "GPU": f"{gpu['name']}, driver {gpu['driver']}, {units.size(gpu['memory_bytes'])}" if gpu else "none visible",
        "Python": facts["python"],
        "torch": facts["torch"] or "not installed",
        "triton": facts["triton"] or "not installed",
        "compiler": facts["compiler"] or "none on PATH",
        "system": facts["os"],
    }
    for label, text in lines.items():
        table.add_row(f"[bold]{label}", escape(str(text)))
    console.print(table)
    for warning in facts["warnings"]:
        console.print(f"[yellow]warning: {escape(warning)}")
    console.print()
    verdicts = Table(box=None, pad_edge=False)
    verdicts.add_column("method")
    verdicts.add_column("can run here")
    for row in found:
        verdicts.add_row(
            escape(row["name"]), "[green]yes" if row["available"] else f"[dim]no: {escape(str(row['reason']))}"
        )
    console.print(verdicts)


def plan(described: Mapping[str, Any], brief: bool = False) -> None:
    """What will be measured and what will not."""
    console = _console()
    for suite in described["suites"]:
        reasons: dict[str, list[str]] = {}
        for item in described["left_out"]:
            if item["case"].startswith(f"{suite['task']}."):
                reasons.setdefault(item["reason"], []).append(item["case"])
        console.print(
            f"suite {suite['name']}: {len(suite['methods'])} methods x {len(suite['problems'])} problems, "
            f"{described['blocks']} blocks, baseline {suite['baseline']}",
            highlight=False,
        )
        if not brief:
            for problem in suite["problems"]:
                console.print(f"  {problem['id']}", highlight=False)
        for reason, cases in reasons.items():
            console.print(f"  {len(cases)} cells left out: {escape(reason)}", highlight=False, style="dim")


def summary(rows: Sequence[Mapping[str, Any]], header: Mapping[str, Any]) -> None:
    """Time, speed-up with interval and floor, error and memory of what was timed; the rest by reason."""
    console = _console()
    name = header["environment"]["device_name"]
    table = Table(box=None, pad_edge=False, title=f"{name}: speed-up over the baseline", title_justify="left")
    for title in ("problem", "method", "time", "speed-up", "interval", "floor", "error", "peak memory"):
        table.add_column(title, justify="left" if title in ("problem", "method") else "right")
    last = None
    untimed: dict[str, list[str]] = {}
    for row in rows:
        if row["time_s"] is None:
            where = f"{row['method']}/{row['problem']}"
            untimed.setdefault(f"{row['status']}: {row['reason'] or 'no time'}", []).append(where)
            continue
        problem = "" if row["problem"] == last else row["problem"]
        last = row["problem"]
        error = "" if row["error"] is None else f"{row['error']:.3g}"
        memory = "" if row["peak_bytes"] is None else units.size(row["peak_bytes"])
        speed = "" if row["speedup"] is None else units.ratio(row["speedup"])
        interval = "" if row["low"] is None else f"{units.ratio(row['low'])} to {units.ratio(row['high'])}"
        floor = "" if row["floor"] is None else f"±{100 * row['floor']:.1f} %"
        table.add_row(problem, row["method"], units.seconds(row["time_s"]), speed, interval, floor, error, memory)
    console.print(table)
    if untimed:
        console.print("not timed:", highlight=False)
    for reason, cells in untimed.items():
        shown = cells[0] if len(cells) == 1 else f"{len(cells)} cells"
        console.print(f"  {escape(shown)}: {escape(reason)}", highlight=False, style="dim")


def claims(verdicts: Sequence[Mapping[str, Any]], brief: bool = False) -> None:
    """The ledger; what cannot be tested here comes last, or not at all when ``brief``."""
    console = _console()
    untested = [v for v in verdicts if v["verdict"] == UNTESTED]
    shown = [v for v in verdicts if v["verdict"] != UNTESTED] + ([] if brief else untested)
    table = Table(box=None, pad_edge=False, title="claims", title_justify="left")
    for title in ("verdict", "claim", "claimed", "measured", "interval", "floor", "device", "reason"):
        table.add_column(title, overflow="fold")
    for v in shown:
        interval = _interval(v.get("low"), v.get("high"))
        table.add_row(
            f"[{_STYLE.get(v['verdict'], '')}]{escape(_phrase(v))}",
            escape(v.get("title") or v["id"]),
            "" if v.get("claimed") is None else f"{v['claimed']:.3g}x",
            "" if v.get("ratio") is None else f"{v['ratio']:.3g}x",
            interval,
            "" if v.get("floor") is None else f"±{100 * v['floor']:.1f} %",
            escape(v.get("device") or ""),
            escape(v.get("reason") or ""),
        )
    console.print(table)
    if not brief:
        for v in shown:
            console.print(f"{v['id']}: {v.get('command', '')}", style="dim", highlight=False, markup=False)
    hidden = len(verdicts) - len(shown)
    if hidden:
        console.print(f"{hidden} more claims cannot be tested here: speedclaim claims", highlight=False)
        alone = sum("OMP_NUM_THREADS=1" in str(v.get("reason")) for v in untested)
        if alone:
            text = f"{alone} of them are about a single thread: run again with OMP_NUM_THREADS=1 in the environment"
            console.print(text, highlight=False)


def _phrase(verdict: Mapping[str, Any]) -> str:
    """The verdict in words; why a claim is not tested stands in the column of reasons."""
    word = str(verdict["verdict"])
    return word if word == UNTESTED else str(verdict.get("phrase") or word)


def _interval(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    return f"{'below' if low is None else f'{low:.3g}'} to {'above' if high is None else f'{high:.3g}'}"


def comparison(rows: Sequence[Mapping[str, Any]], markdown: bool) -> None:
    """Before against after."""
    titles = ("case", "device", "word", "ratio", "interval", "floor", "paired")
    cells = [
        (
            str(r["case"]),
            str(r.get("device") or ""),
            str(r["word"]),
            "" if r.get("ratio") is None else units.ratio(r["ratio"]),
            "" if r.get("low") is None else f"{units.ratio(r['low'])} to {units.ratio(r['high'])}",
            "" if r.get("floor") is None else f"±{100 * r['floor']:.1f} %",
            str(r.get("paired", "")),
        )
        for r in rows
    ]
    if markdown:
        print("| " + " | ".join(titles) + " |")
        print("|" + " --- |" * len(titles))
        for cell in cells:
            print("| " + " | ".join(text.replace("|", "\\|") for text in cell) + " |")
        return
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title)
    for cell in cells:
        table.add_row(*(escape(text) for text in cell))
    _console().print(table)
