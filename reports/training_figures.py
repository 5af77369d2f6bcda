"""Training drawn: metric curves, times to the target, hits over time, costs, memory, tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reports import plain, theme
from reports.figures import INK, MUTED, _ratio_axis, canvas, short, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
Looks = Mapping[str, Row]
#: How an interval's end without a bound is drawn: as far as the axis goes, with an arrow.
OPEN_LEFT, OPEN_RIGHT = "<", ">"
#: Buckets on the train clock, then those outside it, with their colours.
BUCKET_COLOURS = {
    "data": "s5",
    "forward": "s0",
    "backward": "s2",
    "optimizer": "s1",
    "evaluation": "s4",
    "checkpoint": "s3",
    "compile": "s5",
}
OUTSIDE = ("evaluation", "checkpoint", "compile")


def curves(
    name: str, title: str, runs: Mapping[str, Sequence[Row]], middles: Mapping[str, Row], looks: Looks, *,
    x: str, x_label: str, y_label: str, target: float | None, window: tuple[float, float] | None,
) -> str:  # fmt: skip
    """Metric over ``x``: a thin line per seed, the bold median, the target line, a tick at each crossing.

    Args:
        name: id of the figure.
        title: its title.
        runs: arm -> one row per seed with the lists ``x`` and ``value`` and ``hits``, the crossing's x or None.
        middles: arm -> the lists ``x`` and ``value`` of the median.
        looks: arm -> colour, marker and dash.
        x: key of the x values in the rows.
        x_label: label of the x axis.
        y_label: label of the y axis.
        target: headline level.
        window: what of the metric the axis shows; None for all of it.
    """
    with canvas(9.4, 4.4) as (figure, axes):
        if target is not None:
            axes.axhline(target, color=INK, linewidth=1.1, linestyle=(0, (4, 3)), label=f"target {target:g}")
        for arm, own in runs.items():
            look = looks[arm]
            for row in own:
                axes.plot(row[x], row["value"], color=look["color"], linewidth=0.7, alpha=0.38)
                if target is not None and row["hits"].get(x) is not None:
                    axes.plot(
                        [row["hits"][x]], [target], "|", color=look["color"], markersize=13, markeredgewidth=1.6,
                        clip_on=False,
                    )  # fmt: skip
            middle = middles[arm]
            axes.plot(
                middle[x], middle["value"], color=look["color"], linestyle=look["linestyle"], linewidth=2.4,
                label=short(arm),
            )  # fmt: skip
        axes.set_xlim(left=0)
        if window is not None:
            axes.set_ylim(*window)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _legend(figure)
        return svg_of(figure, name, title)


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside right center", fontsize=9, handlelength=3.0)


def forest(name: str, title: str, rows: list[Row], floor: float | None) -> str:
    """Ratio of each arm to the baseline with its interval; an end without a bound is an arrow, the band the floor."""
    with canvas(9.4, 1.25 + 0.42 * len(rows)) as (figure, axes):
        ends = [1.0]
        for row in rows:
            ends += [v for v in (row["low"], row["high"], row["ratio"]) if v is not None and 0 < v < math.inf]
        left, right = min(ends), max(ends)
        if floor is not None:
            left, right = min(left, 1 / (1 + floor)), max(right, 1 + floor)
        span = max(1.25, right / left)
        left, right = left / span**0.12, right * span**0.12
        _ratio_axis(axes, left, right)
        band = 0.0 if floor is None else floor
        axes.axvspan(1 / (1 + band), 1 + band, color=MUTED, alpha=0.25, linewidth=0)
        axes.axvline(1.0, color=MUTED, linewidth=1)
        limits = axes.get_xlim()
        for place, row in enumerate(rows):
            _forest_row(axes, place, row, limits)
        axes.set_yticks(range(len(rows)), [short(row["arm"]) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set_xlabel("time to target: baseline ÷ method (log scale); right of 1 is faster")
        return svg_of(figure, name, title)


def _forest_row(axes: Axes, place: int, row: Row, limits: tuple[float, float]) -> None:
    colour = theme.STAND_IN[row["tone"]]
    low, high = row["low"], row["high"]
    start = low if low is not None and low > 0 else limits[0]
    end = high if high is not None and high < math.inf else limits[1]
    axes.plot([start, end], [place, place], color=colour, linewidth=6, alpha=0.45, solid_capstyle="butt")
    if start == limits[0]:
        axes.plot([start], [place], OPEN_LEFT, color=colour, markersize=9, clip_on=False)
    if end == limits[1]:
        axes.plot([end], [place], OPEN_RIGHT, color=colour, markersize=9, clip_on=False)
    if row["ratio"] is not None and math.isfinite(row["ratio"]) and row["ratio"] > 0:
        axes.plot([row["ratio"]], [place], "o", color=colour, markersize=7)


def hits(name: str, title: str, curves: Mapping[str, list[tuple[float, float]]], looks: Looks) -> str:
    """Share of all runs that reached the target by a time; every run stays in the denominator."""
    with canvas(5.8, 3.6) as (figure, axes):
        for arm, points in curves.items():
            look = looks[arm]
            axes.step(
                [p[0] for p in points], [p[1] for p in points], where="post", color=look["color"],
                linestyle=look["linestyle"], linewidth=2, label=short(arm), clip_on=False,
            )  # fmt: skip
        axes.set_ylim(0, 1.02)
        axes.set_xlim(left=0)
        axes.set_xlabel("training time, s")
        axes.set_ylabel("hits ÷ runs")
        figure.legend(loc="outside upper center", fontsize=9, ncols=3, handlelength=3.0)
        return svg_of(figure, name, title)


def costs(name: str, title: str, rows: list[Row]) -> str:
    """Time per update in each bucket; hatched: outside the train clock, spread over the updates."""
    order = list(dict.fromkeys(row["arm"] for row in rows))
    buckets = list(dict.fromkeys(row["bucket"] for row in rows))
    seconds = {(row["arm"], row["bucket"]): row["ms"] for row in rows}
    with canvas(9.4, 1.5 + 0.42 * len(order)) as (figure, axes):
        left = [0.0] * len(order)
        for bucket in buckets:
            widths = [seconds.get((arm, bucket), 0.0) for arm in order]
            outside = bucket in OUTSIDE
            label = f"{bucket} (outside the clock)" if outside else bucket
            axes.barh(
                range(len(order)), widths, left=left, height=0.62, color=theme.STAND_IN[BUCKET_COLOURS[bucket]],
                alpha=0.45 if outside else 0.9, hatch="////" if outside else None, edgecolor=theme.STAND_IN["paper"],
                linewidth=0.8, label=label,
            )  # fmt: skip
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(order)), [short(arm) for arm in order])
        axes.set_ylim(len(order) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.set_xlabel("milliseconds per update, median over seeds")
        figure.legend(loc="outside upper center", fontsize=9, ncols=4)
        return svg_of(figure, name, title)


def memory(name: str, title: str, rows: list[Row], looks: Looks) -> str:
    """Peak memory against median time to the target; filled marks are beaten in both by none."""
    with canvas(5.8, 3.9) as (figure, axes):
        for row in rows:
            look = looks[row["arm"]]
            axes.plot(
                [row["time_s"]], [row["mib"]], look["marker"], color=look["color"], markersize=9, linestyle="none",
                markerfacecolor=look["color"] if row["front"] else "none", markeredgewidth=1.8,
                label=short(row["arm"]) + (" ●" if row["front"] else ""),
            )  # fmt: skip
        axes.margins(0.15)
        axes.set_xlabel("median time to target, s; less is better")
        axes.set_ylabel("peak memory, MiB; less is better")
        figure.legend(loc="outside upper center", fontsize=9, ncols=3)
        return svg_of(figure, name, title)


def tuning(name: str, title: str, found: Mapping[str, list[float]], looks: Looks, metric: str) -> str:
    """Expected best of k tuning trials."""
    with canvas(5.8, 3.6) as (figure, axes):
        for arm, values in found.items():
            look = looks[arm]
            axes.plot(
                range(1, len(values) + 1), values, color=look["color"], linestyle=look["linestyle"],
                marker=look["marker"], markersize=4, linewidth=1.8, label=f"{short(arm)} ({len(values)})",
            )  # fmt: skip
        axes.set_xlim(left=0.6)
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.set_xlabel("k trials")
        axes.set_ylabel(f"expected best {plain.spoken(metric)}")
        figure.legend(loc="outside upper center", fontsize=9, ncols=3, handlelength=3.0)
        return svg_of(figure, name, title)
