"""The section on networks with look-ups: rows, sentence, and no section for any other workload."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.record.store import read_headers, read_runs
from reports import html, product_finetuning, training

FACTS = {"final_exact_accuracy": 0.989, "final_replaced_accuracy": 0.961, "final_deployed_accuracy": 0.982}


@pytest.fixture
def written(trainer: Any, usual_arms: Any, tmp_path: Path) -> Any:
    def write(facts: dict[str, float], name: str = "a.jsonl") -> Path:
        arms = [replace(arm, extra=facts) for arm in usual_arms[:2]]
        path: Path = trainer(value=0.9).write(tmp_path / name, arms, seeds=3)
        return path

    return write


def place(path: Path) -> training.Place:
    (found,) = training.places(read_runs([path]), read_headers([path]))
    return found


def test_stages_of_every_method_and_the_shared_ones_once(written: Any) -> None:
    rows = product_finetuning.stages(place(written(FACTS)))
    assert [row["stage"] for row in rows][:2] == ["exact", "just replaced"]
    assert [row["stage"] for row in rows].count("exact") == 1
    fixed = [row for row in rows if row["stage"] == "as fixed operators"]
    assert len({row["method"] for row in fixed}) == len(fixed) >= 2
    assert all(row["accuracy"] == 0.982 for row in fixed)
    tuned = [row for row in rows if row["stage"] == product_finetuning.TUNED]
    assert len(tuned) == len(fixed)
    assert all(row["least"] <= row["accuracy"] <= row["most"] for row in rows)


def test_the_sentence_tells_what_comes_back(written: Any) -> None:
    text = product_finetuning.sentence(product_finetuning.stages(place(written(FACTS))))
    assert "98.20 %" in text
    assert "the original on 98.90 %" in text
    assert "just replaced on 96.10 %" in text
    assert "brings back 75 % of the loss" in text
    [section] = product_finetuning.sections(place(written({"final_deployed_accuracy": 0.9}, "b.jsonl")))
    assert "was not recorded" in section[2][0].sentence
    worse = product_finetuning.stages(place(written(FACTS | {"final_deployed_accuracy": 0.95}, "c.jsonl")))
    assert "fine-tuning lost accuracy" in product_finetuning.sentence(worse)


def test_no_section_without_look_ups(written: Any) -> None:
    assert product_finetuning.sections(place(written({}))) == []


def test_the_page_holds_the_figure(written: Any, tmp_path: Path) -> None:
    path = written(FACTS)
    html.render(read_runs([path]), read_headers([path]), [], tmp_path / "out")
    [page] = list((tmp_path / "out").glob("train--digits-cnn*.html"))
    text = page.read_text(encoding="utf-8")
    assert product_finetuning.HEADING in text
    assert "brings back 75 %" in text
