"""What stored training runs say about a claim: seeds are the blocks, and a missing time is an interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from harness.judge import evidence, rules, stats, trained_runs
from harness.judge.claim import Claim, Guard
from harness.judge.evidence import Group
from harness.judge.findings import NO_AA, Finding, numbers, rate, wilson
from harness.judge.rules import Outcome
from harness.judge.stats import RatioEstimate
from harness.judge.trained_runs import AA, Trained

Runs = Mapping[int, Trained]

NO_FLOOR = Outcome(word="inconclusive", why="the A/A pair misses its target too often to give a noise floor")


def on_workload(claim: Claim, group: Group) -> Finding:
    """Judge a claim about a training workload by its kind.

    Raises:
        ValueError: the measurement itself is broken (a loader that stalls, a budget that was not recorded).
    """
    return _KINDS.get(claim.kind, _number)(claim, group)


def _number(claim: Claim, group: Group) -> Finding:
    """A ratio of two arms, or the absolute number of one."""
    found = trained_runs.from_rows(group.rows)
    sides = {"candidate": _side(claim, found, claim.candidate, claim.hyper)}
    if claim.baseline is not None:
        sides["baseline"] = _side(claim, found, claim.baseline, claim.baseline_hyper)
    for side, (runs, _) in sides.items():
        if not runs:
            return Finding(outcome=Outcome(word="not testable here", why=_absent(claim, group, side)))
    candidate, remarks = sides["candidate"]
    baseline = sides["baseline"][0] if "baseline" in sides else None
    for name, (runs, _) in sides.items():
        _check_times(claim, name, runs)
    if baseline is None:
        return _absolute(claim, candidate, _floor(claim, found), remarks)
    if not set(candidate) & set(baseline):
        return Finding(outcome=Outcome(word="not testable here", why="candidate and baseline share no seed"))
    estimate, floor = seed_ratio(claim, baseline, candidate), _floor(claim, found)
    outcome = rules.screen(estimate) or _ratio_outcome(claim, estimate, floor)
    cut = _cut_short(claim, candidate, baseline)
    if cut is not None:
        outcome = Outcome(word="inconclusive", why=cut)
    remarks = (*remarks, *sides["baseline"][1], *_hits(claim, candidate, baseline))
    if claim.guard is not None:
        outcome, told = guarded(claim.guard, outcome, candidate, baseline)
        remarks = (*remarks, *told)
    shown = estimate.inverse() if claim.kind == "at-most" else estimate
    rows = [{"problem": claim.workload, **numbers(shown), "floor": floor, "candidate": None, "baseline": None}]
    return Finding(outcome=outcome, estimate=shown, floor=floor, problems=rows, remarks=remarks)


def _side(claim: Claim, runs: Sequence[Trained], arm: str, hyper: Mapping[str, Any]) -> tuple[Runs, tuple[str, ...]]:
    """The runs that one side counts by seed, and what was left out of them."""
    kept = trained_runs.counting(runs, arm, hyper, claim.metric)
    if claim.metric in trained_runs.OF_TIME:
        return {seed: run for seed, run in kept.items() if not run.shared}, ()
    if not claim.timed:
        return kept, ()
    resumed = sorted(seed for seed, run in kept.items() if run.resumed)
    braked = trained_runs.untimed(runs)
    lost = [seed for seed, run in kept.items() if (run.file, seed) in braked]
    told = [f"{len(resumed)} resumed runs of {arm} left out of the timing"] if resumed else []
    shared = [seed for seed, run in kept.items() if run.shared]
    told += [f"{len(shared)} runs of {arm} left out of the timing: others ran beside them"] if shared else []
    told += [f"{len(lost)} seeds of {arm} left out of the timing: thermal or power brake"] if lost else []
    out = {*resumed, *shared, *lost}
    return {seed: run for seed, run in kept.items() if seed not in out}, tuple(told)


def _absent(claim: Claim, group: Group, side: str) -> str:
    arm, hyper = (claim.candidate, claim.hyper) if side == "candidate" else (str(claim.baseline), claim.baseline_hyper)
    found = trained_runs.from_rows(group.rows)
    if trained_runs.counting(found, arm, hyper, claim.metric):
        return f"every run of {arm} was resumed, had others beside it, or the device braked: such runs have no time"
    if any(run.arm == arm and run.fits(hyper) and not run.watched(claim.metric) for run in found):
        return f"every run of {arm} was ended at a nearer level, as asked (--until)"
    if trained_runs.counting(found, arm, hyper):
        return f"{arm} was trained for another length than the workload's (--epochs), which judges an update alone"
    why = evidence.hindrance(claim, [row for row in group.rows if _hinders(row)], arm)
    if why is not None and not why.startswith(f"{arm} has no "):
        return why
    given = f" with {', '.join(f'{k} = {v}' for k, v in hyper.items())}" if hyper else ""
    return f"{arm} was not trained on {claim.workload}{given} in this run"


def _hinders(row: Mapping[str, Any]) -> bool:
    """Whether a run of another setting or a trial of a search says why there is none of the wanted one: its failure."""
    tuning = str((row.get("detail") or {}).get("split") or "test").startswith("val")
    return row["phase"] == "training" and not tuning and row["status"] not in (trained_runs.REACHED, "budget_exhausted")


def _check_times(claim: Claim, side: str, runs: Runs) -> None:
    """Refuse a time that measures the loader, or that was cut short."""
    if not claim.timed:
        return
    if claim.metric in trained_runs.OF_STEPS and (uneven := [run for run in runs.values() if run.uneven]):
        first = uneven[0]
        raise ValueError(
            f"{first.arm}, seed {first.seed}: {first.metrics['steps']:.0f} updates are no whole number of its periods "
            f"of {first.period}, and fewer than {trained_runs.FEW_PERIODS}: their mean is not that of a long training"
        )
    stalled = trained_runs.stall(runs.values())
    if stalled is not None and stalled > trained_runs.STALL_LIMIT:
        raise ValueError(
            f"the loader stalls the {side} for {stalled:.1%} of a step (limit {trained_runs.STALL_LIMIT:.0%}): "
            f"the time measures the loader"
        )
    if claim.metric == "elapsed_s":
        cut = [run for run in runs.values() if run.stopped_early]
        if cut:
            raise ValueError(
                f"{cut[0].arm}, seed {cut[0].seed} stopped before its schedule ended: no fixed-length time"
            )


def _cut_short(claim: Claim, *arms: Runs) -> str | None:
    """What keeps final metrics of runs that ended at their target from being compared; None when nothing does.

    Ending at the target is ending at equal accuracy, so a guard of equality makes such ends comparable.
    """
    cut = any(run.stopped_early for runs in arms for run in runs.values())
    if not (cut and claim.metric.startswith(("final_", "best_"))) or (claim.guard is not None and claim.guard.equal):
        return None
    return "runs stopped at their target, so they have no final metric; train them with --full"


def seed_ratio(claim: Claim, baseline: Runs, candidate: Runs) -> RatioEstimate:
    """Baseline ÷ candidate over shared seeds, oriented so that larger is better.

    Raises:
        NoSharedBlock: no seed has the metric on both sides.
        ValueError: a missed run without its budget, or a value that no ratio can be taken of.
    """
    if "_to_target" in claim.metric:
        hits = [{seed: run.hit(claim.metric) for seed, run in runs.items()} for runs in (baseline, candidate)]
        return stats.censored_ratio(hits[0], hits[1])
    first, second = _values(baseline, claim.metric), _values(candidate, claim.metric)
    estimate = stats.paired_ratio(second, first) if claim.larger_is_better else stats.paired_ratio(first, second)
    return replace(estimate, level=1.0) if claim.metric in evidence.COUNTED else estimate


def _values(runs: Runs, metric: str) -> dict[int, float]:
    """Values by seed; what stands at the end of training only of runs that got there."""
    found = {seed: run.value(metric) for seed, run in runs.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def _floor(claim: Claim, runs: Sequence[Trained]) -> float | None:
    """Largest A/A floor of the invocations: the workload's baseline against its alias of an independent seed stream."""
    if claim.metric in evidence.COUNTED:
        return stats.MIN_FLOOR
    floors = []
    for file, alias in trained_runs.pairs(runs):
        own = [run for run in runs if run.file == file]
        first, second = (_side(claim, own, arm, {})[0] for arm in (alias.removesuffix(AA), alias))
        try:
            floors.append(stats.floor_of(seed_ratio(claim, first, second)))
        except stats.NoSharedBlock:
            continue
    return max(floors, default=None)


def _ratio_outcome(claim: Claim, estimate: RatioEstimate, floor: float | None) -> Outcome:
    if floor is None:
        return NO_AA
    if math.isinf(floor):
        return NO_FLOOR
    if claim.kind == "on-par":
        return rules.parity_rule(estimate, claim.margin, floor, claim.one_sided)
    if claim.ratio is None or (claim.kind == "metric-better" and claim.ratio <= 1):
        return rules.direction_rule(estimate, floor)
    if claim.kind == "at-most":
        return rules.at_most_rule(estimate.inverse(), claim.ratio, claim.tolerance, floor)
    return rules.ratio_rule(estimate, claim.ratio, claim.tolerance, floor, claim.gain)


def _absolute(claim: Claim, runs: Runs, floor: float | None, remarks: tuple[str, ...]) -> Finding:
    """A number of one arm against a limit."""
    assert claim.ratio is not None
    found = _values(runs, claim.metric)
    if not found:
        why = f"{claim.candidate} has no {claim.metric} on {claim.workload}"
        return Finding(outcome=Outcome(word="not testable here", why=why), remarks=remarks)
    if not all(value > 0 for value in found.values()):
        raise ValueError(f"{claim.metric} must be positive to be judged against a limit")
    estimate = stats.estimate([math.log(value) for value in found.values()])
    if claim.metric in evidence.COUNTED:
        estimate = replace(estimate, level=1.0)
    usable = floor if floor is not None and math.isfinite(floor) else 0.0
    outcome = rules.screen(estimate) or rules.limit_rule(estimate, claim.ratio, usable)
    rows = [{"problem": claim.workload, **numbers(estimate), "floor": floor, "candidate": None, "baseline": None}]
    return Finding(outcome=outcome, estimate=estimate, floor=floor, problems=rows, remarks=remarks)


def _hits(claim: Claim, candidate: Runs, baseline: Runs) -> tuple[str, ...]:
    told = []
    for name, runs in ((claim.candidate, candidate), (str(claim.baseline), baseline)):
        asked = "_to_target" in claim.metric
        hits = sum(run.hit(claim.metric).value is not None if asked else run.reached for run in runs.values())
        if not any(run.shortened for run in runs.values()):
            told.append(f"{name} hits {hits} of {len(runs)}")
        lost = [run for run in runs.values() if run.status in trained_runs.BROKEN]
        if lost:
            words = ", ".join(sorted({run.status.replace("_", " ") for run in lost}))
            told.append(f"{len(lost)} of {name} {words}")
        if "_to_target" not in claim.metric:
            without = len(runs) - len(_values(runs, claim.metric))
            told += [f"{without} of {name} without {claim.metric}"] if without else []
    return tuple(told)


def guarded(guard: Guard, outcome: Outcome, candidate: Runs, baseline: Runs) -> tuple[Outcome, tuple[str, ...]]:
    """A good verdict stands only beside a final metric that is no worse (or equal) by the guard's margin.

    The paired difference, candidate − baseline oriented so that larger is better, with its signed-rank interval.
    """
    sign = 1.0 if guard.larger_is_better else -1.0
    first, second = _values(baseline, guard.metric), _values(candidate, guard.metric)
    shared = [seed for seed in first if seed in second]
    if not shared:
        return _cap(outcome, f"{guard.metric} was not recorded for both", "inconclusive"), ()
    centre, low, high, _ = stats.signed_rank_interval([sign * (second[s] - first[s]) for s in shared])
    told = f"{guard.metric} better by {centre:+.4g} [{low:+.4g}, {high:+.4g}]"
    for name, values in (("candidate", second), ("baseline", first)):
        short = _misses(guard, sign, list(values.values()))
        if short is not None:
            word: rules.Word = "not reproduced" if name == "candidate" and short == "misses" else "inconclusive"
            why = f"the {name}'s mean {guard.metric} of {fmean(values.values()):.4g} {short} {guard.reaches:g}"
            return _cap(outcome, why, word), (told,)
    if high < -guard.margin:
        return _cap(outcome, f"{guard.metric} is worse by more than {guard.margin:g}", "partly"), (told,)
    if low < -guard.margin:
        why = f"a loss of more than {guard.margin:g} in {guard.metric} is not excluded"
        return _cap(outcome, why, "inconclusive"), (told,)
    if guard.equal and high > guard.margin:
        why = f"{guard.metric} is not equal within {guard.margin:g}, so the comparison is confounded"
        return _cap(outcome, why, "inconclusive"), (told,)
    return outcome, (told,)


def _misses(guard: Guard, sign: float, values: list[float]) -> str | None:
    """``misses`` when the whole interval lies short of the level, ``may miss`` when only its middle does."""
    if guard.reaches is None:
        return None
    _, _, high, _ = stats.signed_rank_interval([sign * value for value in values])
    if high < sign * guard.reaches:
        return "misses"
    return "may miss" if sign * fmean(values) < sign * guard.reaches else None


def _cap(outcome: Outcome, why: str, word: rules.Word) -> Outcome:
    return Outcome(word=word, why=why) if outcome.word in ("reproduced", "partly") else outcome


def _only_reaches(claim: Claim, group: Group) -> Finding:
    found = trained_runs.from_rows(group.rows)
    counts: dict[str, tuple[int, int]] = {}
    trials = 0
    for arm in sorted({run.arm for run in found if not run.arm.endswith(AA)}):
        runs = trained_runs.counting(found, arm, metric=claim.metric)
        if runs:
            counts[arm] = (sum(run.reached for run in runs.values()), len(runs))
            if arm != claim.candidate:
                trials += max(int(run.detail.get("trials") or 1) for run in runs.values())
    if claim.candidate not in counts:
        why = evidence.hindrance(claim, group.rows, claim.candidate) or f"{claim.candidate} was not trained in this run"
        return Finding(outcome=Outcome(word="not testable here", why=why))
    rivals = [(arm, *count) for arm, count in counts.items() if arm != claim.candidate]
    outcome = rules.only_rule(counts[claim.candidate], rivals, trials)
    return Finding(outcome=outcome, estimate=wilson(*counts[claim.candidate]), remarks=("a failure is data here",))


def _often_seeds(claim: Claim, group: Group) -> Finding:
    runs = trained_runs.counting(trained_runs.from_rows(group.rows), claim.candidate, claim.hyper, claim.metric)
    if not runs:
        return Finding(outcome=Outcome(word="not testable here", why=_absent(claim, group, "candidate")))
    return rate([run.status in claim.events for run in runs.values()], ())


_KINDS: dict[str, Callable[[Claim, Group], Finding]] = {"only-reaches": _only_reaches, "often": _often_seeds}
