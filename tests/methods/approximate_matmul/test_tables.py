"""Statistics, prototypes and tables against definitions; scans against Python integers."""

import numpy as np
import pytest

from methods.approximate_matmul import reference, scan, tables, tree

RNG = np.random.default_rng(0)
ROWS, WIDTH, CODEBOOKS = 90, 11, 3
A = RNG.standard_normal((ROWS, WIDTH)).astype(np.float32)
TREES, CODES = tree.learn(A, CODEBOOKS)
STATS = tables.statistics(A, CODES)
START = tables.means(STATS, TREES.starts)
B = RNG.standard_normal((WIDTH, 7))


def test_statistics_are_one_hot_products() -> None:
    g = reference.one_hot(CODES)
    np.testing.assert_array_equal(STATS.counts, g.T @ g)
    np.testing.assert_allclose(STATS.sums, g.T @ A, atol=1e-12)


def test_own_statistics_give_the_same_means() -> None:
    own = tables.own_statistics(A, CODES, TREES.starts)
    np.testing.assert_array_equal(own.counts, np.diag(np.diag(STATS.counts)))
    np.testing.assert_allclose(tables.means(own, TREES.starts), START, atol=1e-12)


def test_means_are_bucket_means_on_their_own_subspace() -> None:
    for c in range(CODEBOOKS):
        low, high = TREES.starts[c], TREES.starts[c + 1]
        for k in np.unique(CODES[:, c]):
            mean = A[CODES[:, c] == k].astype(np.float64).mean(axis=0)
            np.testing.assert_allclose(START[c, k, low:high], mean[low:high], atol=1e-12)
        assert not np.delete(START[c], np.arange(low, high), axis=1).any()


def test_an_empty_leaf_takes_its_nearest_ancestors_mean() -> None:
    a = np.array([[0.0], [0.0], [4.0], [10.0]], dtype=np.float32)
    codes = np.array([[0], [0], [1], [12]], dtype=np.uint8)
    start = tables.means(tables.statistics(a, codes), np.array([0, 1], dtype=np.int32))[0, :, 0]
    assert start[0] == 0
    assert start[1] == 4
    assert start[2] == start[7] == pytest.approx(4 / 3)  # leaves 0..3 and 0..7: the same three rows
    assert start[13] == start[8] == 10


@pytest.mark.parametrize("strength", [1e-2, 1.0, 30.0])
def test_ridge_is_stationary_and_equals_the_normal_equations(strength: float) -> None:
    found = tables.ridge(STATS, START, strength)
    np.testing.assert_allclose(found, reference.ridge(A.astype(np.float64), CODES, START, strength), atol=1e-9)
    g, update = reference.one_hot(CODES), (found - START).reshape(-1, WIDTH)
    residual = A - g @ START.reshape(-1, WIDTH)
    np.testing.assert_allclose(g.T @ (g @ update - residual) + strength * update, 0, atol=1e-10)


def test_sparse_ridge_runs_from_means_to_dense() -> None:
    np.testing.assert_allclose(tables.sparse_ridge(STATS, START, 1.0, 1, TREES.starts), START, atol=1e-12)
    dense = tables.sparse_ridge(STATS, START, 1.0, CODEBOOKS + 1, TREES.starts)
    np.testing.assert_allclose(dense, tables.ridge(STATS, START, 1.0), atol=1e-10)
    two = tables.sparse_ridge(STATS, START, 1.0, 2, TREES.starts)
    used = (two != 0).any(axis=1).sum(axis=1)
    assert (used <= 2 * WIDTH // CODEBOOKS).all()
    assert (used > np.diff(TREES.starts)).all()

    def loss(p: np.ndarray) -> float:
        return float(((A - reference.one_hot(CODES) @ p.reshape(-1, WIDTH)) ** 2).sum())

    assert loss(dense) < loss(two) < loss(START)


def test_direct_tables_minimise_their_objective() -> None:
    found = tables.direct(STATS.counts, STATS.sums @ B, 1.0).reshape(-1, 7)
    g = reference.one_hot(CODES)
    np.testing.assert_allclose(g.T @ (g @ found - A @ B) + found, 0, atol=1e-9)
    # Ridge prototypes solve the same problem but shrink to P0 B: for a small ridge both give the same products.
    prototypes = tables.ridge(STATS, START, 1e-7).reshape(-1, WIDTH) @ B
    found = tables.direct(STATS.counts, tables.sums(A, CODES, b=B), 1e-7).reshape(-1, 7)
    np.testing.assert_allclose(g @ found, g @ prototypes, atol=1e-4)


def test_sums_of_products_are_products_of_sums() -> None:
    np.testing.assert_allclose(tables.sums(A, CODES, b=B), STATS.sums @ B, atol=1e-12)


@pytest.mark.parametrize("scale", ["output", "shared", "power-of-two"])
@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_tables_are_within_half_a_step(scale: str, bits: int) -> None:
    values = RNG.standard_normal((4, 16, 5)) * np.array([0.1, 1, 10, 3, 1e-3])
    table = tables.quantise(values, bits, scale)
    low, step = tables.grid(values, bits, scale, 0.0)
    assert np.abs(table.values * step + low - values).max() <= 0.5 * step.max() * (1 + 1e-12)
    assert (np.abs(table.values * step + low - values) <= 0.5 * step * (1 + 1e-9)).all()
    np.testing.assert_allclose(table.offset, np.broadcast_to(low.sum(axis=0)[0], 5), rtol=1e-6)
    np.testing.assert_allclose(table.scale, step[0], rtol=1e-6)
    assert table.values.max() <= 2**bits - 1
    if scale == "power-of-two":
        exponent = np.log2(step * (2**bits - 1))
        np.testing.assert_allclose(exponent, np.rint(exponent), atol=1e-9)


def test_constant_tables_are_exact() -> None:
    table = tables.quantise(np.full((3, 16, 2), 5.5))
    assert not table.values.any()
    np.testing.assert_array_equal(table.offset, [16.5, 16.5])


@pytest.mark.parametrize("codebooks", [1, 5, 257])
def test_exact_scan_equals_python_integers(codebooks: int) -> None:
    codes = RNG.integers(0, 16, (9, codebooks)).astype(np.uint8)
    values = RNG.integers(0, 256, (codebooks, 16, 4)).astype(np.uint8)
    values[:, 3] = 255
    codes[0] = 3
    found = scan.exact(codes, values)
    assert found.tolist() == reference.exact_scan(codes, values)
    assert found[0, 0] == 255 * codebooks


@pytest.mark.parametrize(("codebooks", "upcast"), [(1, 1), (8, 8), (8, 2), (48, 16), (64, 64)])
def test_averaged_scan_equals_the_recursive_definition(codebooks: int, upcast: int) -> None:
    codes = RNG.integers(0, 16, (9, codebooks)).astype(np.uint8)
    values = RNG.integers(0, 256, (codebooks, 16, 4)).astype(np.uint8)
    assert scan.averaged(codes, values, upcast).tolist() == reference.averaged_scan(codes, values, upcast)


@pytest.mark.parametrize(("codebooks", "upcast"), [(8, 8), (16, 16), (32, 4)])
def test_averaging_is_biased_as_predicted(codebooks: int, upcast: int) -> None:
    generator = np.random.default_rng(5)
    codes = generator.integers(0, 16, (400, codebooks)).astype(np.uint8)
    values = generator.integers(0, 256, (codebooks, 16, 64)).astype(np.uint8)
    excess = upcast * scan.averaged(codes, values, upcast).astype(np.int64) - scan.exact(codes, values)
    # Rows share tables, so the 64 independent columns are the sample.
    columns = excess.mean(axis=0)
    sigma = columns.std(ddof=1) / np.sqrt(len(columns))
    assert abs(columns.mean() - tables.bias(codebooks, upcast)) < 4 * sigma
    assert tables.bias(codebooks, upcast) > 10 * sigma  # the test can see the bias


def test_groups_divide_the_codebooks() -> None:
    assert [tables.group(c, 16) for c in (16, 64, 24, 12, 7, 2)] == [16, 16, 8, 4, 1, 2]
    assert tables.largest_exact(8) == 257
    assert tables.largest_exact(4) == 4369
