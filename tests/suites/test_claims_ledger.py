"""The shipped ledger: complete, about things that exist, and judged to the word that its numbers deserve."""

from __future__ import annotations

import pandas as pd
import pytest

from harness.catalogue import registry
from harness.catalogue.suite import TIERS, Problem
from harness.judge import rules
from harness.judge.claim import Claim, load_claims
from harness.judge.verdict import judge

#: Suites with a command of their own (robustness, state_memory) have tests of their own.
SUITES = registry.entries("suites")
LEDGER = [
    claim
    for claim in load_claims()
    if not claim.on_training and claim.kind != "exists" and (claim.suite or claim.task) in SUITES
]
#: Numbers that every micro suite may record beside its task's errors.
NUMBERS = {
    "op_s",
    "op_hot_s",
    "op_graph_s",
    "peak_device_bytes",
    "encode_s",
    "scan_s",
    "scan_hot_s",
    "bytes_read",
    "multiplies",
    "gap_over_bound",
    "cache_misses",
    "call_energy_j",
}
ANCHORED = {"polar.aol-triton", "polar.ns-symmetric-triton", "polar.ns-torch", "polar.ns-compiled"}


def named(identity: str) -> Claim:
    return next(claim for claim in LEDGER if claim.id == identity)


def problems(claim: Claim) -> list[Problem]:
    suite = registry.suite(claim.suite or claim.task)
    return [problem for problem in suite.problems if claim.covers(problem.id)]


def test_the_ledger_is_found_through_the_entry_point() -> None:
    assert len(LEDGER) >= 20
    assert {claim.file for claim in LEDGER} >= {"suites/claims/polar.toml", "suites/claims/approximate_matmul.toml"}


@pytest.mark.parametrize("claim", LEDGER, ids=lambda claim: claim.id)
def test_methods_are_registered_and_problems_exist_in_the_named_tier(claim: Claim) -> None:
    methods = set(registry.entries("methods"))
    assert {claim.candidate, claim.baseline} - {None} <= methods
    found = problems(claim)
    for pattern in claim.problems:
        if "*" not in pattern:
            assert pattern in {problem.id for problem in found}
    assert found
    assert claim.tier in TIERS
    assert all(claim.tier in problem.tiers for problem in found if "*" not in "".join(claim.problems))


@pytest.mark.parametrize("claim", LEDGER, ids=lambda claim: claim.id)
def test_metrics_are_recorded_by_the_task(claim: Claim) -> None:
    errors = set(registry.suite(claim.suite or claim.task).task.errors)
    for metric in claim.metric.split(" - "):
        assert metric in errors | NUMBERS
    assert claim.error_metric is None or claim.error_metric in errors


@pytest.mark.parametrize("claim", LEDGER, ids=lambda claim: claim.id)
def test_devices_agree_with_needs_and_clock(claim: Claim) -> None:
    devices = {problem.device for problem in problems(claim)}
    assert len(devices) == 1
    assert ("cuda" in claim.needs) == (devices == {"cuda"})
    assert claim.clock in ({"op", None} if devices == {"cuda"} else {"host", None})


def test_our_improved_kernels_enter_no_claim() -> None:
    assert not any("fast" in str(method) for claim in LEDGER for method in (claim.candidate, claim.baseline))


def test_published_times_stand_beside_every_row_that_runs_their_design() -> None:
    for claim in LEDGER:
        anchored = ANCHORED & {claim.candidate, claim.baseline}
        assert {anchor.method for anchor in claim.anchors} == anchored
        assert len(claim.anchors) == 3 * len(anchored)


@pytest.mark.parametrize("claim", LEDGER, ids=lambda claim: claim.id)
def test_without_runs_every_claim_is_not_testable_and_says_why(claim: Claim) -> None:
    (verdict,) = judge(claim, pd.DataFrame())
    assert verdict.verdict == "not testable here"
    assert "no stored run" in verdict.reason
    assert ("needs cuda" in verdict.reason) == ("cuda" in claim.needs)


def runs(claim: Claim, ratio: float, device: str, error: float = 1.0) -> pd.DataFrame:
    """Ten noiseless blocks on all the claim's problems: the candidate ``ratio`` times better than the baseline."""
    clock = {"op": "op-cold", "host": "host"}.get(str(claim.clock), "host")
    shared = {"file": "x.jsonl", "device": device, "utc": "2027-01-01T00:00:00Z", "status": "passed", "phase": "block"}
    shared["threads"] = claim.threads
    rows = []
    for problem in problems(claim):
        better = ratio if claim.larger_is_better else 1 / ratio
        arms = {claim.candidate: better, str(claim.baseline): 1.0, "polar.ns-torch": 1.0, "polar.ns-torch#aa": 1.0}
        if claim.candidate == "polar.ns-torch":
            arms["polar.ns-torch"] = arms["polar.ns-torch#aa"] = 1 / ratio
        if claim.baseline_problem is not None:
            arms[claim.candidate] = better
        placed = [(arm, problem.id, value) for arm, value in arms.items()]
        if claim.baseline_problem is not None:
            placed.append((str(claim.baseline), claim.baseline_problem, 1.0))
        for arm, place, value in placed:
            fields = {**shared, "method": arm.removesuffix("#aa"), "arm": arm, "problem": place}
            metrics = dict.fromkeys(claim.metric.split(" - "), (value, clock if claim.timed else None))
            if " - " in claim.metric:
                high, low = claim.metric.split(" - ")
                metrics = {high: (1 + value, None), low: (1.0, None)}
            if claim.error_metric:
                metrics[claim.error_metric] = (0.1 * (error if arm == claim.candidate else 1), None)
            for metric, (number, timer) in metrics.items():
                for block in range(10):
                    jitter = 1 + 1e-4 * block
                    rows.append({**fields, "metric": metric, "clock": timer, "block": block, "value": number * jitter})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("claim", [c for c in LEDGER if c.kind != "growth"], ids=lambda claim: claim.id)
def test_each_row_can_come_out_either_way(claim: Claim) -> None:
    goal = claim.ratio or (1.0 if claim.kind == "on-par" else 1.3)
    good, bad = (1.01 / goal, min(0.5, 0.5 / goal)) if claim.kind == "at-most" else (goal, 0.5)
    if claim.kind == "on-par":
        bad = 0.5 / claim.margin
    device = (claim.hardware or "Toy").split(" or ")[0]
    (verdict,) = judge(claim, runs(claim, good, device))
    assert verdict.verdict == "reproduced"
    assert verdict.n == 10
    assert len(verdict.problems) == len(problems(claim))
    (verdict,) = judge(claim, runs(claim, bad, device))
    assert verdict.verdict == "not reproduced"
    assert verdict.verdict in rules.WORDS


def test_the_upstream_packages_figures_on_an_h100_carry_the_16_over_in_part() -> None:
    (verdict,) = judge(named("polar.aol-vs-dion"), runs(named("polar.aol-vs-dion"), 1.18, "NVIDIA H100 80GB HBM3"))
    assert verdict.verdict == "partly"
    assert verdict.phrase.startswith("partly holds on NVIDIA H100 80GB HBM3")
    assert "L40S" in verdict.phrase
    rectangular = named("polar.aol-vs-dion.rectangular")
    (verdict,) = judge(rectangular, runs(rectangular, 1.6, "NVIDIA L40S", error=2.0))
    assert (verdict.verdict, "error margin" in verdict.reason) == ("partly", True)
