from __future__ import annotations

import math
import subprocess
import sys

import pytest

from methods.orthogonalize.coefficients import (
    AOL_V1,
    CANS5,
    CANS5_SAFE,
    JORDAN,
    POLAR_EXPRESS,
    TABLES,
    TURBO4,
    YOU5,
    evaluate,
    optimal_composition,
    optimal_quintic,
    safe,
    slope_at_zero,
)


def test_evaluate_is_the_composition_of_the_rows():
    x = 0.3
    for a, b, c in YOU5.rows:
        x = a * x + b * x**3 + c * x**5
    assert evaluate(YOU5.rows, 0.3) == pytest.approx(x, rel=1e-13)
    assert evaluate((), 0.3) == 0.3


def test_tables_have_the_published_shape():
    assert [len(t.rows) for t in (JORDAN, YOU5, TURBO4, AOL_V1, POLAR_EXPRESS, CANS5)] == [5, 5, 4, 4, 5, 5]
    assert YOU5.rows[1:] == TURBO4.rows == YOU5.tail(4).rows
    assert all(name == table.name and table.source for name, table in TABLES.items())
    # The step that AOL saves: the slope of the dropped row.
    assert slope_at_zero(YOU5.rows) / slope_at_zero(TURBO4.rows) == pytest.approx(4.0848)


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda t: t.name)
def test_tables_send_normalised_singular_values_near_one(table):
    values = [evaluate(table.rows, k / 2000) for k in range(1, 2001)]
    assert max(values) < 1.21
    assert min(values) > 0
    assert min(value for k, value in enumerate(values, 1) if k >= 40) > 0.6  # from 0.02 upwards


def test_optimal_quintic_equioscillates():
    low, high = 0.1, 1.3
    row = optimal_quintic(low, high)
    a, b, c = row
    root = math.sqrt(9 * b * b - 20 * a * c)
    inner, outer = math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))
    errors = [evaluate([row], x) - 1 for x in (low, inner, outer, high)]
    assert errors == pytest.approx([-errors[1], errors[1], -errors[1], errors[1]], abs=1e-12)
    assert max(abs(evaluate([row], low + (high - low) * k / 999) - 1) for k in range(1000)) <= abs(errors[0]) + 1e-12


def test_optimal_quintic_at_a_point_is_the_pade_limit():
    assert optimal_quintic(2.0, 2.0) == pytest.approx((15 / 16, -10 / 64, 3 / 256))
    near = optimal_quintic(1 - 1e-3, 1.0)
    assert near == pytest.approx((15 / 8, -10 / 8, 3 / 8), rel=5e-3)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0)])
def test_optimal_quintic_refuses_an_empty_interval(low, high):
    with pytest.raises(ValueError, match="low"):
        optimal_quintic(low, high)


def test_generator_reproduces_the_published_rows():
    for made, published in zip(optimal_composition(1e-3, 5, 0.02, 0.02), POLAR_EXPRESS.rows, strict=True):
        assert made == pytest.approx(published, rel=1e-12)


def test_generator_reproduces_the_unsafe_rows_and_their_limit():
    # Rows of the paper's listing (low 1e-3, no safety factor, cushion 0.02407...), first, fourth and later ones.
    rows = optimal_composition(1e-3, 10, 0.0, 0.02407327424182761)
    assert rows[0] == pytest.approx((8.28721201814563, -23.595886519098837, 17.300387312530933), rel=1e-9)
    assert rows[3] == pytest.approx((3.3184196573706015, -2.488488024314874, 0.51004894012372), rel=1e-9)
    assert rows[-1] == pytest.approx((1.875, -1.25, 0.375), rel=1e-6)


def test_safety_factor_shifts_the_blow_up():
    assert safe(CANS5, 1.02, "x").rows == CANS5_SAFE.rows
    assert CANS5_SAFE.rows[-1] == CANS5.rows[-1]
    for (a, b, c), (a1, b1, c1) in zip(CANS5_SAFE.rows[:-1], CANS5.rows[:-1], strict=True):
        assert evaluate([(a, b, c)], 1.02) == pytest.approx(evaluate([(a1, b1, c1)], 1.0))
    assert evaluate(CANS5.rows, 1.02) > 1e3
    assert evaluate(CANS5_SAFE.rows, 1.02) < 1.2


def test_module_imports_no_torch():
    code = "import sys; import methods.orthogonalize.coefficients; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
