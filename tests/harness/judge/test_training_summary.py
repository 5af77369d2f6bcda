"""Summary rows of training runs against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from typing import Any

import pandas as pd
import pytest

from harness.judge import stats, trained_runs, training_summary
from harness.judge.stats import Hit, RatioEstimate
from harness.judge.trained_runs import Trained, from_frame
from harness.record.store import COLUMNS, read_runs

INF = math.inf
TARGET = {"metric": "test_accuracy", "value": 0.9, "larger_is_better": True}


def run(seed: int, time: float | None, arm: str = "training.a", budget: float = 100.0, **fields: Any) -> Trained:
    metrics = {"censored_at_s": budget} if time is None else {"time_to_target_s": time}
    given: dict[str, Any] = {
        "file": "f.jsonl", "device": "D", "workload": "w", "method": arm.removesuffix("#aa"), "arm": arm, "seed": seed,
        "status": "budget_exhausted" if time is None else "target_reached", "detail": {"target": TARGET},
    }  # fmt: skip
    metrics |= fields.pop("metrics", {})
    return Trained(**{**given, "metrics": metrics, **fields})


def arm(name: str, times: list[float | None], **fields: Any) -> list[Trained]:
    return [run(seed, time, name, **fields) for seed, time in enumerate(times)]


def one(runs: list[Trained]) -> dict[str, Any]:
    (row,) = training_summary.summary(runs)
    return row


def test_median_counts_a_miss_as_infinite() -> None:
    hits = [Hit(value=t, budget=100.0) for t in (3.0, None, 1.0)]
    assert training_summary.median_hit(hits) == 3.0
    assert training_summary.median_hit(hits[:2]) == INF
    assert training_summary.median_hit([*hits, Hit(value=None, budget=9)]) == INF


def test_restricted_mean_stops_at_the_shortest_budget_of_a_miss() -> None:
    assert training_summary.restricted_mean([Hit(value=2.0, budget=9), Hit(value=None, budget=9)], 4.0) == 3.0
    rows = training_summary.summary([*arm("training.a", [10.0, None], budget=50.0), *arm("training.b", [20.0, 70.0])])
    assert [row["horizon_s"] for row in rows] == [50.0, 50.0]
    assert [row["mean_s"] for row in rows] == [(10 + 50) / 2, (20 + 50) / 2]
    assert one(arm("training.a", [10.0, 30.0]))["mean_s"] == 20.0


def test_hits_rate_and_statuses() -> None:
    row = one([*arm("training.a", [1.0, None, 2.0]), run(3, None, status="diverged", reason="NaN")])
    assert (row["hits"], row["n"], row["rate"]) == (2, 4, 0.5)
    assert (row["rate_low"], row["rate_high"]) == stats.wilson(2, 4)
    assert row["statuses"] == {"target_reached": 2, "budget_exhausted": 1, "diverged": 1}
    assert row["reasons"] == ["NaN"]


def test_means_costs_and_memory() -> None:
    buckets = {"bucket_data_s": 1.0, "bucket_forward_s": 3.0, "bucket_backward_s": 4.0, "bucket_optimizer_s": 2.0}
    common = {**buckets, "stall": 0.02, "peak_host_bytes": 7.0, "optimizer_state_bytes": 3.0, "step_s": 0.5}
    runs = [run(s, 1.0, metrics={**common, "final_test_accuracy": v}) for s, v in enumerate((0.9, 0.92, 0.94))]
    runs.append(run(3, None, status="diverged", metrics={"final_test_accuracy": 0.1}))
    row = one(runs)
    assert (row["final_mean"], row["final_sd"]) == (pytest.approx(0.92), pytest.approx(0.02))
    assert (row["optimizer_share"], row["stall"], row["step_s"]) == (pytest.approx(0.2), 0.02, 0.5)
    assert (row["peak_metric"], row["peak_bytes"], row["state_bytes"]) == ("peak_host_bytes", 7.0, 3.0)
    single = one([run(0, 1.0)])
    assert (single["final_mean"], single["final_sd"], single["peak_bytes"], single["stall"]) == (None, None, None, None)


def test_ratio_interval_floor_and_side() -> None:
    runs = [*arm("training.a", [80.0] * 6), *arm("training.a#aa", [82.0] * 6), *arm("training.b", [40.0] * 6)]
    base, other = training_summary.summary(runs)
    assert (base["is_baseline"], base["ratio"], base["side"]) == (True, None, None)
    assert (other["ratio"], other["low"], other["high"]) == tuple(pytest.approx(2.0) for _ in range(3))
    assert (other["floor"], other["side"], other["shared"]) == (pytest.approx(0.025), "faster", 6)
    stalled = [replace(r, metrics={**r.metrics, "stall": 0.3}) for r in runs]
    assert training_summary.summary(stalled)[1]["side"] == "open"
    without = [r for r in runs if r.arm != "training.a#aa"]
    assert (training_summary.summary(without)[1]["side"], training_summary.summary(without)[1]["floor"]) == (
        "open",
        None,
    )


def test_clock_noise_is_the_aliases_time_of_an_update_and_needs_two_pairs() -> None:
    def timed(name: str, steps: list[float]) -> list[Trained]:
        return [run(seed, 10.0, name, metrics={"step_s": step}) for seed, step in enumerate(steps)]

    base = timed("training.a", [1.0, 2.0, 4.0, 1.0, 2.0, 4.0])
    row = training_summary.summary([*base, *timed("training.a#aa", [1.03, 2.06, 4.12, 1.03, 2.06, 4.12])])[0]
    assert row["clock_noise"] == pytest.approx(0.03)
    assert training_summary.summary([*base, *timed("training.a#aa", [1.1])])[0]["clock_noise"] is None
    assert training_summary.summary(base)[0]["clock_noise"] is None


def test_few_seeds_are_a_screen() -> None:
    runs = [*arm("training.a", [80.0] * 3), *arm("training.a#aa", [80.0] * 3), *arm("training.b", [40.0] * 3)]
    row = training_summary.summary(runs)[1]
    assert (row["screen"], row["side"], row["level"]) == (True, "open", 0.75)


@pytest.mark.parametrize(
    ("low", "high", "floor", "side"),
    [
        (1.1, 1.2, 0.02, "faster"),
        (0.8, 0.9, 0.02, "slower"),
        (0.99, 1.01, 0.02, "level"),
        (0.9, 1.2, 0.02, "open"),
        (1.01, 1.2, 0.02, "open"),
        (1.1, INF, 0.02, "faster"),
        (1.1, 1.2, None, "open"),
    ],
)
def test_side(low: float, high: float, floor: float | None, side: str) -> None:
    estimate = RatioEstimate(ratio=1.0, low=low, high=high, level=0.97, n=6)
    assert training_summary.side_of(estimate, floor) == side


def test_all_missed_gives_no_ratio() -> None:
    runs = [*arm("training.a", [None] * 6), *arm("training.a#aa", [None] * 6), *arm("training.b", [None] * 6)]
    row = training_summary.summary(runs)[1]
    assert (row["ratio"], row["low"], row["floor"], row["median_s"], row["mean_s"]) == (None, None, None, INF, 100.0)


def test_hit_curve_keeps_every_run_at_risk() -> None:
    runs = [*arm("training.a", [3.0, 1.0]), run(2, None, budget=10.0), run(3, None, budget=8.0, status="diverged")]
    assert training_summary.hit_curve(runs) == [(0.0, 0.0), (1.0, 0.25), (3.0, 0.5), (10.0, 0.5)]
    assert training_summary.hit_curve(arm("training.a", [None], budget=5.0)) == [(0.0, 0.0), (5.0, 0.0)]
    assert training_summary.hit_curve(arm("training.a", [2.0])) == [(0.0, 0.0), (2.0, 1.0)]
    assert training_summary.hit_curve([]) == []


def test_the_file_with_enough_seeds_speaks_and_ratios_stay_inside_it() -> None:
    old = [*arm("training.a", [80.0] * 6), *arm("training.a#aa", [80.0] * 6), *arm("training.b", [40.0] * 6)]
    new = arm("training.b", [10.0], file="g.jsonl", utc="2027")
    rows = {row["arm"]: row for row in training_summary.summary([*old, *new])}
    assert (rows["training.b"]["n"], rows["training.b"]["file"], rows["training.b"]["ratio"]) == (
        6,
        "f.jsonl",
        pytest.approx(2.0),
    )
    alone = arm("training.c", [10.0] * 6, file="g.jsonl", utc="2027")
    rows = {row["arm"]: row for row in training_summary.summary([*old, *alone])}
    assert (rows["training.c"]["n"], rows["training.c"]["ratio"]) == (6, None)


def test_best_of_k_equals_the_mean_over_all_draws() -> None:
    values = [3.0, 1.0, 4.0, 1.5]
    for larger, best in ((True, max), (False, min)):
        expected = [fmean(best(draw) for draw in combinations(values, k)) for k in range(1, 5)]
        assert training_summary.best_of_k(values, larger) == pytest.approx(expected)
    assert training_summary.best_of_k([]) == []
    assert training_summary.best_of_k([2.0]) == [2.0]


def test_trials_are_the_tuning_runs_and_a_failed_one_is_the_worst() -> None:
    runs = [
        run(0, 1.0, detail={"split": "validation", "target": TARGET}, metrics={"final_val_accuracy": value})
        for value in (0.8, 0.9)
    ]
    runs.append(run(0, None, "training.b", status="diverged", detail={"split": "validation", "target": TARGET}))
    runs.append(run(0, 1.0, metrics={"final_val_accuracy": 0.1}))
    assert training_summary.trials(runs) == {"training.a": [0.8, 0.9], "training.b": [0.8]}
    assert training_summary.trials(runs[-1:]) == {}
    assert training_summary.validation_name("val_loss") == "val_loss"


def test_rows_of_a_written_record(trainer: Any, usual_arms: Any, tmp_path: Any) -> None:
    path = trainer(value=0.9).write(tmp_path / "t.jsonl", usual_arms, seeds=6)
    rows = training_summary.rows(read_runs(path))
    assert [row["method"] for row in rows] == [a.method for a in usual_arms]
    assert [row["hits"] for row in rows] == [6, 6, 6]
    assert rows[2]["optimizer_share"] == pytest.approx(0.3)
    assert rows[2]["hyper"] == {"lr": 0.1, "epochs": 12.0, "precision": "torch-default"}
    assert rows[0]["target"]["value"] == 0.9
    muon = [r for r in from_frame(read_runs(path)) if r.arm == "training.muon"]
    assert rows[2]["steps"] == pytest.approx(sorted(r.metrics["steps_to_target"] for r in muon)[2], rel=0.1)
    assert training_summary.rows(pd.DataFrame(columns=list(COLUMNS))) == []


def test_a_tried_value_does_not_displace_the_recipe() -> None:
    def told(lr: float, source: str, utc: str, file: str) -> list[Trained]:
        detail = {"target": TARGET, "hyper": {"lr": lr}, "hyper_sources": {"lr": source}}
        return arm("training.a", [lr, lr], detail=detail, utc=utc, file=file)

    recipe, tried = told(1.0, "recipe", "2026-01-01", "f.jsonl"), told(2.0, "command line", "2026-01-02", "f.jsonl")
    assert {run.hyper["lr"] for run in trained_runs.counting([*recipe, *tried], "training.a").values()} == {1.0}
    assert {run.hyper["lr"] for run in trained_runs.counting(tried, "training.a").values()} == {2.0}
    wanted = trained_runs.counting([*recipe, *tried], "training.a", {"lr": 2.0})
    assert {run.hyper["lr"] for run in wanted.values()} == {2.0}
    elsewhere = told(2.0, "command line", "2026-01-02", "g.jsonl")
    assert one([*recipe, *elsewhere])["median_s"] == 1.0
    more = arm("training.a", [3.0] * 6, detail=tried[0].detail, utc="2026-01-03", file="h.jsonl")
    assert one([*recipe, *more])["median_s"] == 3.0


def cut(name: str, seeds: int, epochs: float, schedule: str = "constant", file: str = "g.jsonl") -> list[Trained]:
    detail = {
        "target": TARGET,
        "hyper_sources": {"epochs": "command line"},
        "hyper": {"values": {"epochs": epochs, "schedule": schedule}},
    }
    return [run(seed, None, name, detail=detail, file=file) for seed in range(seeds)]


def test_the_longest_first_part_speaks_for_an_arm_without_a_whole_training() -> None:
    runs = arm("training.a", [1.0, 2.0]) + cut("training.a", 6, 90.0) + cut("training.b", 6, 0.5)
    runs += cut("training.b", 1, 27.0, file="h.jsonl") + cut("training.c", 6, 27.0, schedule="cosine")
    found = training_summary.speaking(runs)
    assert {name: len(kept) for name, kept in found.items()} == {"training.a": 2, "training.b": 1}
    assert found["training.b"][0].hyper["epochs"] == 27.0
    alone = training_summary.speaking(cut("training.c", 3, 27.0, schedule="cosine"))
    assert {name: len(kept) for name, kept in alone.items()} == {"training.c": 3}


def test_runs_ended_at_a_nearer_level_take_no_arm_s_first_parts_away() -> None:
    ended = {"target": TARGET, "spec": {"until": 0.8}, "stopped_early": True, "hyper": {"values": {"epochs": 90.0}}}
    asked = arm("training.b", [None] * 6, detail=ended, file="z.jsonl", utc="2026-12-01T00:00:00Z")
    found = training_summary.speaking(arm("training.a", [1.0]) + cut("training.b", 2, 27.0) + asked)
    assert {name: len(kept) for name, kept in found.items()} == {"training.a": 1, "training.b": 2}
    assert {run.file for run in found["training.b"].values()} == {"g.jsonl"}
