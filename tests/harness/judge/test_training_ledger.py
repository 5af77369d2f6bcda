"""The shipped claims about training: complete, about things that exist, and able to come out either way."""

from __future__ import annotations

from typing import Any

import pytest

from harness.catalogue import registry
from harness.judge.claim import Claim, load_claims
from harness.judge.verdict import Verdict, judge

LEDGER = [claim for claim in load_claims() if claim.file == "suites/claims/training.toml"]
#: Metrics that the trainer records, or that are derived from what it records.
RECORDED = {
    *("time_to_target_s", "steps_to_target", "samples_to_target", "elapsed_s", "samples", "step_s", "optimizer_share"),
    *("final_test_loss", "final_test_accuracy", "final_weight_sigma_spread", "final_noise_accuracy_0.2"),
}


def test_the_ledger_asks_about_muon() -> None:
    assert len(LEDGER) >= 30
    assert {claim.file for claim in LEDGER} == {"suites/claims/training.toml"}
    assert {claim.ratio for claim in LEDGER} >= {1.19, 1.5, 1.4, 2.0, 0.01}


@pytest.mark.parametrize("claim", LEDGER, ids=lambda claim: claim.id)
def test_names_metrics_and_reasons_are_known(claim: Claim) -> None:
    methods = registry.entries("methods")
    assert {claim.candidate, claim.baseline} - {None} <= set(methods)
    assert claim.workload in registry.entries("workloads")
    assert claim.metric in RECORDED
    assert (claim.clock == "train") == claim.timed or claim.metric == "optimizer_share"
    assert claim.hardware_free != bool(claim.hardware)
    assert claim.counter or "extension" not in claim.source


def row(store: Any, claim: Claim, arm: str, seed: int, value: float, hyper: dict[str, Any], final: float) -> None:
    shared = {"method": arm.removesuffix("#aa"), "arm": arm, "workload": claim.workload, "phase": "training"}
    metrics = {claim.metric: value}
    if claim.metric == "optimizer_share":
        metrics = {"bucket_optimizer_s": value, "bucket_forward_s": 1 - value}
    if claim.guard:
        metrics[claim.guard.metric] = final
    for metric, number in metrics.items():
        store.row(**shared, seed=float(seed), run=f"{arm}-{hyper}-{seed}", status="target_reached", metric=metric,
                  value=number, detail={"hyper": hyper})  # fmt: skip


def told(claim: Claim, store: Any, ratio: float, final: float = 0.95) -> Verdict:
    """Ten noiseless seeds: the candidate ``ratio`` times better than the baseline (or its number itself)."""
    book = store(device=(claim.hardware or "Toy").split(" or ")[0])
    for seed in range(10):
        wobble = 1 + 1e-4 * seed
        if claim.baseline is None:
            row(book, claim, claim.candidate, seed, ratio * wobble, {}, final)
            continue
        better = ratio if claim.larger_is_better else 1 / ratio
        row(book, claim, claim.candidate, seed, 0.5 * better * wobble, claim.hyper, final)
        row(book, claim, claim.baseline, seed, 0.5 * wobble, claim.baseline_hyper, 0.95)
        for arm in ("training.lars", "training.lars#aa"):
            row(book, claim, arm, seed, 0.5 * wobble, {}, 0.95)
    (verdict,) = judge(claim, book.frame())
    return verdict


@pytest.mark.parametrize("claim", LEDGER, ids=lambda claim: claim.id)
def test_each_row_can_come_out_either_way(claim: Claim, store: Any) -> None:
    goal = claim.ratio or 1.3
    good, bad = (1 / goal, 0.5) if claim.kind == "at-most" else (goal, 0.5)
    if claim.baseline is None:
        good, bad = goal * 0.9, goal * 2
    found = told(claim, store, good)
    assert (found.verdict, found.n) == ("reproduced", 10), found.reason
    assert told(claim, store, bad).verdict == "not reproduced"
    if claim.guard and not claim.guard.equal:
        assert told(claim, store, good, 0.9).verdict == "not reproduced"
    elif claim.guard:
        assert "confounded" in told(claim, store, good, 0.99).reason


@pytest.mark.parametrize("claim", LEDGER, ids=lambda claim: claim.id)
def test_metrics_and_clocks_agree_with_the_workload(claim: Claim) -> None:
    workload = registry.workload(str(claim.workload))
    target = workload.target
    if claim.metric == "elapsed_s":
        assert target.mode == "final"
    if "_to_target" in claim.metric:
        assert target.mode == "crossing"
    if claim.metric == "final_test_loss":
        assert target.metric == "test_loss"
    if claim.guard is not None:
        assert claim.guard.metric == f"final_{target.metric}"
        assert claim.guard.larger_is_better == target.larger_is_better
        assert claim.guard.reaches in (None, target.value)
    assert ("cuda" in claim.needs) == (workload.devices == ("cuda",) or "cuda" in workload.needs)
