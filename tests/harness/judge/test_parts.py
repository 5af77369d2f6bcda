"""Noise floors of metrics that the suite's baseline does not have, or has for reasons of its own."""

from __future__ import annotations

from typing import Any

import pytest

from harness.judge.claim import Claim
from harness.judge.verdict import Verdict, judge


def one(claim: Claim, store: Any) -> Verdict:
    (verdict,) = judge(claim, store.frame())
    return verdict


@pytest.mark.parametrize(("spread", "word"), [(0.002, "reproduced"), (0.6, "inconclusive")])
def test_a_part_that_the_suites_baseline_has_not_borrows_the_noise_of_whole_calls(
    store: Any, claim: Any, spread: float, word: str
) -> None:
    book = store().errors("toy.old", 0.1).errors("toy.new", 0.1)
    book.times("toy.old", 1.0, metric="encode_s").times("toy.new", 2.0, metric="encode_s").aa(spread)
    verdict = one(claim(metric="encode_s", clock="host"), book)
    assert verdict.verdict == word
    assert verdict.floor is not None


def test_without_any_alias_the_noise_of_a_part_stays_unknown(store: Any, claim: Any) -> None:
    book = store().times("toy.old", 1.0, metric="encode_s").times("toy.new", 2.0, metric="encode_s")
    assert "no A/A arm" in one(claim(metric="encode_s"), book).reason


def exactly(book: Any) -> Any:
    """An exact suite baseline whose rounding errors differ tenfold from its alias's."""
    for block in range(10):
        for arm, value in (("toy.plain", 1e-14), ("toy.plain#aa", 1e-15 * 10 ** (block % 3))):
            book.row(method="toy.plain", arm=arm, problem="gaussian-64x64-float32-cpu", phase="block",
                     block=float(block), status="passed", metric="error", unit="1", value=value)  # fmt: skip
    return book


def test_rounding_errors_of_the_exact_product_are_no_noise_of_two_others_errors(store: Any, claim: Any) -> None:
    book = exactly(store().errors("toy.old", 0.10, blocks=10).errors("toy.new", 0.102, blocks=10))
    limit = claim(kind="at-most", metric="error", ratio=1.05, hardware_free=True, error_metric=None)
    assert one(limit, book).verdict == "reproduced"


def test_they_are_where_the_exact_product_is_an_arm(store: Any, claim: Any) -> None:
    book = exactly(store().errors("toy.new", 0.1, blocks=10))
    limit = claim(
        kind="at-most", metric="error", baseline="toy.plain", ratio=1e14, hardware_free=True, error_metric=None
    )
    verdict = one(limit, book)
    assert verdict.floor is not None
    assert verdict.floor > 1
