"""Training pages of networks with look-ups: what fine-tuning brings back, beside the original network.

Rows come from what the trainer noted at the end of a run: accuracy of the exact network, of the network just replaced,
and of the tuned one as fixed operators; the workload's metric is that of the trainable form.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from reports import plain, theme
from reports.charts import Section
from reports.figures import INK, MUTED, Chart, canvas, svg_of
from reports.training import Place

Row = dict[str, Any]
#: Stage -> metric of a run; the trainable form's is the workload's own.
STAGES: Mapping[str, str] = {
    "exact": "final_exact_accuracy",
    "just replaced": "final_replaced_accuracy",
    "as fixed operators": "final_deployed_accuracy",
}
TUNED = "fine-tuned"
HEADING = "Look-ups against the original network"
NOTE = (
    "Medians over seeds, thin lines from least to most. Fine-tuning trains thresholds and tables through a smooth "
    "surrogate; fixed operators are what is timed and shipped: hard trees and 8-bit tables."
)


def sections(place: Place) -> list[Section]:
    """One section for a workload with look-ups; none for any other."""
    rows = stages(place)
    return [(HEADING, NOTE, [_chart(place, rows)])] if any(row["stage"] == "as fixed operators" for row in rows) else []


def stages(place: Place) -> list[Row]:
    """Method and stage -> median, least and most accuracy over seeds; exact and just replaced stand once."""
    rows: list[Row] = []
    for arm in (row["arm"] for row in place.rows):
        runs = [run for run in place.arms[arm].values() if not run.tuning and not run.synthetic]
        named = {stage: [run.metrics[name] for run in runs if name in run.metrics] for stage, name in STAGES.items()}
        ends = [run.samples.get(f"curve_{place.metric}", ()) for run in runs if STAGES["exact"] in run.metrics]
        named[TUNED] = [values[-1] for values in ends if values]
        for stage, values in named.items():
            shared = stage in ("exact", "just replaced")
            if values and not (shared and any(row["stage"] == stage for row in rows)):
                rows.append(
                    {
                        "stage": stage,
                        "method": "" if shared else arm,
                        "accuracy": median(values),
                        "least": min(values),
                        "most": max(values),
                        "seeds": len(values),
                    }
                )
    order = ["exact", "just replaced", TUNED, "as fixed operators"]
    return sorted(rows, key=lambda row: order.index(row["stage"]))


def _chart(place: Place, rows: list[Row]) -> Chart:
    title = f"Accuracy with look-ups on {place.workload}"
    name = plain.anchor("chart", "finetuning", place.workload, place.device)
    return Chart(id=name, title=title, sentence=sentence(rows), svg=_drawn(name, title, rows), rows=rows)


def sentence(rows: list[Row]) -> str:
    """What replacing costs and how much of it comes back."""
    at = {stage: [row for row in rows if row["stage"] == stage] for stage in (*STAGES, TUNED)}
    best = max(at["as fixed operators"], key=lambda row: row["accuracy"])
    text = f"The best tuned network, by {best['method']}, is right on {_share(best['accuracy'])} of the images"
    if not at["exact"]:
        return f"{text}; the original network's accuracy was not recorded."
    exact = at["exact"][0]["accuracy"]
    text += f" as fixed operators; the original on {_share(exact)}"
    if at["just replaced"]:
        before = at["just replaced"][0]["accuracy"]
        text += f", the network just replaced on {_share(before)}"
        back = best["accuracy"] - before
        if back < 0:
            text += "; fine-tuning lost accuracy"
        elif exact > before:
            text += f": fine-tuning brings back {plain.percent(back / (exact - before))} of the loss"
    return f"{text}."


def _share(value: float) -> str:
    return f"{100 * value:.2f} %"


def _drawn(name: str, title: str, rows: list[Row]) -> str:
    colours = {
        arm: theme.STAND_IN[f"s{i % 6}"]
        for i, arm in enumerate(dict.fromkeys(r["method"] for r in rows if r["method"]))
    }
    with canvas(9.4, 1.2 + 0.34 * len(rows)) as (figure, axes):
        for place, row in enumerate(rows):
            colour = colours.get(row["method"], INK)
            axes.plot([row["least"], row["most"]], [place, place], color=colour, linewidth=1.4)
            axes.plot([row["accuracy"]], [place], "o", color=colour, markersize=8)
            axes.annotate(
                _share(row["accuracy"]), (row["most"], place), xytext=(8, 0), textcoords="offset points",
                va="center", fontsize=9,
            )  # fmt: skip
        exact = next((row["accuracy"] for row in rows if row["stage"] == "exact"), None)
        if exact is not None:
            axes.axvline(exact, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        low, high = min(row["least"] for row in rows), max(row["most"] for row in rows)
        room = max(high - low, 0.005)
        axes.set_xlim(low - 0.1 * room, high + 0.25 * room)
        axes.set_yticks(
            range(len(rows)), [row["stage"] + (f" · {row['method']}" if row["method"] else "") for row in rows]
        )
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set_xlabel("share of test images classified rightly, more is better")
        return svg_of(figure, name, title)
