"""Screen and confirm: a slowdown fails only when fresh blocks repeat it and it matters."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.judge import regression, stats
from harness.judge.stats import RatioEstimate


def run(slowdown: float, n: int, seed: int = 0) -> RatioEstimate:
    noise = np.random.default_rng(seed).normal(0, 0.002, n)
    return stats.estimate([float(x) - math.log(slowdown) for x in noise])


@pytest.mark.parametrize(
    ("screen", "confirm", "word"),
    [
        (run(1.0, 10), None, "no regression"),
        (run(0.8, 10), None, "no regression"),
        (run(1.1, 9), None, "too few blocks"),
        (run(1.1, 10), None, "needs confirmation"),
        (run(1.1, 10), run(1.1, 19, 1), "too few blocks"),
        (run(1.1, 10), run(1.1, 20, 1), "regression"),
        (run(1.1, 10), run(1.0, 20, 1), "not confirmed"),
        (run(1.03, 10), run(1.03, 20, 1), "not confirmed"),
    ],
)
def test_decisions(screen: RatioEstimate, confirm: RatioEstimate | None, word: str) -> None:
    found = regression.decide(screen, 0.01, confirm)
    assert found.word == word
    assert found.fails == (word == "regression")
    assert found.reason


def test_noise_of_either_run_protects() -> None:
    assert regression.decide(run(1.1, 10), 0.2).word == "no regression"
    assert regression.decide(run(1.1, 10), 0.01, run(1.1, 20), confirm_floor=0.2).word == "not confirmed"
    assert regression.decide(run(1.03, 10), 0.01, run(1.03, 20), practical=0.02).word == "regression"


def test_confirmation_must_be_fresh() -> None:
    regression.require_fresh(range(10), range(10, 30))
    with pytest.raises(ValueError, match="fresh blocks; 9"):
        regression.require_fresh(range(10), range(9, 29))
