"""From stored training runs to plain rows: one place per workload and device, its table, its sentences.

Nothing is estimated here: ratios, intervals, floors and hit curves come from :mod:`harness.judge.training_summary`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from harness.judge import training_summary
from harness.judge.trained_runs import AA, STALL_LIMIT, Trained, from_frame
from reports import plain, theme
from reports.tables import SIDES

Row = dict[str, Any]
#: A space that no line breaks at.
NARROW = "\u00a0"
UNKNOWN_DEVICE = "unknown device"
#: Runs that one page lists; the rest are in the download.
RUNS_ON_PAGE = 400


@dataclass(frozen=True, kw_only=True)
class Place:
    """One workload on one device.

    Attributes:
        device: where it was trained.
        workload: its name.
        slug: name of its page without the ending.
        described: the workload's description from the newest header that has it; may be empty.
        runs: every stored run of it, tuning trials and aliases too.
        arms: arm -> seed -> run: what speaks for each arm, the alias included.
        rows: one summary per arm.
        trials: arm -> final metric of each tuning trial.
    """

    device: str
    workload: str
    slug: str
    described: Mapping[str, Any]
    runs: list[Trained]
    arms: Mapping[str, Mapping[int, Trained]]
    rows: list[Row]
    trials: Mapping[str, list[float]] = field(default_factory=dict)

    @property
    def goal(self) -> Mapping[str, Any]:
        """Target of the newest run, else of the description."""
        return training_summary.target(self.runs) or self.described.get("target") or {}

    @property
    def metric(self) -> str:
        """Name of the evaluated metric."""
        return str(self.goal.get("metric") or "metric")

    @property
    def level(self) -> float | None:
        """The value to reach."""
        return plain.number(self.goal.get("value"))

    @property
    def methods(self) -> list[str]:
        """Every arm that has a summary or a tuning trial, in a fixed order."""
        return list(dict.fromkeys([*(row["arm"] for row in self.rows), *self.trials]))


def places(runs: pd.DataFrame, headers: list[dict[str, Any]]) -> list[Place]:
    """Workloads by device, those named by a plan first and in its order.

    Args:
        runs: as :func:`harness.record.store.read_runs` returns them.
        headers: as :func:`harness.record.store.read_headers` returns them.
    """
    described: dict[str, Mapping[str, Any]] = {}
    for header in sorted(headers, key=lambda h: str(h.get("utc", ""))):
        for workload in header.get("plan", {}).get("workloads") or []:
            described[str(workload.get("name"))] = workload
    order = {name: place for place, name in enumerate(described)}
    found = training_summary.by_place(from_frame(runs))
    made = [_place(device, name, own, described.get(name, {})) for (device, name), own in found.items()]
    return sorted(made, key=lambda place: (order.get(place.workload, len(order)), place.workload, place.device))


def _place(device: str, workload: str, runs: list[Trained], described: Mapping[str, Any]) -> Place:
    device = device or UNKNOWN_DEVICE
    order = {str(name): rank for rank, name in enumerate(described.get("methods") or [])}
    rows = training_summary.summary(runs)
    rows.sort(key=lambda row: (not row["is_baseline"], order.get(row["method"], len(order)), row["arm"]))
    return Place(
        device=device,
        workload=workload,
        slug=plain.anchor("train", workload, device),
        described=described,
        runs=runs,
        arms=training_summary.speaking(runs),
        rows=rows,
        trials=training_summary.trials(runs),
    )


def level_text(metric: str, value: float | None) -> str:
    """A metric's value: accuracies in per cent."""
    if value is None or not math.isfinite(value):
        return plain.DASH
    return f"{100 * value:.2f}{NARROW}%" if "accuracy" in metric else f"{value:.4g}"


def _spread(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"± {100 * value:.2f}{NARROW}%" if "accuracy" in metric else f"± {value:.2g}"


def time_text(value: float | None) -> str:
    """A median time; infinite when most runs missed."""
    if value is None:
        return plain.DASH
    return "not reached" if math.isinf(value) else plain.seconds(value)


def count_text(value: float | None) -> str:
    """A median count of steps or samples."""
    if value is None:
        return plain.DASH
    return "not reached" if math.isinf(value) else f"{value:,.0f}"


def table(place: Place) -> list[Row]:
    """One row per arm as text and sort keys."""
    return [_table_row(place, row) for row in place.rows]


def _table_row(place: Place, row: Row) -> Row:
    glyph, tone = SIDES[row["side"] or "open"]
    ratio = plain.number(row["ratio"])
    interval = plain.interval(plain.number(row["low"]), plain.number(row["high"])) if row["level"] is not None else ""
    return {
        "anchor": plain.anchor("arm", row["arm"]),
        "arm": row["arm"],
        "sign": _sign(row),
        "word": f"{row['hits']} of {row['n']}",
        "wilson": f"{plain.percent(row['rate_low'])} to {plain.percent(row['rate_high'])}",
        "rate": row["rate"],
        "statuses": [f"{n} {status.replace('_', ' ')}" for status, n in row["statuses"].items() if status not in _ENDS],
        "reasons": [plain.shorten(reason, 120) for reason in row["reasons"][:2]],
        "time": _key(row["median_s"]),
        "time_text": time_text(row["median_s"]),
        "mean_text": f"mean {plain.seconds(row['mean_s'])} up to {plain.seconds(row['horizon_s'])}"
        if row["mean_s"] is not None
        else "",
        "steps": _key(row["steps"]),
        "steps_text": count_text(row["steps"]),
        "samples": _key(row["samples"]),
        "samples_text": count_text(row["samples"]),
        "ratio": ratio,
        "ratio_text": "baseline" if row["is_baseline"] else f"{glyph} {ratio_text(row)}" if interval else plain.DASH,
        "interval_text": interval,
        "ratio_note": _ratio_note(row),
        "tone": tone,
        "floor": plain.number(row["floor"]),
        "floor_text": plain.percent(plain.number(row["floor"])) if row["floor"] is not None else plain.DASH,
        "clock_text": _clock_text(row),
        "final": row["final_mean"],
        "final_text": level_text(place.metric, row["final_mean"]),
        "sd_text": _spread(place.metric, row["final_sd"]),
        "stopped_text": f"{row['stopped']} ended at the target" if row["stopped"] else "",
        "peak": row["peak_bytes"],
        "peak_text": plain.size(row["peak_bytes"]),
        "where": {"peak_device_bytes": "device", "peak_host_bytes": "host"}.get(str(row["peak_metric"]), ""),
        "state": row["state_bytes"],
        "state_text": plain.size(row["state_bytes"]),
        "step": row["step_s"],
        "step_text": plain.seconds(row["step_s"]),
        "share": row["optimizer_share"],
        "share_text": plain.percent(row["optimizer_share"]),
        "stall": row["stall"],
        "stall_text": plain.percent(max(row["stall"], 0.0)) if row["stall"] is not None else plain.DASH,
        "stalled": (row["stall"] or 0.0) > STALL_LIMIT,
        "file": plain.base(row["file"]),
        "command": f"speedclaim train {place.workload} {row['method']} --seeds 10",
    }


_ENDS = ("target_reached",)


def _sign(row: Row) -> theme.Sign:
    if row["hits"] == row["n"]:
        return theme.STATUSES["target_reached"]
    return theme.STATUSES["budget_exhausted"] if row["hits"] == 0 else theme.Sign(glyph="◐", tone="half", meaning="")


def _ratio_note(row: Row) -> str:
    if row["is_baseline"] or row["level"] is None:
        return "no time ratio" if not row["is_baseline"] else ""
    if row["stalled"]:
        return "refused: the loader stalls"
    if row["screen"]:
        return (
            f"{row['shared']} seeds: a screen, no verdict" if row["shared"] >= 3 else f"too few seeds: {row['shared']}"
        )
    if row["floor"] is None:
        return "no A/A floor: noise unknown"
    return f"{row['shared']} seeds, {100 * row['level']:.1f} %"


def _clock_text(row: Row) -> str:
    """What the clock alone differs by, beside the floor that also holds the spread of seeds."""
    noise = row["clock_noise"] if row["is_baseline"] else None
    return "" if noise is None else f"clock alone {plain.percent(noise)}"


def _key(value: float | None) -> float | str:
    """A sort key: what was not reached comes last, what is unknown is empty."""
    return "" if value is None else 1e300 if math.isinf(value) else value


def run_rows(place: Place) -> list[Row]:
    """One row per run, tuning trials last."""
    rows = []
    for run in sorted(place.runs, key=lambda r: (r.tuning, r.arm, r.seed))[:RUNS_ON_PAGE]:
        crossing = plain.number(run.metrics.get("time_to_target_s"))
        final = run.value(f"final_{place.metric}")
        kind = "tuning trial" if run.tuning else "alias" if run.arm.endswith(AA) else ""
        notes = [kind, "resumed" if run.resumed else "", run.reason]
        rows.append(
            {
                "arm": run.arm,
                "seed": run.seed,
                "status": run.status.replace("_", " "),
                "sign": theme.STATUSES.get(run.status, theme.UNKNOWN),
                "note": "; ".join(note for note in notes if note),
                "time": crossing,
                "time_text": plain.seconds(crossing),
                "steps_text": count_text(run.metrics.get("steps_to_target")),
                "final": final,
                "final_text": level_text(place.metric, final),
                "hyper": ", ".join(f"{k} = {_short(v)}" for k, v in run.hyper.items() if v is not None),
            }
        )
    return rows


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _counted(place: Place, arm: str) -> list[str]:
    """What the arm's optimizers counted over all seeds (failed factorisations, skipped batches), if they count."""
    totals: dict[str, int] = {}
    runs = [run.detail["counters"] for run in place.arms[arm].values() if run.detail.get("counters")]
    for counters in runs:
        for name, value in counters.items():
            totals[name] = totals.get(name, 0) + int(value)
    if not runs:
        return []
    told = [f"{name.replace('_', ' ')} {value}" for name, value in totals.items() if value]
    return [f"counted in {len(runs)} run{'' if len(runs) == 1 else 's'}: {', '.join(told) or 'no failure'}"]


def hyper_rows(place: Place) -> list[tuple[str, str]]:
    """Arm and its hyper-parameters with where each came from."""
    found = []
    for row in place.rows:
        run = max(place.arms[row["arm"]].values(), key=lambda r: r.utc)
        given = run.detail.get("hyper") or {}
        origins = run.detail.get("hyper_sources") or {
            k: v.get("from") for k, v in given.items() if isinstance(v, Mapping)
        }
        texts = [
            f"{k} = {_short(v)}" + (f" ({origins[k]})" if origins.get(k) else "")
            for k, v in row["hyper"].items()
            if v is not None
        ]
        coverage = run.detail.get("coverage") or {}
        covered = [f"{part}: {int(n):,} parameters" for part, n in coverage.items() if plain.number(n) is not None]
        found.append((row["arm"], "; ".join([", ".join(texts), *covered, *_counted(place, row["arm"])]) or plain.DASH))
    return found


def facts(place: Place) -> list[tuple[str, str]]:
    """What the workload is, for people."""
    told, goal, reference = place.described, place.goal, place.described.get("reference") or {}
    level = level_text(place.metric, place.level)
    source = str((told.get("target") or {}).get("source") or "")
    rows = [
        ("data", told.get("data")),
        ("batch", told.get("batch")),
        ("target", f"{plain.spoken(place.metric)} {'≥' if goal.get('larger_is_better', True) else '≤'} {level}"),
        ("source of the target", source),
        ("budget", f"{told['epochs']:g} epochs" if plain.number(told.get("epochs")) else None),
        ("precision", told.get("precision")),
        ("reference figure", f"{reference['value']}: {reference.get('what', '')}" if reference.get("value") else None),
        ("source of the reference", reference.get("source")),
        ("notes", told.get("notes")),
    ]
    return [(label, str(value)) for label, value in rows if value not in (None, "")]


def lead(place: Place) -> str:
    """The workload on one device in three sentences."""
    seeds = max((row["n"] for row in place.rows), default=0)
    summary = str(place.described.get("summary") or "").rstrip(".")
    text = f"{summary[:1].upper()}{summary[1:]}. " if summary else ""
    if not place.rows:
        trials = sum(map(len, place.trials.values()))
        return f"{text}Only {plain.count(trials, 'tuning trial')} so far: no run stands for a result."
    level = level_text(place.metric, place.level)
    text += (
        f"{plain.count(len(place.rows), 'method')} trained on up to {plain.count(seeds, 'seed')} until "
        f"{plain.spoken(place.metric)} reaches {level}. "
    )
    short = [row for row in place.rows if row.get("shortened")]
    lengths = sorted({f"{row['hyper'].get('epochs'):g}" for row in short})
    if lengths and len(short) < len(place.rows):
        text += (
            f"Of {', '.join(str(row['arm']) for row in short)} only the first part of a training is there "
            f"({', '.join(lengths)} epochs), so that they may have missed what a whole one reaches. "
        )
    elif lengths:
        return (
            f"{text}Their length was set by hand ({', '.join(lengths)} epochs), so that they tell the cost of an "
            f"update and not whether a method reaches the target."
        )
    reached = [row for row in place.rows if math.isfinite(row["median_s"])]
    if not reached:
        return text + "No method reaches it in most of its runs."
    best = min(reached, key=lambda row: row["median_s"])
    text += f"{best['arm']} is first with a median of {plain.seconds(best['median_s'])} and {best['hits']} of "
    text += f"{plain.count(best['n'], 'run')} successful."
    if seeds < 6:
        text += f" {plain.count(seeds, 'seed')} can only screen: a verdict needs six."
    return text


def overview(found: list[Place]) -> list[Row]:
    """One row per place for the front page."""
    rows = []
    for place in found:
        reached = [row for row in place.rows if math.isfinite(row["median_s"])]
        best = min(reached, key=lambda row: row["median_s"]) if reached else None
        judged = [row for row in place.rows if row["side"] in ("faster", "slower", "level")]
        texts = [f"{SIDES[row['side']][0]} {row['method'].split('.', 1)[-1]} {ratio_text(row)}" for row in judged]
        seeds = [row["n"] for row in place.rows]
        rows.append(
            {
                "anchor": plain.anchor("training", place.workload, place.device),
                "workload": place.workload,
                "summary": plain.shorten(str(place.described.get("summary") or ""), 90),
                "device": place.device,
                "page": f"{place.slug}.html",
                "target_text": f"{plain.spoken(place.metric)} {level_text(place.metric, place.level)}",
                "hits": [f"{row['method'].split('.', 1)[-1]} {row['hits']}/{row['n']}" for row in place.rows],
                "best": best["arm"] if best else plain.DASH,
                "time": _key(best["median_s"]) if best else "",
                "time_text": plain.seconds(best["median_s"]) if best else "not reached",
                "against": texts or ["no verdict yet" if len(place.rows) > 1 else plain.DASH],
                "seeds": f"{min(seeds)}–{max(seeds)}"
                if seeds and min(seeds) < max(seeds)
                else str(max(seeds, default=0)),
                "trials": sum(map(len, place.trials.values())),
            }
        )
    return rows


def ratio_text(row: Row) -> str:
    """The estimate, or the bound that misses of one side leave."""
    ratio, low, high = (plain.number(row[name]) for name in ("ratio", "low", "high"))
    if ratio is not None:
        return plain.times(ratio)
    if low and high is None:
        return f"over {plain.times(low)}"
    return f"under {plain.times(high)}" if high is not None and not low else plain.interval(low, high)


def flat(found: list[Place]) -> list[Row]:
    """Summary rows of numbers, for downloads."""
    skipped = ("hyper", "target", "statuses", "reasons", "file")
    return [
        {**{k: v for k, v in row.items() if k not in skipped}, "device": place.device, "file": plain.base(row["file"])}
        for place in found
        for row in place.rows
    ]


def where(found: list[Place]) -> dict[str, list[Row]]:
    """Method -> device and what it did there, for the method's card."""
    told: dict[str, list[Row]] = {}
    for place in found:
        for row in place.rows:
            text = f"{place.workload}: {row['hits']} of {row['n']} runs reached the target"
            told.setdefault(row["method"], []).append({"device": place.device, "text": text, "why": ""})
    return told
