"""Whether enough was searched to call a claim without a published recipe "not reproduced"."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.judge import evidence, trained_runs
from harness.judge.claim import Claim
from harness.judge.findings import Finding
from harness.judge.rules import Outcome

if TYPE_CHECKING:
    import pandas as pd

UNPUBLISHED = "recipe unpublished"
#: A rival that reaches the target refutes "only" whatever the candidate's recipe was.
_REFUTED = "refuted:"


def screened(claim: Claim, finding: Finding, runs: pd.DataFrame) -> Finding:
    """The finding, or inconclusive when "not reproduced" could be the fault of an unpublished recipe.

    Args:
        claim: the row.
        finding: what its kind's rule found.
        runs: every stored run, of all devices: a search may have been made elsewhere.
    """
    outcome = finding.outcome
    if claim.search is None or outcome.word != "not reproduced" or outcome.why.startswith(_REFUTED):
        return finding
    lack = lacking(claim, runs)
    if lack is None:
        return finding
    why = f"{UNPUBLISHED}: {lack}" + (f" ({outcome.why} with the recipe tried)" if outcome.why else "")
    return replace(finding, outcome=Outcome(word="inconclusive", why=why))


def lacking(claim: Claim, runs: pd.DataFrame) -> str | None:
    """What the stored tuning trials of the candidate lack; None when they are enough."""
    search = claim.search
    assert search is not None
    where = search.workload or claim.workload
    runs = evidence.complete(runs)
    own = runs[(runs["method"] == claim.candidate) & (runs["workload"] == where)]
    trials = [run for run in trained_runs.from_frame(own) if run.tuning and not run.synthetic]
    if len(trials) < search.trials:
        return f"{len(trials)} of {search.trials} tuning trials of {claim.candidate} on {where}"
    for name in search.over:
        values = [float(run.hyper[name]) for run in trials if _positive(run.hyper.get(name))]
        span = math.log10(max(values) / min(values)) if values else 0.0
        if span < search.decades:
            return f"trials span {span:.1f} of {search.decades:g} decades of {name}"
    for name, wanted in search.readings.items():
        tried = {run.hyper.get(name) for run in trials}
        if missing := [value for value in wanted if value not in tried]:
            return f"{name} = {missing[0]} was never tried"
    return None


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
