"""Which figures the training runs of one workload and device allow: rows chosen, a sentence read off them, drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from harness.judge import training_summary
from harness.judge.trained_runs import OUTSIDE_BUCKETS, STEP_BUCKETS, Trained
from reports import figures, plain, training_figures
from reports.charts import Section
from reports.figures import Chart
from reports.tables import SIDES
from reports.training import Place, level_text

Row = dict[str, Any]
#: Points that all curves of one figure may have together, and the most of one curve.
POINTS, PER_RUN = 2400, 60
#: x axis -> label, key of a crossing.
AXES = {
    "time_s": ("training time, s (evaluation excluded)", "time_s", "time"),
    "samples": ("samples seen", "samples", "samples"),
    "steps": ("updates", "steps", "updates"),
}
NO_RATIO = (
    "No ratio can be formed: there is no second method, no shared seed, or the runs missed too often to bound it."
)
#: Share of the way from the start to the target that stays below the axis: what matters happens near the target.
HIDDEN = 0.55


def sections(place: Place) -> list[Section]:
    """Heading, note and charts of a workload's page; a section without a figure says why."""
    looks = figures.styles(place.methods)
    found: list[tuple[str, str, str, list[Chart | None]]] = [
        ("Time to target", _ratio_note(place), NO_RATIO, [forest(place, looks)]),
        (
            "Metric against time, samples and updates",
            "Thin: one seed. Bold: median over seeds. Tick on the target line: a sustained crossing.",
            "No run recorded a curve.",
            list(curves(place, looks)),
        ),
        ("Where the time goes", "", "No run recorded its buckets.", [costs(place)]),
        (
            "Success, memory and tuning",
            "" if place.trials else "No tuning trial is stored: speedclaim tune makes them.",
            "No run to count.",
            [hits(place, looks), memory(place, looks), tuning(place, looks)],
        ),
    ]
    kept = [(heading, text, nothing, [c for c in drawn if c is not None]) for heading, text, nothing, drawn in found]
    return [(heading, text if drawn else nothing, drawn) for heading, text, nothing, drawn in kept]


def _ratio_note(place: Place) -> str:
    base = next((row["arm"] for row in place.rows if row["is_baseline"]), plain.DASH)
    return (
        f"Ratio = time of {base} ÷ time of the method, paired by seed. A run that missed bounds its ratio from one "
        f"side only, so an interval may have an open end (arrow)."
    )


def _anchor(kind: str, place: Place) -> str:
    return plain.anchor("chart", kind, place.workload, place.device)


def _own(place: Place) -> dict[str, list[Trained]]:
    return {row["arm"]: list(place.arms[row["arm"]].values()) for row in place.rows}


def forest(place: Place, looks: Mapping[str, Row]) -> Chart | None:
    """Ratios to the baseline; None when no arm has one."""
    rows = [
        {
            **{key: row[key] for key in ("arm", "ratio", "low", "high", "floor", "side", "shared", "level")},
            "tone": SIDES[row["side"] or "open"][1],
        }
        for row in place.rows
        if row["level"] is not None and not row["is_baseline"]
    ]
    if not rows:
        return None
    floors = [row["floor"] for row in rows if row["floor"] is not None and math.isfinite(row["floor"])]
    floor = max(floors, default=None)
    title = f"Time to target on {place.workload}"
    name = _anchor("forest", place)
    decided = [row for row in rows if row["side"] in ("faster", "slower")]
    if decided:
        parts = [f"{row['arm']} is {row['side']} ({_ratio_text(row)})" for row in decided]
        sentence = f"Beyond the noise floor of {plain.percent(floor)}: {', '.join(parts)}."
    elif floor is None:
        sentence = "No method is judged: without an A/A pair that reaches the target the noise is unknown."
    else:
        sentence = f"No method differs from the baseline beyond the noise floor of {plain.percent(floor)}."
    clean = [{k: _finite(v) for k, v in row.items() if k != "tone"} for row in rows]
    return Chart(
        id=name, title=title, sentence=sentence, svg=training_figures.forest(name, title, rows, floor), rows=clean
    )


def _ratio_text(row: Row) -> str:
    ratio, low, high = (plain.number(row[key]) for key in ("ratio", "low", "high"))
    interval = plain.interval(low, high)
    return f"{plain.times(ratio)} {interval}" if ratio is not None else interval


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def curves(place: Place, looks: Mapping[str, Row]) -> list[Chart]:
    """The metric against time, samples and updates."""
    key = f"curve_{place.metric}"
    runs = {arm: [_curve(run, key, place) for run in own if _has(run, key)] for arm, own in _own(place).items()}
    runs = {arm: own for arm, own in runs.items() if own}
    if not runs:
        return []
    per_run = max(8, min(PER_RUN, POINTS // sum(map(len, runs.values()))))
    middles = {arm: _middle(own) for arm, own in runs.items()}
    thin = {arm: [_thinned(row, per_run) for row in own] for arm, own in runs.items()}
    window = _window(place, middles)
    level = level_text(place.metric, place.level)
    drawn = []
    for x, (label, _, spoken) in AXES.items():
        title = f"{plain.spoken(place.metric).capitalize()} against {spoken}"
        name = _anchor(f"curve-{x}", place)
        svg = training_figures.curves(
            name, title, thin, middles, looks, x=x, x_label=label, y_label=plain.spoken(place.metric),
            target=place.level, window=window,
        )  # fmt: skip
        points = [
            {"method": arm, "seed": row["seed"], x: a, place.metric: b}
            for arm, own in thin.items()
            for row in own
            for a, b in zip(row[x], row["value"], strict=True)
        ]
        drawn.append(Chart(id=name, title=title, sentence=_curve_sentence(place, x, level), svg=svg, rows=points))
    return drawn


def _has(run: Trained, key: str) -> bool:
    lengths = {len(run.samples.get(name, ())) for name in (key, "curve_s", "curve_steps", "curve_samples")}
    return len(lengths) == 1 and lengths != {0}


def _curve(run: Trained, key: str, place: Place) -> Row:
    crossings = run.detail.get("crossings") or []
    own: Row = next((c for c in crossings if run.reached and plain.number(c.get("level")) == place.level), {})
    finite = [k for k, value in enumerate(run.samples[key]) if math.isfinite(value)]
    lists = {"time_s": "curve_s", "samples": "curve_samples", "steps": "curve_steps", "value": key}
    return {
        "seed": run.seed,
        **{name: [run.samples[source][k] for k in finite] for name, source in lists.items()},
        "hits": {name: plain.number(own.get(name)) for name in AXES},
    }


def _middle(own: Sequence[Row]) -> Row:
    """Medians over seeds at each evaluation that at least half of the seeds reached."""
    longest = max(len(row["value"]) for row in own)
    names = ("time_s", "samples", "steps", "value")
    found: Row = {name: [] for name in names}
    for k in range(longest):
        there = [row for row in own if len(row["value"]) > k]
        if 2 * len(there) >= len(own):
            for name in names:
                found[name].append(median(row[name][k] for row in there))
    return found


def _thinned(row: Row, most: int) -> Row:
    count = len(row["value"])
    if count <= most:
        return row
    kept = sorted({round(k * (count - 1) / (most - 1)) for k in range(most)})
    return {**row, **{name: [row[name][k] for k in kept] for name in ("time_s", "samples", "steps", "value")}}


def _window(place: Place, middles: Mapping[str, Row]) -> tuple[float, float] | None:
    """The part of the metric near the target, with every arm's end inside."""
    values = [v for row in middles.values() for v in row["value"]]
    ends = [row["value"][-1] for row in middles.values() if row["value"]]
    if place.level is None or not values:
        return None
    if place.goal.get("larger_is_better", True):
        start = min(values)
        low = min(start + HIDDEN * (place.level - start), *ends) if start < place.level else start
        top = max(place.level, *values)
        return low - 0.04 * (top - low), top + 0.04 * (top - low)
    start = max(values)
    high = max(start - HIDDEN * (start - place.level), *ends) if start > place.level else start
    bottom = min(place.level, *values)
    return bottom - 0.04 * (high - bottom), high + 0.04 * (high - bottom)


def _curve_sentence(place: Place, x: str, level: str) -> str:
    key = {"time_s": "median_s", "samples": "samples", "steps": "steps"}[x]
    reached = sorted((row[key], row["arm"]) for row in place.rows if math.isfinite(row[key]))
    if not reached:
        return f"No method reaches {level} in most of its runs."
    text = plain.seconds(reached[0][0]) if x == "time_s" else f"{reached[0][0]:,.0f} {AXES[x][2]}"
    missed = [row["arm"] for row in place.rows if not math.isfinite(row[key])]
    said = f"To reach {level}, {reached[0][1]} needs the least: {text} in the median."
    return f"{said} Not reached in most runs: {', '.join(missed)}." if missed else said


def hits(place: Place, looks: Mapping[str, Row]) -> Chart | None:
    """Share of runs that reached the target by a time."""
    steps = {arm: training_summary.hit_curve(own) for arm, own in _own(place).items()}
    steps = {arm: points for arm, points in steps.items() if points}
    if not steps:
        return None
    title, name = f"Hits ÷ runs on {place.workload}", _anchor("hits", place)
    told = [f"{row['arm']} {row['hits']} of {row['n']}" for row in place.rows]
    sentence = f"Reached the target: {', '.join(told)}. A run that diverged or ran out of memory stays in the count."
    rows = [{"method": arm, "time_s": t, "fraction": f} for arm, points in steps.items() for t, f in points]
    return Chart(
        id=name, title=title, sentence=sentence, svg=training_figures.hits(name, title, steps, looks), rows=rows
    )


def costs(place: Place) -> Chart | None:
    """Milliseconds per update in each bucket."""
    rows: list[Row] = []
    for arm, own in _own(place).items():
        for bucket in (*STEP_BUCKETS, *OUTSIDE_BUCKETS):
            values = [
                1e3 * run.metrics[f"bucket_{bucket}_s"] / run.metrics["steps"]
                for run in own
                if f"bucket_{bucket}_s" in run.metrics and run.metrics.get("steps")
            ]
            if values and median(values) > 0:
                rows.append({"arm": arm, "bucket": bucket, "ms": median(values)})
    if not rows:
        return None
    title, name = f"Cost of an update on {place.workload}", _anchor("cost", place)
    shares = [(row["optimizer_share"], row["arm"]) for row in place.rows if row["optimizer_share"] is not None]
    told = ", ".join(f"{plain.percent(share)} with {arm}" for share, arm in sorted(shares))
    sentence = f"The optimizer's share of an update is {told}." if told else "The optimizer's share was not recorded."
    return Chart(id=name, title=title, sentence=sentence, svg=training_figures.costs(name, title, rows), rows=rows)


def memory(place: Place, looks: Mapping[str, Row]) -> Chart | None:
    """Peak memory against median time to the target."""
    usable = [row for row in place.rows if row["peak_bytes"] and math.isfinite(row["median_s"])]
    if not usable:
        return None
    rows = [
        {
            "arm": row["arm"],
            "time_s": row["median_s"],
            "mib": row["peak_bytes"] / 2**20,
            "front": not any(
                other["median_s"] <= row["median_s"]
                and other["peak_bytes"] <= row["peak_bytes"]
                and (other["median_s"] < row["median_s"] or other["peak_bytes"] < row["peak_bytes"])
                for other in usable
            ),
        }
        for row in usable
    ]
    title, name = f"Memory against time on {place.workload}", _anchor("memory", place)
    front = [row["arm"] for row in rows if row["front"]]
    left = [row["arm"] for row in place.rows if row not in usable]
    sentence = f"No other method is both faster and smaller than {' and '.join(front)}."
    sentence += f" Without a median time: {', '.join(left)}." if left else ""
    return Chart(
        id=name, title=title, sentence=sentence, svg=training_figures.memory(name, title, rows, looks), rows=rows
    )


def tuning(place: Place, looks: Mapping[str, Row]) -> Chart | None:
    """Expected best of k trials; equal numbers of trials make arms comparable."""
    if not place.trials:
        return None
    larger = bool(place.goal.get("larger_is_better", True))
    found = {arm: training_summary.best_of_k(values, larger) for arm, values in place.trials.items()}
    metric = training_summary.validation_name(place.metric)
    title, name = f"Best of k tuning trials on {place.workload}", _anchor("tuning", place)
    common = min(map(len, found.values()))
    best = sorted(((values[common - 1], arm) for arm, values in found.items()), reverse=larger)
    sentence = (
        f"With {plain.count(common, 'trial')} each, {best[0][1]} is expected to reach {level_text(metric, best[0][0])}"
    ) + (f", {best[-1][1]} {level_text(metric, best[-1][0])}." if len(best) > 1 else ".")
    rows = [
        {"method": arm, "k": k, f"best_{metric}": value}
        for arm, values in found.items()
        for k, value in enumerate(values, 1)
    ]
    return Chart(
        id=name, title=title, sentence=sentence, svg=training_figures.tuning(name, title, found, looks, metric),
        rows=rows,
    )  # fmt: skip
