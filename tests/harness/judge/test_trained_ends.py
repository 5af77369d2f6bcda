"""Verdicts on training by what its end must be: fixed schedules, guards, final metrics; claims nobody can judge."""

from __future__ import annotations

import math
from typing import Any

import pytest

from harness.errors import UserError
from harness.judge import evidence, trained
from harness.judge.claim import Claim, Guard, parse_claims
from harness.judge.rules import Outcome
from harness.judge.trained_runs import Trained
from harness.judge.verdict import Verdict, judge

W = "toy-train"


def one(claim: Claim, *books: Any) -> Verdict:
    (found,) = judge(claim, books[0].store.frame(*(other.store for other in books[1:])))
    return found


def fixed(final_new: float, final_old: float, reaches: float | None = 0.94) -> dict[int, tuple[float, float]]:
    return {seed: (final_new + 0.001 * (seed % 3 - 1), final_old + 0.001 * (seed % 3 - 1)) for seed in range(10)}


@pytest.mark.parametrize(
    ("new", "old", "word", "why"),
    [
        (0.942, 0.942, "reproduced", ""),
        (0.955, 0.942, "reproduced", ""),
        (0.9405, 0.946, "partly", "worse by more than"),
        (0.930, 0.930, "not reproduced", "the candidate's mean"),
        (0.942, 0.930, "inconclusive", "the baseline's mean"),
        (0.9395, 0.9395, "inconclusive", "may miss 0.94"),
    ],
)
def test_a_fixed_schedule_is_fast_only_if_its_mean_reaches_the_target(
    training: Any, book: Any, new: float, old: float, word: str, why: str
) -> None:
    guard = {"metric": "final_test_accuracy", "margin": 0.003, "reaches": 0.94}
    claim = training(metric="elapsed_s", ratio=1.19, guard=guard)
    data = book()
    for seed, (first, second) in fixed(new, old).items():
        status, reason = ("target_reached", None) if seed % 2 else ("budget_exhausted", "just short")
        for arm, value, final in (("toy.new", 2.5, first), ("toy.old", 3.1, second), ("toy.old#aa", 3.1, second)):
            metrics = {"elapsed_s": value * data.wobble[seed], "final_test_accuracy": final, "steps": 100.0}
            data.run(arm[:7], seed, metrics, arm=arm, status=status, reason=reason, updates=100)
    found = one(claim, data)
    assert (found.verdict, found.ratio) == (word, pytest.approx(1.24))
    assert why in found.reason
    for row in data.store.rows:
        row["detail"] = {"updates": 120}
    assert "stopped before its schedule ended" in one(claim, data).reason


def side(values: list[float]) -> dict[int, Trained]:
    return {
        seed: Trained(file="", device="", workload=W, method="a", arm="a", seed=seed, status="target_reached",
                      metrics={"final_test_accuracy": value})
        for seed, value in enumerate(values)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("candidate", "equal", "word"),
    [
        ([0.90] * 6, True, "reproduced"),
        ([0.95] * 6, False, "reproduced"),
        ([0.95] * 6, True, "inconclusive"),
        ([0.80] * 6, False, "partly"),
        ([0.80, 0.9, 0.9, 0.9, 0.9, 0.9], False, "inconclusive"),
    ],
)
def test_guard_by_paired_difference(candidate: list[float], equal: bool, word: str) -> None:
    guard = Guard(metric="final_test_accuracy", margin=0.01, equal=equal)
    outcome, told = trained.guarded(guard, Outcome(word="reproduced"), side(candidate), side([0.90] * 6))
    assert outcome.word == word
    assert told[0].startswith("final_test_accuracy better by")
    kept, _ = trained.guarded(guard, Outcome(word="not reproduced", why="x"), side(candidate), side([0.9] * 6))
    assert kept == Outcome(word="not reproduced", why="x")
    loss = Guard(metric="final_test_accuracy", margin=0.01, larger_is_better=False)
    assert trained.guarded(loss, Outcome(word="reproduced"), side([0.8] * 6), side([0.9] * 6))[0].word == "reproduced"
    blind, _ = trained.guarded(guard, Outcome(word="reproduced"), {}, side([0.9]))
    assert (blind.word, "not recorded" in blind.why) == ("inconclusive", True)


def test_the_end_of_a_broken_run_is_no_result() -> None:
    run = Trained(file="", device="", workload=W, method="a", arm="a", seed=0, status="diverged",
                  metrics={"final_test_accuracy": 0.1, "elapsed_s": 1.0, "steps": 3.0})  # fmt: skip
    assert run.value("final_test_accuracy") is None
    assert run.value("elapsed_s") is None
    assert run.value("steps") == 3.0


def test_a_final_metric_is_a_paired_ratio_with_its_noise(training: Any, book: Any) -> None:
    claim = training(kind="metric-better", metric="final_noise_accuracy_0.2", larger_is_better=True, ratio=None)
    data = book().arm("toy.old", 0.5, metric=claim.metric).arm("toy.new", 0.6, metric=claim.metric)
    data.arm("toy.old", 0.52, metric=claim.metric, arm="toy.old#aa")
    found = one(claim, data)
    assert (found.verdict, found.ratio, found.floor) == ("reproduced", pytest.approx(1.2), pytest.approx(0.04))


def test_real_shaped_records_are_judged(training: Any, trainer: Any, usual_arms: Any, tmp_path: Any) -> None:
    from dataclasses import replace

    from harness.record.store import read_headers, read_runs

    sgd, adamw, muon = usual_arms
    writer = trainer(value=0.9)
    path = writer.write(tmp_path / "t.jsonl", [sgd, replace(adamw, resumed=(1,)), muon], seeds=8)
    frame, headers = read_runs(path), read_headers(path)
    claim = training(workload=writer.workload, task="training", candidate="training.muon", baseline="training.adamw",
                     metric="steps_to_target", ratio=1.5)  # fmt: skip
    (found,) = judge(claim, frame, headers)
    assert (found.verdict, found.n) == ("reproduced", 8)
    assert found.floor is not None
    timed = training(workload=writer.workload, task="training", candidate="training.muon", baseline="training.adamw")
    (found,) = judge(timed, frame, headers)
    assert (found.n, "1 resumed runs of training.adamw" in found.reason) == (7, True)
    broken = writer.write(tmp_path / "b.jsonl", [replace(arm, stall=0.2) for arm in usual_arms], seeds=6)
    assert judge(timed, read_runs(broken), read_headers(broken))[0].verdict == "invalid"


def test_the_physical_floor_makes_a_verdict_invalid(claim: Any, store: Any) -> None:
    why = "a time of 1e-09 s lies under the physical floor of 1e-06 s (bytes)"
    data = store().errors("toy.old", 0.1).errors("toy.new", 0.1).aa().times("toy.old")
    data.status("toy.new", "error", why, phase="block")
    (found,) = judge(claim(), data.frame())
    assert (found.verdict, "physical floor" in found.reason) == ("invalid", True)


HEAD = """
[[claim]]
id = "a"
group = "g"
title = "t"
kind = "speedup-about"
words = "w"
source = "s"
task = "training"
candidate = "training.muon"
baseline = "training.sgd"
"""


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ('workload = "w"\nratio = 1.2\nmetric = "elapsed_s"', "guard must say what it reaches"),
        ('workload = "w"\nratio = 1.2\nmetric = "time_to_target_s"\nhyper = {lr = 0.1}', "share no time ratio"),
        ('problems = ["p"]\nratio = 1.2\nerror_metric = "e"\nhyper = {lr = 0.1}', "belong to claims about a training"),
        ('workload = "w"\nratio = 1.2\nguard = {metric = "final_x", margin = 0}', "greater than 0"),
    ],
)
def test_claims_about_training_that_cannot_be_judged_are_refused(more: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        parse_claims(HEAD + more, "x.toml")


def test_evidence_keeps_the_run_of_each_row() -> None:
    assert "run" in evidence.COLUMNS
    assert math.isinf(Trained(file="", device="", workload=W, method="a", arm="a", seed=0, status="target_reached",
                              metrics={"time_to_target_s": 1.0}).hit("time_to_target_s").budget)  # fmt: skip


def test_final_metrics_need_the_whole_schedule_unless_ends_are_equal(training: Any, book: Any) -> None:
    claim = training(kind="metric-better", metric="final_val_loss", ratio=1.5)
    assert claim.reproduce().endswith("--full")
    fine = book().usual(2.0, metric="final_val_loss", extra={"steps": 100.0}, updates=100)
    assert one(claim, fine).verdict == "reproduced"
    cut = book().usual(2.0, metric="final_val_loss", extra={"steps": 60.0}, updates=100)
    found = one(claim, cut)
    assert (found.verdict, "--full" in found.reason) == ("inconclusive", True)
    guard = {"metric": "final_test_accuracy", "margin": 0.01, "equal": True}
    extra = {"steps": 60.0, "final_test_accuracy": 0.98}
    equal = book().usual(2.0, metric="final_val_loss", extra=extra, updates=100)
    assert one(training(kind="metric-better", metric="final_val_loss", ratio=1.5, guard=guard), equal).verdict == (
        "reproduced"
    )
