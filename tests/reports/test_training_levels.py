"""Further levels of a target on the training page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.record.store import read_headers, read_runs
from reports import training, training_levels

RECORD = Path(__file__).parents[2] / "reports/records/h100/20261122T202425295781Z-vm-1344.jsonl.gz"


@pytest.fixture(scope="module")
def place() -> training.Place:
    (found,) = training.places(read_runs([RECORD]), read_headers([RECORD]))
    return found


def test_levels_come_easiest_first_and_without_the_target(place: training.Place) -> None:
    assert training_levels.levels(place) == [0.91, 0.915]
    assert place.level == 0.92


def test_each_arm_has_its_crossing(place: training.Place) -> None:
    found = {(row["level"], row["arm"]): row for row in training_levels.rows(place)}
    assert len(found) == 4
    adamw = found[0.915, "training.adamw"]
    assert (adamw["hits_text"], round(adamw["time"], 2), adamw["steps_text"]) == ("1 of 1", 63.35, "8,028")
    assert found[0.91, "training.sgd"]["time"] < found[0.915, "training.sgd"]["time"]
    assert all(row["samples"] == pytest.approx(256 * row["steps"]) for row in found.values())


def test_a_level_nobody_reached_is_a_miss(place: training.Place) -> None:
    told = {**place.described, "target": {**place.described["target"], "others": [0.91, 0.99]}}
    missed = [row for row in training_levels.rows(replace(place, described=told)) if row["level"] == 0.99]
    assert [row["hits_text"] for row in missed] == ["0 of 1", "0 of 1"]
    assert {row["time_text"] for row in missed} == {"not reached"}


def test_a_smaller_metric_is_harder(place: training.Place) -> None:
    goal = {"metric": "test_loss", "value": 1.0, "others": [0.9, 1.2]}
    arms = {arm: {s: replace(r, detail={"target": {**goal, "larger_is_better": False}}) for s, r in kept.items()}
            for arm, kept in place.arms.items()}  # fmt: skip
    runs = [run for kept in arms.values() for run in kept.values()]
    turned = replace(place, described={"target": goal}, arms=arms, runs=runs)
    assert training_levels.levels(turned) == [1.2, 0.9]


def test_runs_ended_on_request_stand_beside_the_arms_of_their_file() -> None:
    folder = RECORD.parent
    files = [folder / "20261123T180146259017Z-vm-1415.jsonl.gz", folder / "20261123T150135154372Z-vm-2233.jsonl.gz"]
    (found,) = training.places(read_runs(files), read_headers(files))
    rows = training_levels.asked(found)
    assert [(row["arm"], row["hits_text"], row["file"][9:13]) for row in rows] == [
        ("training.kfac-cholesky", "5 of 5", "1801"),
        ("training.kfac-cholesky#aa", "6 of 6", "1801"),
        ("training.rs-kfac-warm", "5 of 5", "1801"),
        ("training.kfac-cholesky#aa", "2 of 2", "1501"),
        ("training.rs-kfac-warm", "2 of 2", "1501"),
        ("training.kfac-cholesky", "3 of 3", "1501"),
    ]
    assert {row["level"] for row in rows} == {0.91}
    assert (round(rows[2]["time"], 1), rows[2]["spread"]) == (83.0, "74.6 s to 88.0 s"), "the median of five seeds"
    assert found.rows == [], "they speak for nothing else"


def test_no_run_was_ended_on_request(place: training.Place) -> None:
    assert training_levels.asked(place) == []
