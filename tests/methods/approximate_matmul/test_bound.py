"""The theorem's bound: its formula by hand, its limits, and the observed gap below it."""

import math

import pytest
import torch

from harness.errors import UserError
from methods.approximate_matmul import bound, maddness

CASE = {"codebooks": 2, "width": 8, "rows": 200, "sigma": 3.0, "norm": 5.0, "ridge": 4.0, "delta": 0.1}


def test_formula_by_hand() -> None:
    nu = 2 * (4 * 3 + 256) * 0.6931471805599453 + 2.302585092994046
    by_hand = 2 * 3 * 5 / (2 * 2) * (1 / 256 + (8 + nu**0.5) / 20)
    assert bound.penalty(**CASE) == pytest.approx(by_hand, rel=1e-12)


def test_limits() -> None:
    quantisation = 7.5 / 256
    assert bound.penalty(**{**CASE, "rows": 10**12}) == pytest.approx(quantisation, rel=1e-2)
    assert bound.penalty(**{**CASE, "sigma": 6.0}) == pytest.approx(2 * bound.penalty(**CASE))
    assert bound.penalty(**{**CASE, "ridge": 16.0}) == pytest.approx(bound.penalty(**CASE) / 2)
    assert math.isfinite(bound.penalty(**{**CASE, "width": 1}))
    for wrong in ({"delta": 0.0}, {"ridge": 0.0}, {"rows": 0}):
        with pytest.raises(UserError, match="bound needs"):
            bound.penalty(**{**CASE, **wrong})


def test_the_observed_gap_is_far_below() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(600, 4, generator=g) @ torch.randn(4, 16, generator=g), torch.randn(16, 3, generator=g)
    op = maddness.make(codebooks=4).fit(a[:400], b)
    found = bound.compare(op, a[:400], a[400:], b)
    assert found["gap"] == pytest.approx(found["test"] - found["train"])
    assert 0 < found["test"] < found["size"]
    assert found["gap"] < found["penalty"]
    assert found["penalty"] > found["size"]  # vacuous at realistic sizes
