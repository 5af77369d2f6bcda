"""A claim of the kind "often" over several training workloads: each judged by itself, then counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.judge import evidence, stats, trained, training_summary
from harness.judge.claim import Claim
from harness.judge.evidence import Group
from harness.judge.findings import Finding
from harness.judge.rules import Outcome
from harness.judge.stats import RatioEstimate
from harness.judge.trained_runs import from_frame

if TYPE_CHECKING:
    import pandas as pd

#: Stands for ``final_<metric>`` of each workload's own target, in the target's direction.
FINAL = "final"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one device's runs say: the finding, and the newest invocation behind it."""

    device: str
    finding: Finding
    group: Group


def on_workloads(claim: Claim, runs: pd.DataFrame, headers: Iterable[Mapping[str, Any]]) -> list[Judged]:
    """One finding per device with a run of an arm on any of the claim's workloads, sorted by device."""
    kept = list(headers)
    found: dict[str, dict[str, tuple[Finding, Group]]] = {}
    for workload in claim.workloads:
        single = _single(claim, workload, runs)
        if single is None:
            continue
        by_device: dict[str, list[Group]] = {}
        for group in evidence.groups(single, runs, kept):
            by_device.setdefault(group.device, []).append(group)
        for device, groups in by_device.items():
            chosen = evidence.choose(single, groups)
            found.setdefault(device, {})[workload] = (_find(single, chosen), chosen)
    return [
        Judged(
            device=device,
            finding=count(claim.workloads, {name: finding for name, (finding, _) in own.items()}),
            group=max((group for _, group in own.values()), key=lambda group: (group.utc, group.file)),
        )
        for device, own in sorted(found.items())
    ]


def _single(claim: Claim, workload: str, runs: pd.DataFrame) -> Claim | None:
    """The claim on one workload, as a mere direction; None when nothing says what its target is."""
    fields: dict[str, Any] = {"workload": workload, "workloads": (), "kind": "metric-better", "ratio": None}
    if claim.metric == FINAL:
        goal = training_summary.target(from_frame(runs[runs["workload"] == workload]))
        if not goal:
            return None
        better = bool(goal.get("larger_is_better", True))
        fields |= {"metric": f"final_{goal['metric']}", "larger_is_better": better}
    return claim.model_copy(update=fields)


def _find(claim: Claim, group: Group) -> Finding:
    try:
        return trained.on_workload(claim, group)
    except stats.NoSharedBlock as error:
        return Finding(outcome=Outcome(word="inconclusive", why=str(error)))
    except ValueError as error:
        return Finding(outcome=Outcome(word="invalid", why=str(error)))


def count(workloads: Sequence[str], findings: Mapping[str, Finding]) -> Finding:
    """Workloads on which the candidate is better, with the interval that the undecided ones leave.

    Wilson's lower bound with every undecided workload counted as lost, the upper one with every one counted as won.
    """
    words = {name: findings[name].outcome.word if name in findings else None for name in workloads}
    won = sum(word == "reproduced" for word in words.values())
    lost = sum(word == "not reproduced" for word in words.values())
    n = len(workloads)
    undecided = n - won - lost
    low, high = stats.wilson(won, n)[0], stats.wilson(won + undecided, n)[1]
    estimate = RatioEstimate(ratio=won / n, low=low, high=high, level=stats.LEVEL, n=n)
    told = f"better on {won}, not better on {lost}, undecided on {undecided} of {n} workloads"
    if low > 0.5:
        outcome = Outcome(word="reproduced", why=told)
    elif high < 0.5:
        outcome = Outcome(word="not reproduced", why=told)
    else:
        outcome = Outcome(word="inconclusive", why=f"{told}: one half lies inside the interval")
    return Finding(outcome=outcome, estimate=estimate, problems=[_row(name, findings.get(name)) for name in workloads])


def _row(workload: str, finding: Finding | None) -> dict[str, Any]:
    if finding is None:
        return {"problem": workload, "reason": "not trained on this device", "candidate": None, "baseline": None}
    first = dict(finding.problems[0]) if finding.problems else {"candidate": None, "baseline": None}
    word, why = finding.outcome.word, finding.outcome.why
    told = {"reproduced": "better", "not reproduced": "not better"}.get(word, word)
    return {**first, "problem": workload, "reason": f"{told}: {why}" if why else told}


def without_runs(claim: Claim) -> Finding:
    """What is missing when no run concerns the claim."""
    why = f"no stored run of {claim.candidate} or {claim.baseline} on {', '.join(claim.workloads)}"
    if claim.needs:
        why = f"needs {', '.join(claim.needs)}; {why}"
    return Finding(outcome=Outcome(word="not testable here", why=why))
