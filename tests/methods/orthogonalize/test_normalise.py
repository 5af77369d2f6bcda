from __future__ import annotations

import pytest
import torch

from methods.orthogonalize.normalise import (
    aol_scale,
    frobenius,
    prescale,
    prescale_factor,
    scaled,
    schatten4,
    spectral,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
WIDE = [torch.float32, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_frobenius_has_unit_norm(make, dtype):
    X = make["gaussian"](3, 17, 31).to(dtype)
    assert frobenius(X).double().norm(dim=(-2, -1)) == pytest.approx([1.0] * 3, abs=4e-3)
    assert frobenius(X).dtype == dtype


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("exponent", [-40, -50, 40, 50])  # 2^40 is 1.1e12, 2^50 is 1.1e15
def test_frobenius_is_exactly_invariant_to_powers_of_two(make, dtype, exponent):
    X = make["gaussian"](17, 31).to(dtype)
    assert torch.equal(frobenius(X * 2.0**exponent), frobenius(X))


def test_frobenius_norm_out_of_range_is_loud():
    assert frobenius(torch.full((4, 4), 1e30)).isnan().all()
    assert frobenius(torch.full((4, 4), 1e30, dtype=torch.float64)).sum() == pytest.approx(4.0)
    assert frobenius(torch.full((4, 4), 1e-30)).abs().max() < 1e-10  # under the floor: small, never amplified to NaN


def test_float16_norm_beyond_float16():
    X = torch.full((64, 64), 6e4, dtype=torch.float16)  # its norm is 3.8e6
    assert frobenius(X).float() == pytest.approx(torch.full((64, 64), 1 / 64), rel=1e-3)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(dtype, scale) for dtype in WIDE for scale in (1e-30, 1e-12, 1.0, 1e12, 1e30)]
    + [(torch.float16, scale) for scale in (1e-5, 1.0, 1e3)],
)
def test_prescale_is_an_exact_power_of_two_with_a_safe_gram(make, dtype, scale):
    X = (make["levy"](2, 9, 33).clamp(-60, 60) * scale).to(dtype)
    factor = prescale_factor(X).double()
    assert torch.equal(torch.frexp(factor).mantissa, torch.full_like(factor, 0.5))
    Y = prescale(X)
    gram = Y @ Y.mT
    assert gram.isfinite().all()
    assert (gram.diagonal(dim1=-2, dim2=-1) > 0).all()
    if dtype == torch.float16:
        norm = Y.double().norm(dim=(-2, -1))
        assert ((norm > 63.9) & (norm < 128.1)).all()
    else:
        assert torch.equal(Y.double(), X.double() * factor)
        assert ((Y.abs().amax(dim=(-2, -1)) >= 1) & (Y.abs().amax(dim=(-2, -1)) < 2)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_matrices_and_zero_rows_stay_finite(make, dtype):
    X = make["gaussian"](2, 5, 9).to(dtype)
    X[0] = 0
    X[1, 2] = 0
    for Y in (prescale(X), frobenius(X), spectral(X)):
        assert Y.isfinite().all()
        assert not Y[0].any()
    s = aol_scale(prescale(X) @ prescale(X).mT)
    assert s.isfinite().all()
    assert (s > 0).all()
    S4 = schatten4(prescale(X) @ prescale(X).mT)
    assert S4.isfinite().all()
    assert (S4 > 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_spoils_its_own_matrix_only(make, dtype):
    X = make["gaussian"](2, 5, 9).to(dtype)
    X[1, 3, 4] = torch.nan
    A = prescale(X) @ prescale(X).mT
    for result in (frobenius(X), spectral(X), aol_scale(A), schatten4(A)):
        assert result[0].isfinite().all()
        assert result[1].isnan().all()


def test_schatten4_is_the_fourth_power_norm(make):
    X = make["gaussian"](2, 8, 20)
    expected = torch.linalg.svdvals(X).pow(4).sum(-1).pow(0.25)
    assert torch.allclose(schatten4(X @ X.mT), expected, rtol=1e-12)


def test_schatten4_gain_of_a_gaussian(make):
    n = 256  # theory for a square gaussian: (2 n^3)^(1/4) against n
    X = make["gaussian"](n, n)
    gain = float(X.norm() / schatten4(X @ X.T))
    assert gain == pytest.approx(0.84 * n**0.25, rel=0.02)


def test_aol_scale_by_definition(make):
    X = make["levy"](7, 11)
    A = X @ X.T
    assert torch.allclose(aol_scale(A), A.abs().sum(1).rsqrt(), rtol=1e-14)


@pytest.mark.parametrize("kind", ["gaussian", "levy", "rows", "spectrum"])
@pytest.mark.parametrize("seed", range(5))
def test_aol_bounds_the_largest_singular_value_by_one(make, kind, seed):
    X = make[kind](24, 40, seed=seed) + 0.3 * (seed % 2)  # odd seeds: a common offset, strongly correlated rows
    top = torch.linalg.matrix_norm(aol_scale(X @ X.T)[:, None] * X, 2)
    assert 0.3 < float(top) <= 1 + 1e-12


def test_aol_bound_is_reached_by_one_row_and_by_orthogonal_rows(make):
    X = make["gaussian"](1, 9)
    assert float(torch.linalg.matrix_norm(aol_scale(X @ X.T)[:, None] * X, 2)) == pytest.approx(1.0)
    D = torch.diag(torch.tensor([3.0, 1e-3, 7.0], dtype=torch.float64))
    assert torch.allclose(aol_scale(D @ D)[:, None] * D, torch.eye(3, dtype=torch.float64))


def test_aol_raises_rows_of_very_different_size(make):
    D = torch.logspace(0, -12, 16).diag()  # orthogonal rows over twelve decades: an absolute floor would show here
    Y = aol_scale(prescale(D) @ prescale(D).mT)[:, None] * prescale(D)
    assert torch.allclose(Y, torch.eye(16), rtol=1e-5)
    X = make["rows"](16, 64, decades=12)
    Y = aol_scale(prescale(X.float()) @ prescale(X.float()).mT)[:, None] * prescale(X.float())
    assert torch.allclose(Y.double(), (X @ X.T).abs().sum(1).rsqrt()[:, None] * X, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["gaussian", "levy", "rows", "spectrum"])
def test_spectral_estimate_is_close(make, kind):
    X = make[kind](48, 64)
    top = float(torch.linalg.matrix_norm(spectral(X), 2))
    assert 1 / 1.05 - 1e-9 <= top <= 1.01
    low = float(torch.linalg.matrix_norm(spectral(X.bfloat16()).double(), 2))
    assert low == pytest.approx(top, rel=0.03)


def test_scaled_rounds_once_and_is_contiguous(make):
    X = make["gaussian"](6, 4).to(torch.float16).T
    factor = torch.tensor([[1e6]])
    assert scaled(X * 1e-4, factor * 1e-2).is_contiguous()
    assert scaled(X, factor, torch.float32).dtype == torch.float32
    assert torch.equal(scaled(X, factor / 1e6), X)
