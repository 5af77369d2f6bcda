"""Noise floors of metrics that the suite's baseline does not have, or has for reasons of its own."""

from __future__ import annotations

from statistics import median
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


def joules(
    book: Any, phase: str, ratio: float, arms: tuple[str, ...] = ("toy.old", "toy.new"), spread: float = 0.01
) -> Any:
    """Six windows of the memory pass, or one in each of six blocks."""
    for arm in arms:
        values = [(1 if arm.startswith("toy.old") else 1 / ratio) * (1 + spread * k) for k in (-3, -1, 1, 3, -2, 2)]
        if arm.endswith("#aa"):
            values.reverse()
        shared = {"arm": arm, "problem": "gaussian-64x64-float32-cpu", "phase": phase, "status": "passed"}
        shared |= {"method": arm.removesuffix("#aa"), "metric": "call_energy_j", "unit": "J"}
        if phase == "memory":
            book.row(**shared, value=median(values), samples=values)
        for block, value in enumerate(values if phase == "block" else ()):
            book.row(**shared, block=float(block), value=value)
    return book


def test_joules_of_windows_in_one_process_are_one_unit_without_a_floor(store: Any, claim: Any) -> None:
    energy = claim(kind="metric-better", metric="call_energy_j", ratio=None)
    verdict = one(energy, joules(store(), "memory", 2.0))
    assert (verdict.verdict, verdict.n, verdict.floor) == ("inconclusive", 1, None)
    assert "--energy" in verdict.reason


@pytest.mark.parametrize(
    ("spread", "error", "word"),
    [(0.01, 0.1, "reproduced"), (0.01, 1.0, "partly"), (0.2, 0.1, "not reproduced")],
)
def test_joules_of_blocks_are_judged_against_the_alias(
    store: Any, claim: Any, spread: float, error: float, word: str
) -> None:
    energy = claim(kind="metric-better", metric="call_energy_j", ratio=None)
    arms = ("toy.old", "toy.old#aa", "toy.new")
    book = store().errors("toy.old", 0.1).errors("toy.new", error)
    book = joules(joules(book, "memory", 9.0), "block", 2.0, arms, spread)
    verdict = one(energy, book)
    assert (verdict.verdict, verdict.n) == (word, 6)
    assert verdict.ratio == pytest.approx(2.0)
    assert verdict.floor == pytest.approx((1 + 2 * spread) / (1 - 3 * spread) - 1)
    assert energy.reproduce().endswith(" --energy")
