"""Plain rows to SVG text: deterministic, self-contained, drawn in stand-in colours that the page's theme replaces."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

from reports import plain, theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
INK, MUTED, LINE, PAPER = (theme.STAND_IN[name] for name in ("ink", "muted", "line", "paper"))
#: Without interactive state or dates the same rows give the same bytes.
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "speedclaim",
    "text.parse_math": False,
    "font.family": [theme.FONT],
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
}
NAME_LIMIT = 30
#: Points; a figure under this width fits two in a row and a phone without scrolling.
NARROW_PT = 500.0
#: A strip slower than this many times the baseline would squeeze all others; it is written as a number.
SLOWEST = 4.0
#: Decades of error that one axis shows before a finer method is pinned to its edge.
DECADES = 2.0


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawn figure with the sentence that reads it and the rows behind it."""

    id: str
    title: str
    sentence: str
    svg: str
    rows: list[Row] = field(default_factory=list)


@contextmanager
def canvas(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of ``width`` × ``height`` inches in the house style, without pyplot's global state."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.subplots()


def svg_of(figure: Figure, name: str, title: str) -> str:
    """The figure as an inline SVG whose ids are its own and whose colours follow the theme."""
    layout = figure.get_layout_engine()
    if layout is not None:
        # Saving would draw everything once only to lay it out; laying out by itself needs no drawing.
        layout.execute(figure)
        figure.set_layout_engine(None)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    prefix = plain.slug(name)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    text = re.sub(r"#0[1-9ab][0-9a-f]{4}\b", lambda found: _variable(found.group(0)), text)
    width, height = _size(text)
    shape = "wide" if float(width) > NARROW_PT else "narrow"
    opening = (
        f'<svg role="img" class="{shape}" aria-labelledby="{prefix}-title" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink" stroke-linejoin="round" stroke-linecap="butt">'
        f'<title id="{prefix}-title">{_escape(title)}</title>'
    )
    text = re.sub(r"^<svg[^>]*>", lambda _: opening, text)
    return re.sub(r"\n\s*", "\n", text)


def _variable(colour: str) -> str:
    name = theme.STAND_INS.get(colour)
    return f"var(--{name})" if name else colour


def _size(text: str) -> tuple[str, str]:
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    if found is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    return found.group(1), found.group(2)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def styles(names: Sequence[str]) -> dict[str, Row]:
    """Colour, marker and dash of each series; the first six differ in colour, later ones in dash and marker too."""
    return {
        name: {
            "color": theme.STAND_IN[f"s{index % theme.SERIES}"],
            "marker": theme.MARKERS[index % len(theme.MARKERS)],
            "linestyle": theme.DASHES[(index // theme.SERIES) % len(theme.DASHES)],
        }
        for index, name in enumerate(names)
    }


def short(name: str) -> str:
    """A method's name without its task, short enough for an axis."""
    return plain.shorten(name.split(".", 1)[-1] or name, NAME_LIMIT)


def _ratio_axis(axes: Axes, low: float, high: float) -> None:
    """A log axis of ratios with ticks that people read: 0.5×, 1×, 2×."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    low, high = min(low, 0.97), max(high, 1.03)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.04, high * 1.04)
    inside = _ratio_ticks(low / 1.04, high * 1.04)
    axes.set_xticks(inside)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.set_minor_locator(NullLocator())


#: Ratios that people read easily, the most welcome first.
RATIO_TICKS = (
    *(1, 2, 0.5, 5, 0.2, 10, 0.1, 1.5, 3, 4, 20, 50, 0.05, 0.02, 0.01, 100, 200, 500, 1000, 5e-3, 2e-3, 1e-3),
    *(1.2, 0.8, 1.1, 0.9, 0.7, 0.6, 1.4, 1.6, 1.8, 2.5),
)
#: Share of the axis that one label needs.
TICK_SHARE = 0.085


def _ratio_ticks(low: float, high: float) -> list[float]:
    """Ticks inside the axis whose labels do not touch."""
    span, kept = math.log(high / low), list[float]()
    for tick in RATIO_TICKS:
        if low <= tick <= high and all(abs(math.log(tick / other)) >= TICK_SHARE * span for other in kept):
            kept.append(tick)
    return sorted(kept)


def _time_axis(axes: Axes, which: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _short_time(value)))
    axis.set_minor_formatter(NullFormatter())


def _short_time(value: float) -> str:
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")):
        if value >= factor * 0.999:
            return f"{value / factor:.4g} {unit}"
    return f"{value:g} s"


def _error_axis(axes: Axes, errors: list[float]) -> None:
    """A log axis of errors with ticks in plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.set_ylim(min(errors) / 1.4, max(errors) * 1.4)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def intervals(name: str, title: str, rows: list[Row]) -> str:
    """Measured interval, estimate, claim and noise floor of each claim on one log axis of ratios."""
    with canvas(9.4, 1.15 + 0.42 * len(rows)) as (figure, axes):
        ends = [1.0]
        for place, row in enumerate(rows):
            colour = theme.STAND_IN[row["sign"].tone]
            floor = row["floor"] or 0.0
            axes.fill_betweenx(
                [place - 0.34, place + 0.34], 1 / (1 + floor), 1 + floor, color=MUTED, alpha=0.28, linewidth=0
            )
            low, high = row["low"] or row["ratio"], row["high"] or row["ratio"]
            axes.plot([low, high], [place, place], color=colour, linewidth=6, alpha=0.45, solid_capstyle="butt")
            axes.plot([row["ratio"]], [place], "o", color=colour, markersize=6)
            ends += [low, high]
            if row["claimed"]:
                axes.plot(
                    [row["claimed"]], [place], "D", color=INK, markersize=7, markerfacecolor="none", markeredgewidth=1.6
                )
                ends.append(row["claimed"])
        axes.axvline(1.0, color=MUTED, linewidth=1)
        labels = [
            f"{row['sign'].glyph} {plain.shorten(row['title'], 52)}{' ≤' if row['kind'] == 'at-most' else ''}"
            for row in rows
        ]
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis="y")
        _ratio_axis(axes, min(ends), max(ends))
        axes.set_xlabel("ratio as claimed (log scale); larger is better, except for claims marked ≤")
        _interval_legend(figure)
        return svg_of(figure, name, title)


def _interval_legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    open_tone = theme.STAND_IN["open"]
    figure.legend(
        handles=[
            Line2D([], [], color=open_tone, marker="o", linewidth=6, alpha=0.6, label="measured with interval"),
            Line2D([], [], color=INK, marker="D", linestyle="none", markerfacecolor="none", label="claimed"),
            Patch(color=MUTED, alpha=0.28, label="noise floor"),
        ],
        loc="outside upper right",
        ncols=3,
        fontsize=9,
    )


def time_against_size(
    name: str, title: str, series: dict[str, list[Row]], looks: Mapping[str, Row], size_label: str
) -> str:
    """Log-log lines of time over size, one per method, with bands over blocks (10 % to 90 %)."""
    with canvas(9.4, 5.0) as (figure, axes):
        for method, points in series.items():
            look = looks[method]
            sizes = [point["size"] for point in points]
            axes.plot(sizes, [p["time_s"] for p in points], **look, markersize=4.5, linewidth=1.5, label=short(method))
            axes.fill_between(
                sizes, [p["low_s"] for p in points], [p["high_s"] for p in points], color=look["color"], alpha=0.16,
                linewidth=0,
            )  # fmt: skip
        _time_axis(axes, "y")
        axes.set_xscale("log")
        ticks = {point["size"]: point["label"] for points in series.values() for point in points}
        axes.set_xticks(sorted(ticks), [ticks[size] for size in sorted(ticks)])
        axes.minorticks_off()
        axes.set_xlabel(size_label)
        axes.set_ylabel("time per call")
        order = sorted(series, key=lambda m: -series[m][-1]["time_s"])
        handles, labels = axes.get_legend_handles_labels()
        by_label = dict(zip(series, zip(handles, labels, strict=True), strict=True))
        figure.legend(
            [by_label[m][0] for m in order], [by_label[m][1] for m in order], loc="outside right center", fontsize=9,
            title="slowest first", title_fontsize=9, handlelength=3.2,
        )  # fmt: skip
        return svg_of(figure, name, title)


def strips(name: str, title: str, rows: list[Row], noise: float | None) -> str:
    """Every block's ratio to the baseline, one strip per method; the band is the noise floor.

    A method slower than ``SLOWEST`` times the axis' useful part is written at the edge with its range instead.
    """
    import pandas as pd
    import seaborn as sns

    order = list(dict.fromkeys(row["method"] for row in rows))
    labels = [short(arm.removesuffix("#aa")) + (" (A/A)" if arm.endswith("#aa") else "") for arm in order]
    frame = pd.DataFrame({"ratio": [r["ratio"] for r in rows], "place": [order.index(r["method"]) for r in rows]})
    far = frame["ratio"] < 1 / SLOWEST
    with canvas(5.8, 0.9 + 0.28 * len(order)) as (figure, axes):
        floor = noise or 0.0
        axes.axvspan(1 / (1 + floor), 1 + floor, color=MUTED, alpha=0.25, linewidth=0)
        axes.axvline(1.0, color=MUTED, linewidth=1)
        near = frame["ratio"][~far]
        _ratio_axis(axes, float(near.min()) if len(near) else 1 / SLOWEST, float(frame["ratio"].max()))
        edge = axes.get_xlim()[0]
        sns.stripplot(
            frame[~far], x="ratio", y="place", orient="h", jitter=False, size=4.5, alpha=0.65, ax=axes,
            order=range(len(order)),            color=theme.STAND_IN["s0"], legend=False,
        )  # fmt: skip
        for place in sorted(set(frame["place"][far])):
            ratios = frame["ratio"][frame["place"] == place]
            text = f" ◀ {plain.times(ratios.min())} to {plain.times(ratios.max())}"
            axes.text(edge, place, text, va="center", fontsize=9)
        axes.set_yticks(range(len(order)), labels)
        axes.set_ylim(len(order) - 0.5, -0.5)
        axes.set_ylabel("")
        axes.set_xlabel("baseline ÷ method, one dot per block (log scale)")
        return svg_of(figure, name, title)


def pareto(name: str, title: str, rows: list[Row], looks: Mapping[str, Row], metric: str) -> str:
    """Error against time; the step line joins the methods that no other beats in both.

    The error axis spans ``DECADES`` at most; a finer method stands on its lower edge, with its error in the legend.
    """
    bottom = max(row["error"] for row in rows) / 10**DECADES
    with canvas(9.4, 4.6) as (figure, axes):
        front = [row for row in sorted(rows, key=lambda r: r["time_s"]) if row["front"]]
        axes.step(
            [r["time_s"] for r in front], [max(r["error"], bottom) for r in front], where="post", color=MUTED,
            linewidth=1.2, linestyle=(0, (4, 2)), zorder=1,
        )  # fmt: skip
        for row in rows:
            look, under = looks[row["method"]], row["error"] < bottom
            label = short(row["method"]) + (" ●" if row["front"] else "")
            axes.plot(
                [row["time_s"]], [max(row["error"], bottom)], look["marker"], color=look["color"], markersize=8,
                markerfacecolor=look["color"] if row["front"] else "none", markeredgewidth=1.6, linestyle="none",
                label=f"{label} ▼ {row['error']:.2g}" if under else label, clip_on=False,
            )  # fmt: skip
        _time_axis(axes, "x")
        if bottom > 0:
            _error_axis(axes, [max(row["error"], bottom) for row in rows])
        axes.set_xlabel("time per call, less is better")
        axes.set_ylabel(f"{plain.spoken(metric)}, less is better")
        key = "● on the front, ▼ below the axis"
        figure.legend(loc="outside right center", fontsize=9, title=key, title_fontsize=9)
        return svg_of(figure, name, title)


def singular_values(name: str, title: str, rows: list[Row]) -> str:
    """Spread of the output's singular values per method: thin line min to max, bar 2 % to 98 %, dot median."""
    with canvas(5.8, 0.9 + 0.28 * len(rows)) as (figure, axes):
        axes.axvline(1.0, color=MUTED, linewidth=1.2)
        colour = theme.STAND_IN["s0"]
        for place, row in enumerate(rows):
            axes.plot([row["min"], row["max"]], [place, place], color=colour, linewidth=1.3)
            axes.plot(
                [row["p02"], row["p98"]], [place, place], color=colour, linewidth=6, alpha=0.5, solid_capstyle="butt"
            )
            axes.plot([row["p50"]], [place], "o", color=INK, markersize=4.5)
        axes.set_yticks(range(len(rows)), [short(row["method"]) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.set_xlabel("singular values of the output (1 is exact)")
        return svg_of(figure, name, title)


def floor_fractions(name: str, title: str, rows: list[Row]) -> str:
    """How much of the measured time the physical floor explains, one dot per problem."""
    import pandas as pd
    import seaborn as sns

    order = list(dict.fromkeys(row["method"] for row in rows))
    frame = pd.DataFrame(
        {"percent": [100 * r["fraction"] for r in rows], "place": [order.index(r["method"]) for r in rows]}
    )
    with canvas(9.4, 0.9 + 0.28 * len(order)) as (figure, axes):
        sns.stripplot(
            frame, x="percent", y="place", orient="h", jitter=False, size=6, alpha=0.65, ax=axes,
            color=theme.STAND_IN["s2"], legend=False,
        )  # fmt: skip
        axes.axvline(100, color=MUTED, linewidth=1.2)
        axes.set_yticks(range(len(order)), [short(method) for method in order])
        axes.set_ylim(len(order) - 0.5, -0.5)
        axes.set_xlim(0, max(105.0, float(frame["percent"].max()) * 1.03))
        axes.set_ylabel("")
        axes.set_xlabel("physical floor ÷ measured time, per cent; one dot per problem")
        return svg_of(figure, name, title)


BAR_WIDTH, BAR_HEIGHT = 170.0, 26.0


def bar_scale(rows: list[Row]) -> tuple[float, float]:
    """Logarithmic ends that hold every interval and claim of ``rows``, and 1."""
    ends = [1.0]
    for row in rows:
        ends += [value for name in ("low", "high", "ratio", "claimed") if (value := row[name]) and value > 0]
    return math.log(max(min(ends), 1e-3)) - 0.05, math.log(min(max(ends), 1e3)) + 0.05


def bar(row: Row, scale: tuple[float, float]) -> str:
    """A table cell's interval bar: floor band, line at 1, interval, estimate and claim."""

    def x(value: float) -> float:
        share = (math.log(max(value, 1e-9)) - scale[0]) / (scale[1] - scale[0])
        return round(3 + (BAR_WIDTH - 6) * min(max(share, 0.0), 1.0), 1)

    floor, colour, middle = row["floor"] or 0.0, f"var(--{row['sign'].tone})", BAR_HEIGHT / 2
    left, right = x(1 / (1 + floor)), x(1 + floor)
    low, high = x(row["low"] or row["ratio"]), x(row["high"] or row["ratio"])
    parts = [
        f'<rect x="{left}" y="2" width="{max(right - left, 1):.1f}" height="{BAR_HEIGHT - 4}" '
        f'fill="var(--muted)" fill-opacity="0.3"/>',
        f'<path d="M{x(1)} 1V{BAR_HEIGHT - 1}" stroke="var(--muted)"/>',
        f'<rect x="{low}" y="{middle - 4}" width="{max(high - low, 2):.1f}" height="8" fill="{colour}" '
        f'fill-opacity="0.5"/>',
        f'<circle cx="{x(row["ratio"])}" cy="{middle}" r="4" fill="{colour}"/>',
    ]
    if row["claimed"]:
        at = x(row["claimed"])
        parts.append(
            f'<path d="M{at} {middle - 6}l6 6l-6 6l-6 -6z" fill="none" stroke="var(--ink)" stroke-width="1.6"/>'
        )
    label = _escape(f"measured {row['ratio_text']} {row['interval_text']}, claimed {row['claimed_text']}")
    label = label.replace('"', "&quot;")
    return f'<svg role="img" aria-label="{label}" viewBox="0 0 {BAR_WIDTH:g} {BAR_HEIGHT:g}">{"".join(parts)}</svg>'
