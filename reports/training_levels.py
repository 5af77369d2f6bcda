"""Further levels of a workload's target, on its page: how many runs reached each, and after how much."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from harness.judge.stats import wilson
from harness.judge.trained_runs import Trained, counting
from reports import plain
from reports.training import Place, count_text, level_text, time_text

Row = dict[str, Any]


def levels(place: Place) -> list[float]:
    """Every level besides the target that the workload names or that a run crossed, the easiest first."""
    named = (place.described.get("target") or {}).get("others") or ()
    crossed = (crossing["level"] for arm in place.arms.values() for run in arm.values() for crossing in _crossed(run))
    found = {round(float(level), 9) for level in (*named, *crossed)}
    harder_is_less = not place.goal.get("larger_is_better", True)
    return sorted((level for level in found if level != place.level), reverse=harder_is_less)


def rows(place: Place) -> list[Row]:
    """One row per level and method; runs that broke off or do not say how far they were watched are left out."""
    found = []
    for level in levels(place):
        for row in place.rows:
            runs = place.arms[row["arm"]].values()
            axes = {axis: _hits(runs, f"{axis}_to_target_{level:g}{unit}") for axis, unit in AXES.items()}
            total = len(axes["time"])
            if total:
                found.append(_row(place, level, row["arm"], axes))
    return found


def asked(place: Place) -> list[Row]:
    """Runs that were to end at a level (``--until``): one row per file, level and arm, aliases of the baseline too.

    Their ends are not the schedule's, so that they speak for nothing but this level, beside the arms of their own file.
    """
    together: dict[tuple[str, float], list[Trained]] = {}
    for run in place.runs:
        level = (run.detail.get("spec") or {}).get("until")
        if level is not None and not run.tuning and not run.synthetic:
            together.setdefault((run.file, float(level)), []).append(run)
    found = []
    for (file, level), runs in sorted(together.items(), reverse=True):
        for arm in dict.fromkeys(run.arm for run in runs):
            kept = counting(runs, arm, metric=f"time_to_target_{level:g}_s").values()
            axes = {axis: _hits(kept, f"{axis}_to_target_{level:g}{unit}") for axis, unit in AXES.items()}
            if axes["time"]:
                reached = [value for value in axes["time"] if math.isfinite(value)]
                spread = f"{time_text(min(reached))} to {time_text(max(reached))}" if reached else ""
                found.append({**_row(place, level, arm, axes), "spread": spread, "file": plain.base(file)})
    return found


#: Axis -> suffix of its metric's name.
AXES: Mapping[str, str] = {"time": "_s", "steps": "", "samples": ""}


def _row(place: Place, level: float, arm: str, axes: Mapping[str, list[float]]) -> Row:
    total, hits = len(axes["time"]), sum(map(math.isfinite, axes["time"]))
    low, high = wilson(hits, total)
    return {
        "level": level,
        "level_text": level_text(place.metric, level),
        "arm": arm,
        "rate": hits / total,
        "hits_text": f"{hits} of {total}",
        "wilson": f"{100 * low:.0f} to {100 * high:.0f} %",
        **_medians(axes),
    }


def _medians(axes: Mapping[str, list[float]]) -> Row:
    texts = {"time": time_text, "steps": count_text, "samples": count_text}
    made: Row = {}
    for axis, values in axes.items():
        middle = median(values)
        made[axis] = 1e300 if math.isinf(middle) else middle
        made[f"{axis}_text"] = texts[axis](middle)
    return made


def _hits(runs: Iterable[Trained], metric: str) -> list[float]:
    """Where each run crossed the level; infinite when it was watched to its end and did not."""
    found = []
    for run in runs:
        try:
            hit = run.hit(metric)
        except ValueError:
            continue
        if hit.value is not None or hit.budget > 0:
            found.append(math.inf if hit.value is None else hit.value)
    return found


def _crossed(run: Trained) -> Iterable[Mapping[str, Any]]:
    return run.detail.get("crossings") or ()
