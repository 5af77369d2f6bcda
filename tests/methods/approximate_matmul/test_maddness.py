"""MADDNESS end to end: exact cases, back-ends against each other, odd shapes, published accuracies on digits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.catalogue import registry
from harness.errors import UserError
from methods.approximate_matmul import cost, maddness, reference, save
from methods.approximate_matmul.native import binding

VARIANTS = {
    "maddness": (maddness.make, reference.maddness),
    "maddness-pq": (maddness.make_pq, reference.maddness_pq),
    "maddness-sparse": (maddness.make_sparse, reference.maddness_sparse),
    "maddness-direct": (maddness.make_direct, reference.maddness_direct),
    "maddness-avg": (maddness.make_average, reference.maddness_average),
}
BACKENDS = ["numpy", "torch", pytest.param("native", marks=pytest.mark.skipif(
    binding.available() is not None, reason="no native kernels"))]  # fmt: skip


def problem(n: int, d: int, m: int, train: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(n + d + m)
    mix = torch.randn(max(d // 4, 1), d, generator=g)
    rows = torch.randn(train + n, len(mix), generator=g) @ mix + 0.1 * torch.randn(train + n, d, generator=g)
    return rows[:train], torch.randn(d, m, generator=g), rows[train:]


def nmse(found: Tensor, exact: Tensor) -> float:
    return float(((found - exact) ** 2).mean() / exact.var(correction=0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tables", ["prototype", "direct"])
def test_sixteen_distinct_rows_per_subspace_are_recovered(backend: str, tables: str) -> None:
    g = torch.Generator().manual_seed(0)
    bits = (torch.arange(16)[:, None] >> torch.arange(4)) & 1
    corners = torch.cat([bits * 2.0 ** torch.arange(4), torch.full((16, 1), 7.0)], dim=1)  # greedy halving finds them
    blocks = torch.stack([corners[:, torch.randperm(5, generator=g)] + c for c in range(4)])
    picks = torch.randint(0, 16, (2000, 4), generator=g)
    a = torch.cat([blocks[c, picks[:, c]] for c in range(4)], dim=1)
    b = torch.randn(20, 6, generator=g)
    op = maddness.make(codebooks=4, lut_bits=None, ridge=1e-6, tables=tables, backend="torch").fit(a, b)
    assert len(op.encode(a).unique(dim=0)) == len(a.unique(dim=0))
    torch.testing.assert_close(op(a), a @ b, atol=1e-3, rtol=1e-3)
    rounded = maddness.make(codebooks=4, ridge=1e-6, tables=tables, backend=backend).fit(a, b)
    step = torch.from_numpy(rounded.tables.scale)
    assert bool(((rounded(a) - a @ b).abs() <= 4 * 0.5 * step + 1e-3).all())


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("shape", [(33, 20, 9, 8), (64, 37, 3, 5), (1, 16, 1, 16), (31, 13, 100, 2)])
def test_back_ends_equal_the_numpy_twin(name: str, backend: str, shape: tuple[int, ...]) -> None:
    n, d, m, codebooks = shape
    train, b, a = problem(n, d, m)
    make, twin = VARIANTS[name]
    op, plain = make(codebooks=codebooks, backend=backend).fit(train, b), twin(codebooks=codebooks).fit(train, b)
    assert op.describe()["backend"] == backend
    assert plain.describe()["backend"] == "numpy"
    assert torch.equal(op.encode(a), plain.encode(a))
    torch.testing.assert_close(op.scan(op.codes(a)), op(a))
    torch.testing.assert_close(plain.scan(plain.codes(a)), plain(a))
    expected = plain(a)
    assert op(a).shape == (n, m)
    torch.testing.assert_close(op(a), expected, rtol=1e-5, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts_and_dtypes(backend: str) -> None:
    train, b, a = problem(65, 24, 7)
    op = maddness.make(codebooks=6, backend=backend).fit(train, b)
    expected = op(a)
    wide = torch.zeros(65, 48)
    wide[:, ::2] = a
    before = a.clone()
    assert torch.equal(op(wide[:, ::2]), expected)
    assert torch.equal(op(a.T.contiguous().T), expected)
    assert torch.equal(op(a.flip(0)).flip(0), expected)
    assert torch.equal(op(a[3:4]), expected[3:4])
    assert torch.equal(op(a[:1].expand(5, -1)), expected[:1].expand(5, -1))
    assert torch.equal(a, before)
    rows, weights = train.clone(), b.clone()
    maddness.make(codebooks=1).fit(train, b)
    assert torch.equal(train, rows)
    assert torch.equal(b, weights)
    assert op(a[:0]).shape == (0, 7)
    assert op.encode(a[:0]).shape == (0, 6)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        out = op(a.to(dtype))
        assert out.dtype == dtype
        assert torch.equal(out, op(a.to(dtype).float()).to(dtype))
    half = maddness.make(codebooks=6, backend=backend).fit(train.half(), b.half())
    assert nmse(half(a), a @ b) < nmse(expected, a @ b) + 0.02


def test_permuted_columns_of_b_and_rows_of_a_permute_the_output() -> None:
    train, b, a = problem(40, 24, 7)
    op = maddness.make(codebooks=6, backend="torch").fit(train, b)
    order, columns = torch.randperm(40), torch.randperm(7)
    assert torch.equal(op(a[order]), op(a)[order])
    moved = maddness.make(codebooks=6, backend="torch").fit(train, b[:, columns])
    torch.testing.assert_close(moved(a), op(a)[:, columns])


@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_data_give_the_exact_product(backend: str) -> None:
    train = torch.full((20, 9), 2.5)
    b = problem(1, 9, 4)[1]
    op = maddness.make(codebooks=4, backend=backend).fit(train, b)
    torch.testing.assert_close(op(train[:3]), train[:3] @ b, rtol=1e-4, atol=1e-3)
    mixed, b, a = problem(30, 9, 4)
    mixed, a = mixed.clone(), a.clone()
    mixed[:, 4], a[:, 4] = 3.0, 3.0
    assert nmse(maddness.make(codebooks=9, backend=backend).fit(mixed, b)(a), a @ b) < 0.1


def test_one_training_row_predicts_its_product() -> None:
    train, b, a = problem(3, 8, 2, train=1)
    op = maddness.make(codebooks=4, lut_bits=None, backend="torch").fit(train, b)
    torch.testing.assert_close(op(a), (train @ b).expand(3, 2), rtol=1e-4, atol=1e-4)


def test_more_codebooks_and_float_tables_help() -> None:
    train, b, a = problem(400, 32, 8, train=1500)
    errors = [nmse(maddness.make(codebooks=c).fit(train, b)(a), a @ b) for c in (2, 8, 32)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"thresholds": "int8"},
        {"compare": ">"},
        {"scale": "shared"},
        {"scale": "power-of-two"},
        {"lut_bits": 6},
        {"lut_bits": None},
        {"candidates": 8},
        {"min_leaf": 8},
        {"aggregation": "average", "upcast": 4},
    ],
)
def test_options_cost_little_accuracy(options: dict[str, object]) -> None:
    train, b, a = problem(300, 32, 8, train=1000)
    default = nmse(maddness.make(codebooks=8).fit(train, b)(a), a @ b)
    op = maddness.make(codebooks=8, **options).fit(train, b)
    assert nmse(op(a), a @ b) < 1.25 * default + 0.01
    assert op.hyper.items() >= options.items()


@pytest.mark.parametrize("name", VARIANTS)
def test_saved_operators_come_back(name: str, tmp_path: Path) -> None:
    train, b, a = problem(30, 24, 5)
    op = VARIANTS[name][0](codebooks=8).fit(train, b)
    op.save(tmp_path / "op.npz")
    back = save.load(tmp_path / "op.npz")
    assert torch.equal(back(a), op(a))
    assert back.describe() == op.describe()
    assert back.times == op.times
    with np.load(tmp_path / "op.npz", allow_pickle=False) as files:
        assert {"columns", "thresholds", "values", "scale", "offset", "method", "hyper"} <= set(files.files)


def test_figures_of_the_model() -> None:
    train, b, _ = problem(8, 64, 10)
    op = maddness.make(codebooks=2).fit(train, b)
    touched = op.encoder.columns_touched
    assert op.bytes_read(1000, layout="columns") == 1000 * (4 * len(touched) + 2) + 2 * 16 * 10
    assert op.bytes_read(1000) == 1000 * (64 * len(np.unique(touched // 16)) + 2) + 2 * 16 * 10
    assert op.bytes_read(1000, item_bytes=2) == op.bytes_read(1000) + 1000 * 64 * 2, "halves are cast first"
    assert op.multiplies(1000) == 1000 * 10
    assert maddness.make(codebooks=2, lut_bits=None).fit(train, b).multiplies(1000) == 0
    assert op.times["train_s"] > 0
    assert op.times["table_s"] > 0


def test_descriptors_match_the_factories() -> None:
    for name, (make, twin) in VARIANTS.items():
        method = registry.method(f"approximate_matmul.{name}")
        assert registry.resolve(method.impl) is make
        assert registry.resolve(method.reference) is twin
        assert make().hyper == dict(method.hyper)
        assert registry.resolve(method.cost)((100, 64, 10), 4).bytes == 4 * 100 * 14


# Exact accuracy .980; (accuracy, NMSE) at 2, 4, 8, 16, 32 codebooks measured with the programs of dblalock/bolt on a
# 1297 / 500 split of scikit-learn's digits, seed 0. This permutation has the same exact accuracy.
PUBLISHED = {2: (0.674, 0.332), 4: (0.856, 0.144), 8: (0.920, 0.109), 16: (0.946, 0.047), 32: (0.964, 0.031)}


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    datasets = pytest.importorskip("sklearn.datasets")
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = datasets.load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(x))
    train, test = order[:1297], order[1297:]
    model = linear.LogisticRegression(C=0.01, max_iter=2000).fit(x[train], y[train])
    parts = (x[train], model.coef_.T, x[test], model.intercept_, y[test])
    return tuple(torch.tensor(part).float() for part in parts)  # type: ignore[return-value]


@pytest.mark.parametrize("codebooks", PUBLISHED)
def test_digits_reach_the_published_programs_accuracy(codebooks: int, digits: tuple[Tensor, ...]) -> None:
    train, b, a, intercept, y = digits
    exact = a @ b
    accuracy, error = PUBLISHED[codebooks]
    assert float(((exact + intercept).argmax(1) == y).float().mean()) == pytest.approx(0.98, abs=1e-6)
    op = maddness.make(codebooks=codebooks).fit(train, b)
    found = op(a)
    assert float(((found + intercept).argmax(1) == y).float().mean()) >= accuracy - 0.02
    assert nmse(found, exact) <= error + 0.02


@pytest.mark.parametrize(
    ("codebooks", "upcast", "aggregation", "why"),
    [(5, 16, "exact", "5 codebooks do not split"), (6, 16, "average", None), (6, 1, "exact", "upcast is 1")],
)
def test_sums_that_no_average_enters_are_called_exact(
    codebooks: int, upcast: int, aggregation: str, why: str | None
) -> None:
    train, b, a = problem(30, 24, 5)
    op = maddness.make_average(codebooks=codebooks, upcast=upcast, backend="torch").fit(train, b)
    told = op.describe()
    assert told["aggregation"] == aggregation
    assert (why is None) == ("not_averaged_because" not in told)
    assert why is None or why in told["not_averaged_because"]
    assert ("averages" in told["level"]) == (aggregation == "average")
    exact = maddness.make(codebooks=codebooks, backend="torch").fit(train, b)(a)
    assert torch.allclose(op(a), exact, atol=1e-3) == (aggregation == "exact")


def test_eight_bit_thresholds_say_that_rows_are_compared_in_float32() -> None:
    train, b, _ = problem(30, 24, 5)
    told = maddness.make(codebooks=4, thresholds="int8").fit(train, b).describe()
    assert told["compares"] == "float32"
    assert told["thresholds"] == "float32, rounded to an 8-bit grid when learned"
    assert maddness.make(codebooks=4).fit(train, b).describe()["thresholds"] == "float32"


@pytest.mark.parametrize(
    ("n", "width", "item", "line"), [(7, 27, 4, 64), (50, 13, 2, 32), (3, 512, 4, 64), (9, 16, 4, 64)]
)
def test_lines_of_rows_are_those_of_their_addresses(n: int, width: int, item: int, line: int) -> None:
    columns = np.random.default_rng(width).choice(width, 3, replace=False)
    addresses = {(row * width + int(column)) * item // line for row in range(n) for column in columns}
    assert cost.bytes_of_a(columns, n, width, "rows", item, line) == line * len(addresses)
    assert cost.bytes_of_a(columns, n, width, "columns", item, line) == n * 3 * item
    with pytest.raises(UserError, match="layout must be rows or columns"):
        cost.bytes_of_a(columns, n, width, "diagonal", item, line)  # type: ignore[arg-type]
