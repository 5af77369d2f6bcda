"""Kernel classifiers: the share of the data sets that keep their accuracy, against the mean speed-up.

The published figure for the UCR archive has one panel for each share of the accuracy; a method's curve joins its sizes.
Only sizes that a method was timed with on every set of that size are drawn, so that all points count the same sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from reports import plain, product_figures, products, theme
from reports.cases import Case
from reports.figures import MUTED, Chart, _ratio_axis, canvas, svg_of

Row = dict[str, Any]
#: Beginning of the kinds of problem that are one set each (suites/approximate_matmul.py).
KIND = "ucr_"
#: Shares of the exact accuracy, as published (arXiv 2106.10860, section 5, UCR archive).
LEVELS = (0.5, 0.75, 0.95)
#: Fewer sets make no share.
SETS = 3


def rows(cases: list[Case], problems: Mapping[str, Row]) -> list[Row]:
    """Method, codebooks, number of sets, geometric mean of the speed-ups and the share of sets that keep each level."""
    sets: set[str] = set()
    found: dict[tuple[str, int], dict[str, Case]] = {}
    for group in products.groups(cases, problems):
        if not group.name.startswith(KIND):
            continue
        for case in cases:
            size = group.sizes.get(case.problem)
            if size is None:
                continue
            sets.add(group.name)
            if "accuracy_retained" in case.errors and (case.effect is not None or case.is_baseline) and case.time_s:
                found.setdefault((case.method, size), {})[group.name] = case
    told: list[Row] = []
    sizeless: set[str] = set()
    for (method, size), own in sorted(found.items(), key=lambda item: item[0]):
        takes_none = all(products.size(case) is None for case in own.values())
        if len(own) < max(SETS, len(sets)) or method in sizeless:
            continue
        if takes_none:
            sizeless.add(method)
        kept = [case.errors["accuracy_retained"] for case in own.values()]
        speeds = [case.effect.ratio if case.effect else 1.0 for case in own.values()]
        told.append(
            {
                "method": method,
                "codebooks": None if takes_none else size,
                "sets": len(own),
                "speedup": math.exp(math.fsum(math.log(speed) for speed in speeds) / len(speeds)),
                **{f"keep_{100 * level:g}": sum(value >= level for value in kept) / len(kept) for level in LEVELS},
            }
        )
    return told


def chart(cases: list[Case], problems: Mapping[str, Row], styles: Mapping[str, Row], device: str) -> Chart | None:
    """One panel a level; None where no method but the exact one ran on enough sets."""
    found = rows(cases, problems)
    if not any(row["method"] != f"{products.TASK}.exact" for row in found):
        return None
    title = "Kernel classifiers: share of the sets that keep their accuracy"
    name = plain.anchor("chart", "kept", device)
    return Chart(id=name, title=title, sentence=_sentence(found), svg=_drawn(name, title, found, styles), rows=found)


def _sentence(found: list[Row]) -> str:
    level = LEVELS[-1]
    key = f"keep_{100 * level:g}"
    faster = [row for row in found if row["method"] != f"{products.TASK}.exact" and row["speedup"] > 1]
    sets = max(row["sets"] for row in found)
    weight = f"One set moves a point by {100 / sets:.0f} % here; the published figure counts 76."
    most = max((row[key] for row in faster), default=0.0)
    if not most:
        return f"With nothing faster than the exact product does a set keep {100 * level:g} % of its accuracy. {weight}"
    best = max((row for row in faster if row[key] == most), key=lambda row: row["speedup"])
    size = "" if best["codebooks"] is None else f" with {plain.count(best['codebooks'], 'codebook')}"
    kept = f"all {sets} sets keep" if most == 1 else f"{100 * most:.0f} % of {sets} sets, and never more, keep"
    return (
        f"Of what is faster than the exact product and lets {kept} {100 * level:g} % of their accuracy, "
        f"{products.short(best['method'])}{size} has the largest mean speed-up, {plain.times(best['speedup'])}; "
        f"means of medians, without intervals. {weight}"
    )


def _drawn(name: str, title: str, found: list[Row], styles: Mapping[str, Row]) -> str:
    methods = [method for method in styles if any(row["method"] == method for row in found)]
    with canvas(9.4, max(3.4, 1.0 + product_figures.LINE * len(methods))) as (figure, axes):
        axes.remove()
        panels = figure.subplots(1, len(LEVELS), sharey=True)
        speeds = [1.0, *(row["speedup"] for row in found)]
        for level, panel in zip(LEVELS, panels, strict=True):
            _ratio_axis(panel, min(speeds) / 1.1, max(speeds) * 1.2)
            panel.axvline(1.0, color=MUTED, linewidth=1)
            for method in methods:
                own = sorted((row for row in found if row["method"] == method), key=lambda row: row["speedup"])
                panel.plot(
                    [row["speedup"] for row in own], [row[f"keep_{100 * level:g}"] for row in own],
                    color=styles[method]["color"], marker=styles[method]["marker"], markersize=7, markeredgewidth=1.4,
                    markerfacecolor=theme.STAND_IN["paper"], linewidth=1, clip_on=False, zorder=3,
                    label=products.short(method) if level == LEVELS[0] else None,
                )  # fmt: skip
            panel.set_title(f"keep {100 * level:g} % of their accuracy", fontsize=10)
            panel.set_ylim(-0.05, 1.05)
        panels[0].set_ylabel("share of the sets, more is better")
        figure.supxlabel("mean speed-up over the exact product (log scale), more is better", fontsize=10)
        figure.legend(loc="outside right center", fontsize=9)
        return svg_of(figure, name, title)
