"""The memory ledger: what each optimizer keeps and needs, relative to the weights, beside the formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from reports import plain, theme
from reports.figures import MUTED, Chart, canvas, svg_of
from reports.suite_pages import Cell, Page, Table, Told, slug, told

TASK = "state_memory"
BASE = "adamw"
STATE, FORMULA, HELD, PEAK, WEIGHTS = (
    "optimizer_state_bytes", "formula_bytes", "held_bytes", "peak_device_bytes", "parameter_bytes",
)  # fmt: skip
#: Relative difference of state and formula that rounding explains.
EXACT = 1e-3
NOTE = (
    "State in multiples of the float32 weights. A formula counts factors, structures and buffers; a hollow mark is the "
    "formula where nothing was measured."
)


def pages(runs: pd.DataFrame, headers: list[dict[str, Any]]) -> list[Page]:
    """One page per device with a record of the suite."""
    return [_page(device, rows) for device, rows in told(runs, headers, TASK).items()]


def network(one: Told) -> str:
    """The network's name for people."""
    return str(one.problem["kind"]).replace("_", " ")


def _page(device: str, rows: list[Told]) -> Page:
    charts = [chart for dtype in _dtypes(rows) if (chart := ratios(device, rows, dtype)) is not None]
    return Page(
        slug=slug("memory", device),
        title=f"Memory on {device}",
        device=device,
        suite="state_memory",
        lead=lead(rows),
        tables=[],
        sections=[("State relative to the weights", NOTE, charts)],
        after=[_table(index, name, rows) for index, name in enumerate(dict.fromkeys(network(one) for one in rows))],
    )


def _dtypes(rows: Sequence[Told]) -> list[str]:
    return list(dict.fromkeys(str(one.problem["dtype"]) for one in rows))


def ratio(one: Told, metric: str) -> float | None:
    """A figure in multiples of the weights."""
    value, weights = one.metrics.get(metric), one.metrics.get(WEIGHTS)
    return value / weights if value is not None and weights else None


def state(one: Told) -> tuple[float | None, bool]:
    """State in multiples of the weights, measured if it was, else by formula; and whether it was measured."""
    found = ratio(one, STATE)
    return (found, True) if found is not None else (ratio(one, FORMULA), False)


def lead(rows: Sequence[Told]) -> str:
    """What the record says in a few sentences."""
    measured = [one for one in rows if one.metrics.get(STATE) is not None and one.metrics.get(FORMULA)]
    exact = sum(abs(one.metrics[STATE] / one.metrics[FORMULA] - 1) <= EXACT for one in measured)
    text = (
        f"Bytes that {plain.count(len({one.name for one in rows}), 'optimizer')} keep on "
        f"{plain.count(len({network(one) for one in rows}), 'network')}. "
    )
    if measured:
        text += f"Of {plain.count(len(measured), 'measured state')}, {exact} equal their formula. "
    peaks = [one for one in rows if one.metrics.get(PEAK)]
    text += "" if peaks else "Peaks need a GPU: none is stored for this device. "
    for name in ("kfac-cholesky", "singd-dense", "singd-diagonal"):
        found = [value for one in rows if one.name == name and _plain(one) and (value := state(one)[0]) is not None]
        if found:
            low, high = f"{min(found):.3g}", f"{max(found):.3g}"
            text += f"{name}: {low if low == high else f'{low} to {high}'} times the weights. "
    return text.strip()


def _plain(one: Told) -> bool:
    return bool(one.problem["dtype"] == "float32")


def _table(index: int, name: str, rows: Sequence[Told]) -> Table:
    own = [one for one in rows if network(one) == name]
    base = next((one for one in own if one.name == BASE and _plain(one)), None)
    weights = next((one.metrics[WEIGHTS] for one in own if WEIGHTS in one.metrics), None)
    columns = ["state", "state ÷ weights", "÷ AdamW's", "formula", "state ÷ formula", "kept with caches", "peak",
               "peak ÷ AdamW's"]  # fmt: skip
    made = [(_label(one), _cells(one, base)) for one in own]
    note = f"Weights: {plain.size(weights)} in float32." if weights else ""
    return Table(id=f"memory-{index}", heading=name, note=note, first="optimizer", columns=columns, rows=made)


def _label(one: Told) -> str:
    return one.name if _plain(one) else f"{one.name}, factors {one.problem['dtype']}"


def _cells(one: Told, base: Told | None) -> list[Cell]:
    if one.status != "passed":
        why = (plain.shorten(one.reason, 60),)
        return [
            Cell(text=one.status.replace("_", " "), sub=why, tone="bad", title=one.reason),
            *[Cell(text=plain.DASH)] * 7,
        ]
    got, formula = one.metrics.get(STATE), one.metrics.get(FORMULA)
    value = got if got is not None else formula
    against = got / formula if got is not None and formula else None
    exact = against is not None and abs(against - 1) <= EXACT
    return [
        _bytes(one, STATE),
        _times(state(one)[0]),
        _times(_over(value, base, STATE if got is not None else FORMULA)),
        _bytes(one, FORMULA),
        Cell(text=plain.DASH if against is None else f"{against:.4f}", sort=against,
             tone="" if against is None else "good" if exact else "half"),
        _bytes(one, HELD),
        _bytes(one, PEAK),
        _times(_over(one.metrics.get(PEAK), base, PEAK)),
    ]  # fmt: skip


def _over(value: float | None, base: Told | None, metric: str) -> float | None:
    other = base.metrics.get(metric) if base is not None else None
    return value / other if value is not None and other else None


def _bytes(one: Told, metric: str) -> Cell:
    value = one.metrics.get(metric)
    return Cell(text=plain.size(value), sort=value)


def _times(value: float | None) -> Cell:
    return Cell(text=plain.DASH if value is None else f"{value:.3g}×", sort=value)


def ratios(device: str, rows: Sequence[Told], dtype: str) -> Chart | None:
    """State ÷ weights of every optimizer, one mark a network; the true networks where there are any."""
    own = [one for one in rows if one.problem["dtype"] == dtype and one.status == "passed"]
    large = [one for one in own if not network(one).endswith("small")]
    points = [
        {"method": one.name, "network": network(one), "ratio": value, "measured": measured}
        for one in large or own
        for value, measured in [state(one)]
        if value
    ]
    if not points:
        return None
    title = "State ÷ weights" if dtype == "float32" else f"State ÷ weights with factors in {dtype}"
    name = plain.anchor("chart", "state", device, dtype)
    return Chart(id=name, title=title, sentence=_sentence(points), svg=_draw(name, title, points), rows=points)


def _sentence(points: Sequence[Mapping[str, Any]]) -> str:
    middle: dict[str, list[float]] = {}
    for point in points:
        middle.setdefault(point["method"], []).append(point["ratio"])
    means = {method: sum(values) / len(values) for method, values in middle.items()}
    least, most = min(means, key=lambda m: means[m]), max(means, key=lambda m: means[m])
    return (
        f"On average over these networks {most} keeps {means[most]:.3g} times the weights, {least} {means[least]:.3g} "
        f"times."
    )


def _draw(name: str, title: str, points: Sequence[Mapping[str, Any]]) -> str:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    methods = list(dict.fromkeys(point["method"] for point in points))
    networks = list(dict.fromkeys(point["network"] for point in points))
    with canvas(9.4, 1.6 + 0.32 * len(methods)) as (figure, axes):
        axes.set_xscale("log")
        axes.axvline(1.0, color=MUTED, linewidth=1.2)
        for place, one in enumerate(networks):
            colour = theme.STAND_IN[f"s{place % theme.SERIES}"]
            own = [point for point in points if point["network"] == one]
            for index, point in enumerate(own):
                axes.plot(
                    [point["ratio"]], [methods.index(point["method"]) + 0.12 * (place - (len(networks) - 1) / 2)],
                    theme.MARKERS[place % len(theme.MARKERS)], color=colour, markersize=8, markeredgewidth=1.6,
                    markerfacecolor=colour if point["measured"] else "none", linestyle="none",
                    label=one if index == 0 else None,
                )  # fmt: skip
        axes.set_yticks(range(len(methods)), methods)
        axes.set_ylim(len(methods) - 0.4, -0.6)
        low, high = min(point["ratio"] for point in points), max(point["ratio"] for point in points)
        axes.set_xlim(min(low, 1.0) / 1.3, max(high, 1.0) * 1.3)
        ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50) if low / 1.3 <= tick <= high * 1.3]
        axes.set_xticks(ticks)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("state ÷ weights (log scale), less is better")
        figure.legend(loc="outside upper center", fontsize=9, ncols=5)
        return svg_of(figure, name, title)
