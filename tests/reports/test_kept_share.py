"""The share of kernel classifiers that keep their accuracy: counted over the same sets, beside the mean speed-up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.judge.stats import RatioEstimate
from reports import kept_share, product_figures
from reports.cases import Case

TASK = "approximate_matmul"
SETS = ("one", "two", "three", "four")
PROBLEMS: dict[str, Any] = {}


def problem(name: str, size: int) -> str:
    identity = f"ucr_{name}_c{size}-100x320x32-float32-cpu"
    PROBLEMS[identity] = {"id": identity, "kind": f"ucr_{name}_c{size}", "shape": [100, 320, 32], "dtype": "float32",
                          "device": "cpu", "params": {"hyper": {"codebooks": size}}}  # fmt: skip
    return identity


def case(method: str, name: str, size: int, kept: float | None, speed: float | None, sized: bool = True) -> Case:
    hyper = {"codebooks": size} if sized else {}
    effect = None if speed is None else RatioEstimate(ratio=speed, low=speed, high=speed, level=0.95, n=8)
    return Case(
        anchor=f"{method}-{name}-{size}", device="Toy", kind="cpu", file="a", task=TASK, problem=problem(name, size),
        method=f"{TASK}.{method}", status="passed", time_s=None if speed is None else 1 / speed, effect=effect,
        errors={} if kept is None else {"accuracy_retained": kept}, detail={"hyper": hyper},
    )  # fmt: skip


def usual() -> list[Case]:
    found = [case("maddness", name, 4, kept, 4.0) for name, kept in zip(SETS, (0.4, 0.6, 0.8, 1.0), strict=True)]
    found += [case("maddness", name, 16, 0.95, speed) for name, speed in zip(SETS, (1.0, 4.0, 1.0, 4.0), strict=True)]
    for size in (4, 16):
        found += [case("int8", name, size, 1.0, 1.5, sized=False) for name in SETS]
    return found


def told(cases: list[Case]) -> dict[tuple[str, int | None], dict[str, Any]]:
    return {(row["method"].split(".")[1], row["codebooks"]): row for row in kept_share.rows(cases, PROBLEMS)}


def test_shares_and_mean_speed_ups() -> None:
    rows = told(usual())
    assert {key: rows["maddness", 4][key] for key in ("keep_50", "keep_75", "keep_95")} == {
        "keep_50": 0.75, "keep_75": 0.5, "keep_95": 0.25,
    }  # fmt: skip
    assert rows["maddness", 16]["keep_95"] == 1.0
    assert rows["maddness", 16]["speedup"] == pytest.approx(2.0)
    assert rows["int8", None]["sets"] == 4
    assert len(rows) == 3


@pytest.mark.parametrize("lost", [{"time_s": None, "effect": None}, {"errors": {}}])
def test_a_size_that_lacks_one_set_is_not_compared(lost: dict[str, Any]) -> None:
    found = usual()
    assert ("maddness", 4) not in told([replace(found[0], **lost), *found[1:]])


def test_two_sets_make_no_share() -> None:
    assert told([one for one in usual() if "_one_" in one.problem or "_two_" in one.problem]) == {}


def test_other_problems_are_left_out_and_the_chart_says_what_a_set_weighs() -> None:
    styles = product_figures.looks([f"{TASK}.maddness", f"{TASK}.int8"])
    chart = kept_share.chart(usual(), PROBLEMS, styles, "Toy")
    assert chart is not None
    assert "lets all 4 sets keep 95 % of their accuracy, maddness with 16 codebooks has" in chart.sentence
    assert "mean speed-up, 2" in chart.sentence
    assert "moves a point by 25 %" in chart.sentence
    assert chart.svg.count("keep 95 % of their accuracy") >= 1
    strange = [replace(one, problem=one.problem.replace("ucr_", "digits_")) for one in usual()]
    renamed = {key.replace("ucr_", "digits_"): {**row, "kind": "digits_c4"} for key, row in PROBLEMS.items()}
    assert kept_share.chart(strange, renamed, styles, "Toy") is None


def test_where_no_method_keeps_all_the_sentence_says_how_many() -> None:
    styles = product_figures.looks([f"{TASK}.maddness"])
    chart = kept_share.chart([one for one in usual() if "_c4-" in one.problem and "maddness" in one.method], PROBLEMS,
                             styles, "Toy")  # fmt: skip
    assert chart is not None
    assert (
        "25 % of 4 sets, and never more, keep 95 % of their accuracy, maddness with 4 codebooks has" in chart.sentence
    )


def test_exact_alone_is_no_figure() -> None:
    found = [replace(case("exact", name, 4, 1.0, 1.0, sized=False), is_baseline=True) for name in SETS]
    assert kept_share.chart(found, PROBLEMS, product_figures.looks([f"{TASK}.exact"]), "Toy") is None
