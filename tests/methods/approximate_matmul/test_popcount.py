"""Random hyperplanes: distances against unpacked bits at every level, angles against theory, back-ends alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from harness.errors import UserError
from methods.approximate_matmul.linear import popcount, reference_factors
from methods.approximate_matmul.linear.base import load
from methods.approximate_matmul.native import binding
from methods.approximate_matmul.native import distances as native_distances

REASON = binding.available()
native = pytest.mark.skipif(REASON is not None, reason=str(REASON))
LEVELS = [] if REASON else binding.LEVELS[: binding.LEVELS.index(binding.highest_level()) + 1]
GEN = torch.Generator().manual_seed(0)
A, B = torch.randn(300, 20, generator=GEN) + 0.3, torch.randn(20, 7, generator=GEN)


@native
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("n", "m", "width"), [(1, 1, 8), (3, 8, 8), (257, 9, 16), (600, 100, 64), (5, 33, 200)])
def test_distances_are_those_of_unpacked_bits(level, n, m, width):
    rng = np.random.default_rng([n, m, width])
    codes, outputs = (rng.integers(0, 256, (k, width)).astype(np.uint8) for k in (n, m))
    outputs[0], codes[0] = 255, 0  # the largest distance
    want = (np.unpackbits(codes, axis=1)[:, None] != np.unpackbits(outputs, axis=1)).sum(2)
    given = native_distances.signatures(outputs)
    table = rng.standard_normal(8 * width + 1).astype(np.float32)
    rows, scale = rng.standard_normal(n).astype(np.float32), rng.standard_normal(m).astype(np.float32)
    for threads in (1, 3):
        np.testing.assert_array_equal(native_distances.distances(codes, given, threads=threads, level=level), want)
        got = native_distances.distances(codes, given, table, rows, scale, threads=threads, level=level)
        np.testing.assert_array_equal(got, rows[:, None] * scale * table[want])


@native
def test_wrong_bits_are_one_clear_error():
    good = native_distances.signatures(np.zeros((3, 8), np.uint8))
    for bad in (np.zeros((3, 7), np.uint8), np.zeros((0, 8), np.uint8), np.zeros(8, np.uint8)):
        with pytest.raises(UserError, match="whole words of eight bytes"):
            native_distances.signatures(bad)
    with pytest.raises(UserError, match=r"\[N, 8\] bytes"):
        native_distances.distances(np.zeros((3, 16), np.uint8), good)
    with pytest.raises(UserError, match="row_scale must have 2 numbers, got 3"):
        native_distances.distances(np.zeros((2, 8), np.uint8), good, np.zeros(65), np.zeros(3), np.zeros(3))
    wide = native_distances.signatures(np.zeros((3, 16), np.uint8))
    with pytest.raises(UserError, match="table must have 129 numbers, got 65"):
        native_distances.distances(np.zeros((2, 16), np.uint8), wide, np.zeros(65), np.zeros(2), np.zeros(3))
    with pytest.raises(UserError, match="table must have 65 numbers, got 66"):
        native_distances.distances(np.zeros((2, 8), np.uint8), good, np.zeros(66), np.zeros(2), np.zeros(3))


@pytest.mark.parametrize("codebooks", [1, 3, 16, 40])
@pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=native)])
def test_every_back_end_is_the_plain_twin(codebooks, backend, tmp_path):
    op = popcount.make(codebooks=codebooks, backend=backend, seed=3).fit(A, B)
    twin = reference_factors.popcount(codebooks=codebooks, seed=3).fit(A, B)
    torch.testing.assert_close(op(A[:77]), twin(A[:77]), rtol=1e-4, atol=1e-4)
    codes = op.codes(A[:77])
    assert codes.bits.shape == (77, 8 * -(-codebooks // 16))
    distances = np.asarray(op.totals(codes))
    assert distances.min() >= 0
    assert distances.max() <= 4 * codebooks
    torch.testing.assert_close(op.scan(codes), op(A[:77]))
    watched = A[:77].clone().requires_grad_()
    assert not op.scan(op.codes(watched)).requires_grad
    assert op(A[:0]).shape == (0, 7)
    op.save(tmp_path / "op.npz")
    assert torch.equal(load(tmp_path / "op.npz")(A), op(A))
    assert op.describe()["backend"] == backend


def test_angles_are_estimated_without_bias_and_their_error_falls_with_the_bits():
    """H / n has the mean angle / pi and the variance of n coins; |a| |b| cos of it errs by its slope times that."""
    errors = {}
    for codebooks in (16, 256):
        bits, found = 4 * codebooks, []
        for seed in range(40):
            op = popcount.make(codebooks=codebooks, seed=seed).fit(A, B)
            found.append(np.asarray(op.totals(op.codes(A[:20]))) / bits)
        cosine = torch.nn.functional.normalize(A[:20], dim=1) @ torch.nn.functional.normalize(B, dim=0)
        share = torch.arccos(cosine.double()).numpy() / math.pi
        mean, spread = np.mean(found, axis=0), np.sqrt(share * (1 - share) / bits / len(found))
        assert (np.abs(mean - share) < 4.5 * spread).all()
        errors[codebooks] = np.mean((np.array(found) - share) ** 2)
    assert errors[16] / errors[256] == pytest.approx(16, rel=0.25)


def test_bad_options_are_one_clear_error():
    for options in ({"codebooks": 0}, {"codebooks": 1.5}, {"backend": "cuda"}, {"seed": -1}):
        with pytest.raises(UserError, match="popcount"):
            popcount.make(**options)
