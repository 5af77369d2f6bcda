"""Claims counted over workloads: each branch of the count on findings of known content, and whole records."""

from __future__ import annotations

from typing import Any

import pytest

from harness.judge import counted
from harness.judge.claim import Claim
from harness.judge.findings import Finding
from harness.judge.rules import Outcome, Word
from harness.judge.verdict import Verdict, judge, judge_all

NAMES = ("w1", "w2", "w3", "w4")


def found(*words: Word | None) -> Finding:
    made = {name: Finding(outcome=Outcome(word=word, why="")) for name, word in zip(NAMES, words, strict=True) if word}
    return counted.count(NAMES, made)


@pytest.mark.parametrize(
    ("words", "verdict", "interval"),
    [
        (("reproduced",) * 4, "reproduced", (0.5101, 1.0)),
        (("not reproduced",) * 4, "not reproduced", (0.0, 0.4899)),
        (("reproduced", "reproduced", "reproduced", "not reproduced"), "inconclusive", (0.3006, 0.9544)),
        (("reproduced", "reproduced", "reproduced", "inconclusive"), "inconclusive", (0.3006, 1.0)),
        (("not reproduced", "not reproduced", "not reproduced", None), "inconclusive", (0.0, 0.6994)),
        ((None, "invalid", "not testable here", "inconclusive"), "inconclusive", (0.0, 1.0)),
    ],
)
def test_the_count_and_its_interval(words: Any, verdict: str, interval: tuple[float, float]) -> None:
    finding = found(*words)
    assert finding.outcome.word == verdict
    assert finding.estimate is not None
    assert (finding.estimate.low, finding.estimate.high) == pytest.approx(interval, abs=1e-4)
    assert finding.estimate.ratio == sum(word == "reproduced" for word in words) / 4
    assert [row["problem"] for row in finding.problems] == list(NAMES)


@pytest.fixture
def often(claim: Any) -> Claim:
    fields = {"kind": "often", "workloads": NAMES, "problems": [], "metric": "final", "error_metric": None}
    return claim(**fields, ratio=None, hyper={"precision": "bf16"}, baseline_hyper={"precision": "bf16"})  # type: ignore[no-any-return]


def train(store: Any, workload: str, ratio: float, *, metric: str, larger: bool, precision: str = "bf16") -> None:
    """Ten seeds of both arms and the alias; the candidate's final metric is ``ratio`` times the baseline's."""
    goal = {"metric": metric, "value": 1.0, "larger_is_better": larger}
    for seed in range(10):
        for arm, value in (("toy.old", 1.0), ("toy.old#aa", 1.0), ("toy.new", ratio)):
            store.row(
                method=arm.removesuffix("#aa"), arm=arm, workload=workload, phase="training", seed=float(seed),
                run=f"{workload}-{arm}-{seed}-{precision}", status="budget_exhausted", reason="its end",
                metric=f"final_{metric}", value=value * (1 + 1e-4 * seed),
                detail={"hyper": {"lr": 1.0}, "target": goal, "spec": {"precision": precision}},
            )  # fmt: skip


def one(claim: Claim, store: Any) -> Verdict:
    (verdict,) = judge(claim, store.frame())
    return verdict


def test_each_workload_is_judged_in_the_direction_of_its_target(often: Claim, store: Any) -> None:
    book = store()
    for name in NAMES[:3]:
        train(book, name, 1.1, metric="test_accuracy", larger=True)
    train(book, "w4", 0.9, metric="test_loss", larger=False)
    verdict = one(often, book)
    assert (verdict.verdict, verdict.ratio, verdict.n) == ("reproduced", 1.0, 4)
    assert "better on 4" in verdict.reason
    assert [row["reason"] for row in verdict.problems] == ["better"] * 4
    assert verdict.problems[3]["ratio"] == pytest.approx(1 / 0.9, rel=1e-3)
    assert judge_all([often], book.frame()) == [verdict]


def test_a_larger_loss_is_not_better(often: Claim, store: Any) -> None:
    book = store()
    for name in NAMES:
        train(book, name, 1.1, metric="test_loss", larger=False)
    assert one(often, book).verdict == "not reproduced"


def test_runs_in_another_precision_do_not_count(often: Claim, store: Any) -> None:
    book = store()
    for name in NAMES:
        train(book, name, 1.1, metric="test_accuracy", larger=True, precision="tf32")
    verdict = one(often, book)
    assert (verdict.verdict, verdict.ratio) == ("inconclusive", 0.0)
    assert "undecided on 4" in verdict.reason


def test_a_workload_that_was_not_trained_stays_undecided(often: Claim, store: Any) -> None:
    book = store()
    train(book, "w1", 1.1, metric="test_accuracy", larger=True)
    verdict = one(often, book)
    assert (verdict.verdict, verdict.problems[1]["reason"]) == ("inconclusive", "not trained on this device")


def test_without_any_run_it_is_not_testable(often: Claim, store: Any) -> None:
    verdict = one(
        often, store().row(method="toy.new", problem="gaussian-8x8-float32-cpu", phase="gate", status="passed")
    )
    assert verdict.verdict == "not testable here"
    assert "w1, w2, w3, w4" in verdict.reason


def test_the_command_trains_every_workload_to_the_end_in_the_claims_settings(often: Claim) -> None:
    commands = often.reproduce().split(" && ")
    assert len(commands) == 8
    assert commands[0] == "speedclaim train w1 toy.new --seeds 10 --full --hyper precision=bf16"


@pytest.mark.parametrize(
    "fields", [{"kind": "metric-better"}, {"baseline": None, "baseline_hyper": {}}, {"workload": "w9"}]
)
def test_workloads_belong_to_often_with_a_baseline(claim: Any, fields: dict[str, Any]) -> None:
    usual = {
        "kind": "often",
        "workloads": NAMES,
        "problems": [],
        "metric": "final",
        "error_metric": None,
        "ratio": None,
    }
    with pytest.raises(Exception, match="workloads belong to"):
        claim(**{**usual, **fields})
