"""A claim that compares one method's errors on two problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from harness.judge.verdict import judge

EASY, HARD = "gaussian-64x64-float32-cpu", "stripes-64x32-float32-cpu"
FIELDS: dict[str, Any] = {
    "kind": "metric-better",
    "metric": "error",
    "error_metric": None,
    "ratio": None,
    "candidate": "toy.new",
    "baseline": "toy.new",
    "problems": [EASY],
    "baseline_problem": HARD,
}


@pytest.mark.parametrize(
    ("easy", "hard", "word"), [(0.1, 0.4, "reproduced"), (0.4, 0.1, "not reproduced"), (0.1, 0.1, "inconclusive")]
)
def test_the_baselines_number_is_that_of_its_own_problem(
    claim: Callable[..., Any], store: Callable[..., Any], easy: float, hard: float, word: str
) -> None:
    data = (
        store()
        .errors("toy.new", easy, blocks=10, spread=0.02)
        .errors("toy.new", hard, problem=HARD, blocks=10, spread=0.02)
    )
    (verdict,) = judge(claim(**FIELDS), data.frame())
    assert verdict.verdict == word
    assert verdict.ratio == pytest.approx(hard / easy, rel=0.03)
    assert [row["problem"] for row in verdict.problems] == [EASY]
    assert f"the baseline's problem is {HARD}" in verdict.reason
    assert verdict.command.count("--method") == 1


@pytest.mark.parametrize("missing", [EASY, HARD])
def test_without_one_of_the_two_nothing_is_said(
    claim: Callable[..., Any], store: Callable[..., Any], missing: str
) -> None:
    held = ({EASY, HARD} - {missing}).pop()
    (verdict,) = judge(claim(**FIELDS), store().errors("toy.new", 0.1, problem=held, blocks=10).frame())
    assert verdict.verdict == "not testable here"


@pytest.mark.parametrize(
    "more",
    [
        {"metric": "op_s", "error_metric": "error"},
        {"metric": "call_energy_j", "error_metric": "error"},
        {"problems": [EASY, "gaussian-128x64-float32-cpu"]},
        {"kind": "at-most", "baseline": None, "ratio": 0.5},
    ],
)
def test_times_and_several_problems_are_refused(claim: Callable[..., Any], more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="baseline_problem needs"):
        claim(**FIELDS | more)
