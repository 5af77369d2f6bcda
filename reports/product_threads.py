"""How products scale with threads: stored files of one device that used different numbers of them.

Times of different files meet only here, each beside its own method's time with the fewest threads: what is read is the
slope, not a comparison of methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from reports import plain, product_figures, products
from reports.cases import prepare
from reports.charts import Section
from reports.figures import INK, MUTED, Chart, canvas, svg_of

Row = dict[str, Any]
HEADING = "Threads"
#: Figures, and methods in one of them.
PROBLEMS, METHODS = 3, 8
NOTE = (
    "Speed-up = the method's own median time with the fewest threads ÷ that with more, each from its newest file; "
    "dashed: as many times as threads."
)


def sections(runs: pd.DataFrame, headers: list[dict[str, Any]], device: str) -> list[Section]:
    """One section, with a figure for each of the problems with the most work that several thread counts ran."""
    times = medians(runs, headers, device)
    counts = sorted({int(count) for count in times["threads"]})
    by_problem = {str(name): found for name, own in times.groupby("problem", sort=False) if (found := scaled(own))}
    if not by_problem:
        had = f"Stored files of this device used {plain.count(counts[0], 'thread')} only. " if counts else ""
        how = "Scaling needs the same problems once more with another number: OMP_NUM_THREADS=2 speedclaim run."
        return [(HEADING, had + how, [])]
    kept = sorted(by_problem, key=lambda name: -_work(name))[:PROBLEMS]
    return [(HEADING, NOTE, [_chart(name, by_problem[name], device) for name in kept])]


def medians(runs: pd.DataFrame, headers: list[dict[str, Any]], device: str) -> pd.DataFrame:
    """Columns problem, method, threads, seconds: medians over the counting blocks of each count's newest file.

    An older file may be of older kernels, whose times would stand for the number of threads.
    """
    empty = pd.DataFrame(columns=["problem", "method", "threads", "seconds"])
    if runs.empty:
        return empty
    frame = prepare(runs, headers)
    own = frame[
        (frame["task"] == products.TASK)
        & (frame["device"] == device)
        & (frame["device_kind"] != "cuda")
        & (frame["phase"] == "block")
        & (frame["status"] == "passed")
        & (frame["metric"] == "op_s")
        & (frame["arm"] == frame["method"])
        & frame["discarded"].isna()
        & frame["threads"].notna()
    ]
    if own.empty:
        return empty
    key = ["problem", "method", "threads"]
    age = own.groupby([*key, "file"], sort=False)["utc"].max().reset_index().sort_values("utc", kind="stable")
    own = own.merge(age.drop_duplicates(key, keep="last")[[*key, "file"]], on=[*key, "file"])
    found = own.groupby(key, sort=False)["value"].median().reset_index()
    return found.rename(columns={"value": "seconds"})


def scaled(own: pd.DataFrame) -> list[Row]:
    """Rows of one problem: method, threads, seconds and speed-up, of methods that ran with several counts."""
    rows: list[Row] = []
    for method, group in own.groupby("method", sort=False):
        ordered = group.sort_values("threads")
        if len(ordered) < 2:
            continue
        counts = [int(value) for value in ordered["threads"]]
        seconds = [float(value) for value in ordered["seconds"]]
        rows += [
            {
                "method": str(method),
                "threads": count,
                "seconds": time,
                "speedup": seconds[0] / time,
                "ideal": count / counts[0],
            }
            for count, time in zip(counts, seconds, strict=True)
        ]
    shown = sorted({row["method"] for row in rows}, key=_rank)[:METHODS]
    return [row for row in rows if row["method"] in shown]


def _rank(method: str) -> tuple[bool, bool, str]:
    """MADDNESS and exact first, whole products next."""
    kind = products.family(method)
    return kind not in (products.family(products.PLAIN), "exact"), kind != "fewer bits", method


def _work(problem: str) -> float:
    """N D M of a problem's id."""
    total = 1.0
    for part in problem.split("-"):
        sides = part.split("x")
        if len(sides) > 1 and all(side.isdigit() for side in sides):
            for side in sides:
                total *= int(side)
    return total


def _chart(problem: str, rows: list[Row], device: str) -> Chart:
    most = max(row["threads"] for row in rows)
    ends = [row for row in rows if row["threads"] == most]
    best = max(ends, key=lambda row: row["speedup"])
    title = f"Threads on {problem}"
    name = plain.anchor("chart", "threads", device, problem)
    told = [f"{products.short(row['method'])} {row['speedup']:.2f}" for row in ends[:4]]
    sentence = (
        f"With {plain.count(most, 'thread')} {products.short(best['method'])} gains most, "
        f"{plain.times(best['speedup'])} of {best['ideal']:.3g}; speed-ups: {', '.join(told)}."
    )
    return Chart(id=name, title=title, sentence=sentence, svg=_drawn(name, title, rows), rows=rows)


def _drawn(name: str, title: str, rows: list[Row]) -> str:
    styles: Mapping[str, Row] = product_figures.looks(list(dict.fromkeys(row["method"] for row in rows)))
    with canvas(9.4, 4.2) as (figure, axes):
        top = max(row["ideal"] for row in rows)
        counts = sorted({row["threads"] for row in rows})
        axes.plot([counts[0], counts[-1]], [1.0, top], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.axhline(1.0, color=INK, linewidth=0.6)
        for method, look in styles.items():
            own = [row for row in rows if row["method"] == method]
            axes.plot(
                [row["threads"] for row in own],
                [row["speedup"] for row in own],
                look["marker"] + "-",
                color=look["color"],
                markersize=8,
                linewidth=1.4,
                label=products.short(method),
            )
        axes.set_xticks(counts)
        axes.set_ylim(0, 1.08 * max(top, *(row["speedup"] for row in rows)))
        axes.set_xlabel("threads")
        axes.set_ylabel("speed-up over the fewest, more is better")
        figure.legend(loc="outside right center", fontsize=9)
        return svg_of(figure, name, title)
