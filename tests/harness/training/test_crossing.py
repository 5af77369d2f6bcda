"""Target crossings: interpolated, sustained, never at step 0."""

import pytest

from harness.catalogue.workload import Target
from harness.measure.training.crossing import at_the_end, crossing, levels, reached

UP = Target(metric="test_accuracy", value=0.9, source="t", others=(0.5, 0.95))
DOWN = Target(metric="val_loss", value=1.0, source="t", larger_is_better=False)


def axes(count, unit=10.0):
    return {"s": [i * unit for i in range(count)], "steps": [i * 5.0 for i in range(count)],
            "samples": [i * 160.0 for i in range(count)]}  # fmt: skip


def test_interpolation_between_the_evaluation_before_and_the_first_beyond():
    found = crossing(UP, 0.9, [0.1, 0.8, 0.96, 0.97], axes(4))
    share = (0.9 - 0.8) / (0.96 - 0.8)
    assert found.time_s == pytest.approx(10 + share * 10)
    assert found.steps == pytest.approx(5 + share * 5)
    assert found.samples == pytest.approx(160 * (1 + share))


def test_a_single_lucky_evaluation_does_not_count():
    assert crossing(UP, 0.9, [0.1, 0.95, 0.8, 0.85], axes(4)) is None
    assert crossing(UP, 0.9, [0.1, 0.95, 0.8, 0.92, 0.9], axes(5)).time_s == pytest.approx(20 + 10 * (0.1 / 0.12))
    assert crossing(UP, 0.9, [0.1, 0.2, 0.95], axes(3)) is None, "the last evaluation has no successor"


def test_a_metric_that_falls():
    found = crossing(DOWN, 1.0, [3.0, 1.5, 0.5, 0.7], axes(4))
    assert found.time_s == pytest.approx(15.0)
    assert crossing(DOWN, 1.0, [3.0, 1.5, 1.01, 1.2], axes(4)) is None


def test_exactly_the_target_counts_and_step_zero_never_does():
    assert crossing(UP, 0.9, [0.1, 0.9, 0.9], axes(3)).time_s == pytest.approx(10.0)
    assert crossing(UP, 0.9, [0.95, 0.96, 0.97], axes(3)).time_s == pytest.approx(10.0)
    assert crossing(UP, 0.9, [0.95, 0.5], axes(2)) is None


def test_levels_are_crossed_one_by_one():
    assert levels(UP) == (0.9, 0.5, 0.95)
    found = reached(UP, [0.1, 0.6, 0.7, 0.92, 0.93], axes(5))
    assert [c.level for c in found] == [0.9, 0.5]
    assert found[1].time_s < found[0].time_s


def test_the_end_of_a_fixed_schedule():
    assert at_the_end(UP, [0.1, 0.95, 0.89], axes(3)) is None
    assert at_the_end(UP, [0.1, 0.5, 0.91], axes(3)).steps == 10.0
    assert at_the_end(UP, [0.95], axes(1)) is None
