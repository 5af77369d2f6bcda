"""FOP's numbers against dense float64 algebra, and the identities that follow from its equations."""

import pytest
import torch

from harness.errors import UserError
from methods.fop.projection import Products, Projection, choose, sign, split_options

EPS = torch.finfo(torch.float64).eps


def problem(seed, n=12, damping=0.1):
    """g1, g2, the Fisher and its damped inverse."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, generator=generator, dtype=torch.float64)
    fisher = root @ root.T / n
    g1, g2 = torch.randn(2, n, generator=generator, dtype=torch.float64)
    return g1 + 0.5, g2 + 0.5, fisher, torch.linalg.inv(fisher + damping * torch.eye(n).double())


def products(g1, g2, fisher, inverse):
    g, d = (g1 + g2) / 2, g1 - g2
    pairs = [(g, inverse @ g), (g, inverse @ d), (d, inverse @ d), (g, fisher @ g), (d, fisher @ g)]
    return Products(*(torch.stack([a @ b]) for a, b in pairs))


def update(g1, g2, inverse, chosen):
    g, d = (g1 + g2) / 2, g1 - g2
    return chosen.of_p[0] * (inverse @ g) + chosen.of_r[0] * (inverse @ d)


@pytest.mark.parametrize("seed", range(5))
def test_beta_and_eta_are_those_of_the_equations(seed):
    g1, g2, fisher, inverse = problem(seed)
    g, d = (g1 + g2) / 2, g1 - g2
    perp = d - (d @ fisher @ g) / (g @ fisher @ g) * g
    assert abs(g @ fisher @ perp) < 1e-12 * (g.norm() * perp.norm() * fisher.norm())
    beta = (g @ inverse @ perp) / (perp @ inverse @ perp)
    both = g + beta * perp
    for reference, total in (("sum", g1 + g2), ("mean", g)):
        chosen = choose(products(g1, g2, fisher, inverse), Projection(eta_ref=reference), EPS)
        eta = (total @ inverse @ both) / (both @ inverse @ both)
        torch.testing.assert_close(chosen.beta[0], beta)
        torch.testing.assert_close(chosen.eta[0], eta)
        torch.testing.assert_close(update(g1, g2, inverse, chosen), eta * inverse @ both)


@pytest.mark.parametrize("seed", range(5))
def test_eta_follows_from_the_alignment_alone(seed):
    g1, g2, fisher, inverse = problem(seed)
    for reference, factor in (("sum", 2.0), ("mean", 1.0)):
        chosen = choose(products(g1, g2, fisher, inverse), Projection(eta_ref=reference), EPS)
        c = chosen.c[0]
        assert 0 < c < 1
        torch.testing.assert_close(chosen.eta[0], factor * (1 + c) / (1 + 3 * c))


@pytest.mark.parametrize("seed", range(5))
def test_the_surrogate_prefers_no_projected_difference(seed):
    """J(beta*, eta*) = -2 A (1 + c)^2 / (1 + 3 c) >= -2 A, the value at beta = 0, eta = 2."""
    g1, g2, fisher, inverse = problem(seed)
    total, a = g1 + g2, (g1 + g2) @ inverse @ (g1 + g2) / 4
    curvature = torch.linalg.inv(inverse)

    def surrogate(step):
        return -total @ step + step @ curvature @ step / 2

    found = products(g1, g2, fisher, inverse)
    chosen = choose(found, Projection(), EPS)
    value, c = surrogate(update(g1, g2, inverse, chosen)), chosen.c[0]
    torch.testing.assert_close(value, -2 * a * (1 + c) ** 2 / (1 + 3 * c))
    plain = surrogate(update(g1, g2, inverse, choose(found, Projection(beta="zero"), EPS)))
    torch.testing.assert_close(plain, -2 * a)
    assert value > plain


@pytest.mark.parametrize("seed", range(5))
def test_with_the_curvature_of_the_sum_beta_is_zero(seed):
    """Hessian(L1 + L2) = 2 F: the best step along F^-1 (g + beta perp) at step size 1 has beta = 0."""
    g1, g2, fisher, inverse = problem(seed)
    g, d, total = (g1 + g2) / 2, g1 - g2, g1 + g2
    perp = d - (d @ fisher @ g) / (g @ fisher @ g) * g
    curvature = 2 * torch.linalg.inv(inverse)
    # d/dbeta of -total' F^-1 (g + beta perp) + 1/2 (..)' 2 F (..) at beta: -2 D + 2 D + 2 beta E.
    along, start = inverse @ perp, inverse @ g
    slope_at_zero = -total @ along + start @ curvature @ along
    assert abs(slope_at_zero) < 1e-10 * abs(total @ inverse @ total)
    # The published pairing, sum's gradient with the mean's curvature, gives D / E instead.
    slope = -total @ along + start @ (curvature / 2) @ along
    bend = along @ (curvature / 2) @ along
    torch.testing.assert_close(-slope / bend, choose(products(g1, g2, fisher, inverse), Projection(), EPS).beta[0])


def test_swapping_the_halves_changes_the_sign_of_beta_and_nothing_else():
    g1, g2, fisher, inverse = problem(3)
    one = choose(products(g1, g2, fisher, inverse), Projection(), EPS)
    two = choose(products(g2, g1, fisher, inverse), Projection(), EPS)
    torch.testing.assert_close(one.beta, -two.beta)
    torch.testing.assert_close(update(g1, g2, inverse, one), update(g2, g1, inverse, two))


def test_equal_halves_parallel_halves_and_zeros_have_no_second_direction():
    g1, _, fisher, inverse = problem(1)
    for one, two in ((g1, g1), (g1, 3 * g1), (0 * g1, 0 * g1)):
        for eps in (EPS, torch.finfo(torch.float32).eps):
            chosen = choose(products(one, two, fisher, inverse), Projection(), eps)
            assert float(chosen.beta) == 0.0
            assert float(chosen.eta) == 2.0
            torch.testing.assert_close(update(one, two, inverse, chosen), inverse @ (one + two), rtol=1e-9, atol=1e-12)


def test_orthogonality_in_the_inverse_would_make_beta_zero():
    """beta* measures only how the metric of the projection differs from that of the solve."""
    g1, g2, fisher, inverse = problem(2)
    usual = choose(products(g1, g2, fisher, inverse), Projection(), EPS)
    aligned = choose(products(g1, g2, inverse, inverse), Projection(), EPS)
    assert abs(float(aligned.beta)) < 1e-12
    assert abs(float(usual.beta)) > 1e-3


def test_arms_and_clamps():
    g1, g2, fisher, inverse = problem(4)
    found = products(g1, g2, fisher, inverse)
    full = choose(found, Projection(), EPS)
    assert float(choose(found, Projection(eta="one"), EPS).eta) == 1.0
    assert float(choose(found, Projection(eta="one"), EPS).beta) == float(full.beta)
    limit = abs(float(full.beta)) / 2
    assert abs(float(choose(found, Projection(beta_max=limit), EPS).beta)) == pytest.approx(limit)
    assert float(choose(found, Projection(eta_max=0.5), EPS).eta) == 0.5
    assert float(choose(found, Projection(eta_min=3.0), EPS).eta) == 3.0
    flipped = choose(found, Projection(beta="random"), EPS, torch.tensor([-1.0]).double())
    assert abs(float(flipped.beta)) == abs(float(full.beta))
    assert float(choose(found, Projection(eps=1e9), EPS).s) == pytest.approx(0.0, abs=1e-6)


def test_signs_come_from_counters_and_are_even():
    drawn = [sign(7, step, layer) for step in range(100) for layer in range(20)]
    assert drawn == [sign(7, step, layer) for step in range(100) for layer in range(20)]
    assert drawn != [sign(8, step, layer) for step in range(100) for layer in range(20)]
    assert abs(sum(drawn)) < 4 * 2000**0.5


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"eta_ref": "median"}, "eta_ref is one of sum, mean; got 'median'"),
        ({"beta": 0}, "beta is one of optimal, zero, random; got 0"),
        ({"split": "thirds"}, "split is one of passes, batch"),
        ({"eps": -1.0}, "eps is a number of at least 0"),
        ({"beta_max": -1.0}, "beta_max is a number of at least 0"),
        ({"eta_min": 2.0, "eta_max": 1.0}, "eta_min is at most eta_max"),
    ],
)
def test_wrong_options_are_refused(given, text):
    with pytest.raises(UserError, match=text):
        split_options(given)
