"""Approximate products drawn: speed against accuracy, rates, and the break-even of look-ups on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reports import plain, products, theme
from reports.figures import INK, MUTED, _ratio_axis, _ratio_ticks, canvas, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
#: Half a mark, the width (and half the height) of a letter, and how far a label stands from its point; points.
MARK, LETTER, ABOVE = 4.0, 5.2, 11.0
#: How far a published point's number hangs below it, points.
NUMBER = 12.0
#: Room of a legend's line, inches.
LINE = 0.185


def looks(methods: Sequence[str]) -> dict[str, Row]:
    """Colour by family, marker within it: the same in every figure of a page."""
    colours = {"exact": INK} | {
        name: theme.STAND_IN[f"s{place}"]
        for place, name in enumerate([*[f for f in products.FAMILIES if f != "exact"], products.OTHER])
    }
    found, seen = {}, dict.fromkeys(colours, 0)
    for method in sorted(methods, key=lambda m: list(colours).index(products.family(m))):
        kind = products.family(method)
        found[method] = {"color": colours[kind], "marker": theme.MARKERS[seen[kind] % len(theme.MARKERS)]}
        seen[kind] += 1
    return found


def accuracy(
    name: str, title: str, rows: list[Row], published: list[Row], styles: Mapping[str, Row], label: str, bottom: float
) -> str:
    """Accuracy over speed-up: filled, nothing is faster and better; lines join the codebooks of one method.

    A value under ``bottom`` stands on the lower edge with a triangle in the legend. ``published`` are hollow diamonds.
    """
    methods = [method for method in styles if any(row["method"] == method for row in rows)]
    height = max(4.6, 1.0 + LINE * (len(methods) + bool(published)))
    with canvas(9.4, height) as (figure, axes):
        ends = [1.0, *(row["speedup"] for row in [*rows, *published])]
        _ratio_axis(axes, min(ends) / 1.1, max(ends) * 1.2)
        axes.axvline(1.0, color=MUTED, linewidth=1)
        axes.axhline(1.0, color=MUTED, linewidth=1)
        for method in methods:
            own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["codebooks"])
            _method(axes, method, own, styles[method], bottom)
        _published(axes, published, bottom)
        tops = [1.0, *(row["value"] for row in [*rows, *published])]
        lows = [max(row["value"], bottom) for row in [*rows, *published]]
        room = 0.06 * max(max(tops) - min(lows), 0.01)
        axes.set_ylim(min(lows) - room, max(tops) + 1.6 * room)
        axes.set_xlabel("speed-up over the exact float product (log scale), more is better")
        axes.set_ylabel(f"{label}, more is better")
        key = "● nothing faster is better" + (", ▼ below the axis" if any(r["value"] < bottom for r in rows) else "")
        figure.legend(loc="outside right center", fontsize=9, title=key, title_fontsize=9)
        _labels(figure, axes, rows, published, bottom)
        return svg_of(figure, name, title)


def _method(axes: Axes, method: str, own: list[Row], look: Row, bottom: float) -> None:
    x, y = [row["speedup"] for row in own], [max(row["value"], bottom) for row in own]
    if len({row["codebooks"] for row in own}) > 1:
        axes.plot(x, y, color=look["color"], linewidth=1, alpha=0.5)
    under = any(row["value"] < bottom for row in own)
    front = any(row["front"] for row in own)
    label = products.short(method) + (" ●" if front else "") + (" ▼" if under else "")
    for place, row in enumerate(own):
        axes.plot(
            [x[place]], [y[place]], look["marker"], color=look["color"], markersize=8, markeredgewidth=1.6,
            markerfacecolor=look["color"] if row["front"] else theme.STAND_IN["paper"], linestyle="none",
            label=label if place == 0 else None, clip_on=False, zorder=3,
        )  # fmt: skip


def _published(axes: Axes, rows: list[Row], bottom: float) -> None:
    if not rows:
        return
    y = [max(row["value"], bottom) for row in rows]
    axes.plot([row["speedup"] for row in rows], y, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(
        [row["speedup"] for row in rows], y, "D", color=INK, markersize=8, markerfacecolor="none", markeredgewidth=1.4,
        linestyle="none", label="published (poster)", zorder=2,
    )  # fmt: skip
    for row, height in zip(rows, y, strict=True):
        axes.annotate(
            str(row["codebooks"]), (row["speedup"], height), xytext=(0, -NUMBER), textcoords="offset points",
            ha="center", va="center", fontsize=8, color=MUTED,
        )  # fmt: skip


def _labels(figure: Figure, axes: Axes, rows: list[Row], published: list[Row], bottom: float) -> None:
    """Names above or below the points, those on the front first, where they touch no other label and no point."""
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.execute(figure)
    spots = [(row["speedup"], max(row["value"], bottom)) for row in rows]
    points = [axes.transData.transform(spot) * 72 / figure.dpi for spot in spots]
    taken = [(x, y, MARK, MARK) for x, y in points]
    for row in published:
        x, y = axes.transData.transform((row["speedup"], row["value"])) * 72 / figure.dpi
        taken += [(x, y, MARK, MARK), (x, y - NUMBER, LETTER, LETTER)]
    for place in sorted(range(len(rows)), key=lambda i: (not rows[i]["front"], -rows[i]["speedup"])):
        text = _name(rows[place]) + rows[place]["size_text"]
        x, y = points[place]
        half = len(text) * LETTER / 2
        for shift in (ABOVE, -ABOVE):
            box = (x, y + shift, half, LETTER)
            if not any(_touch(box, other) for other in taken):
                taken.append(box)
                axes.annotate(
                    text, spots[place], xytext=(0, shift), textcoords="offset points", ha="center", va="center",
                    fontsize=8,
                )  # fmt: skip
                break


def _name(row: Row) -> str:
    return plain.shorten(products.short(row["method"]), 24)


def _touch(one: tuple[float, ...], two: tuple[float, ...]) -> bool:
    return abs(one[0] - two[0]) < one[2] + two[2] and abs(one[1] - two[1]) < one[3] + two[3]


def rates(name: str, title: str, rows: list[Row], styles: Mapping[str, Row], label: str) -> str:
    """Bars of a rate, one a method and problem; a dot, where there is one, is of the scan alone."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    with canvas(9.4, 1.3 + 0.3 * len(rows)) as (figure, axes):
        top = max(row["rest"] or row["rate"] for row in rows)
        for place, row in enumerate(rows):
            colour = styles[row["method"]]["color"]
            axes.barh([place], [row["rate"]], height=0.66, color=colour, alpha=0.75)
            end, text = row["rate"], plain.amount(row["rate"])
            if row["rest"]:
                text += f" (○ {plain.amount(row['rest'])})"
                axes.plot([row["rest"]], [place], "o", color=colour, markerfacecolor="none", markeredgewidth=1.6)
                end = max(end, row["rest"])
            axes.text(end + 0.02 * top, place, text, va="center", fontsize=9)
        axes.set_yticks(range(len(rows)), [f"{_name(row)} · {row['label']}" for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, top * 1.22)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain.amount(value)))
        axes.grid(False, axis="y")
        axes.set_xlabel(label)
        if any(row["rest"] for row in rows):
            dot = Line2D([], [], color=INK, marker="o", markerfacecolor="none", linestyle="none",
                         label="look-ups and sums alone")  # fmt: skip
            figure.legend(handles=[dot], loc="outside upper right", fontsize=9)
        return svg_of(figure, name, title)


def break_even(name: str, title: str, rows: list[Row], lines: list[Row], styles: Mapping[str, Row], dense: str) -> str:
    """Speed-up over a dense product against D / C, with the ratios from which look-ups can win."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    with canvas(9.4, 4.6) as (figure, axes):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.axhline(1.0, color=MUTED, linewidth=1.2)
        for place, line in enumerate(lines):
            dash = theme.DASHES[place % len(theme.DASHES)]
            text = f"break-even, {line['way']}: {line['ratio']:.3g}"
            axes.axvline(line["ratio"], color=MUTED, linewidth=1.4, linestyle=dash, label=text)
        seen: set[str] = set()
        for row in rows:
            look = styles[row["method"]]
            axes.plot(
                [row["inner_per_codebook"]], [row["speedup"]], look["marker"], color=look["color"], markersize=8,
                markerfacecolor=look["color"] if row["speedup"] > 1 else "none", markeredgewidth=1.6, linestyle="none",
                label=None if row["method"] in seen else products.short(row["method"]),
            )  # fmt: skip
            seen.add(row["method"])
        ticks = sorted({2.0**k for k in range(12)})
        ends = [row["inner_per_codebook"] for row in rows] + [line["ratio"] for line in lines]
        axes.set_xlim(min(ends) / 1.3, max(ends) * 1.3)
        axes.set_xticks([tick for tick in ticks if min(ends) / 1.3 <= tick <= max(ends) * 1.3])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        low, high = min([1.0, *(r["speedup"] for r in rows)]) / 1.3, max([1.0, *(r["speedup"] for r in rows)]) * 1.3
        axes.set_ylim(low, high)
        axes.set_yticks(_ratio_ticks(low, high))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("D / C: multiply-adds that one look-up replaces (log scale)")
        axes.set_ylabel(f"{dense} time ÷ method time")
        figure.legend(loc="outside right center", fontsize=9, title="filled: faster", title_fontsize=9)
        return svg_of(figure, name, title)
