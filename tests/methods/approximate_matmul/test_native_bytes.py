"""Trees over rows of bytes: every level against the same rows in float32, and the operators that take bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.catalogue import registry
from harness.errors import UserError
from methods.approximate_matmul.native import binding

REASON = binding.available()
LEVELS = [] if REASON else binding.LEVELS[: binding.LEVELS.index(binding.highest_level()) + 1]
native = pytest.mark.skipif(REASON is not None, reason=str(REASON))
SPECIAL = (np.nan, np.inf, -np.inf, 255.0, 255.1, 256.0, 0.0, -0.5, 0.5, 1e-30, -1e30)


def problem(n, d, codebooks, seed=0):
    """Bytes with many ties; thresholds on, between and beyond them, and such as are no numbers."""
    rng = np.random.default_rng([seed, n, d, codebooks])
    few = rng.choice([0, 1, 7, 127, 128, 254, 255], (n, d)).astype(np.uint8)
    columns = rng.integers(0, d, (codebooks, 4)).astype(np.int32)
    thresholds = rng.choice([0, 1, 6.5, 7, 127.5, 128, 254.25, 255, 300, -3], (codebooks, 15)).astype(np.float32)
    odd = rng.random(thresholds.shape) < 0.1
    thresholds[odd] = rng.choice(SPECIAL, odd.sum())
    return few, columns, thresholds


@native
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("n", [1, 31, 32, 33, 500, 5000])
@pytest.mark.parametrize(("d", "codebooks"), [(1, 1), (27, 4), (75, 5), (300, 64)])
def test_bytes_have_the_codes_of_the_same_rows_in_float32(level, n, d, codebooks):
    a, columns, thresholds = problem(n, d, codebooks)
    want = binding.encode(a.astype(np.float32), columns, thresholds, level="scalar")
    wide = np.full((2 * n, 3 * d), 9, np.uint8)
    wide[::2, ::3] = a
    for layout in (a, np.asfortranarray(a), wide[::2, ::3], np.asfortranarray(a[::-1])[::-1], torch.from_numpy(a)):
        for threads in (1, 3):
            got = binding.encode(layout, columns, thresholds, threads=threads, level=level)
            np.testing.assert_array_equal(got.data, want.data)


@native
def test_wrong_bytes_are_one_clear_error():
    a, columns, thresholds = problem(40, 9, 3)
    with pytest.raises(UserError, match="column"):
        binding.encode(a, columns + 9, thresholds)
    with pytest.raises(UserError, match=r"\[N, D\]"):
        binding.encode(a[0], columns, thresholds)
    with pytest.raises(Exception, match="float32 or uint8, got int8"):
        binding.encode(a.astype(np.int8), columns, thresholds)
    with pytest.raises(Exception, match="dense float32, got uint8"):
        binding.nearest(a, binding.centroids(np.zeros((1, 16, 9), np.float32), [0, 9]))


PICTURES = torch.randint(0, 256, (300, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
B = torch.randn(24, 3, generator=torch.Generator().manual_seed(1))
CPU = [
    method.name
    for method in registry.methods("approximate_matmul").values()
    if "cpu" in method.devices and "uint8" in method.dtypes and "compile" not in method.tags
]


@pytest.mark.parametrize("name", CPU)
def test_an_operator_takes_bytes_as_the_same_rows_in_float32(name):
    known = {"codebooks": 4, "rank": 2}
    method = registry.method(name)
    op = registry.load(name)(**{k: v for k, v in known.items() if k in method.hyper}).fit(PICTURES.float(), B)
    test = PICTURES[:77]
    kept = test.clone()
    for rows in (test, test.t().contiguous().t(), PICTURES[:, :24][::3]):
        got = op(rows)
        assert got.dtype is torch.float32
        torch.testing.assert_close(got, op(rows.float()), rtol=1e-6, atol=1e-3)
    assert torch.equal(test, kept)
    empty = op(test[:0])
    assert (empty.dtype, empty.shape) == (torch.float32, (0, 3))


def test_bytes_are_no_training_data():
    assert len(CPU) > 20
    for name in ("maddness", "exact"):
        with pytest.raises(UserError, match=r"a_train must be one of float32.*got torch.uint8; cast it"):
            registry.load(f"approximate_matmul.{name}")().fit(PICTURES, B)


@native
def test_bytes_read_count_one_byte_an_entry():
    op = registry.load("approximate_matmul.maddness")(codebooks=4).fit(PICTURES.float(), B)
    columns = op.encoder.columns_read
    rest = op.bytes_read(1000, "columns", 4) - 1000 * columns * 4
    assert op.bytes_read(1000, "columns", 1) == 1000 * columns + rest
    plain = registry.load("approximate_matmul.maddness")(codebooks=4, backend="torch").fit(PICTURES.float(), B)
    assert plain.bytes_read(1000, "columns", 1) == 1000 * (24 + 4 * columns) + rest
