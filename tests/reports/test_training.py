"""Training pages: what they say, what they draw, and every record that lacks something."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.record.store import read_headers, read_runs
from reports import audit, html, training, training_charts
from reports.training import Place


def found(*paths: Path) -> list[Place]:
    return training.places(read_runs(list(paths)), read_headers(list(paths)))


def only(*paths: Path) -> Place:
    (place,) = found(*paths)
    return place


def charts(place: Place) -> dict[str, Any]:
    return {chart.id.split("--")[1]: chart for _, _, drawn in training_charts.sections(place) for chart in drawn}


@pytest.fixture(scope="module")
def usual(trainer: Any, usual_arms: Any, tmp_path_factory: pytest.TempPathFactory) -> Place:
    path = tmp_path_factory.mktemp("usual") / "a.jsonl"
    return only(trainer(value=0.9).write(path, [usual_arms[2], usual_arms[0], usual_arms[1]], seeds=6))


def pages(out: Path, *paths: Path) -> dict[str, str]:
    source = list(paths)
    html.render(read_runs(source), read_headers(source), [], out)
    return {path.name: path.read_text(encoding="utf-8") for path in out.glob("*.html")}


def test_places_follow_the_plan_and_keep_devices_apart(record: Any) -> None:
    places = training.places(record.runs, record.headers)
    assert [(place.workload, place.device[:6]) for place in places] == [
        ("digits-cnn", "AMD EP"),
        ("sotu-gpt", "NVIDIA"),
    ]
    assert places[0].slug.startswith("train--digits-cnn--amd-epyc")
    assert (places[0].metric, places[0].level) == ("test_accuracy", 0.97)
    assert set(places[0].trials) == {"training.adamw", "training.muon"}


def test_the_baseline_comes_first_then_the_plans_order(usual: Place) -> None:
    assert [row["arm"] for row in usual.rows] == ["training.muon", "training.sgd", "training.adamw"]
    assert usual.rows[0]["is_baseline"]


def test_the_table_says_what_happened(usual: Place) -> None:
    muon, sgd, adamw = training.table(usual)
    assert (muon["word"], muon["wilson"], muon["ratio_text"]) == ("6 of 6", "61 % to 100 %", "baseline")
    assert sgd["ratio_text"].startswith("▼ 0.")
    assert sgd["ratio_note"] == "6 seeds, 96.9 %"
    assert adamw["share_text"] == "6.0 %"
    assert adamw["state_text"] == "2.86 MiB"
    assert adamw["command"] == "speedclaim train digits-cnn training.adamw --seeds 10"
    assert adamw["final_text"].endswith("\u00a0%")


def test_numbers_in_words() -> None:
    assert training.time_text(math.inf) == "not reached"
    assert training.count_text(1234.4) == "1,234"
    assert training.level_text("val_loss", 1.23456) == "1.235"
    assert training.level_text("test_accuracy", 0.98) == "98.00\u00a0%"
    assert training.level_text("test_accuracy", None) == "—"
    assert training.ratio_text({"ratio": math.nan, "low": 1.4, "high": math.inf}) == "over 1.40×"
    assert training.ratio_text({"ratio": math.nan, "low": 0.0, "high": 0.5}) == "under 0.500×"


def test_every_figure_has_a_sentence_rows_and_a_title(usual: Place) -> None:
    drawn = charts(usual)
    names = {re.sub(r"-[0-9a-f]{6}$", "", name) for name in drawn}
    assert names == {"forest", "curve-time-s", "curve-samples", "curve-steps", "cost", "hits", "memory"}
    for chart in drawn.values():
        assert chart.sentence[0].isupper()
        assert chart.sentence.endswith(".")
        assert len(chart.rows) >= 2
        assert chart.svg.startswith('<svg role="img"')
        assert "<title" in chart.svg


def test_curves_hold_each_seed_the_median_and_the_crossings(usual: Place) -> None:
    chart = next(chart for name, chart in charts(usual).items() if name.startswith("curve-steps"))
    assert {(row["method"], row["seed"]) for row in chart.rows} == {
        (arm, seed) for arm in usual.methods for seed in range(6)
    }
    rows = training_charts._middle([{"time_s": [0, 1], "samples": [0, 2], "steps": [0, 3], "value": [0.1, v]}
                                    for v in (0.5, 0.6, 0.9)])  # fmt: skip
    assert rows["value"] == [0.1, 0.6]
    short = [{"time_s": [0], "samples": [0], "steps": [0], "value": [0.1]}] * 2
    long = [{"time_s": [0, 9], "samples": [0, 9], "steps": [0, 9], "value": [0.1, 0.9]}]
    assert training_charts._middle([*short, *long])["value"] == [0.1]


def test_long_curves_are_thinned_with_both_ends_kept() -> None:
    row = {name: list(range(1000)) for name in ("time_s", "samples", "steps", "value")}
    thin = training_charts._thinned(row, 40)
    assert (len(thin["value"]), thin["value"][0], thin["value"][-1]) == (40, 0, 999)
    assert training_charts._thinned(row, 2000) is row


def test_costs_are_milliseconds_per_update(usual: Place) -> None:
    chart = next(chart for name, chart in charts(usual).items() if name.startswith("cost"))
    ms = {(row["arm"], row["bucket"]): row["ms"] for row in chart.rows}
    whole = sum(ms["training.adamw", bucket] for bucket in ("data", "forward", "backward", "optimizer"))
    assert whole == pytest.approx(4.0, rel=0.03)
    assert ms["training.adamw", "optimizer"] == pytest.approx(0.06 * whole)
    assert not any(bucket == "compile" for _, bucket in ms)


def test_no_training_gives_no_page_and_no_section(trainer: Any, tmp_path: Path, empty_record: Any) -> None:
    html.render(empty_record.runs, [], [], tmp_path)
    assert not list(tmp_path.glob("train--*"))
    assert "Training to a target" not in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize("seeds", [1, 4])
def test_few_seeds_only_screen(trainer: Any, usual_arms: Any, tmp_path: Path, seeds: int) -> None:
    path = trainer(value=0.9).write(tmp_path / "a.jsonl", usual_arms, seeds=seeds)
    place = only(path)
    assert "verdict needs six" in training.lead(place)
    notes = {row["ratio_note"] for row in training.table(place)[1:]}
    assert notes == ({"too few seeds: 1"} if seeds == 1 else {"4 seeds: a screen, no verdict"})
    text = pages(tmp_path / "out", path)
    assert "no verdict yet" in text["index.html"]


def test_all_missed_and_no_alias(trainer: Any, usual_arms: Any, tmp_path: Path) -> None:
    path = trainer(value=0.9999).write(tmp_path / "a.jsonl", usual_arms, seeds=6, aa=False)
    place = only(path)
    assert {row["word"] for row in training.table(place)} == {"0 of 6"}
    assert "No method reaches it in most of its runs" in training.lead(place)
    drawn = charts(place)
    assert not any(name.startswith(("forest", "memory")) for name in drawn)
    assert any(name.startswith("hits") for name in drawn)
    text = pages(tmp_path / "out", path)[f"{place.slug}.html"]
    assert "not reached" in text
    assert "No ratio can be formed" in text


def test_without_an_alias_nothing_is_judged(trainer: Any, usual_arms: Any, tmp_path: Path) -> None:
    place = only(trainer(value=0.9).write(tmp_path / "a.jsonl", usual_arms, seeds=6, aa=False))
    assert {row["ratio_note"] for row in training.table(place)[1:]} == {"no A/A floor: noise unknown"}
    forest = next(chart for name, chart in charts(place).items() if name.startswith("forest"))
    assert "the noise is unknown" in forest.sentence


def test_diverged_stalled_and_resumed_runs_are_told(record: Any) -> None:
    place = training.places(record.runs, record.headers)[1]
    rows = {row["arm"]: row for row in training.table(place)}
    assert rows["training.adamw"]["word"] == "4 of 6"
    assert set(rows["training.adamw"]["statuses"]) == {"1 diverged", "1 out of memory"}
    assert rows["training.adamw"]["stalled"]
    assert rows["training.muon"]["word"] == "5 of 5"
    assert rows["training.muon"]["ratio_note"] == "refused: the loader stalls"
    listed = training.run_rows(place)
    assert any("resumed" in row["note"] for row in listed)
    assert {"diverged", "out of memory", "interrupted"} <= {row["status"] for row in listed}


def test_only_tuning_trials(trainer: Any, usual_arms: Any, tmp_path: Path) -> None:
    arms = [replace(arm, extra={"final_val_accuracy": 0.9}) for arm in usual_arms]
    path = trainer(split="validation").write(tmp_path / "a.jsonl", arms, seeds=1, aa=False)
    place = only(path)
    assert place.rows == []
    assert training.lead(place).endswith("Only 3 tuning trials so far: no run stands for a result.")
    assert [name[:6] for name in charts(place)] == ["tuning"]
    assert "No run stands for a result" in pages(tmp_path / "out", path)[f"{place.slug}.html"]


def test_a_smaller_loss_is_the_better_one(trainer: Any, usual_arms: Any, tmp_path: Path) -> None:
    arms = [replace(arm, extra={"final_val_loss": loss}) for arm, loss in zip(usual_arms, (2.0, 1.5, 1.8), strict=True)]
    writer = trainer(metric="val_loss", value=1.5, larger_is_better=False, start=4.0, split="validation")
    place = only(writer.write(tmp_path / "a.jsonl", arms, seeds=1, aa=False))
    (tuning,) = charts(place).values()
    assert tuning.sentence == "With 1 trial each, training.adamw is expected to reach 1.5, training.sgd 2."


def test_a_run_without_curves_target_or_buckets_is_still_shown(tmp_path: Path, trainer: Any, usual_arms: Any) -> None:
    path = trainer(value=0.9).write(tmp_path / "a.jsonl", usual_arms[:1], seeds=2)
    lines = []
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if entry["record"] == "run":
            entry["measurements"] = [m for m in entry["measurements"] if m["metric"] in ("steps", "time_to_target_s")]
            entry["detail"] = {}
        elif entry["record"] == "header":
            entry["plan"]["workloads"] = []
        lines.append(json.dumps(entry))
    path.write_text("\n".join(lines) + "\n")
    place = only(path)
    assert (place.metric, place.level) == ("metric", None)
    text = pages(tmp_path / "out", path)[f"{place.slug}.html"]
    assert "No run recorded a curve." in text
    assert "2 of 2" in text


def test_hostile_names_stay_text_and_the_overview_links(record: Any, site: Path) -> None:
    front = (site / "index.html").read_text(encoding="utf-8")
    for place in training.places(record.runs, record.headers):
        assert f'href="{place.slug}.html"' in front
        text = (site / f"{place.slug}.html").read_text(encoding="utf-8")
        assert "<script>alert" not in text
        assert len(text) < 2_000_000
        assert ("training.&lt;script&gt;alert(1)&lt;/script&gt;" in text) == (place.workload == "digits-cnn")
    stored = record.runs[record.runs["phase"] == "training"]["run"].nunique()
    assert f"{stored} training runs of 2 workloads" in front


def test_claims_on_a_workload_stand_on_its_page(record: Any, trainer: Any, usual_arms: Any, tmp_path: Path) -> None:
    path = trainer(value=0.9).write(tmp_path / "a.jsonl", usual_arms[:1], seeds=1)
    place = only(path)
    verdict = {**record.verdicts[0], "device": place.device, "command": f"speedclaim train {place.workload} a b",
               "title": "Muon beats the rest"}  # fmt: skip
    html.render(read_runs(path), read_headers(path), [verdict], tmp_path)
    assert "Muon beats the rest" in (tmp_path / f"{place.slug}.html").read_text()


def test_methods_and_downloads_know_training(record: Any, site: Path) -> None:
    text = (site / "methods.html").read_text(encoding="utf-8")
    assert "digits-cnn: " in text
    assert "runs reached the target" in text
    assert "training.csv" in (site / "audit.html").read_text(encoding="utf-8")
    rows = pd.DataFrame(training.flat(training.places(record.runs, record.headers)))
    assert {"workload", "arm", "hits", "median_s", "optimizer_share"} <= set(rows.columns)
    told = audit.protocol(record.headers[2])
    assert told[0]["suite"] == "digits-cnn"
    assert ("precision", "torch-default") in told[0]["fields"]


def test_the_same_rows_draw_the_same_bytes(usual: Place) -> None:
    first, second = (training_charts.forest(usual, {}) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.svg == second.svg
