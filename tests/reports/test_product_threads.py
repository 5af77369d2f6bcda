"""Scaling with threads: which files count, what is drawn, and what a single count of threads says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from reports import product_threads

DEVICE = "AMD EPYC 7B13"
PROBLEM = "cifar10_net_c16-10000x512x100-float32-cpu"


def runs(times: dict[tuple[str, int], float], **changes: Any) -> pd.DataFrame:
    rows = [
        {
            "file": f"{threads}.jsonl", "utc": f"2026-11-22T10:00:0{threads}Z",
            "task": "approximate_matmul", "problem": PROBLEM, "method": method,
            "arm": method,
            "phase": "block", "status": "passed", "metric": "op_s", "value": value * factor, "threads": threads,
            "device": DEVICE, "device_kind": "cpu", "discarded": None, "block": block, **changes,
        }
        for (method, threads), value in times.items()
        for block, factor in enumerate((0.9, 1.0, 3.0))
    ]  # fmt: skip
    return pd.DataFrame(rows)


HEADERS: list[dict[str, Any]] = [
    {"file": f"{threads}.jsonl", "utc": f"2026-11-22T10:00:0{threads}Z", "environment": {"cpu": DEVICE}}
    for threads in (1, 2, 4)
]
TIMES = {
    ("approximate_matmul.maddness", 1): 4e-3,
    ("approximate_matmul.maddness", 2): 2e-3,
    ("approximate_matmul.maddness", 4): 1.6e-3,
    ("approximate_matmul.exact", 1): 2e-2,
    ("approximate_matmul.exact", 4): 8e-3,
    ("approximate_matmul.pca", 1): 1e-2,
}


def test_of_each_number_of_threads_the_newest_file_counts() -> None:
    old = runs({key: 10 * time for key, time in TIMES.items()}, file="old.jsonl", utc="2026-11-21T10:00:00Z")
    headers = [*HEADERS, {"file": "old.jsonl", "utc": "2026-11-21T10:00:00Z", "environment": {"cpu": DEVICE}}]
    alone = product_threads.medians(runs(TIMES), HEADERS, DEVICE)
    both = product_threads.medians(pd.concat([runs(TIMES), old]), headers, DEVICE)
    assert both["seconds"].tolist() == alone["seconds"].tolist()


def test_speed_ups_are_over_the_fewest_threads_of_the_same_method() -> None:
    rows = product_threads.scaled(product_threads.medians(runs(TIMES), HEADERS, DEVICE))
    found = {(row["method"].split(".")[1], row["threads"]): row["speedup"] for row in rows}
    assert found == pytest.approx(
        {("maddness", 1): 1.0, ("maddness", 2): 2.0, ("maddness", 4): 2.5, ("exact", 1): 1.0, ("exact", 4): 2.5}
    )


def test_the_figure_and_its_sentence() -> None:
    [(heading, note, charts)] = product_threads.sections(runs(TIMES), HEADERS, DEVICE)
    assert heading == "Threads"
    assert "fewest threads" in note
    [chart] = charts
    assert "With 4 threads" in chart.sentence
    assert "maddness 2.50" in chart.sentence
    assert chart.svg.startswith("<svg")
    assert len(chart.rows) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "another"},
        {"phase": "gate"},
        {"status": "failed"},
        {"metric": "encode_s"},
        {"discarded": "thermal"},
        {"device_kind": "cuda", "problem": "lowrank_c16-64x32x8-bfloat16-cuda"},
        {"task": "polar"},
        {"arm": "x#aa"},
    ],
)
def test_what_does_not_count(changes: dict[str, Any]) -> None:
    [(_, note, charts)] = product_threads.sections(runs(TIMES, **changes), HEADERS, DEVICE)
    assert charts == []
    assert "OMP_NUM_THREADS=2" in note


def test_one_count_of_threads_says_so(tmp_path: Path) -> None:
    once = {key: value for key, value in TIMES.items() if key[1] == 1}
    [(_, note, charts)] = product_threads.sections(runs(once), HEADERS, DEVICE)
    assert charts == []
    assert "1 thread only" in note
    assert product_threads.sections(pd.DataFrame(), [], DEVICE)[0][2] == []


def test_few_problems_and_methods_are_drawn() -> None:
    many = {(f"approximate_matmul.m{i}", t): 1e-3 / t for i in range(12) for t in (1, 2)}
    many |= {("approximate_matmul.exact", t): 1e-2 / t for t in (1, 2)}
    frame = pd.concat(
        [runs(many, problem=f"lowrank_c16-{n}x64x8-float32-cpu") for n in (10, 40, 30, 20)], ignore_index=True
    )
    [(_, _, charts)] = product_threads.sections(frame, HEADERS, DEVICE)
    assert [chart.title.split("-")[1] for chart in charts] == ["40x64x8", "30x64x8", "20x64x8"]
    methods = {row["method"] for row in charts[0].rows}
    assert len(methods) == product_threads.METHODS
    assert "approximate_matmul.exact" in methods
