"""Verdicts on training: what counts and what is refused, on records of known content."""

from __future__ import annotations

from typing import Any

import pytest

from harness.judge import trained_runs, training_summary
from harness.judge.claim import Claim
from harness.judge.trained_runs import Trained
from harness.judge.verdict import Verdict, judge

W = "toy-train"


def one(claim: Claim, *books: Any) -> Verdict:
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
        data.run("toy.old", seed + 1_000_003, {"time_to_target_s": 88.0 * data.wobble[seed]}, arm="toy.old#aa")
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


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ({"schedule": "constant", "warmup": 0.0}, True),
        ({"schedule": "steps", "pieces": [[0, 1], [9, 0.1]]}, True),
        ({"schedule": "steps", "pieces": None}, False),
        ({"schedule": "constant", "warmup": 0.1}, False),
        ({"schedule": "cosine"}, False),
    ],
)
def test_the_first_part_of_a_training_tells_a_time_to_target(
    training: Any, book: Any, values: dict[str, Any], counts: bool
) -> None:
    detail = {"hyper_sources": {"epochs": "command line"}, "hyper": {"values": {"epochs": 20.0, **values}}}
    found = one(training(), book().usual(2.0, **detail))
    assert found.verdict == ("reproduced" if counts else "not testable here")
    ends = one(training(metric="final_test_accuracy"), book().usual(2.0, metric="final_test_accuracy", **detail))
    assert ends.verdict == "not testable here"


def test_a_first_part_in_which_no_run_gets_there_tells_nothing(training: Any, book: Any) -> None:
    values = {"schedule": "constant", "epochs": 0.5}
    detail = {"hyper_sources": {"epochs": "command line"}, "hyper": {"values": values}}
    missed = {"metric": "censored_at_s", "status": "budget_exhausted", **detail}
    data = book().usual(2.0, **detail)
    data.store.rows[:] = [row for row in data.store.rows if row["arm"] != "toy.old"]
    found = one(training(), data.arm("toy.old", 80.0, **missed))
    assert (found.verdict, "another length" in found.reason) == ("not testable here", True)
    data.run("toy.old", 10, {"time_to_target_s": 70.0}, **detail).run(
        "toy.new", 10, {"time_to_target_s": 35.0}, **detail
    )
    assert one(training(), data).n == 11


def test_a_whole_training_comes_before_a_part_of_one(training: Any, book: Any) -> None:
    values = {"schedule": "constant", "epochs": 20.0}
    part = {"hyper_sources": {"epochs": "command line"}, "hyper": {"values": values}}
    data = book().usual(2.0, hyper={"values": {"schedule": "constant", "epochs": 50.0}})
    assert one(training(), data.usual(3.0, **part)).ratio == pytest.approx(2.0)


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


def test_a_run_ended_on_request_counts_up_to_the_level_it_was_ended_at(training: Any, book: Any) -> None:
    def ended(file: str, utc: str) -> Any:
        made = book(file=file, utc=utc)
        for arm, ratio in (("toy.old", 1.0), ("toy.old#aa", 1.0), ("toy.new", 2.0)):
            for seed in range(8):
                crossed = [{"level": 0.9, "time_s": (50 + seed) / ratio, "steps": 10, "samples": 10}]
                made.run(arm.removesuffix("#aa"), seed, {"elapsed_s": 60.0}, arm=arm, status="budget_exhausted",
                         crossings=crossed, stopped_early=True, spec={"until": 0.9},
                         target={"value": 0.95, "larger_is_better": True})  # fmt: skip
        return made

    near = training(metric="time_to_target_0.9_s")
    alone = ended("b.jsonl", "2026-03-01T00:00:00Z")
    found = one(near, alone)
    assert found.ratio == pytest.approx(2.0, rel=1e-6)
    assert "toy.new hits 8 of 8" in found.reason
    for metric in ("time_to_target_s", "time_to_target_0.93_s"):
        found = one(training(metric=metric), alone)
        assert (found.verdict, found.ratio) == ("not testable here", None)
        assert "--until" in found.reason
    whole = book().usual(3.0)
    assert one(training(), whole, ended("b.jsonl", "2026-03-01T00:00:00Z")).ratio == pytest.approx(3.0, rel=0.01)
    rows = {
        row["arm"]: row for row in training_summary.summary(trained_runs.from_rows(whole.store.rows + alone.store.rows))
    }
    assert {row["hits"] for row in rows.values()} == {10}


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
