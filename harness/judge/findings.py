"""What stored runs of one operation say about a claim: one rule per kind, over the claim's problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from harness.judge import evidence, rules, stats
from harness.judge.claim import Claim
from harness.judge.evidence import Cell, Group
from harness.judge.rules import Outcome
from harness.judge.stats import RatioEstimate


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a kind's rule found in one invocation."""

    outcome: Outcome
    estimate: RatioEstimate | None = None
    floor: float | None = None
    problems: list[dict[str, Any]] = field(default_factory=list)
    used: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def on_problems(claim: Claim, group: Group) -> Finding:
    """Judge a claim about one operation by its kind.

    Raises:
        ValueError: the measurement itself is broken (several clocks, values that no ratio can be taken of).
    """
    if claim.kind == "often":
        return _often_cells(claim, group)
    cells = evidence.cells(claim, group)
    measured = [c for c in cells if (c.measured if claim.baseline is not None else c.candidate)]
    others = [_hole(claim, group, c) for c in cells if c not in measured]
    held = {c.problem for c in cells}
    absent = [p for p in claim.problems if not set(p) & set("*?[") and p not in held]
    others += [{"problem": p, "reason": "not in this run", "candidate": None, "baseline": None} for p in absent]
    wrong = evidence.wrong_answer(claim, group)
    if wrong is not None and claim.scatters and not (claim.kind == "speedup-up-to" and measured):
        why = f"wrong answer: {wrong['status']} on {wrong['problem']}: {wrong['reason']}"
        return Finding(outcome=Outcome(word="not reproduced", why=why), problems=others)
    if not measured:
        return Finding(outcome=no_number(claim, group, wrong), problems=others)
    clocks = frozenset().union(*(c.clocks for c in measured))
    if len(clocks) > 1:
        raise ValueError(f"several clocks in one ratio: {', '.join(sorted(clocks))}")
    finding = _RULES[claim.kind](claim, group, measured)
    if claim.guarded and claim.error_metric is not None:
        error = evidence.error_ratio(claim, group, finding.used)
        finding = replace(finding, outcome=rules.guard(finding.outcome, error, claim.error_metric))
        if error is not None:
            told = f"{claim.error_metric} {rules.times(error)}x the baseline's"
            finding = replace(finding, remarks=(*finding.remarks, told))
    total = len(measured) + len(others)
    reached = claim.kind == "speedup-up-to" and finding.outcome.word == "reproduced"
    if others and not reached and finding.outcome.word in ("reproduced", "partly", "not reproduced"):
        why = f"only {len(measured)} of the claim's {total} problems measured; there: {finding.outcome.word}"
        finding = replace(finding, outcome=Outcome(word="inconclusive", why=why))
    remark = (f"{len(others)} of {total} problems without a number",) if others else ()
    return replace(finding, problems=[*finding.problems, *others], remarks=(*finding.remarks, *remark))


def _mean_ratio(claim: Claim, cells: Sequence[Cell], level: float = stats.LEVEL) -> RatioEstimate:
    """Geometric mean over the cells, oriented so that larger is better.

    Seeds of errors that are too few within a problem are pooled over the problems: each (problem, seed) is a draw of
    its own, and the spread between problems only widens the interval. Timings are never pooled.
    """
    pairs = [(c.candidate, c.baseline) if claim.larger_is_better else (c.baseline, c.candidate) for c in cells]
    if not claim.timed and claim.metric not in evidence.COUNTED and len(cells) > 1:
        shared = set(pairs[0][0]).intersection(*(set(arm) for pair in pairs for arm in pair))
        if len(shared) < stats.MIN_BLOCKS:
            return stats.estimate([x for b, c in pairs for x in stats.log_ratios(b, c).values()], level)
    return _counted(claim, stats.grid_ratio(pairs, level))


def _counted(claim: Claim, estimate: RatioEstimate) -> RatioEstimate:
    """An exactly counted quantity has no sampling error: its single value is its interval."""
    return replace(estimate, level=1.0) if claim.metric in evidence.COUNTED else estimate


def _floor(claim: Claim, cells: Sequence[Cell]) -> float | None:
    """Noise floor of the cells together, from the suite baseline's A/A arm; None for times or joules without one."""
    pairs = [c.aa for c in cells if c.has_aa]
    if not claim.scatters:
        return max([stats.floor_of(stats.paired_ratio(*pair)) for pair in pairs], default=stats.MIN_FLOOR)
    if not pairs:
        return None
    joint = stats.floor_of(stats.grid_ratio(pairs))
    if len(pairs) == 1:
        return joint
    # Errors of several problems may cancel in their mean by luck; what they would average to is the least.
    single = median(stats.floor_of(stats.paired_ratio(*pair)) for pair in pairs)
    return max(joint, single / math.sqrt(len(pairs)))


def _rows(claim: Claim, cells: Sequence[Cell], level: float = stats.LEVEL) -> list[dict[str, Any]]:
    """One row per problem for the report: medians of both arms, ratio, interval, floor."""
    rows = []
    for cell in cells:
        estimate = _mean_ratio(claim, [cell], level)
        if claim.kind == "at-most":
            estimate = estimate.inverse()
        rows.append({"problem": cell.problem, **numbers(estimate), "floor": _floor(claim, [cell]), **_medians(cell)})
    return rows


def _medians(cell: Cell) -> dict[str, float | None]:
    arms = {"candidate": cell.candidate, "baseline": cell.baseline}
    return {name: median(arm.values()) if arm else None for name, arm in arms.items()}


def numbers(estimate: RatioEstimate) -> dict[str, Any]:
    """The fields of an estimate that a verdict or one of its problems shows."""
    return {
        "ratio": estimate.ratio,
        "low": estimate.low,
        "high": estimate.high,
        "level": estimate.level,
        "n": estimate.n,
    }


def _over_grid(claim: Claim, cells: Sequence[Cell], rule: Callable[[RatioEstimate, float], Outcome]) -> Finding:
    estimate, floor = _mean_ratio(claim, cells), _floor(claim, cells)
    outcome = _without_floor(claim) if floor is None else rule(estimate, floor)
    if claim.kind == "at-most":
        estimate = estimate.inverse()
    used = tuple(c.problem for c in cells)
    return Finding(outcome=outcome, estimate=estimate, floor=floor, problems=_rows(claim, cells), used=used)


#: In the reason of a time that no machine could have reached: the measurement, not the machine, is at fault.
IMPOSSIBLE = "under the physical floor"
NO_AA = Outcome(word="inconclusive", why="no A/A arm on these problems: the noise floor is unknown")
NO_BLOCKS = Outcome(
    word="inconclusive", why="joules of one process only: run with --energy, which reads them in blocks"
)


def _without_floor(claim: Claim) -> Outcome:
    return NO_AA if claim.timed else NO_BLOCKS


def _about(claim: Claim, group: Group, cells: Sequence[Cell]) -> Finding:
    claimed = claim.ratio
    assert claimed is not None
    return _over_grid(claim, cells, lambda e, f: rules.ratio_rule(e, claimed, claim.tolerance, f, claim.gain))


def _up_to(claim: Claim, group: Group, cells: Sequence[Cell]) -> Finding:
    """Best cell, each at a level corrected for the number of cells (Bonferroni)."""
    assert claim.ratio is not None
    level = 1 - (1 - stats.LEVEL) / len(cells)
    judged: list[tuple[Outcome, RatioEstimate]] = []
    for cell in cells:
        estimate, floor = _mean_ratio(claim, [cell], level), _floor(claim, [cell])
        outcome = (
            rules.ratio_rule(estimate, claim.ratio, claim.tolerance, floor, claim.gain)
            if floor is not None
            else _without_floor(claim)
        )
        judged.append((outcome, estimate))
    best = rules.best_cell(judged)
    cell = cells[best]
    return Finding(
        outcome=judged[best][0],
        estimate=judged[best][1],
        floor=_floor(claim, [cell]),
        problems=_rows(claim, cells, level),
        used=(cell.problem,),
        remarks=(f"best of {len(cells)} problems: {cell.problem}",),
    )


def _on_par(claim: Claim, group: Group, cells: Sequence[Cell]) -> Finding:
    return _over_grid(claim, cells, lambda e, f: rules.parity_rule(e, claim.margin, f, claim.one_sided))


def _better(claim: Claim, group: Group, cells: Sequence[Cell]) -> Finding:
    claimed = claim.ratio
    if claimed is None or claimed <= 1:
        return _over_grid(claim, cells, rules.direction_rule)
    return _over_grid(claim, cells, lambda e, f: rules.ratio_rule(e, claimed, claim.tolerance, f, claim.gain))


def _at_most(claim: Claim, group: Group, cells: Sequence[Cell]) -> Finding:
    limit = claim.ratio
    assert limit is not None
    if claim.baseline is not None:
        return _over_grid(claim, cells, lambda e, f: rules.at_most_rule(e.inverse(), limit, claim.tolerance, f))
    worst, rows = None, []
    level = 1 - (1 - stats.LEVEL) / len(cells)
    for cell in cells:
        value = _counted(claim, stats.estimate([math.log(v) for v in cell.candidate.values()], level))
        rows.append({"problem": cell.problem, **numbers(value), "floor": _floor(claim, [cell]), **_medians(cell)})
        worst = value if worst is None or value.ratio > worst.ratio else worst
    assert worst is not None
    used = tuple(c.problem for c in cells)
    floors = {c.problem: _floor(claim, [c]) for c in cells}
    floor = max((f for f in floors.values() if f is not None), default=None)
    outcome = rules.limit_rule(worst, limit, floor or 0.0)
    return Finding(outcome=outcome, estimate=worst, floor=floor, problems=rows, used=used)


def _growth(claim: Claim, group: Group, cells: Sequence[Cell]) -> Finding:
    """Slope of ln(value) on ln(size) per block, over the sizes above the launch knee."""
    assert claim.ratio is not None
    sizes = {c.problem: float(evidence.shape(c.problem)[claim.axis]) for c in cells}
    if len(set(sizes.values())) < len(cells):
        raise ValueError("growth needs problems that differ in one dimension only")
    middles = [median(c.candidate.values()) for c in cells]
    kept = stats.above_knee(list(sizes.values()), middles) if claim.timed else list(sizes.values())
    if len(kept) < 3 and claim.clock == "host":
        # Hardly anything doubles: on a GPU a launch may hide growth, on a CPU at most the microseconds of a call.
        kept = list(sizes.values())
    cells = [c for c in cells if sizes[c.problem] in kept]
    used = tuple(c.problem for c in cells)
    if len(cells) < 3:
        why = f"only {len(cells)} sizes above the launch knee; a slope needs three"
        return Finding(outcome=Outcome(word="inconclusive", why=why), used=used)
    shared = set(cells[0].candidate).intersection(*(c.candidate for c in cells))
    if not shared:
        return Finding(outcome=Outcome(word="inconclusive", why="no block holds every size"), used=used)
    x = [sizes[c.problem] for c in cells]
    slopes = [stats.slope(x, [c.candidate[unit] for c in cells]) for unit in sorted(shared)]
    centre, low, high, level = stats.signed_rank_interval(slopes)
    exponent = RatioEstimate(ratio=centre, low=low, high=high, level=level, n=len(slopes), logs=tuple(slopes))
    local = stats.local_slopes(x, [median(c.candidate.values()) for c in cells])
    return Finding(
        outcome=rules.growth_rule(exponent, claim.ratio, claim.tolerance),
        estimate=exponent,
        problems=[{"problem": c.problem, **_medians(c)} for c in cells],
        used=used,
        remarks=(f"local slopes {', '.join(f'{s:.2f}' for s in local)}",),
    )


_RULES: dict[str, Callable[[Claim, Group, Sequence[Cell]], Finding]] = {
    "speedup-about": _about,
    "speedup-up-to": _up_to,
    "on-par": _on_par,
    "metric-better": _better,
    "at-most": _at_most,
    "growth": _growth,
}


def _often_cells(claim: Claim, group: Group) -> Finding:
    """Share of the candidate's gated cells whose status is one of the claim's events: a failure is data here."""
    gates = {r["problem"]: r["status"] for r in group.rows if r["phase"] == "gate" and r["method"] == claim.candidate}
    if not gates:
        return Finding(outcome=no_number(claim, group, None))
    return rate([status in claim.events for status in gates.values()], tuple(gates))


def rate(happened: Sequence[bool], used: tuple[str, ...]) -> Finding:
    """How often something happened, with Wilson's interval."""
    hits, n = sum(happened), len(happened)
    return Finding(outcome=rules.often_rule(hits, n), estimate=wilson(hits, n), used=used)


def wilson(hits: int, n: int) -> RatioEstimate:
    """A rate with Wilson's interval, as the numbers of a verdict."""
    low, high = stats.wilson(hits, n)
    return RatioEstimate(ratio=hits / n, low=low, high=high, level=stats.LEVEL, n=n)


def no_number(claim: Claim, group: Group, wrong: evidence.Row | None) -> Outcome:
    """Why nothing can be compared: a wrong answer, a missing need, or arms that never ran together."""
    if wrong is not None:
        return Outcome(
            word="not reproduced", why=f"wrong answer: {wrong['status']} on {wrong['problem']}: {wrong['reason']}"
        )
    for name in (claim.candidate, claim.baseline):
        held = any(row["method"] == name and row["metric"] == claim.metric for row in group.rows)
        why = evidence.hindrance(claim, group.rows, name)
        if why is not None and IMPOSSIBLE in why:
            return Outcome(word="invalid", why=why)
        if name is not None and (why is None or not held):
            return Outcome(word="not testable here", why=why or f"{name} was not run together with its counterpart")
    return Outcome(word="not testable here", why="candidate and baseline share no block of one problem in one run")


def _hole(claim: Claim, group: Group, cell: Cell) -> dict[str, Any]:
    rows = [row for row in group.rows if row["problem"] == cell.problem]
    for name, arm in ((claim.candidate, cell.candidate), (claim.baseline, cell.baseline)):
        if name is not None and not arm:
            why = evidence.hindrance(claim, rows, name) or f"{name} was not run on it"
            return {"problem": cell.problem, "reason": why, **_medians(cell)}
    return {"problem": cell.problem, "reason": "no shared block", **_medians(cell)}
