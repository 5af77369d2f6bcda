"""Figures of pages across workloads: sweeps over the batch size, their costs, gains of components."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reports.figures import INK, MUTED, _ratio_axis, canvas, short, svg_of
from reports.training_figures import _forest_row

if TYPE_CHECKING:
    from matplotlib.axis import Axis

Row = dict[str, Any]


def sweep(name: str, title: str, rows: list[Row], looks: Mapping[str, Row]) -> str:
    """Updates against batch, log-log; the dotted line halves updates as the batch doubles; misses stand on top."""
    reached = [row for row in rows if math.isfinite(row["steps"])]
    from matplotlib.ticker import NullLocator

    with canvas(9.4, 4.6) as (figure, axes):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        _plain(axes.yaxis)
        top = 1.6 * max([row["steps"] for row in reached] + [row["budget_steps"] or 1.0 for row in rows])
        if reached:
            first = min(reached, key=lambda row: (row["batch"], row["steps"]))
            ends = [min(row["batch"] for row in rows), max(row["batch"] for row in rows)]
            axes.plot(ends, [first["steps"] * first["batch"] / b for b in ends], color=INK, linewidth=1.1,
                      linestyle=(0, (1, 2)), label="ideal")  # fmt: skip
        for place, arm in enumerate(dict.fromkeys(row["arm"] for row in rows)):
            look, own = looks[arm], [row for row in rows if row["arm"] == arm]
            line = [row for row in own if math.isfinite(row["steps"])]
            axes.plot([row["batch"] for row in line], [row["steps"] for row in line], color=look["color"],
                      linestyle=look["linestyle"], marker=look["marker"], linewidth=2, markersize=7,
                      label=short(arm))  # fmt: skip
            missed = [row for row in own if not math.isfinite(row["steps"])]
            # Side by side, so that several arms that miss at one size can be told apart.
            axes.plot([row["batch"] * 1.07**place for row in missed], [top] * len(missed), "x", color=look["color"],
                      markersize=8, markeredgewidth=1.8, clip_on=False)  # fmt: skip
        sizes = sorted({row["batch"] for row in rows})
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("samples of one update (batch)")
        axes.set_ylabel("updates to the target; crosses: missed")
        figure.legend(loc="outside right center", fontsize=9, handlelength=3.0)
        return svg_of(figure, name, title)


def pareto(name: str, title: str, rows: list[Row], looks: Mapping[str, Row]) -> str:
    """Device-seconds against updates, log-log; each mark with its batch, filled on the front."""
    with canvas(9.4, 4.6) as (figure, axes):
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            _plain(axis)
        for arm in dict.fromkeys(row["arm"] for row in rows):
            look, own = looks[arm], [row for row in rows if row["arm"] == arm]
            axes.plot([row["steps"] for row in own], [row["device_s"] for row in own], color=look["color"],
                      linestyle=look["linestyle"], linewidth=1, alpha=0.6)  # fmt: skip
            for index, row in enumerate(own):
                axes.plot([row["steps"]], [row["device_s"]], look["marker"], color=look["color"], markersize=8,
                          markerfacecolor=look["color"] if row["front"] else "none", markeredgewidth=1.6,
                          label=short(arm) if index == 0 else None)  # fmt: skip
                if row["front"]:
                    axes.annotate(f"{row['batch']:,}", (row["steps"], row["device_s"]), xytext=(5, 5),
                                  textcoords="offset points", fontsize=8, color=MUTED)  # fmt: skip
        axes.margins(0.12)
        axes.set_xlabel("updates in sequence to the target; less is better")
        axes.set_ylabel("device-seconds to the target; less is better")
        figure.legend(loc="outside right center", fontsize=9, handlelength=3.0)
        return svg_of(figure, name, title)


def _plain(axis: Axis) -> None:
    """Ticks of a log axis at 1, 2 and 5 times powers of ten, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def components(name: str, title: str, rows: list[Row]) -> str:
    """Ratio of updates without ÷ with each component, with its interval; the band is the noise floor."""
    with canvas(9.4, 1.25 + 0.5 * len(rows)) as (figure, axes):
        ends = [1.0]
        for row in rows:
            ends += [v for v in (row["low"], row["high"], row["ratio"]) if v is not None and 0 < v < math.inf]
        floor = rows[0]["floor"]
        band = floor if floor is not None and math.isfinite(floor) else 0.0
        left, right = min(*ends, 1 / (1 + band)), max(*ends, 1 + band)
        span = max(1.25, right / left)
        _ratio_axis(axes, left / span**0.12, right * span**0.12)
        axes.axvspan(1 / (1 + band), 1 + band, color=MUTED, alpha=0.25, linewidth=0)
        axes.axvline(1.0, color=MUTED, linewidth=1)
        limits = axes.get_xlim()
        for place, row in enumerate(rows):
            _forest_row(axes, place, row, limits)
        axes.set_yticks(range(len(rows)), [row["component"] for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set_xlabel("updates to the target: without ÷ with the component (log scale); right of 1 it helps")
        return svg_of(figure, name, title)
