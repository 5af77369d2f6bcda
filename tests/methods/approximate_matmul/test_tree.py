"""Trees: learned splits against exhaustive ones, codes against a scalar walk, ties, constants, empty leaves."""

import numpy as np
import pytest
import torch

from methods.approximate_matmul import reference, tables, tree, tree_device

RNG = np.random.default_rng
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]


def data(kind: str, rows: int = 120, width: int = 5, seed: int = 0) -> np.ndarray:
    generator = RNG(seed)
    if kind == "integers":
        return generator.integers(-3, 4, (rows, width)).astype(np.float32)
    if kind == "far":
        return (1e4 + generator.standard_normal((rows, width))).astype(np.float32)
    return generator.standard_normal((rows, width)).astype(np.float32)


def error_of(x: np.ndarray, codes: np.ndarray) -> float:
    exact = x.astype(np.float64)
    return sum(reference.squared_error(exact[codes == k]) for k in range(16))


@pytest.mark.parametrize("kind", ["floats", "integers", "far"])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_learned_tree_is_as_good_as_the_exhaustive_greedy_one(kind: str, width: int) -> None:
    x = data(kind, 60, width)
    _, _, codes = tree.learn_one(x)
    expected = reference.learn_error(x.astype(np.float64))
    assert error_of(x, codes) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("kind", ["floats", "integers"])
@pytest.mark.parametrize("compare", [">=", ">"])
@pytest.mark.parametrize("shape", [(97, 20, 3), (33, 7, 7), (1, 4, 2)])
def test_training_codes_are_what_the_scalar_encoder_gives(kind: str, compare: str, shape: tuple[int, ...]) -> None:
    rows, width, codebooks = shape
    x = data(kind, rows, width)
    trees, codes = tree.learn(x, codebooks, compare=compare)
    scalar = reference.encode(x, trees.columns, trees.thresholds)
    assert np.array_equal(codes, scalar)
    assert np.array_equal(tree.encode(x, trees), scalar)
    fresh = data(kind, 50, width, seed=1)
    assert np.array_equal(tree.encode(fresh, trees), reference.encode(fresh, trees.columns, trees.thresholds))


def test_rows_equal_to_a_threshold_go_right_or_left_as_compare_says() -> None:
    low, high = np.float32(1), np.nextafter(np.float32(1), np.float32(2))
    x = np.array([[low], [high]])
    for compare in (">=", ">"):
        _, thresholds, codes = tree.learn_one(x, compare=compare)
        assert codes[0] < codes[1]
        assert thresholds[0] == high
    _, thresholds, _ = tree.learn_one(np.array([[0.0], [2.0]], dtype=np.float32), compare=">")
    assert not np.float32(1) >= thresholds[0]  # 1 > 1 is false
    assert tree.learn_one(np.array([[0.0], [2.0]], dtype=np.float32))[1][0] == 1


def test_identical_rows_share_a_code_and_constant_columns_never_split() -> None:
    x = data("floats", 40, 6)
    x[:, [0, 3]] = 7.0
    trees, codes = tree.learn(x, 3)
    repeated, _ = tree.learn(np.vstack([x, x]), 3)
    assert np.array_equal(tree.encode(x, repeated), tree.encode(np.vstack([x, x]), repeated)[:40])
    constant = np.full((10, 4), 3.0, dtype=np.float32)
    trees, codes = tree.learn(constant, 2)
    assert np.isposinf(trees.thresholds).all()
    assert not codes.any()


def test_fewer_different_values_than_leaves_leave_leaves_empty() -> None:
    x = np.repeat(np.array([[0.0], [1.0], [5.0]], dtype=np.float32), 4, axis=0)
    _, thresholds, codes = tree.learn_one(x)
    assert len(np.unique(codes)) == 3
    assert error_of(x, codes) == 0
    assert np.isposinf(thresholds).any()


def test_minimum_leaf() -> None:
    x = np.array([[0.0]] * 19 + [[100.0]], dtype=np.float32)
    assert np.bincount(tree.learn_one(x, min_leaf=1)[2], minlength=16).max() == 19
    assert not tree.learn_one(x, min_leaf=2)[2].any()
    _, _, codes = tree.learn_one(data("floats", 200, 3), min_leaf=9)
    counts = np.bincount(codes, minlength=16)
    assert counts[counts > 0].min() >= 9


def test_learning_does_not_depend_on_the_order_of_rows() -> None:
    x = data("floats", 150, 8)
    order = RNG(3).permutation(150)
    trees, codes = tree.learn(x, 2)
    shuffled, permuted = tree.learn(x[order], 2)
    assert np.array_equal(trees.columns, shuffled.columns)
    np.testing.assert_allclose(trees.thresholds, shuffled.thresholds)
    assert np.array_equal(codes[order], permuted)


def test_subspaces_give_the_first_ones_a_column_more() -> None:
    assert np.diff(tree.subspaces(11, 4)).tolist() == [3, 3, 3, 2]
    assert tree.subspaces(8, 8).tolist() == list(range(9))


def test_sorted_rows_equals_a_stable_argsort() -> None:
    x = np.concatenate(
        [data("floats", 300, 1)[:, 0], data("integers", 300, 1)[:, 0], [np.float32(3e38), 1e-45, -1e-45]]
    )
    x = x.astype(np.float32)
    x[x == 0] = 0.0  # -0.0 sorts before 0.0 here and beside it in argsort: equal either way
    assert np.array_equal(tree.sorted_rows(x), np.argsort(x, kind="stable"))


@pytest.mark.parametrize("spread", [1e-3, 1.0, 300.0, 1e5])
def test_int8_thresholds_give_the_codes_of_quantised_data(spread: float) -> None:
    x = (data("floats", 400, 6) * spread).astype(np.float32)
    x[:, 2] = 4.0
    trees, _ = tree.learn(x, 2)
    on_grid, grid = tree.to_int8(trees, x)
    assert np.array_equal(np.log2(grid.scale), np.floor(np.log2(grid.scale)))
    span = x.max(axis=0)[trees.columns] - x.min(axis=0)[trees.columns]
    assert (span * grid.scale <= 254 * (1 + 1e-6)).all()
    bytes_ = np.clip(np.floor((x[:, trees.columns].astype(np.float64) - grid.offset) * grid.scale), 0, 255)
    codes = np.zeros((400, 2), dtype=np.uint8)
    for c in range(2):
        for n in range(400):
            i = 0
            for level in range(4):
                i = 2 * i + int(bytes_[n, c, level] >= grid.quantised[c, 2**level - 1 + i])
            codes[n, c] = i
    # offset + q / scale is rounded to float32: data within an ulp of a threshold may differ.
    assert (codes == tree.encode(x, on_grid)).mean() > 0.995
    assert error_of(x[:, :3], tree.encode(x, on_grid)[:, 0]) < 1.3 * error_of(x[:, :3], tree.encode(x, trees)[:, 0])


def test_nan_goes_left_everywhere() -> None:
    trees, _ = tree.learn(data("floats", 100, 4), 2)
    assert not tree.encode(np.full((2, 4), np.nan, dtype=np.float32), trees).any()


@pytest.mark.parametrize("kind", ["floats", "integers", "far"])
@pytest.mark.parametrize("compare", [">=", ">"])
@pytest.mark.parametrize("shape", [(97, 20, 3), (33, 7, 7), (1, 4, 2), (700, 90, 10)])
@pytest.mark.parametrize("device", DEVICES)
def test_learning_on_a_device_gives_the_same_trees(
    kind: str, compare: str, shape: tuple[int, ...], device: str
) -> None:
    rows, width, codebooks = shape
    x = data(kind, rows, width)
    trees, codes = tree.learn(x, codebooks, min_leaf=2, compare=compare)
    options = {"candidates": tree.CANDIDATES, "min_leaf": 2, "compare": compare}
    found, there = tree_device.learn(torch.from_numpy(x).to(device), codebooks, **options)
    np.testing.assert_array_equal(found.columns, trees.columns)
    np.testing.assert_array_equal(found.thresholds, trees.thresholds)
    np.testing.assert_array_equal(there.cpu().numpy(), codes)


@pytest.mark.parametrize("device", DEVICES)
def test_statistics_on_a_device_are_the_same(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, b = data("floats", 500, 9), RNG(1).standard_normal((9, 4))
    _, codes = tree.learn(x, 3)
    wanted, there = tables.statistics(x, codes), torch.from_numpy(codes).to(device)
    rows = torch.from_numpy(x).to(device)
    monkeypatch.setattr(tree_device, "_ONE_HOT", 48 * 100)
    found = tree_device.statistics(rows, there)
    np.testing.assert_array_equal(found.counts, wanted.counts)
    np.testing.assert_allclose(found.sums, wanted.sums, atol=1e-11)
    np.testing.assert_allclose(tree_device.sums(rows, there, b), wanted.sums @ b, atol=1e-11)
