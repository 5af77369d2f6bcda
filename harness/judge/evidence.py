"""From a frame of stored runs to the numbers that a claim needs, never mixing files or environments in one ratio."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from statistics import median
from typing import TYPE_CHECKING, Any

from harness.judge import completed, stats, trained_runs
from harness.judge.claim import ENERGY, Claim

if TYPE_CHECKING:
    import pandas as pd

#: Statuses that mean a wrong answer; an error or a missing need is not one.
WRONG = frozenset({"inaccurate", "unfaithful", "nonfinite", "impure"})
#: Metrics that the allocator or arithmetic counts exactly: one value is the whole population.
COUNTED = frozenset(
    {"peak_device_bytes", "optimizer_state_bytes", "held_bytes", "executed_flops", "bytes_read", "multiplies"}
)
#: Metric of a whole call.
WHOLE = "op_s"
#: Rows with the same values here were made by one invocation in one environment.
IDENTITY = ("file", "device", "commit", "protocol", "threads", "precision")
COLUMNS = (
    *("run", "phase", "method", "problem", "workload", "seed", "block", "arm", "status", "reason", "metric", "clock"),
    *("value", "samples", "device", "threads", "commit", "protocol", "precision", "conditions", "discarded", "utc"),
    *("file", "detail"),
)
_DIFFERENCE = re.compile(r"^(\w+)\s+-\s+(\w+)$")

Unit = tuple[Any, ...]
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One problem's values per unit (a block, or a seed of the gate) for both arms and for the A/A pair."""

    problem: str
    candidate: Mapping[Unit, float]
    baseline: Mapping[Unit, float]
    aa: tuple[Mapping[Unit, float], Mapping[Unit, float]]
    clocks: frozenset[str]

    @property
    def measured(self) -> bool:
        """Whether both arms share a unit."""
        return any(unit in self.candidate for unit in self.baseline)

    @property
    def has_aa(self) -> bool:
        """Whether the suite's baseline and its alias share a unit."""
        return any(unit in self.aa[1] for unit in self.aa[0])


@dataclass(frozen=True, kw_only=True)
class Group:
    """The rows of one invocation in one environment, as plain dictionaries.

    ``also`` tells what others added to it, ``threads`` in what its threads differ from the source's.
    """

    rows: tuple[Row, ...]
    file: str
    device: str
    utc: str
    tier: str
    also: tuple[str, ...] = ()
    threads: str = ""


def matching(claim: Claim, runs: pd.DataFrame) -> pd.DataFrame:
    """Rows of the claim's candidate or baseline on its problems or workload, old ones too (:func:`speaking`)."""
    runs = complete(runs)
    mine = runs[runs["method"].isin([claim.candidate, claim.baseline])]
    return mine[_concerned(claim, mine)]


def speaking(claim: Claim, runs: pd.DataFrame) -> pd.DataFrame:
    """Without the rows from before the claim's ``since``, and of an absolute number without those of other threads."""
    runs = recent(claim, runs)
    if claim.threads is not None and claim.baseline is None and not runs.empty:
        runs = runs[runs["threads"] == claim.threads]
    return runs


def recent(claim: Claim, runs: pd.DataFrame) -> pd.DataFrame:
    """Without the rows from before the claim's ``since``."""
    if claim.since is None or runs.empty:
        return runs
    return runs[runs["utc"].astype(str) >= claim.since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")]


def _concerned(claim: Claim, runs: pd.DataFrame) -> pd.Series[bool]:
    if claim.workload is not None:
        return runs["workload"] == claim.workload
    known = [p for p in runs["problem"].dropna().unique() if claim.concerns(str(p))]
    return runs["problem"].isin(known)


def complete(runs: pd.DataFrame) -> pd.DataFrame:
    """The frame with every column that judging reads (a hand-made one may lack some)."""
    missing = [name for name in COLUMNS if name not in runs.columns]
    return runs.assign(**dict.fromkeys(missing)) if missing else runs


def groups(claim: Claim, runs: pd.DataFrame, headers: Iterable[Mapping[str, Any]]) -> list[Group]:
    """The invocations that touched the claim, with *all* their rows on its problems (the A/A arm and rivals too).

    A claim whose arms differ in their settings joins the invocations of one device and commit: no times enter it. A
    training that was planned and not finished is completed (:mod:`harness.judge.completed`).
    """
    identity = ("device", "commit") if claim.across else IDENTITY
    known = {str(h.get("file")): h for h in headers}
    tiers = {file: str(h.get("plan", {}).get("tier", "")) for file, h in known.items()}
    runs = speaking(claim, complete(runs))
    touched = matching(claim, runs)
    runs = _relevant(claim, runs[runs["file"].isin(set(touched["file"]))])
    gathered: dict[tuple[str, ...], list[Row]] = {}
    for row in runs[list(COLUMNS)].astype(object).to_dict("records"):
        gathered.setdefault(tuple(_text(row[name]) for name in identity), []).append(
            {str(key): None if absent(value) else value for key, value in row.items()}
        )
    arms = {claim.candidate, claim.baseline}
    found = []
    for rows in gathered.values():
        if not any(row["method"] in arms and _concerns(claim, row["problem"], row["workload"]) for row in rows):
            continue
        utc, file = max((_text(row["utc"]), _text(row["file"])) for row in rows)
        device = _text(rows[0]["device"])
        tier, threads = tiers.get(file, ""), _other_threads(claim, rows[0])
        found.append(Group(rows=tuple(rows), file=file, device=device, utc=utc, tier=tier, threads=threads))
    if claim.workload is None or claim.across:
        return found
    return [completed.complete(claim, group, found, known.get(group.file, {})) for group in found]


def _other_threads(claim: Claim, row: Row) -> str:
    """What a verdict says of runs with other threads than the source's."""
    used = row["threads"]
    if claim.threads is None or used == claim.threads:
        return ""
    told = "an unknown number of threads" if used is None else f"{int(used)} threads"
    return f"runs with {told}, the source's with {claim.threads}"


def _relevant(claim: Claim, runs: pd.DataFrame) -> pd.DataFrame:
    """Rows that judging reads: the claim's arms, the A/A pair, anchored times; only the metrics that count."""
    names = {claim.candidate, claim.baseline}
    names |= set(runs.loc[runs["arm"].astype(str).str.endswith("#aa"), "method"].unique())
    wanted = {(a.method, a.problem) for a in claim.anchors}
    anchored = runs["method"].isin([m for m, _ in wanted]) & runs["problem"].isin([p for _, p in wanted])
    ours = runs["method"].isin(names) | (claim.kind == "only-reaches")
    runs = runs[(_concerned(claim, runs) & ours) | anchored]
    metrics = {claim.metric, claim.error_metric, *claim.metric.split(" - "), *(a.metric for a in claim.anchors)}
    metrics |= {WHOLE} if claim.timed else set()
    # The first row of a case stays whatever its metric, so that a verdict can tell "ran without it" from "never ran".
    failed = ~runs["status"].isin(["passed", "target_reached"]) | ~runs.duplicated(["file", "method", "problem"])
    if claim.workload is not None:
        metrics |= {claim.guard.metric if claim.guard else None, *trained_runs.NEEDED}
        failed = runs["run"].isna() | ~runs.duplicated(["file", "run"])
    return runs[runs["metric"].isin(metrics) | runs["metric"].isna() | failed]


def choose(claim: Claim, candidates: Sequence[Group]) -> Group:
    """The invocation that speaks for a device.

    One with both arms (or with a wrong answer of the candidate) before one without; six blocks before fewer; more of
    the claim's problems before fewer; the source's threads before others; a standard or full tier before a quick one;
    then the newest. Of trainings the one with enough seeds of both arms.
    """
    if claim.workload is not None:
        return max(candidates, key=lambda group: _seeds_rank(claim, group))

    def rank(group: Group) -> tuple[bool, bool, int, bool, bool, str, str]:
        found = cells(claim, group)
        measured = any(cell.measured for cell in found)
        if claim.baseline is None:
            measured = measured or any(cell.candidate for cell in found)
        wrong = _status_of(group, claim, claim.candidate, WRONG) is not None
        blocks = max((len(cell.candidate) for cell in found), default=0)
        enough = blocks >= stats.MIN_BLOCKS or wrong or not claim.scatters
        covered = len(found) + 1 if wrong else sum(cell.measured for cell in found)
        return measured or wrong, enough, covered, not group.threads, group.tier != "quick", group.utc, group.file

    return max(candidates, key=rank)


def _seeds_rank(claim: Claim, group: Group) -> tuple[int, bool, bool, str, str]:
    """More seeds of the scarcer arm before fewer, up to a verdict's; whole schedules where ends count; tier; age."""
    runs = trained_runs.from_rows(row for row in group.rows if row["workload"] == claim.workload)
    sides = [trained_runs.counting(runs, claim.candidate, claim.hyper, claim.metric)]
    if claim.baseline is not None:
        sides.append(trained_runs.counting(runs, claim.baseline, claim.baseline_hyper, claim.metric))
    seeds = min(stats.MIN_BLOCKS, *(len(side) for side in sides))
    cut = any(run.stopped_early for side in sides for run in side.values())
    whole = not (cut and claim.metric.startswith(("final_", "best_")))
    return seeds, whole, group.tier != "quick", group.utc, group.file


def cells(claim: Claim, group: Group) -> list[Cell]:
    """One cell for each of the claim's problems that the invocation holds."""
    by_problem: dict[str, list[Row]] = {}
    for row in group.rows:
        if row["problem"] is not None and claim.concerns(row["problem"]):
            by_problem.setdefault(row["problem"], []).append(row)
    elsewhere = by_problem.pop(claim.baseline_problem, []) if claim.baseline_problem is not None else None
    return [_cell(claim, problem, rows, elsewhere) for problem, rows in sorted(by_problem.items(), key=_by_size)]


def _cell(claim: Claim, problem: str, rows: list[Row], elsewhere: list[Row] | None) -> Cell:
    """``elsewhere``: the baseline's rows where they belong to a problem of its own."""
    discarded = {row["block"] for row in rows if row["phase"] == "block" and row["discarded"]}
    kept = [row for row in rows if row["block"] is None or row["block"] not in discarded]
    aliases = {row["method"]: row["arm"] for row in kept if str(row["arm"]).endswith("#aa")}
    suite_baseline = next(iter(sorted(aliases)), None)
    clocks: set[str] = set()

    def arm(name: str | None) -> dict[Unit, float]:
        return {} if name is None else values(kept, name, claim.metric, claim.clock, clocks)

    candidate, baseline = arm(claim.candidate), arm(claim.baseline)
    if elsewhere is not None and claim.baseline is not None:
        baseline = values(elsewhere, claim.baseline, claim.metric)
    found = frozenset(clocks)
    pair: tuple[dict[Unit, float], dict[Unit, float]] = ({}, {})
    # The rounding errors of a suite's exact baseline say nothing about those of two other methods.
    if suite_baseline is not None and (claim.scatters or suite_baseline in (claim.candidate, claim.baseline)):
        pair = (arm(suite_baseline), arm(aliases[suite_baseline]))
    if suite_baseline is not None and claim.timed and not pair[0]:
        # A part of the operation that the baseline has not (encoding): the noise is that of whole calls beside it.
        names = (suite_baseline, aliases[suite_baseline])
        pair = (values(kept, names[0], WHOLE, claim.clock), values(kept, names[1], WHOLE, claim.clock))
    return Cell(problem=problem, candidate=candidate, baseline=baseline, aa=pair, clocks=found)


def values(
    rows: Sequence[Row], arm: str, metric: str, clock: str | None = None, clocks: set[str] | None = None
) -> dict[Unit, float]:
    """Values of one arm by unit: ``("block", b)``, ``("memory", i)`` or ``("seed", i)`` of the gate.

    A time is read only from runs that passed; an error from runs of any status that carry it.
    """
    difference = _DIFFERENCE.match(metric)
    if difference:
        left, right = (values(rows, arm, name, clock, clocks) for name in difference.groups())
        return {unit: left[unit] - right[unit] for unit in left if unit in right}
    found: dict[Unit, float] = {}
    timed = metric.endswith("_s")
    for row in rows:
        if row["arm"] != arm or row["metric"] != metric or (timed and row["status"] != "passed"):
            continue
        if clock is not None and not str(row["clock"]).startswith(clock):
            continue
        if clocks is not None and row["clock"] is not None:
            clocks.add(str(row["clock"]))
        if row["phase"] == "block":
            found["block", int(row["block"])] = float(row["value"])
        elif row["phase"] == "memory":
            samples = row["samples"] if row["samples"] is not None and metric != ENERGY else [row["value"]]
            found.update({("memory", i): float(sample) for i, sample in enumerate(samples)})
        elif row["phase"] == "gate":
            samples = row["samples"] if row["samples"] is not None else [row["value"]]
            found.update({("seed", i): float(sample) for i, sample in enumerate(samples)})
    if metric == ENERGY and any(unit[0] == "block" for unit in found):
        return {unit: value for unit, value in found.items() if unit[0] == "block"}
    return found


def error_ratio(claim: Claim, group: Group, problems: Sequence[str]) -> float | None:
    """Candidate's error ÷ baseline's: geometric mean over problems of the ratio of medians; None if unrecorded.

    Infinite where the baseline makes no error at all and the candidate does; one where neither does.
    """
    logs = []
    for problem in problems:
        rows = [row for row in group.rows if row["problem"] == problem]
        medians = []
        for name in (claim.candidate, claim.baseline):
            found = list(values(rows, str(name), str(claim.error_metric)).values())
            medians.append(median(found) if found else math.nan)
        if not all(math.isfinite(m) and m >= 0 for m in medians):
            return None
        if medians[1] == 0 < medians[0]:
            return math.inf
        if medians[0] != medians[1]:
            logs.append(math.log(medians[0]) - math.log(medians[1]) if medians[0] else -math.inf)
        else:
            logs.append(0.0)
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


def wrong_answer(claim: Claim, group: Group) -> Row | None:
    """The first run in which the candidate gave a wrong answer on one of the claim's problems."""
    return _status_of(group, claim, claim.candidate, WRONG)


def hindrance(claim: Claim, rows: Iterable[Row], method: str | None) -> str | None:
    """Why ``method`` has no number: the reason of its worst run, else None when it has no run at all."""
    seen = None
    for row in rows:
        if row["method"] != method or str(row["arm"]).endswith("#aa"):
            continue
        if row["status"] not in ("passed", "target_reached"):
            return f"{method} is {row['status']}: {row['reason']}"
        seen = f"{method} has no {claim.metric}" + (f" on the clock {claim.clock!r}" if claim.clock else "")
    return seen


def _status_of(group: Group, claim: Claim, method: str, statuses: frozenset[str]) -> Row | None:
    for row in group.rows:
        if row["method"] == method and row["status"] in statuses and _concerns(claim, row["problem"], row["workload"]):
            return row
    return None


def _concerns(claim: Claim, problem: Any, workload: Any) -> bool:
    if claim.workload is not None:
        return bool(workload == claim.workload)
    return isinstance(problem, str) and claim.concerns(problem)


def shape(problem: str) -> tuple[int, ...]:
    """Dimensions in a problem's id: ``gaussian-128x512x512-bfloat16-cuda`` -> (128, 512, 512)."""
    return tuple(int(part) for part in problem.split("-")[1].split("x"))


def _by_size(item: tuple[str, Any]) -> tuple[float, str]:
    try:
        return float(math.prod(shape(item[0]))), item[0]
    except (ValueError, IndexError):
        return math.inf, item[0]


def absent(value: Any) -> bool:
    """Whether a cell of the frame is empty: None, NaN or pandas' own missing value."""
    return value is None or type(value).__name__ == "NAType" or (isinstance(value, float) and math.isnan(value))


def _text(value: Any) -> str:
    return "" if absent(value) else str(value)
