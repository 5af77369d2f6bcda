"""Verdicts on training: what counts, what is refused, and every branch of the guard, on records of known content."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from harness.errors import UserError
from harness.judge import evidence, trained, trained_runs
from harness.judge.claim import Claim, Guard, parse_claims
from harness.judge.rules import Outcome
from harness.judge.trained_runs import Trained
from harness.judge.verdict import Verdict, judge

W = "toy-train"
WOBBLE = [1 + 0.004 * k for k in range(-5, 5)]


class Book:
    """Training rows of one file, each run complete."""

    def __init__(self, store: Callable[..., Any], file: str = "a.jsonl", utc: str = "2026-01-01T00:00:00Z") -> None:
        self.store, self.file, self.utc = store(file=file, utc=utc), file, utc

    def run(
        self, method: str, seed: int, metrics: dict[str, float], *, arm: str | None = None,
        status: str = "target_reached", reason: str | None = None, **detail: Any,
    ) -> Book:  # fmt: skip
        shared = {"method": method, "arm": arm or method, "workload": W, "phase": "training", "seed": float(seed)}
        run = f"{self.file}-{arm or method}-{seed}-{len(self.store.rows)}"
        for metric, value in (metrics or {None: None}).items():
            self.store.row(**shared, run=run, status=status, reason=reason, metric=metric, value=value, detail=detail)
        return self

    def arm(self, method: str, centre: float, *, metric: str = "time_to_target_s", n: int = 10, **more: Any) -> Book:
        extra = more.pop("extra", {})
        for seed in range(n):
            self.run(method, seed, {metric: centre * WOBBLE[seed], **extra}, **more)
        return self

    def usual(self, ratio: float = 2.0, metric: str = "time_to_target_s", n: int = 10, **more: Any) -> Book:
        """The baseline, its alias and a candidate ``ratio`` times as fast."""
        self.arm("toy.old", 80.0, metric=metric, n=n, **more).arm("toy.new", 80.0 / ratio, metric=metric, n=n, **more)
        return self.arm("toy.old", 80.2, metric=metric, n=n, arm="toy.old#aa", **more)


@pytest.fixture
def book(store: Any) -> Callable[..., Book]:
    return lambda **fields: Book(store, **fields)


@pytest.fixture
def training(claim: Any) -> Callable[..., Claim]:
    def make(**fields: Any) -> Claim:
        defaults = {"workload": W, "problems": [], "metric": "time_to_target_s", "error_metric": None, "ratio": 1.6}
        return claim(**{**defaults, **fields})  # type: ignore[no-any-return]

    return make


def one(claim: Claim, *books: Book) -> Verdict:
    (found,) = judge(claim, books[0].store.frame(*(other.store for other in books[1:])))
    return found


def test_a_ratio_of_exact_times(training: Any, book: Any) -> None:
    found = one(training(), book().usual(2.0))
    assert (found.verdict, found.n) == ("reproduced", 10)
    assert (found.ratio, found.low, found.high) == (pytest.approx(2.0), pytest.approx(2.0), pytest.approx(2.0))
    assert found.floor == 0.005  # 80.2 ÷ 80 is 0.25 %, under the least floor
    assert found.problems[0]["problem"] == W


@pytest.mark.parametrize(("n", "screen"), [(1, False), (2, False), (3, True), (5, True)])
def test_under_six_seeds_there_is_no_verdict_word(training: Any, book: Any, n: int, screen: bool) -> None:
    found = one(training(), book().usual(2.0, n=n))
    assert found.verdict == "inconclusive"
    assert f"too few seeds: {n}" in found.reason
    assert ("a screen, not a verdict" in found.reason) == screen
    assert one(training(), book().usual(2.0, n=6)).verdict == "reproduced"


def test_without_an_alias_the_floor_is_unknown(training: Any, book: Any) -> None:
    found = one(training(), book().arm("toy.old", 80.0).arm("toy.new", 40.0))
    assert (found.verdict, "A/A" in found.reason) == ("inconclusive", True)
    exact = training(kind="at-most", metric="optimizer_state_bytes", ratio=1.05)
    found = one(
        exact, book().arm("toy.old", 8.0, metric=exact.metric, n=1).arm("toy.new", 8.0, metric=exact.metric, n=1)
    )
    assert (found.verdict, found.n, found.ratio) == ("reproduced", 1, 1.0)


def test_the_alias_may_carry_its_own_stream_as_seed(training: Any, book: Any) -> None:
    data = book().arm("toy.old", 80.0).arm("toy.new", 40.0)
    for seed in range(10):
        data.run("toy.old", seed + 1_000_003, {"time_to_target_s": 88.0 * WOBBLE[seed]}, arm="toy.old#aa")
    assert one(training(), data).floor == pytest.approx(0.1)


def test_a_baseline_that_missed_bounds_from_below_a_candidate_from_above(training: Any, book: Any) -> None:
    # n = 6: the interval is the range. Baseline: five exact ratios of 2 and one miss at budget 90 against 40.
    data = book()
    for seed in range(6):
        data.run("toy.new", seed, {"time_to_target_s": 40.0})
        data.run("toy.old", seed, {"time_to_target_s": 80.0}, arm="toy.old#aa")
        if seed:
            data.run("toy.old", seed, {"time_to_target_s": 80.0})
    data.run("toy.old", 0, {"censored_at_s": 90.0}, status="budget_exhausted", reason="missed")
    found = one(training(), data)
    assert (found.low, found.high, found.n) == (pytest.approx(2.0), None, 6)
    assert found.floor is None  # the A/A pair misses once: unbounded
    assert "too often to give a noise floor" in found.reason
    mirrored = one(training(candidate="toy.old", baseline="toy.new"), data)
    assert (mirrored.low, mirrored.high) == (0.0, pytest.approx(0.5))


def test_steps_of_a_missed_run_come_from_its_detail(training: Any, book: Any) -> None:
    claim = training(metric="steps_to_target")
    data = book().usual(2.0, metric="steps_to_target")
    data.run(
        "toy.old", 9, {"censored_at_s": 1.0}, status="diverged", reason="NaN", censored_at={"steps_to_target": 500}
    )
    data.store.rows[:] = [
        r for r in data.store.rows if not (r["seed"] == 9 and r["arm"] == "toy.old" and r["metric"] == claim.metric)
    ]
    runs = trained_runs.counting(trained_runs.from_rows(data.store.rows), "toy.old")
    hit = runs[9].hit("steps_to_target")
    assert (hit.value, hit.budget) == (None, 500.0)
    assert "1 of toy.old diverged" in one(claim, data).reason


def test_a_broken_run_without_budget_says_nothing_but_stays(training: Any, book: Any) -> None:
    data = book().usual(2.0)
    data.run("toy.new", 10, {}, status="out_of_memory", reason="CUDA out of memory")
    data.run("toy.old", 10, {"time_to_target_s": 80.0})
    found = one(training(), data)
    assert "toy.new hits 10 of 11" in found.reason
    assert found.n == 11
    with pytest.raises(ValueError, match="budget for time_to_target_s is not recorded"):
        Trained(file="", device="", workload=W, method="a", arm="a", seed=0, status="budget_exhausted").hit(
            "time_to_target_s"
        )


@pytest.mark.parametrize(("metric", "word"), [("time_to_target_s", "invalid"), ("steps_to_target", "reproduced")])
def test_a_stalling_loader_refuses_times_only(training: Any, book: Any, metric: str, word: str) -> None:
    fine = book().usual(2.0, metric=metric, extra={"stall": 0.05})
    assert one(training(metric=metric), fine).verdict == "reproduced"
    found = one(training(metric=metric), book().usual(2.0, metric=metric, extra={"stall": 0.08}))
    assert found.verdict == word
    assert ("loader stalls" in found.reason) == (word == "invalid")


@pytest.mark.parametrize(("period", "ratio"), [(30, 11 / 6), (0, 2.5)])
def test_seconds_of_an_update_of_a_periodic_method_are_the_mean_of_its_blocks(
    training: Any, book: Any, period: int, ratio: float
) -> None:
    """A block without a refresh takes 1, those with one 5, the candidate's 2: the median block says 2.5 times."""
    data = book()
    for seed in range(8):
        for arm, blocks in (
            ("toy.old", [1.0, 5.0, 5.0]),
            ("toy.new", [2.0, 2.0, 2.0]),
            ("toy.old#aa", [1.0, 5.0, 5.0]),
        ):
            hyper = {"refresh_period": period} if period else {}
            data.run(arm.removesuffix("#aa"), seed, {"step_s": sorted(blocks)[1]}, arm=arm, hyper={"values": hyper})
            data.store.rows[-1]["samples"] = blocks
    found = one(training(metric="step_s", ratio=2.5), data)
    assert found.ratio == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("steps", "period", "word"),
    [(152, 50, "invalid"), (150, 50, "reproduced"), (1001, 50, "reproduced"), (152, [[0, 8], [90, 50]], "invalid")],
)
def test_a_mean_update_of_few_periods_must_hold_whole_ones(
    training: Any, book: Any, steps: int, period: Any, word: str
) -> None:
    hyper = {"values": {"refresh_period": period, "update_period": 10}}
    data = book().usual(2.0, metric="step_s", extra={"steps": float(steps)}, hyper=hyper)
    found = one(training(metric="step_s"), data)
    assert found.verdict == word
    assert ("no whole number of its periods of 50" in found.reason) == (word == "invalid")


def test_a_run_of_another_length_counts_where_length_changes_nothing_or_is_wanted(training: Any, book: Any) -> None:
    detail = {"hyper_sources": {"epochs": "command line"}, "hyper": {"values": {"epochs": 2.0}}}
    for metric, verdict in (("steps_to_target", "not testable here"), ("step_s", "reproduced")):
        found = one(training(metric=metric), book().usual(2.0, metric=metric, **detail))
        assert found.verdict == verdict
        assert ("another length" in found.reason) == (verdict == "not testable here")
    asked = training(metric="steps_to_target", hyper={"epochs": 2.0}, baseline_hyper={"epochs": 2.0})
    data = book().usual(2.0, metric="steps_to_target", **detail)
    assert one(asked, data).verdict != "not testable here"


def test_a_stall_is_at_most_the_share_of_the_data_s_own_span(training: Any, book: Any) -> None:
    spans = {"bucket_data_s": 0.1, "bucket_forward_s": 3.0, "bucket_backward_s": 3.0, "bucket_optimizer_s": 3.9}
    found = one(training(), book().usual(2.0, extra={"stall": 0.2, **spans}))
    assert found.verdict == "reproduced"
    found = one(training(), book().usual(2.0, extra={"stall": 0.2, **spans, "bucket_data_s": 3.0}))
    assert "loader stalls" in found.reason


def test_a_brake_in_one_arm_takes_the_seed_from_every_arm(training: Any, book: Any) -> None:
    data = book().usual(2.0)
    for row in data.store.rows:
        if row["arm"] == "toy.old#aa" and row["seed"] in (1, 3):
            row["detail"] = {"braked": "software thermal slowdown"}
    found = one(training(), data)
    assert (found.verdict, found.n) == ("reproduced", 8)
    assert "2 seeds of toy.new left out of the timing: thermal" in found.reason


def test_resumed_runs_have_no_time(training: Any, book: Any) -> None:
    data = book().usual(2.0)
    for row in data.store.rows:
        if row["seed"] in (2.0, 3.0) and row["arm"] == "toy.new":
            row["detail"] = {"resumed": True}
    found = one(training(), data)
    assert (found.n, found.verdict) == (8, "reproduced")
    assert "2 resumed runs of toy.new left out" in found.reason
    for row in data.store.rows:
        row["detail"] = {"resumed": True}
    assert "every run of toy.new was resumed" in one(training(), data).reason


def test_runs_side_by_side_have_steps_but_no_time(training: Any, book: Any) -> None:
    data = book().usual(2.0, extra={"steps_to_target": 100.0}, side_by_side=4)
    found = one(training(), data)
    assert found.verdict == "not testable here"
    assert "had others beside it" in found.reason
    assert one(training(metric="optimizer_share", clock=None, kind="at-most", baseline=None), data).ratio is None
    steps = one(training(metric="steps_to_target", clock=None), book().usual(2.0, "steps_to_target", side_by_side=4))
    assert (steps.n, steps.verdict) == (10, "reproduced")


@pytest.mark.parametrize(("beside", "hits"), [(1, 10), (4, 6)])
def test_what_neighbours_may_have_broken_does_not_count(training: Any, book: Any, beside: int, hits: int) -> None:
    data = book()
    for seed in range(6):
        data.run("toy.new", seed, {"steps_to_target": 10.0}, side_by_side=beside)
    for seed in range(6, 10):
        data.run("toy.new", seed, {}, status="out_of_memory", reason="full", side_by_side=beside)
    found = one(training(kind="often", metric="steps_to_target", clock=None, baseline=None, ratio=None), data)
    assert found.n == hits


def test_a_setting_that_never_ran_is_told_by_its_absence_not_by_other_runs(training: Any, book: Any) -> None:
    """A missed target of another setting, or of a search's trial, says nothing; a failure does."""
    data = book()
    for seed in range(6):
        data.run("toy.new", seed, {}, status="budget_exhausted", reason="0.5 at best", hyper={"lr": 1.0})
        data.run("toy.new", seed, {}, status="diverged", reason="NaN", split="validation", hyper={"lr": 2.0})
    claim = training(kind="often", hyper={"lr": 3.0}, metric="steps_to_target", clock=None, baseline=None, ratio=None)
    found = one(claim, data)
    assert found.verdict == "not testable here"
    assert "toy.new was not trained on" in found.reason
    assert "with lr = 3.0" in found.reason
    data.run("toy.new", 0, {}, status="error", reason="boom", hyper={"lr": 3.5})
    assert "boom" in one(claim, data).reason


def test_tuning_trials_and_stopped_runs_enter_no_verdict(training: Any, book: Any) -> None:
    data = book().usual(2.0)
    data.arm("toy.new", 1.0, synthetic=True).arm("toy.new", 1.0, split="validation").arm(
        "toy.new", 1.0, status="interrupted", reason="stopped"
    )
    found = one(training(), data)
    assert (found.ratio, found.n) == (pytest.approx(2.0), 10)
    only = one(training(), book().arm("toy.old", 80.0).arm("toy.new", 1.0, split="val"))
    assert only.verdict == "not testable here"


def test_settings_of_one_arm_are_never_mixed(training: Any, book: Any) -> None:
    data = book().usual(2.0, hyper={"lr": 0.1})
    later = [dict(row) for row in data.store.rows if row["arm"] == "toy.new"]
    for row in later:
        row.update(
            utc="2026-02-01T00:00:00Z", run=f"late-{row['run']}", value=row["value"] / 2, detail={"hyper": {"lr": 1}}
        )
    data.store.rows += later[:7]
    found = one(training(), data)
    assert (found.n, found.ratio) == (7, pytest.approx(4.0))


def test_enough_seeds_speak_before_a_newer_smoke_run(training: Any, book: Any) -> None:
    old = book().usual(2.0)
    smoke = book(file="b.jsonl", utc="2026-03-01T00:00:00Z").usual(3.0, n=1)
    assert one(training(), old, smoke).file == "a.jsonl"
    full = book(file="b.jsonl", utc="2026-03-01T00:00:00Z").usual(3.0, n=6)
    assert one(training(), old, full).file == "b.jsonl"


def test_whole_schedules_speak_before_newer_runs_cut_at_their_target(training: Any, book: Any) -> None:
    metric = "final_weight_sigma_spread"
    claim = training(metric=metric, clock=None)
    whole = book().usual(2.0, metric)
    cut = book(file="b.jsonl", utc="2026-03-01T00:00:00Z").usual(3.0, metric, stopped_early=True)
    assert one(claim, whole, cut).file == "a.jsonl"
    newer = book(file="b.jsonl", utc="2026-03-01T00:00:00Z").usual(3.0, metric)
    assert one(claim, whole, newer).file == "b.jsonl"


def test_two_settings_of_one_method_join_two_files(training: Any, book: Any) -> None:
    claim = training(
        kind="metric-better", metric="steps_to_target", ratio=1.5, candidate="toy.old", baseline="toy.old",
        hyper={"lr": 0.01}, baseline_hyper={"lr": 0.001},
    )  # fmt: skip
    tuned = book(file="t.jsonl").usual(metric="steps_to_target", hyper={"lr": {"value": 0.01, "from": "recipe"}})
    plain = book(file="p.jsonl").arm("toy.old", 160.0, metric="steps_to_target", hyper={"values": {"lr": 1e-3}})
    found = one(claim, tuned, plain)
    assert (found.verdict, found.ratio) == ("reproduced", pytest.approx(2.0))
    missing = one(claim, tuned)
    assert "with lr = 0.001" in missing.reason
    assert claim.reproduce().count("speedclaim train toy-train toy.old") == 2


def test_precision_is_read_from_what_the_run_used(training: Any) -> None:
    run = Trained(file="", device="", workload=W, method="a", arm="a", seed=0, status="target_reached",
                  detail={"hyper": {"lr": 0.1, "precision": "ieee"}, "spec": {"precision": "bf16"}})  # fmt: skip
    assert run.fits({"precision": "bf16", "lr": 0.1})
    assert not run.fits({"precision": "ieee"})


def test_optimizer_share_is_a_part_of_the_step_without_evaluation(training: Any, book: Any) -> None:
    buckets = {"bucket_data_s": 1.0, "bucket_forward_s": 3.0, "bucket_backward_s": 4.0, "bucket_optimizer_s": 2.0}
    assert trained_runs.optimizer_share({**buckets, "bucket_evaluation_s": 50.0}) == pytest.approx(0.2)
    assert trained_runs.optimizer_share({}) is None
    claim = training(kind="at-most", metric="optimizer_share", baseline=None, ratio=0.25, hardware_free=True)
    assert one(claim, book().usual(extra=buckets)).verdict == "reproduced"
    tight = training(kind="at-most", metric="optimizer_share", baseline=None, ratio=0.1, hardware_free=True)
    found = one(tight, book().usual(extra=buckets))
    assert (found.verdict, found.ratio, found.claimed) == ("not reproduced", pytest.approx(0.2), 0.1)
    assert "no optimizer_share" in one(tight, book().usual()).reason


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
            metrics = {"elapsed_s": value * WOBBLE[seed], "final_test_accuracy": final, "steps": 100.0}
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
