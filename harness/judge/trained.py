"""What stored training runs say about a claim: seeds are the blocks, and a missing time is an interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.judge import evidence, rules, stats
from harness.judge.claim import Claim
from harness.judge.evidence import Group
from harness.judge.findings import NO_AA, Finding, no_number, rate, wilson
from harness.judge.rules import Outcome
from harness.judge.stats import RatioEstimate


def on_workload(claim: Claim, group: Group) -> Finding:
    """Judge a claim about a training workload by its kind."""
    return _KINDS.get(claim.kind, _ratio)(claim, group)


def _ratio(claim: Claim, group: Group) -> Finding:
    assert claim.baseline is not None
    runs = {name: evidence.seeds(claim, group, name) for name in (claim.candidate, claim.baseline)}
    for name, found in runs.items():
        if not found:
            why = (
                evidence.hindrance(claim, group.rows, name) or f"{name} was not trained on {claim.workload} in this run"
            )
            return Finding(outcome=Outcome(word="not testable here", why=why))
    if not set(runs[claim.candidate]) & set(runs[claim.baseline]):
        return Finding(outcome=Outcome(word="not testable here", why="candidate and baseline share no seed"))
    estimate = _seed_ratio(claim, runs[claim.baseline], runs[claim.candidate])
    alias = next((r["arm"] for r in group.rows if str(r["arm"]).endswith("#aa") and r["phase"] == "training"), None)
    floor = None
    if alias is not None:
        first, second = (evidence.seeds(claim, group, arm) for arm in (alias.removesuffix("#aa"), alias))
        if set(first) & set(second):
            floor = stats.floor_of(_seed_ratio(claim, first, second))
    outcome = NO_AA if floor is None else _ratio_outcome(claim, estimate, floor)
    few = rules.too_few(estimate)
    hits = {name: sum(r["status"] == "target_reached" for r in found.values()) for name, found in runs.items()}
    remarks = tuple(f"{name} hits {hits[name]} of {len(found)}" for name, found in runs.items())
    if claim.kind == "at-most":
        estimate = estimate.inverse()
    return Finding(outcome=few or outcome, estimate=estimate, floor=floor, remarks=remarks)


def _seed_ratio(
    claim: Claim, baseline: Mapping[int, evidence.Row], candidate: Mapping[int, evidence.Row]
) -> RatioEstimate:
    if "_to_target" in claim.metric:
        return stats.censored_ratio(evidence.hits(baseline, claim.metric), evidence.hits(candidate, claim.metric))
    arms = [
        {seed: run["metrics"][claim.metric] for seed, run in runs.items() if claim.metric in run["metrics"]}
        for runs in (baseline, candidate)
    ]
    first, second = reversed(arms) if claim.larger_is_better else arms
    return stats.paired_ratio(first, second)


def _ratio_outcome(claim: Claim, estimate: RatioEstimate, floor: float) -> Outcome:
    if claim.kind == "on-par":
        return rules.parity_rule(estimate, claim.margin, floor, claim.one_sided)
    if claim.ratio is None or (claim.kind == "metric-better" and claim.ratio <= 1):
        return rules.direction_rule(estimate, floor)
    if claim.kind == "at-most":
        return rules.at_most_rule(estimate.inverse(), claim.ratio, claim.tolerance, floor)
    return rules.ratio_rule(estimate, claim.ratio, claim.tolerance, floor, claim.gain)


def _only_reaches(claim: Claim, group: Group) -> Finding:
    arms = sorted({r["arm"] for r in group.rows if r["phase"] == "training" and not str(r["arm"]).endswith("#aa")})
    counts: dict[str, tuple[int, int]] = {}
    trials = 0
    for arm in arms:
        runs = evidence.seeds(claim, group, arm)
        if runs:
            counts[arm] = (sum(run["status"] == "target_reached" for run in runs.values()), len(runs))
            if arm != claim.candidate:
                trials += max(int((run["detail"] or {}).get("trials", 1)) for run in runs.values())
    if claim.candidate not in counts:
        why = evidence.hindrance(claim, group.rows, claim.candidate) or f"{claim.candidate} was not trained in this run"
        return Finding(outcome=Outcome(word="not testable here", why=why))
    rivals = [(arm, *count) for arm, count in counts.items() if arm != claim.candidate]
    outcome = rules.only_rule(counts[claim.candidate], rivals, trials)
    return Finding(outcome=outcome, estimate=wilson(*counts[claim.candidate]), remarks=("a failure is data here",))


def _often_seeds(claim: Claim, group: Group) -> Finding:
    runs = evidence.seeds(claim, group, claim.candidate)
    if not runs:
        return Finding(outcome=no_number(claim, group, None))
    return rate([run["status"] in claim.events for run in runs.values()], ())


_KINDS: dict[str, Callable[[Claim, Group], Finding]] = {"only-reaches": _only_reaches, "often": _often_seeds}
