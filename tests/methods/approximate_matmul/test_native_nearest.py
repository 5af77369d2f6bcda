"""Nearest centroids in C++: every level of this processor against float64, and against the scalar level bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from harness.errors import UserError
from methods.approximate_matmul.encoders import CentroidEncoder
from methods.approximate_matmul.native import binding

REASON = binding.available()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
LEVELS = [] if REASON else binding.LEVELS[: binding.LEVELS.index(binding.highest_level()) + 1]


def problem(n, d, codebooks, seed=0):
    """Rows, centroids padded to the widest subspace (with rubbish that must not be read), and uneven subspaces."""
    rng = np.random.default_rng([seed, n, d, codebooks])
    cuts = np.sort(rng.integers(0, d + 1, codebooks - 1))
    starts = np.concatenate([[0], cuts, [d]]).astype(np.int32)
    centroids = rng.standard_normal((codebooks, 16, int(np.diff(starts).max()))).astype(np.float32)
    for c, size in enumerate(np.diff(starts)):
        centroids[c, :, size:] = np.nan
    return rng.standard_normal((n, d)).astype(np.float32), centroids, starts


def distances(a, centroids, starts):
    """float64 [C, N, 16] squared distances."""
    own = zip(starts[:-1], starts[1:], centroids, strict=True)
    return np.stack([((a[:, None, f:t].astype(float) - c[:, : t - f]) ** 2).sum(2) for f, t, c in own])


@pytest.mark.parametrize("n", [1, 31, 32, 33, 700])
@pytest.mark.parametrize(("d", "codebooks"), [(1, 1), (3, 2), (7, 3), (64, 16), (129, 5), (40, 257)])
def test_codes_are_the_nearest_in_any_layout_at_every_level(n, d, codebooks):
    a, centroids, starts = problem(n, d, codebooks)
    given = binding.centroids(centroids, starts)
    scalar = binding.unpack(binding.nearest(a, given, level="scalar"))
    far = distances(a, centroids, starts)
    chosen = np.take_along_axis(far, scalar.T[:, :, None].astype(int), 2)[..., 0]
    assert (chosen <= far.min(2) + 1e-5 * (1 + far.max(2))).all()
    wide = np.full((2 * n, 3 * d), 9, np.float32)
    wide[::2, ::3] = a
    for level in LEVELS:
        for layout in (a, np.asfortranarray(a), wide[::2, ::3], np.asfortranarray(a[::-1])[::-1]):
            for threads in (1, 3):
                packed = binding.nearest(layout, given, threads=threads, level=level)
                np.testing.assert_array_equal(packed.data, binding.pack(scalar).data)


@pytest.mark.parametrize("level", LEVELS)
def test_the_first_of_equals_wins_and_nan_gives_some_code(level):
    given = binding.centroids(np.ones((2, 16, 1), np.float32), [0, 1, 2])
    a = np.array([[1, 5], [np.nan, np.inf], [-np.inf, 0]], np.float32).repeat(20, 0)
    np.testing.assert_array_equal(binding.unpack(binding.nearest(a, given, level=level)), np.zeros((60, 2)))
    spread = np.arange(16, dtype=np.float32).reshape(1, 16, 1)
    rows = np.array([[0.5], [14.6], [99], [-99]], np.float32).repeat(9, 0)  # 0.5 lies halfway between 0 and 1
    got = binding.unpack(binding.nearest(rows, binding.centroids(spread, [0, 1]), level=level))[::9, 0]
    np.testing.assert_array_equal(got, [0, 15, 15, 0])


def test_the_encoder_of_plain_arrays_agrees():
    a, centroids, starts = problem(500, 30, 4, seed=1)
    encoder = CentroidEncoder(centroids=np.nan_to_num(centroids), starts=starts)
    codes = binding.unpack(binding.nearest(a, binding.centroids(centroids, starts)))
    assert (codes == encoder.encode(a)).mean() > 0.999  # products round otherwise


BAD = [
    (np.zeros((2, 15, 3)), [0, 3, 6], r"\[C, 16, d\]"),
    (np.zeros((0, 16, 3)), [0], r"\[C, 16, d\]"),
    (np.zeros((2, 16, 3)), [0, 6], "3 columns that rise from 0 by at most 3"),
    (np.zeros((2, 16, 3)), [1, 3, 6], "rise from 0"),
    (np.zeros((2, 16, 3)), [0, 4, 6], "rise from 0"),
    (np.zeros((2, 16, 3)), [0, 3, 2], "rise from 0"),
]


@pytest.mark.parametrize(("centroids", "starts", "text"), BAD)
def test_wrong_centroids_are_one_clear_error(centroids, starts, text):
    with pytest.raises(UserError, match=text):
        binding.centroids(centroids.astype(np.float32), starts)


def test_c_checks_sizes_itself():
    a, centroids, starts = problem(40, 6, 2)
    given = binding.centroids(centroids, starts)
    with pytest.raises(UserError, match="subspace"):
        binding.nearest(a[:, :5], given)
    with pytest.raises(UserError, match="buffer"):
        binding.nearest(a, binding.Centroids(given.starts, given.own[:-1].copy()))
    with pytest.raises(UserError, match=r"\[N, D\]"):
        binding.nearest(a[0], given)
