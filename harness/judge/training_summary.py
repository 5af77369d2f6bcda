"""What some training runs amount to: one row per workload and arm, hits over time, and the best of k tuning trials."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Any

from harness.judge import stats, trained_runs
from harness.judge.stats import Hit, RatioEstimate
from harness.judge.trained_runs import AA, Trained

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
TIME = "time_to_target_s"
MEMORY = ("peak_device_bytes", "peak_host_bytes")


def rows(frame: pd.DataFrame) -> list[Row]:
    """One row per device, workload and arm, from the newest file with most seeds of that arm.

    Args:
        frame: as :func:`harness.read_runs` returns it.

    Returns:
        Rows with the keys of :func:`summary`; a ratio is formed inside one file only.
    """
    return [row for runs in by_place(trained_runs.from_frame(frame)).values() for row in summary(runs)]


def by_place(runs: Iterable[Trained]) -> dict[tuple[str, str], list[Trained]]:
    """Runs by (device, workload), in order of appearance."""
    found: dict[tuple[str, str], list[Trained]] = {}
    for run in runs:
        found.setdefault((run.device, run.workload), []).append(run)
    return found


def speaking(runs: Iterable[Trained]) -> dict[str, dict[int, Trained]]:
    """Arm -> seed -> run: of each arm one file.

    One with enough seeds for a verdict comes before one with fewer, then one by the recipe before one with values from
    the command line, then the newest. The alias of a baseline comes from the baseline's own file. Runs of another
    length than the workload's speak where no others are; beside others the longest first parts of a training speak for
    an arm that has no whole one.
    """
    by_file: dict[str, list[Trained]] = {}
    for run in _lasting(list(runs)):
        by_file.setdefault(run.file, []).append(run)
    best: dict[str, tuple[tuple[int, bool, str], dict[int, Trained]]] = {}
    for own in by_file.values():
        for arm in dict.fromkeys(run.arm for run in own):
            kept = trained_runs.counting(own, arm)
            if not kept:
                continue
            by_recipe = not any(run.by_hand for run in kept.values())
            rank = (min(len(kept), stats.MIN_BLOCKS), by_recipe, max(run.utc for run in kept.values()))
            if arm not in best or rank > best[arm][0]:
                best[arm] = (rank, kept)
    return {arm: kept for arm, (_, kept) in best.items()}


def _lasting(every: list[Trained]) -> list[Trained]:
    """The runs of the workload's own length, and for an arm without any its longest first parts; else all.

    One that was ended at a nearer level, as asked, is neither: it speaks for that level alone.
    """
    whole = [run for run in every if not run.shortened and run.watched(None)]
    known = {run.arm for run in whole}
    parts = [run for run in every if run.shortened and run.prefix and run.arm not in known]
    longest = {arm: max(_epochs(run) for run in own) for arm, own in trained_runs.arms(parts).items()}
    return [*whole, *(run for run in parts if _epochs(run) == longest[run.arm])] if whole else every


def _epochs(run: Trained) -> float:
    return float(run.hyper.get("epochs") or 0.0)


def target(runs: Iterable[Trained]) -> Mapping[str, Any]:
    """The target that the newest run was trained to: ``metric``, ``value``, ``larger_is_better``; empty if unknown."""
    told = [run for run in runs if run.detail.get("target")]
    return max(told, key=lambda run: run.utc).detail["target"] if told else {}


def baseline_of(arms: Iterable[str]) -> str | None:
    """The arm that has an A/A alias, else None."""
    return next((arm.removesuffix(AA) for arm in arms if arm.endswith(AA)), None)


def summary(runs: Sequence[Trained], baseline: str | None = None) -> list[Row]:
    """One row per arm (aliases excluded) of one device and workload.

    ``median_s`` is infinite when half of the runs missed; ``mean_s`` is the restricted mean up to ``horizon_s``, the
    shortest budget of any missed run. ``ratio`` is baseline ÷ arm in time to target with interval and A/A floor.
    """
    arms = speaking(runs)
    base = baseline or baseline_of(arms) or next(iter(arms), None)
    horizon = _horizon(arms.values())
    goal = target([run for kept in arms.values() for run in kept.values()])
    found = []
    for arm, kept in arms.items():
        if not arm.endswith(AA):
            row = _row(arm, kept, horizon, goal)
            found.append({**row, "is_baseline": arm == base, **_against(arms, runs, str(base), arm, row["file"])})
    return found


def _row(arm: str, kept: Mapping[int, Trained], horizon: float | None, goal: Mapping[str, Any]) -> Row:
    own = list(kept.values())
    hits, n = sum(run.reached for run in own), len(own)
    low, high = stats.wilson(hits, n)
    metric = str(goal.get("metric") or "")
    finals = _present(own, f"final_{metric}")
    memory = next((name for name in MEMORY if _present(own, name)), None)
    last = max(own, key=lambda run: run.utc)
    return {
        "device": last.device,
        "workload": last.workload,
        "method": last.method,
        "arm": arm,
        "file": last.file,
        "n": n,
        "hits": hits,
        "rate": hits / n,
        "rate_low": low,
        "rate_high": high,
        "statuses": dict(Counter(run.status for run in own)),
        "reasons": sorted({run.reason for run in own if run.reason and not run.reached}),
        "resumed": sum(run.resumed for run in own),
        "stopped": sum(run.stopped_early for run in own),
        "median_s": median_hit([_quiet_hit(run, TIME) for run in own]),
        "mean_s": restricted_mean([_quiet_hit(run, TIME) for run in own], horizon) if horizon else None,
        "horizon_s": horizon,
        "steps": median_hit([_quiet_hit(run, "steps_to_target") for run in own]),
        "samples": median_hit([_quiet_hit(run, "samples_to_target") for run in own]),
        "final_metric": f"final_{metric}" if finals else None,
        "final_mean": fmean(finals) if finals else None,
        "final_sd": stdev(finals) if len(finals) > 1 else None,
        "peak_metric": memory,
        "peak_bytes": median(_present(own, memory)) if memory else None,
        "state_bytes": _middle(own, "optimizer_state_bytes"),
        "step_s": _middle(own, "step_s"),
        "optimizer_share": _middle(own, "optimizer_share"),
        "stall": trained_runs.stall(own),
        "energy_j": _middle(own, "energy_j"),
        "hyper": last.hyper,
        "shortened": last.shortened,
        "target": dict(goal),
    }


def _quiet_hit(run: Trained, metric: str) -> Hit:
    """A description never fails: a budget that was not recorded is 0, which says nothing."""
    try:
        return run.hit(metric)
    except ValueError:
        return Hit(value=None, budget=0.0)


def _present(runs: Iterable[Trained], metric: str) -> list[float]:
    found = [run.value(metric) for run in runs]
    return [value for value in found if value is not None and math.isfinite(value)]


def _middle(runs: Iterable[Trained], metric: str) -> float | None:
    found = _present(runs, metric)
    return median(found) if found else None


def median_hit(hits: Sequence[Hit]) -> float:
    """Median time to the target, a miss counting as infinite."""
    return median([math.inf if hit.value is None else hit.value for hit in hits])


def restricted_mean(hits: Sequence[Hit], horizon: float) -> float:
    """Mean of min(time, horizon); exact while no run was given up before the horizon."""
    return fmean(min(math.inf if hit.value is None else hit.value, horizon) for hit in hits)


def _horizon(arms: Iterable[Mapping[int, Trained]]) -> float | None:
    """The shortest known budget of a missed run of any arm; without a miss the longest time."""
    hits = [_quiet_hit(run, TIME) for kept in arms for run in kept.values()]
    budgets = [hit.budget for hit in hits if hit.value is None and hit.budget > 0]
    return min(budgets) if budgets else max((hit.value for hit in hits if hit.value is not None), default=None)


def _against(arms: Mapping[str, Mapping[int, Trained]], runs: Sequence[Trained], base: str, arm: str, file: str) -> Row:
    """Ratio to the baseline in time to target, inside the arm's own file.

    Resumed and braked runs, and those with others beside them, have no time.
    """
    braked = trained_runs.untimed(runs)
    own = [r for r in runs if r.file == file and r.alone and (r.file, r.seed) not in braked]
    first, second = trained_runs.counting(own, base), trained_runs.counting(own, arm)
    estimate = None if arm == base else time_ratio(first, second)
    aa = time_ratio(first, trained_runs.counting(own, base + AA))
    floor = None if aa is None else stats.floor_of(aa)
    side = None if estimate is None else side_of(estimate, floor, _stalled(first, second))
    return {
        "ratio": estimate.ratio if estimate else None,
        "low": estimate.low if estimate else None,
        "high": estimate.high if estimate else None,
        "level": estimate.level if estimate else None,
        "shared": estimate.n if estimate else 0,
        "floor": floor,
        "clock_noise": clock_noise(first, trained_runs.counting(own, base + AA)),
        "side": side,
        "screen": bool(estimate and not estimate.enough),
        "stalled": _stalled(first, second),
    }


def clock_noise(first: Mapping[int, Trained], alias: Mapping[int, Trained]) -> float | None:
    """What the clock alone differs by: the baseline and its alias do the same work an update, whatever their seeds.

    The floor of the paired ratio of their seconds an update, as a fraction; None with fewer than two pairs.
    """
    values = [
        {seed: value for seed, run in arm.items() if (value := run.value("step_s")) is not None and value > 0}
        for arm in (first, alias)
    ]
    if len(set(values[0]) & set(values[1])) < 2:
        return None
    return stats.noise_floor(*values)


def time_ratio(
    baseline: Mapping[int, Trained], candidate: Mapping[int, Trained], metric: str = TIME
) -> RatioEstimate | None:
    """Censored ratio over shared seeds; None where no seed is shared or none says anything."""
    if not set(baseline) & set(candidate):
        return None
    first, second = ({seed: _quiet_hit(run, metric) for seed, run in arm.items()} for arm in (baseline, candidate))
    estimate = stats.censored_ratio(first, second)
    return None if estimate.low == 0 and math.isinf(estimate.high) else estimate


def _stalled(*arms: Mapping[int, Trained]) -> bool:
    return any((trained_runs.stall(arm.values()) or 0.0) > trained_runs.STALL_LIMIT for arm in arms)


def side_of(estimate: RatioEstimate, floor: float | None, stalled: bool = False) -> str:
    """``faster`` or ``slower`` when a full interval clears the floor, ``level`` within it, else ``open``."""
    if not estimate.enough or floor is None or stalled:
        return "open"
    if estimate.low > 1 + floor:
        return "faster"
    if estimate.high < 1 / (1 + floor):
        return "slower"
    return "level" if estimate.low >= 1 / (1 + floor) and estimate.high <= 1 + floor else "open"


def hit_curve(runs: Iterable[Trained], metric: str = TIME) -> list[tuple[float, float]]:
    """Steps (t, fraction) of hits ÷ N: which share of all runs had reached the target by t.

    Every run stays in N: one that diverged or ran out of memory never hits. The last point is the longest time seen.
    """
    hits = [_quiet_hit(run, metric) for run in runs]
    times = sorted(hit.value for hit in hits if hit.value is not None)
    if not hits:
        return []
    points = [(0.0, 0.0), *((time, (place + 1) / len(hits)) for place, time in enumerate(times))]
    end = max([*times, *(hit.budget for hit in hits if hit.value is None)], default=0.0)
    return [*points, (end, points[-1][1])] if end > points[-1][0] else points


def trials(runs: Iterable[Trained]) -> dict[str, list[float]]:
    """Final metric of each tuning trial by arm; a trial without one counts as the worst of its workload."""
    own = [run for run in runs if run.tuning and run.status not in trained_runs.SILENT]
    goal = target(own)
    if not goal:
        return {}
    metric = f"final_{validation_name(str(goal['metric']))}"
    values = [run.value(metric) for run in own]
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return {}
    worst = min(known) if goal.get("larger_is_better", True) else max(known)
    found: dict[str, list[float]] = {}
    for run, value in zip(own, values, strict=True):
        found.setdefault(run.arm, []).append(value if value is not None and math.isfinite(value) else worst)
    return found


def validation_name(metric: str) -> str:
    """``test_accuracy`` -> ``val_accuracy``."""
    return f"val_{metric.removeprefix('test_')}" if metric.startswith("test_") else metric


def best_of_k(values: Sequence[float], larger_is_better: bool = True) -> list[float]:
    """Expected best of k = 1 … n trials drawn without replacement from n.

    With the values sorted from best, v_1 is the best of a draw of k when it is drawn: the i-th is the best of
    C(n − i, k − 1) of the C(n, k) draws, so E_k = Σ_i v_i·C(n − i, k − 1) ÷ C(n, k).
    """
    ordered, n = sorted(values, reverse=larger_is_better), len(values)
    return [
        math.fsum(v * math.comb(n - i, k - 1) for i, v in enumerate(ordered, 1)) / math.comb(n, k)
        for k in range(1, n + 1)
    ]
