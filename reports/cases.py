"""From stored runs to one plain row per case: what happened, how fast, how wrong, how large, against what floor.

Nothing is estimated here: medians, ratios, intervals and floors come from :mod:`harness.judge.stats`. A ratio is
formed inside one file only; the newest file that decides a case, with the usual number of threads, speaks for it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from harness.judge import stats
from reports import effects
from reports.plain import anchor, number

KEY = ["device", "task", "problem", "method"]
TIME = "op_s"
EXTRA_TIMES = ("op_hot_s", "op_graph_s", "first_call_s", "encode_s", "scan_s", "scan_hot_s", "scan_fix_up_s", "train_s",
               "table_s")  # fmt: skip
PEAKS = ("peak_device_bytes", "peak_host_bytes")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One method on one problem on one device, as the newest deciding file tells it.

    Attributes:
        anchor: permanent id of the row on the page of its device and task.
        threads: of the processor, in the run that speaks; None when unknown.
        status: the gate's status, or the status that ended the timing.
        reason: why there is no time; None when there is one.
        note: what a reader should know although there is a time.
        time_s: median over blocks; ``low_s`` and ``high_s`` are the 10 % and 90 % quantiles over blocks.
        times: further seconds by metric (hot L2, graph replay, first call, parts of the call, fitting).
        blocks: block number -> (median, 10 % quantile, 90 % quantile) of that block's inner samples, s.
        effect: speed-up over the baseline in the same file; None for the baseline and for untimed cases.
        noise: A/A noise floor of the problem as a fraction; None when it cannot be formed.
        alias: the baseline against its own second alias; None for every other method.
        errors: dimensionless metric -> median over the gate's seeds.
        amounts: other metrics that are no times, peaks or joules (bytes read, cache lines missed) -> median.
        detail: what the gate wrote beside its numbers: options, what really ran.
    """

    anchor: str
    device: str
    kind: str
    file: str
    task: str
    problem: str
    method: str
    status: str
    reason: str | None = None
    note: str = ""
    clock: str = ""
    threads: int | None = None
    time_s: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    times: Mapping[str, float] = field(default_factory=dict)
    blocks: Mapping[int, tuple[float, float, float]] = field(default_factory=dict)
    effect: effects.Effect | None = None
    noise: float | None = None
    alias: effects.Effect | None = None
    peak_bytes: float | None = None
    peak_metric: str = ""
    energy_j: float | None = None
    energy_reason: str = ""
    errors: Mapping[str, float] = field(default_factory=dict)
    amounts: Mapping[str, float] = field(default_factory=dict)
    floor_s: float | None = None
    floor_basis: str = ""
    is_baseline: bool = False
    command: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def floor_fraction(self) -> float | None:
        """Physical floor divided by the measured time: 1 means nothing is left to gain."""
        return self.floor_s / self.time_s if self.floor_s and self.time_s else None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the headers say about a file's suite of one task."""

    suite: str
    tier: str
    baseline: str | None


def prepare(runs: pd.DataFrame, headers: list[dict[str, Any]]) -> pd.DataFrame:
    """Runs of micro problems with the device that really worked and the age of their file.

    On a machine with a GPU a CPU problem runs on the CPU, so its device is the header's ``cpu``.
    """
    frame = runs[runs["problem"].notna()].copy()
    processors = {h["file"]: h.get("environment", {}).get("cpu") for h in headers}
    on_cpu = (frame["device_kind"] == "cuda") & frame["problem"].str.endswith("-cpu")
    if on_cpu.any():
        frame.loc[on_cpu, "device"] = frame.loc[on_cpu, "file"].map(processors).fillna("CPU")
        frame.loc[on_cpu, "device_kind"] = "cpu"
    frame["device"] = frame["device"].fillna("unknown device")
    born = {h["file"]: str(h.get("utc", "")) for h in headers}
    order = {file: rank for rank, (file, _) in enumerate(sorted(born.items(), key=lambda item: (item[1], item[0])))}
    frame["age"] = frame["file"].map(order).fillna(-1)
    return frame


def plans(headers: list[dict[str, Any]]) -> dict[tuple[str, str], Plan]:
    """(file, task) -> plan."""
    found = {}
    for header in headers:
        plan = header.get("plan", {})
        for suite in plan.get("suites", []):
            found[header["file"], suite["task"]] = Plan(
                suite=suite["name"], tier=plan.get("tier", "standard"), baseline=suite.get("baseline")
            )
    return found


def cases(runs: pd.DataFrame, headers: list[dict[str, Any]]) -> list[Case]:
    """One row per (device, task, problem, method), ordered by device, task, problem and method.

    Args:
        runs: as :func:`harness.record.store.read_runs` returns them.
        headers: as :func:`harness.record.store.read_headers` returns them.
    """
    if runs.empty:
        return []
    frame = prepare(runs, headers)
    if frame.empty:
        return []
    known = plans(headers)
    baselines = {key: plan.baseline for key, plan in known.items()}
    chosen = _deciding(frame)
    timed = effects.timed_blocks(frame)
    names = ("file", "task", "problem", "method")
    wanted: list[effects.Arm] = list(zip(*(chosen[name] for name in names), strict=True))
    measured = effects.per_problem(timed, baselines, wanted)
    parts = _Parts(frame.merge(chosen, on=[*KEY, "file"]), timed.merge(chosen, on=[*KEY, "file"]))
    return _ordered([_case(key, parts, known, measured) for key in parts.first], headers)


def _ordered(found: list[Case], headers: list[dict[str, Any]]) -> list[Case]:
    """Problems in the plan's order; methods in the header's, those with a time before those without any."""
    plan: dict[str, int] = {}
    for header in headers:
        for suite in header.get("plan", {}).get("suites", []):
            for described in suite.get("problems", []):
                plan.setdefault(described["id"], len(plan))
    named = dict.fromkeys(method["name"] for header in headers for method in header.get("methods") or [])
    methods = {name: place for place, name in enumerate(named)}
    devices = {name: place for place, name in enumerate(dict.fromkeys(case.device for case in found))}
    timed = {(case.device, case.method) for case in found if case.time_s is not None}
    tried = {(case.device, case.method) for case in found if case.status != "unsupported"}

    def place(case: Case) -> tuple[int, str, int, str, bool, bool, int, str]:
        who = (case.device, case.method)
        problem = (plan.get(case.problem, len(plan)), case.problem)
        rank = (who not in timed, who not in tried, methods.get(case.method, len(methods)), case.method)
        return devices[case.device], case.task, *problem, *rank

    return sorted(found, key=place)


def _deciding(frame: pd.DataFrame) -> pd.DataFrame:
    """The file that speaks for each case, chosen as for claims.

    One that timed or refused the case before one that did not; six counting blocks before fewer; on a processor as many
    threads as most decided cases of the task have, so that those of a page stand beside each other on equal terms,
    before others; then the newest.
    """
    once = frame.drop_duplicates("run")
    block = (once["phase"] == "block") & (once["status"] == "passed")
    refused = (once["phase"] == "gate") & (once["status"] != "passed")
    counting = block & once["discarded"].isna() & (once["arm"] == once["method"])
    weighed = once.assign(
        weight=(block | refused).astype(int) * 2 + (once["phase"] != "plan").astype(int),
        counting=counting.astype(int),
        refused=refused,
        cpu=once["device_kind"] != "cuda",
    )
    groups = weighed.groupby([*KEY, "file"], as_index=False, sort=False)
    best = groups.agg(
        weight=("weight", "max"), blocks=("counting", "sum"), refused=("refused", "any"), age=("age", "max"),
        threads=("threads", "max"), cpu=("cpu", "all"),
    )  # fmt: skip
    best["enough"] = (best["blocks"] >= stats.MIN_BLOCKS) | best["refused"]
    best["threads"] = best["threads"].where(best["cpu"]).fillna(0)
    terms = ["device", "task", "threads"]
    decided = best[best["weight"] > 1].drop_duplicates([*KEY, "threads"])
    spread = decided.groupby(terms, as_index=False, sort=False).agg(cases=("method", "size"))
    best = best.merge(spread, on=terms, how="left").fillna({"cases": 0})
    best = best.sort_values(["weight", "enough", "cases", "age"], kind="stable").drop_duplicates(KEY, keep="last")
    return best[[*KEY, "file"]]


class _Parts:
    """The chosen runs, split by phase and keyed by case."""

    def __init__(self, frame: pd.DataFrame, timed: pd.DataFrame) -> None:
        once = frame.drop_duplicates("run")
        self.first = _by_key(once.drop_duplicates(KEY))
        self.gate = _by_key(once[once["phase"] == "gate"].drop_duplicates(KEY, keep="last"))
        self.plan = _by_key(once[once["phase"] == "plan"].drop_duplicates(KEY, keep="last"))
        self.memory = _by_key(once[once["phase"] == "memory"].drop_duplicates(KEY, keep="last"))
        bad = once[(once["phase"] == "block") & (once["status"] != "passed")]
        self.broken = _by_key(bad.drop_duplicates(KEY, keep="last"))
        self.discarded = _counts(once[(once["phase"] == "block") & once["discarded"].notna()])
        self.metrics = _metrics(frame[frame["phase"].isin(["gate", "memory"])])
        blocks = frame[(frame["phase"] == "block") & frame["discarded"].isna() & (frame["arm"] == frame["method"])]
        extra = blocks[blocks["metric"].isin(EXTRA_TIMES) | blocks["unit"].isin(["1", "J"])]
        self.block_metrics = _metrics(extra)
        self.blocks = _block_values(timed[timed["arm"] == timed["method"]])


def _by_key(frame: pd.DataFrame) -> dict[tuple[str, ...], dict[str, Any]]:
    columns = [*KEY, "device_kind", "file", "case", "status", "reason", "detail", "clock", "threads"]
    rows: list[dict[str, Any]] = frame[columns].to_dict("records")  # type: ignore[assignment]
    return {tuple(row[name] for name in KEY): row for row in rows}


def _counts(frame: pd.DataFrame) -> dict[tuple[str, ...], int]:
    own = frame[frame["arm"] == frame["method"]]
    sizes: dict[Any, int] = own.groupby(KEY, sort=False).size().to_dict()
    return {tuple(key): count for key, count in sizes.items()}


def _metrics(frame: pd.DataFrame) -> dict[tuple[str, ...], dict[str, tuple[float, str]]]:
    found: dict[tuple[str, ...], dict[str, tuple[float, str]]] = {}
    named = frame[frame["metric"].notna()]
    middle: dict[Any, float] = named.groupby([*KEY, "metric", "unit"], sort=False)["value"].median().to_dict()
    for key, value in middle.items():
        *case, metric, unit = key
        found.setdefault(tuple(case), {})[metric] = (float(value), unit)
    return found


def _block_values(timed: pd.DataFrame) -> dict[tuple[str, ...], dict[int, tuple[float, float, float]]]:
    found: dict[tuple[str, ...], dict[int, tuple[float, float, float]]] = {}
    columns = zip(*(timed[name] for name in (*KEY, "block", "value", "samples")), strict=True)
    for *key, block, value, samples in columns:
        ordered = sorted(samples)
        low, high = ordered[int(0.1 * (len(ordered) - 1))], ordered[math.ceil(0.9 * (len(ordered) - 1))]
        found.setdefault(tuple(key), {})[int(block)] = (float(value), float(low), float(high))
    return found


def _case(
    key: tuple[str, ...],
    parts: _Parts,
    known: Mapping[tuple[str, str], Plan],
    measured: Mapping[tuple[str, str, str, str], effects.Effect],
) -> Case:
    device, task, problem, method = key
    row = parts.first[key]
    plan = known.get((row["file"], task))
    blocks = parts.blocks.get(key, {})
    status, reason, note = _outcome(key, parts, bool(blocks))
    of_blocks = parts.block_metrics.get(key, {})
    metrics = {**of_blocks, **parts.metrics.get(key, {})}
    energy = of_blocks.get("call_energy_j") or metrics.get("call_energy_j")
    gate = parts.gate.get(key, {}).get("detail") or {}
    memory = parts.memory.get(key, {}).get("detail") or {}
    peak = next((name for name in PEAKS if name in metrics), "")
    values = np.array([block[0] for block in blocks.values()])
    arm = effects.ALIAS.format(plan.baseline if plan else "")
    alias = measured.get((row["file"], task, problem, arm))
    is_baseline = bool(plan and plan.baseline == method)
    return Case(
        anchor=anchor("case", f"{method}/{problem}"),
        device=device,
        kind=str(row["device_kind"]),
        file=row["file"],
        task=task,
        problem=problem,
        method=method,
        status=status,
        reason=reason,
        note=note,
        threads=int(row["threads"]) if number(row["threads"]) else None,
        clock="host" if row["device_kind"] == "cpu" else "op, cold L2",
        time_s=float(np.median(values)) if blocks else None,
        low_s=float(np.quantile(values, 0.1)) if blocks else None,
        high_s=float(np.quantile(values, 0.9)) if blocks else None,
        times={name: metrics[name][0] for name in EXTRA_TIMES if name in metrics},
        blocks=blocks,
        effect=measured.get((row["file"], task, problem, method)),
        noise=alias.noise if alias else None,
        alias=alias if is_baseline else None,
        peak_bytes=metrics[peak][0] if peak else None,
        peak_metric=peak,
        energy_j=energy[0] if energy else None,
        energy_reason=str(memory.get("energy", "")),
        errors={name: value for name, (value, unit) in sorted(metrics.items()) if unit in ("1", "")},
        amounts={
            name: value
            for name, (value, unit) in metrics.items()
            if unit not in ("1", "", "s", "J") and name not in PEAKS
        },
        floor_s=number(gate.get("floor_s")),
        floor_basis=str(gate.get("floor_basis", "")),
        is_baseline=is_baseline,
        command=command(plan, method),
        detail=gate,
    )


def _outcome(key: tuple[str, ...], parts: _Parts, timed: bool) -> tuple[str, str | None, str]:
    gate, broken = parts.gate.get(key), parts.broken.get(key)
    lost = parts.discarded.get(key, 0)
    plan = parts.plan.get(key)
    if not timed and (gate is None or (gate["status"] == "passed" and plan is not None)):
        plan = plan or parts.first[key]
        return str(plan["status"]), _text(plan["reason"]) or "no reason was recorded", ""
    if gate is not None and gate["status"] != "passed":
        return str(gate["status"]), _text(gate["reason"]) or "no reason was recorded", ""
    if timed:
        notes = [f"{lost} discarded block{'s' if lost > 1 else ''}"] if lost else []
        if broken is not None:
            notes.append(f"some blocks {broken['status']}: {_text(broken['reason'])}")
        return "passed", None, "; ".join(notes)
    if broken is not None:
        return str(broken["status"]), _text(broken["reason"]) or "no reason was recorded", ""
    if lost:
        return "unstable", "every block was discarded", ""
    return "interrupted", "passed its gate; no block was timed", ""


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def command(plan: Plan | None, method: str) -> str:
    """The command that measures this row again."""
    if plan is None:
        return f"speedclaim run --method {shlex.quote(method)}"
    return f"speedclaim run --suite {shlex.quote(plan.suite)} --tier {plan.tier} --method {shlex.quote(method)}"


def devices(found: list[Case]) -> Iterator[tuple[str, list[Case]]]:
    """Cases grouped by device, in order of first appearance."""
    groups: dict[str, list[Case]] = {}
    for case in found:
        groups.setdefault(case.device, []).append(case)
    yield from groups.items()
