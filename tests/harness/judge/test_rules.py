"""Each branch of the rules, in their order, on intervals set by hand."""

from __future__ import annotations

import pytest

from harness.judge import rules
from harness.judge.stats import RatioEstimate


def interval(low: float, high: float, *, ratio: float | None = None, level: float = 0.97, n: int = 10) -> RatioEstimate:
    return RatioEstimate(ratio=ratio or (low * high) ** 0.5, low=low, high=high, level=level, n=n)


# claim 1.6, tolerance .2: T = 1.6^.8 = 1.456; sqrt(1.6) - 1 = 26.5 %
@pytest.mark.parametrize(
    ("low", "high", "floor", "word", "why"),
    [
        (1.60, 1.70, 0.27, "inconclusive", "noise hides"),
        (1.46, 1.70, 0.02, "reproduced", ""),
        (1.10, 1.45, 0.02, "partly", "less than claimed"),
        (0.99, 1.01, 0.02, "not reproduced", "no gain"),
        (0.70, 0.80, 0.02, "not reproduced", "reversed"),
        (0.97, 1.00, 0.005, "not reproduced", "no gain"),
        (1.10, 1.70, 0.02, "inconclusive", "how much is open"),
        (0.95, 1.10, 0.02, "inconclusive", "direction open"),
        (1.01, 1.70, 0.02, "inconclusive", "direction open"),
    ],
)
def test_ratio_rule(low: float, high: float, floor: float, word: str, why: str) -> None:
    found = rules.ratio_rule(interval(low, high), 1.6, 0.2, floor)
    assert found.word == word
    assert why in found.why


def test_only_times_are_called_faster() -> None:
    assert rules.ratio_rule(interval(1.1, 1.45), 1.6, 0.2, 0.02).why == "faster, but by less than claimed"
    assert rules.ratio_rule(interval(1.1, 1.45), 1.6, 0.2, 0.02, "better").why == "better, but by less than claimed"


def test_noise_comes_before_every_other_branch_and_few_blocks_before_the_interval() -> None:
    few = interval(1.6, 1.7, level=0.9375, n=5)
    assert "noise" in rules.ratio_rule(few, 1.6, 0.2, 0.3).why
    found = rules.ratio_rule(few, 1.6, 0.2, 0.01)
    assert (found.word, "too few blocks: 5" in found.why, "6 are needed" in found.why) == ("inconclusive", True, True)


def test_an_open_verdict_names_the_blocks_it_would_need() -> None:
    assert "about" in rules.ratio_rule(interval(1.2, 1.7), 1.6, 0.2, 0.02).why
    assert "over 1000" in rules.ratio_rule(interval(1.2, 1.769, ratio=1.457), 1.6, 0.2, 0.02).why


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (1.02, 1.5, "reproduced"),
        (0.9, 1.005, "not reproduced"),
        (0.5, 0.6, "not reproduced"),
        (0.9, 1.2, "inconclusive"),
    ],
)
def test_direction_rule(low: float, high: float, word: str) -> None:
    assert rules.direction_rule(interval(low, high), 0.01).word == word


@pytest.mark.parametrize(
    ("low", "high", "one_sided", "word"),
    [
        (0.96, 1.04, False, "reproduced"),
        (0.96, 1.20, False, "inconclusive"),
        (0.96, 1.20, True, "reproduced"),
        (1.06, 1.20, False, "not reproduced"),
        (1.06, 1.20, True, "reproduced"),
        (0.80, 0.94, True, "not reproduced"),
        (0.90, 1.00, True, "inconclusive"),
    ],
)
def test_parity_rule(low: float, high: float, one_sided: bool, word: str) -> None:
    assert rules.parity_rule(interval(low, high), 1.05, 0.01, one_sided).word == word


def test_noise_can_hide_parity() -> None:
    assert "noise hides parity" in rules.parity_rule(interval(0.99, 1.01), 1.05, 0.06, False).why


@pytest.mark.parametrize(
    ("low", "high", "limit", "floor", "word"),
    [
        (0.90, 1.05, 1.05, 0.01, "reproduced"),
        (1.07, 1.10, 1.05, 0.01, "not reproduced"),
        (1.06, 1.10, 1.05, 0.01, "inconclusive"),
        (1.00, 1.10, 1.05, 0.01, "inconclusive"),
        (0.90, 1.00, 1.05, 0.03, "inconclusive"),
        (0.45, 0.55, 0.5, 0.01, "reproduced"),
        (0.70, 0.80, 0.5, 0.01, "partly"),
        (1.10, 1.20, 0.5, 0.01, "not reproduced"),
    ],
)
def test_at_most_rule(low: float, high: float, limit: float, floor: float, word: str) -> None:
    assert rules.at_most_rule(interval(low, high), limit, 0.2, floor).word == word


@pytest.mark.parametrize(
    ("low", "high", "word"), [(1.9, 2.1, "reproduced"), (2.3, 2.5, "not reproduced"), (2.1, 2.3, "inconclusive")]
)
def test_growth_rule(low: float, high: float, word: str) -> None:
    assert rules.growth_rule(interval(low, high), 2.0, 0.2).word == word


@pytest.mark.parametrize(
    ("hits", "n", "word"),
    [(5, 5, "inconclusive"), (9, 10, "reproduced"), (1, 10, "not reproduced"), (6, 10, "inconclusive")],
)
def test_often_rule(hits: int, n: int, word: str) -> None:
    assert rules.often_rule(hits, n).word == word


@pytest.mark.parametrize(
    ("candidate", "rivals", "word", "why"),
    [
        ((10, 10), [("sgd", 6, 10)], "not reproduced", "refuted: sgd"),
        ((10, 10), [("sgd", 5, 10)], "reproduced", "within 12 trials"),
        ((10, 10), [], "inconclusive", "no rival"),
        ((10, 10), [("sgd", 1, 3)], "inconclusive", "too few seeds of sgd"),
        ((5, 5), [("sgd", 0, 10)], "inconclusive", "too few seeds: 5"),
        ((4, 10), [("sgd", 0, 10)], "not reproduced", "candidate itself"),
        ((6, 10), [("sgd", 0, 10)], "inconclusive", "most seeds is open"),
    ],
)
def test_only_rule(candidate: tuple[int, int], rivals: list[tuple[str, int, int]], word: str, why: str) -> None:
    found = rules.only_rule(candidate, rivals, trials=12)
    assert found.word == word
    assert why in found.why


def test_best_cell_takes_the_best_word_then_the_largest_ratio() -> None:
    def cell(word: rules.Word, ratio: float) -> tuple[rules.Outcome, RatioEstimate]:
        return rules.Outcome(word=word), interval(ratio, ratio)

    assert rules.best_cell([cell("not reproduced", 9), cell("reproduced", 2), cell("reproduced", 3)]) == 2
    assert rules.best_cell([cell("partly", 2), cell("inconclusive", 1)]) == 1


def test_error_margin_caps_but_never_lifts() -> None:
    good, bad = rules.Outcome(word="reproduced"), rules.Outcome(word="not reproduced")
    assert rules.guard(good, 1.10, "error") is good
    assert rules.guard(good, 1.11, "error").word == "partly"
    assert rules.guard(good, None, "error").word == "inconclusive"
    assert rules.guard(bad, 9.0, "error") is bad
