"""The short table after a run: time, speed-up with interval and floor, errors and memory of every case of one file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.judge.stats import noise_floor, paired_ratio

if TYPE_CHECKING:
    import pandas as pd

AA = "#aa"


def rows(frame: pd.DataFrame, header: Mapping[str, Any], metric: str = "op_s") -> list[dict[str, Any]]:
    """One row per case, problems and methods in the plan's order.

    Args:
        frame: runs of one file, as :func:`harness.record.store.read_runs` gives them.
        header: the file's header.
        metric: the timing metric.

    Returns:
        Rows with ``method, problem, status, reason, time_s, speedup, low, high, level, floor, n, error, peak_bytes``;
        figures are None where there is nothing to say.
    """
    found: list[dict[str, Any]] = []
    for suite in header["plan"]["suites"]:
        of_task = frame[frame["task"] == suite["task"]]
        for problem in dict.fromkeys(of_task["problem"]):
            found.extend(_problem(of_task[of_task["problem"] == problem], suite, problem, metric))
    return found


def _problem(runs: pd.DataFrame, suite: Mapping[str, Any], problem: str, metric: str) -> list[dict[str, Any]]:
    timed = runs[(runs["phase"] == "block") & (runs["metric"] == metric) & runs["discarded"].isna()]
    by_arm: dict[str, dict[int, float]] = {
        str(arm): dict(zip(group["block"].astype(int), group["value"].astype(float), strict=True))
        for arm, group in timed.groupby("arm")
    }
    baseline = by_arm.get(suite["baseline"], {})
    alias = by_arm.get(suite["baseline"] + AA, {})
    both = set(baseline) & set(alias)
    floor = noise_floor(baseline, alias) if both else None
    order = {name: rank for rank, name in enumerate(suite["methods"])}
    names = sorted(dict.fromkeys(runs["method"]), key=lambda name: order.get(name, len(order)))
    return [_row(runs, name, problem, suite, by_arm, floor) for name in names]


def _row(
    runs: pd.DataFrame,
    name: str,
    problem: str,
    suite: Mapping[str, Any],
    by_arm: Mapping[str, Mapping[int, float]],
    floor: float | None,
) -> dict[str, Any]:
    mine = runs[runs["method"] == name]
    status, reason = _status(mine)
    row: dict[str, Any] = {"method": name, "problem": problem, "status": status, "reason": reason, "floor": floor,
                           "time_s": None, "speedup": None, "low": None, "high": None, "level": None, "n": 0,
                           "error": _first(mine, "gate", suite.get("primary_error", "")),
                           "peak_bytes": _first(mine, "memory", "peak_device_bytes") or
                           _first(mine, "memory", "peak_host_bytes")}  # fmt: skip
    times = by_arm.get(name, {})
    if status != "passed" or not times:
        return row
    ordered = sorted(times.values())
    row["time_s"], row["n"] = ordered[len(ordered) // 2], len(ordered)
    baseline = by_arm.get(suite["baseline"], {})
    if set(times) & set(baseline):
        ratio = paired_ratio(baseline, times)
        row |= {"speedup": ratio.ratio, "low": ratio.low, "high": ratio.high, "level": ratio.level}
    return row


def _status(mine: pd.DataFrame) -> tuple[str, str | None]:
    """The case's worst word: a failed block outweighs a passed gate, a passed gate outweighs a dropped plan."""
    for phase in ("block", "gate", "plan"):
        runs = mine[mine["phase"] == phase]
        failed = runs[runs["status"] != "passed"]
        if len(failed):
            return str(failed["status"].iloc[0]), str(failed["reason"].iloc[0])
    return ("passed", None) if len(mine) else ("unsupported", "not measured")


def _first(mine: pd.DataFrame, phase: str, metric: str) -> float | None:
    values = mine[(mine["phase"] == phase) & (mine["metric"] == metric)]["value"]
    return float(values.iloc[0]) if len(values) else None
