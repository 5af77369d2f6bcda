"""Quantised products against integers, sketches against their moments, factorisations against their theorems."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from harness.catalogue.registry import load
from methods.approximate_matmul.linear import draws, fp8, integers, sparse_pca
from methods.approximate_matmul.linear.fast_jl import transform
from methods.approximate_matmul.linear.int8 import block_rows

SEEDS = 400


def matrices(n: int, d: int, m: int, seed: int = 0, dtype: object = torch.float32) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.linspace(2, 0.1, d, dtype=torch.float64)
    return a.to(dtype), torch.randn(d, m, generator=generator, dtype=torch.float64).to(dtype)


def fit(name: str, a: object, b: object, **hyper: object):
    return load(f"approximate_matmul.{name}")(**hyper).fit(a, b)


# --- int8 ---------------------------------------------------------------------------------------------------------


def numpy_int8(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integer sums and the two scales, from int64 arithmetic."""

    def quantise(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
        top = np.maximum(np.abs(x).max(axis=axis, keepdims=True), np.float32(2.0**-119))
        return np.rint(x * ((np.float32(1) / top) * np.float32(127))).astype(np.int64), top / np.float32(127)

    (qa, sa), (qb, sb) = quantise(a, 1), quantise(b, 0)
    return qa @ qb, sa, sb


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 1), (17, 9, 10), (33, 129, 7), (70, 1100, 3)])
def test_int8_equals_the_integer_oracle(shape: tuple) -> None:
    a, b = matrices(*shape)
    sums, rows, columns = numpy_int8(a.numpy(), b.numpy())
    # The same three float32 roundings as the method: exact equality, not closeness.
    expected = sums.astype(np.float32) * rows * columns
    assert np.array_equal(fit("int8", a, b)(a).numpy(), expected)


@pytest.mark.parametrize("name", integers.ENGINES)
@pytest.mark.parametrize("inner", [1, 7, 64, 1040, 1041, 2500])
def test_engines_give_exact_integers_at_the_extremes(name: str, inner: int) -> None:
    rng = np.random.default_rng(inner)
    q = rng.choice((-127, 127, 126), size=(5, inner))
    q[0] = 127
    b = rng.choice((-127, 127), size=(inner, 3))
    b[:, 0] = 127
    wide = torch.from_numpy(b.astype(np.int8))
    if integers.inexact(name, wide):
        pytest.skip(f"{name} saturates on this CPU and would not be chosen")
    answer = integers.engine(name, wide)(torch.from_numpy(q.astype(np.float32)))
    assert np.array_equal(answer.numpy().astype(np.int64), q @ b)


def test_a_saturating_engine_is_found_out(monkeypatch) -> None:
    honest = integers.engine

    def saturating(name: str, b: object):
        product = honest("float32", b)
        return product if name == "float32" else lambda q: product(q).clamp(-32768, 32767)

    monkeypatch.setattr(integers, "engine", saturating)
    b = torch.ones((8, 3), dtype=torch.int8)
    chosen, _, left_out = integers.choose(b, torch.ones(4, 8))
    assert chosen == "float32"
    assert left_out == ["int_mm: sums saturate"]


def test_int8_blocks_do_not_show() -> None:
    a, b = matrices(301, 2048, 4)
    assert block_rows(a) < 301
    op = fit("int8", a, b)
    whole = op(a)
    assert torch.equal(torch.cat([op(row[None]) for row in a[::50]]), whole[::50])


def test_int8_zero_tiny_and_huge_rows() -> None:
    a, b = matrices(6, 10, 4)
    a[0], a[1], a[2] = 0.0, a[1] * 1e-30, a[2] * 1e30
    a[3] *= 1e-44
    y = fit("int8", a, b)(a)
    assert bool(torch.isfinite(y).all())
    assert float(y[0].abs().max()) == 0.0
    for row in (1, 2):
        exact = a[row].double() @ b.double()
        assert float((y[row].double() - exact).norm()) < 0.05 * float(a[row].double().norm() * b.double().norm())


def test_int8_static_saturates_beyond_training() -> None:
    _, b = matrices(1, 6, 3)
    op = fit("int8-static", torch.ones(4, 6), b)
    assert torch.equal(op(torch.full((1, 6), 50.0)), op(torch.ones(1, 6)))


def test_int8_static_column_scales_help_uneven_columns() -> None:
    a, b = matrices(400, 12, 5)
    a = a * torch.logspace(0, -3, 12)
    b = b * torch.logspace(0, 3, 12)[:, None]
    exact = a.double() @ b.double()
    errors = [float((fit("int8-static", a, b, granularity=g)(a) - exact).norm()) for g in ("tensor", "column")]
    assert errors[1] < errors[0] / 3


# --- sketches -----------------------------------------------------------------------------------------------------

_D, _RANK = 12, 4


def second_moments(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """|A|²|B|², |A B|², 2 sum of A_ik² B_kj²: the terms of the closed variances."""
    return (
        float((a**2).sum() * (b**2).sum()),
        float(((a @ b) ** 2).sum()),
        2 * float(((a**2) @ (b**2)).sum()),
    )


DRAWS = {
    "gauss": lambda seed: draws.gauss(_D, _RANK, seed, "unbiased"),
    "rademacher": lambda seed: draws.rademacher(_D, _RANK, seed, "unbiased"),
    "hash-jl": lambda seed: draws.hash_jl(_D, _RANK, seed, "unbiased"),
    "osnap": lambda seed: draws.osnap(_D, _RANK, seed, 2),
    "fast-jl": lambda seed: draws.fast_jl_matrix(*draws.fast_jl(_D, _RANK, seed, "unbiased", "theory")),
}
BIASED = {
    "gauss": (lambda seed: draws.gauss(_D, _RANK, seed, "published"), _RANK / _D),
    "rademacher": (lambda seed: draws.rademacher(_D, _RANK, seed, "published"), _RANK / _D),
    "hash-jl": (lambda seed: draws.hash_jl(_D, _RANK, seed, "published"), 0.5),
}


def products(draw, a: np.ndarray, b: np.ndarray, seeds: int = SEEDS) -> np.ndarray:
    return np.stack([(a @ (s := draw(seed))) @ (s.T @ b) for seed in range(seeds)])


def within(samples: np.ndarray, expected: np.ndarray, sigmas: float = 4.0) -> bool:
    """Every entry's mean lies within 4 standard errors; a column of equal samples must be right itself."""
    error = samples.std(axis=0, ddof=1) / math.sqrt(len(samples)) + 1e-12
    return bool((np.abs(samples.mean(axis=0) - expected) <= sigmas * error).all())


@pytest.mark.parametrize("name", DRAWS)
def test_sketches_are_unbiased(name: str) -> None:
    a, b = (x.numpy() for x in matrices(2, _D, 3, dtype=torch.float64))
    assert within(products(DRAWS[name], a, b), a @ b)


@pytest.mark.parametrize("name", BIASED)
def test_published_scalings_shrink_by_the_stated_factor(name: str) -> None:
    draw, factor = BIASED[name]
    a, b = (x.numpy() for x in matrices(2, _D, 3, dtype=torch.float64))
    samples = products(draw, a, b)
    assert within(samples, factor * (a @ b))
    assert not within(samples, a @ b)


@pytest.mark.parametrize("name", ["gauss", "rademacher", "hash-jl"])
def test_sketches_have_the_closed_variance(name: str) -> None:
    a, b = (x.numpy() for x in matrices(2, _D, 3, seed=1, dtype=torch.float64))
    sizes, product, diagonal = second_moments(a, b)
    expected = (sizes + product - (0.0 if name == "gauss" else diagonal)) / _RANK
    errors = ((products(DRAWS[name], a, b, 3000) - a @ b) ** 2).sum(axis=(1, 2))
    assert abs(errors.mean() - expected) < 4 * errors.std(ddof=1) / math.sqrt(len(errors))


@pytest.mark.parametrize("nonzeros", [1, 3, 5])
def test_osnap_has_s_entries_in_distinct_blocks(nonzeros: int) -> None:
    sketch = draws.osnap(200, 7, 0, nonzeros)
    blocks = np.array_split(np.arange(7), nonzeros)
    for block in blocks:
        assert ((sketch[:, block] != 0).sum(axis=1) == 1).all()
        assert (sketch[:, block] != 0).any(axis=0).all()
    assert np.allclose(np.abs(sketch[sketch != 0]), 1 / math.sqrt(nonzeros))


@pytest.mark.parametrize("inner", [1, 2, 5, 16, 100])
def test_the_fast_transform_is_the_hadamard_matrix(inner: int) -> None:
    size = 1 << max(inner - 1, 0).bit_length()
    matrix = draws.hadamard(size)
    assert np.allclose(matrix @ matrix.T, np.eye(size))
    rows = torch.randn(3, size, dtype=torch.float64)
    assert np.allclose(transform(rows).numpy(), rows.numpy() @ matrix)


def test_gaussian_sketch_keeps_lengths() -> None:
    """Johnson-Lindenstrauss: | |xᵀS|² / |x|² - 1 | > e has chance at most 2 exp(-d (e²/4 - e³/6)) (Dasgupta, Gupta)."""
    eps, rank, trials = 0.5, 64, 500
    x = np.random.default_rng(5).standard_normal(100)
    ratios = np.array([((x @ draws.gauss(100, rank, s, "unbiased")) ** 2).sum() for s in range(trials)]) / (x @ x)
    chance = 2 * math.exp(-rank * (eps**2 / 4 - eps**3 / 6))
    missed = (np.abs(ratios - 1) > eps).mean()
    assert missed <= chance + 4 * math.sqrt(chance / trials)


def test_seeds_decide_and_differ() -> None:
    a, b = matrices(10, 12, 6)
    for name in ("gauss", "rademacher", "hash-jl", "osnap", "fast-jl", "sampling"):
        same, again, other = (fit(name, a, b, rank=4, seed=s)(a) for s in (0, 0, 1))
        # Not bitwise: a product of the library may round by where its operands lie in memory.
        torch.testing.assert_close(same, again)
        assert float((same - other).abs().max()) > 1e-3


# --- sampling -----------------------------------------------------------------------------------------------------


def test_sampling_has_the_mean_and_the_variance_of_the_theorem() -> None:
    a, b = matrices(5, 9, 8, dtype=torch.float64)
    samples = np.stack([fit("sampling", a, b, rank=5, seed=seed)(a).numpy() for seed in range(800)])
    exact = (a @ b).numpy()
    assert within(samples, exact)
    sizes = float((a.norm(dim=0) * b.norm(dim=1)).sum())
    expected = (sizes**2 - float((exact**2).sum())) / 5
    errors = ((samples - exact) ** 2).sum(axis=(1, 2))
    assert abs(errors.mean() - expected) < 4 * errors.std(ddof=1) / math.sqrt(len(errors))


def test_sampling_never_draws_an_absent_column() -> None:
    a, b = matrices(6, 9, 5)
    a[:, [0, 4, 8]] = 0.0
    b[[2, 5, 6, 7]] = 0.0
    # Columns 1 and 3 are left: every draw is one of them, and equal sizes would make the estimate exact.
    a[:, 3], b[3] = a[:, 1], b[1]
    assert torch.allclose(fit("sampling", a, b, rank=3)(a), a @ b, atol=1e-5)


# --- projections and factorisations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more"), [("pca", {}), ("pca", {"centre": False}), ("svd", {}), ("svd", {"side": "train"})]
)
def test_exact_when_the_rows_span_no_more_than_the_rank(name: str, more: dict) -> None:
    generator = torch.Generator().manual_seed(3)
    basis = torch.randn(4, 20, generator=generator, dtype=torch.float64)
    weights = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    rows = weights @ basis
    if name == "pca" and more.get("centre", True):
        rows = rows + torch.linspace(-3, 3, 20, dtype=torch.float64)
    # svd of both factors is exact when B has that rank as well
    b = torch.randn(20, 10, generator=generator, dtype=torch.float64)
    if name == "svd" and not more:
        b = torch.randn(20, 4, generator=generator, dtype=torch.float64) @ torch.randn(
            4, 10, generator=generator, dtype=torch.float64
        )
    op = fit(name, rows[20:], b, rank=4, **more)
    assert float((op(rows[:20]) - rows[:20] @ b).norm()) < 1e-9 * float((rows[:20] @ b).norm())


def test_the_mean_term_is_exactly_what_the_published_form_lacks() -> None:
    a, b = matrices(300, 10, 6, dtype=torch.float64)
    a = a + 5.0 * torch.linspace(1, 2, 10, dtype=torch.float64).flip(0)
    plain, centred = fit("pca", a, b, rank=2, centre=False)(a), fit("pca", a, b, rank=2)(a)
    v = torch.linalg.svd(a - a.mean(dim=0)).Vh[:2].T
    term = (a.mean(dim=0) @ (torch.eye(10, dtype=torch.float64) - v @ v.T)) @ b
    assert torch.allclose(centred - plain, term.expand_as(plain))
    assert torch.allclose((centred - a @ b).mean(dim=0), torch.zeros(6, dtype=torch.float64), atol=1e-9)


def test_centred_pca_has_the_least_error_of_its_rank() -> None:
    """Eckart-Young on the centred rows, B orthonormal so that the product keeps distances."""
    a, _ = matrices(200, 10, 1, dtype=torch.float64)
    b = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    values = torch.linalg.svdvals(a - a.mean(dim=0))
    error = float((fit("pca", a, b, rank=4)(a) - a @ b).norm() ** 2)
    assert error == pytest.approx(float((values[4:] ** 2).sum()), rel=1e-9)


def test_svd_of_b_is_the_truncated_svd() -> None:
    a, b = matrices(30, 40, 12, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(b, full_matrices=False)
    s = s * torch.logspace(0, -3, 12, dtype=torch.float64)
    b = u * s @ vt
    best = a @ (u[:, :5] * s[:5] @ vt[:5])
    assert torch.allclose(fit("svd", a, b, rank=5, side="b")(a), best, rtol=1e-6, atol=1e-6 * float(best.abs().max()))


@pytest.mark.parametrize("buffer", ["double", "single"])
@pytest.mark.parametrize("rank", [2, 5, 9])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_frequent_directions_keep_their_bound(buffer: str, rank: int, seed: int) -> None:
    a, b = matrices(25, 60, 12, seed=seed, dtype=torch.float64)
    b = b * torch.linspace(2, 0.1, 60, dtype=torch.float64)[:, None]
    error = float(torch.linalg.matrix_norm(fit("fd-amm", a, b, rank=rank, buffer=buffer)(a) - a @ b, ord=2))
    assert error <= float(a.norm() ** 2 + b.norm() ** 2) / rank


def test_published_shrink_breaks_the_relation_of_the_theorem() -> None:
    """Ghashami et al.: the shrink must take the same amount, sigma_d², from every squared singular value."""
    from methods.approximate_matmul.linear.fd_amm import shrunk

    rows = matrices(8, 30, 1, dtype=torch.float64)[0]
    values = torch.linalg.svdvals(rows)
    theory = torch.linalg.svdvals(shrunk(rows, 5, published=False))
    assert torch.allclose(values[:4] ** 2 - theory**2, (values[4] ** 2).expand(4))
    published = torch.linalg.svdvals(shrunk(rows, 5, published=True))
    assert torch.allclose(values[:4] - published, values[4].expand(4))


@pytest.mark.parametrize(("buffer", "factor"), [("double", 1.0), ("single", 2.0)])
@pytest.mark.parametrize("rank", [4, 5, 8])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cooccurring_directions_keep_their_bound(buffer: str, factor: float, rank: int, seed: int) -> None:
    a, b = matrices(25, 60, 12, seed=seed, dtype=torch.float64)
    error = float(torch.linalg.matrix_norm(fit("cooccur", a, b, rank=rank, buffer=buffer)(a) - a @ b, ord=2))
    assert error <= factor * float(a.norm() * b.norm()) / rank


@pytest.mark.parametrize("name", ["fd-amm", "cooccur"])
def test_directions_are_exact_below_the_rank(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    core = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    a = torch.randn(20, 3, generator=generator, dtype=torch.float64) @ core.T
    b = core @ torch.randn(3, 12, generator=generator, dtype=torch.float64)
    # [Aᵀ, B] has rank 3: nothing is ever cut with 4 directions kept.
    y = fit(name, a, b, rank=5)(a)
    assert float((y - a @ b).norm()) < 1e-6 * float((a @ b).norm())


def test_sparse_loadings_are_sparse_and_as_good_as_least_angles() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((60, 4)) @ rng.standard_normal((4, 12)) + 0.1 * rng.standard_normal((60, 12))
    rows -= rows.mean(axis=0)
    data = sparse_pca.root(rows.T @ rows)
    assert np.allclose(data.T @ data, rows.T @ rows)
    weight = 0.01 * float((rows**2).sum()) / 12**2

    def objective(codes: np.ndarray) -> float:
        """With the best U for these codes among unit balls, found by many turns."""
        atoms = np.linalg.qr(data @ codes)[0]
        for _ in range(300):
            sparse_pca._turn(atoms, data @ codes, codes.T @ codes)
        return 0.5 * float(((data - atoms @ codes.T) ** 2).sum()) + weight * float(np.abs(codes).sum())

    ours = sparse_pca.factorise(data, 3, weight)
    theirs = (
        decomposition.SparsePCA(3, alpha=weight, max_iter=10, method="lars", random_state=0).fit(data).components_.T
    )
    assert objective(ours) <= 1.02 * objective(theirs)
    assert (sparse_pca.loadings(rows, 4, 0.03) == 0).sum() > (sparse_pca.loadings(rows, 4, 1e-6) == 0).sum()


def test_the_sparse_decoder_is_least_squares() -> None:
    rng = np.random.default_rng(1)
    rows, b = rng.standard_normal((80, 12)), rng.standard_normal((12, 6))
    sparse = sparse_pca.loadings(rows, 4, 0.01)
    table = sparse_pca.decoder(rows, sparse, b)
    gradient = (rows @ sparse).T @ (rows @ sparse @ table - rows @ b)
    assert np.abs(gradient).max() < 1e-8 * np.abs(rows.T @ rows @ b).max()


def test_a_saved_engine_that_is_wrong_here_is_replaced(monkeypatch) -> None:
    a, b = matrices(9, 16, 4)
    op = fit("int8", a, b)
    expected = op(a)
    op.choices["engine"] = "int_mm"
    monkeypatch.setattr(integers, "inexact", lambda name, b: "sums saturate" if name == "int_mm" else None)
    op.prepare()
    assert op.choices["engine"] == "float32"
    assert torch.equal(op(a), expected)


def test_sparse_loadings_do_not_depend_on_the_unit() -> None:
    rows = np.random.default_rng(2).standard_normal((80, 12)) @ np.diag(np.linspace(3, 0.2, 12))
    one, two = (sparse_pca.loadings(rows * unit, 4, 0.1) for unit in (1.0, 4096.0))
    assert np.allclose(one, two, atol=1e-9)
    assert 0 < (one == 0).mean() < 1


def test_fp8_scales_inside_the_product_only_where_that_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(1)).to(fp8.FLOAT8).t()
    columns = torch.linspace(0.1, 3.0, 48).reshape(1, -1)
    refused = fp8.rowwise_refusal(weight, columns, False)
    if refused:  # a torch whose CPU has no product by rows says so in words
        assert "Error" in refused
        return
    q = torch.randn(20, 64).to(fp8.FLOAT8)
    rows = torch.rand(20) + 0.5
    wanted = (q.double() @ weight.double()) * rows[:, None] * columns
    assert float((fp8.rowwise(q, rows, weight, columns, False) - wanted).norm() / wanted.norm()) < 5e-3
    monkeypatch.setattr(fp8, "rowwise", lambda q, rows, weight, columns, fast: q.float() @ weight.float())
    assert fp8.rowwise_refusal(weight, columns, False) == "scales by row give another product"
