"""Exact distributions against enumeration and scipy; intervals against their inversion; coverage by simulation."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats as scipy_stats

from harness.judge import stats
from harness.judge.stats import Hit


@pytest.mark.parametrize("n", range(1, 11))
def test_signed_rank_counts_equal_brute_force(n: int) -> None:
    sums = Counter(sum(chosen) for k in range(n + 1) for chosen in itertools.combinations(range(1, n + 1), k))
    assert stats.signed_rank_counts(n) == tuple(sums[w] for w in range(n * (n + 1) // 2 + 1))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (4, 4), (5, 2), (6, 5)])
def test_rank_sum_counts_equal_brute_force(n: int, m: int) -> None:
    found = Counter(sum(ranks) - n * (n - 1) // 2 for ranks in itertools.combinations(range(n + m), n))
    assert stats.rank_sum_counts(n, m) == tuple(found[u] for u in range(n * m + 1))


def test_large_counts_are_exact_integers() -> None:
    assert sum(stats.signed_rank_counts(60)) == 2**60
    assert sum(stats.rank_sum_counts(60, 60)) == math.comb(120, 60)


@pytest.mark.parametrize("n", [6, 9, 15, 30])
def test_cdf_agrees_with_scipys_exact_test(n: int) -> None:
    values = np.random.default_rng(n).normal(0.3, 1, n)
    order = np.argsort(np.abs(values))
    negative = sum(rank for rank, i in enumerate(order, 1) if values[i] < 0)
    low = min(negative, n * (n + 1) // 2 - negative)
    expected = scipy_stats.wilcoxon(values, method="exact").pvalue
    assert min(1.0, 2 * stats.signed_rank_cdf(n, low)) == pytest.approx(expected, rel=1e-12)


def test_normal_limit_joins_the_exact_cdf() -> None:
    n = 60
    mean, deviation = n * (n + 1) / 4, math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    w = int(mean - 1.96 * deviation)
    limit = scipy_stats.norm.cdf((w + 0.5 - mean) / deviation)
    assert stats.signed_rank_cdf(60, w) == pytest.approx(limit, abs=1e-3)
    assert stats.signed_rank_cdf(61, 61 * 62 // 4) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("n", "level"), [(1, 0.0), (3, 0.75), (5, 0.9375), (6, 0.96875), (10, 1 - 2 * 25 / 1024)])
def test_attained_levels(n: int, level: float) -> None:
    values = list(np.random.default_rng(n).normal(size=n))
    _, low, high, attained = stats.signed_rank_interval(values)
    assert attained == pytest.approx(level)
    if n <= 6:
        assert (low, high) == (min(values), max(values))
    else:
        assert min(values) < low < high < max(values)


@pytest.mark.parametrize("n", [8, 12, 25])
def test_interval_is_the_inverted_test(n: int) -> None:
    values = np.random.default_rng(n).normal(0.2, 1, n)
    _, low, high, attained = stats.signed_rank_interval(list(values))
    for end, outward in ((low, -1e-9), (high, 1e-9)):
        outside = scipy_stats.wilcoxon(values - (end + outward), method="exact").pvalue
        inside = scipy_stats.wilcoxon(values - (end - outward), method="exact").pvalue
        assert outside <= 1 - attained + 1e-12 < inside


@pytest.mark.parametrize("n", [6, 10])
def test_coverage_reaches_the_attained_level(n: int) -> None:
    rng = np.random.default_rng(2026)
    rows, columns = np.triu_indices(n)
    _, _, _, attained = stats.signed_rank_interval([0.0] * n)
    k, _ = stats._walsh_index(n, stats.LEVEL)
    draws = rng.standard_t(3, size=(4000, n)) + 0.7
    averages = np.sort((draws[:, rows] + draws[:, columns]) / 2, axis=1)
    covered = (averages[:, k - 1] <= 0.7) & (averages[:, -k] >= 0.7)
    assert covered.mean() >= attained - 0.015
    one = stats.signed_rank_interval(list(draws[0]))
    assert one[1:3] == (pytest.approx(averages[0, k - 1]), pytest.approx(averages[0, -k]))


def test_a_stricter_level_widens_the_interval_and_says_when_it_cannot_be_reached() -> None:
    logs = list(np.random.default_rng(1).normal(0.1, 0.02, 10))
    usual, strict = stats.estimate(logs), stats.estimate(logs, 1 - 0.05 / 4)
    assert strict.low < usual.low < usual.high < strict.high
    assert strict.enough
    assert not stats.estimate(logs[:6], 1 - 0.05 / 4).enough


def test_hodges_lehmann_is_the_median_walsh_average() -> None:
    assert stats.signed_rank_interval([1.0, 2.0, 10.0])[0] == pytest.approx(3.75)


def test_paired_ratio_is_baseline_over_candidate_on_shared_blocks() -> None:
    baseline = {b: 2.0 * (1 + b) for b in range(8)}
    candidate = {b: 1.0 * (1 + b) for b in range(1, 9)}
    found = stats.paired_ratio(baseline, candidate)
    assert (found.n, found.ratio, found.low, found.high) == (7, *[pytest.approx(2.0)] * 3)
    assert found.inverse().ratio == pytest.approx(0.5)


def test_inverse_swaps_the_ends() -> None:
    found = stats.estimate([0.1, 0.2, 0.35])
    back = found.inverse()
    assert (back.low, back.high) == (pytest.approx(1 / found.high), pytest.approx(1 / found.low))
    assert back.inverse().logs == pytest.approx(found.logs)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_ratio_refuses_what_is_no_time(bad: float) -> None:
    with pytest.raises(ValueError, match="positive finite"):
        stats.paired_ratio({0: 1.0}, {0: bad})


def test_no_shared_block_is_named() -> None:
    with pytest.raises(stats.NoSharedBlock, match="share no block"):
        stats.paired_ratio({0: 1.0}, {1: 1.0})


def test_grid_takes_the_geometric_mean_within_each_block() -> None:
    cells = [
        (dict.fromkeys(range(6), 2.0), dict.fromkeys(range(6), 1.0)),
        (dict.fromkeys(range(7), 8.0), dict.fromkeys(range(7), 1.0)),
    ]
    found = stats.grid_ratio(cells)
    assert (found.n, found.ratio) == (6, pytest.approx(4.0))
    with pytest.raises(stats.NoSharedBlock, match="every problem"):
        stats.grid_ratio([({0: 1.0}, {0: 1.0}), ({1: 1.0}, {1: 1.0})])


def test_noise_floor_has_a_least_value_and_reads_the_wider_side() -> None:
    same = dict.fromkeys(range(10), 1.0)
    assert stats.noise_floor(same, same) == 0.005
    slower = dict.fromkeys(range(10), 1.03)
    assert stats.noise_floor(same, slower) == pytest.approx(0.03)
    assert stats.noise_floor(slower, same) == pytest.approx(0.03)


def test_unpaired_interval_is_the_inverted_rank_sum_test() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.lognormal(0.2, 0.1, 9), rng.lognormal(0, 0.1, 8)
    found = stats.unpaired_ratio(list(a), list(b))
    for end, outward in ((found.low, 1 - 1e-9), (found.high, 1 + 1e-9)):
        outside = scipy_stats.mannwhitneyu(a / (end * outward), b, method="exact").pvalue
        inside = scipy_stats.mannwhitneyu(a / (end / outward), b, method="exact").pvalue
        assert outside <= 1 - found.level + 1e-12 < inside
    assert found.level >= 0.95
    assert stats.unpaired_ratio([1.0, 1.1], [1.0, 1.2]).level < 0.95


def test_censored_bounds_in_all_four_cases() -> None:
    hit, late = Hit(value=10.0, budget=100.0), Hit(value=None, budget=100.0)
    assert stats.censored_bounds(hit, Hit(value=5.0, budget=100.0)) == (pytest.approx(math.log(2)),) * 2
    assert stats.censored_bounds(late, hit) == (pytest.approx(math.log(10)), math.inf)
    assert stats.censored_bounds(hit, late) == (-math.inf, pytest.approx(-math.log(10)))
    assert stats.censored_bounds(late, late) == (-math.inf, math.inf)


def test_censored_ratio_without_misses_equals_the_paired_one() -> None:
    rng = np.random.default_rng(5)
    a, b = ({s: float(v) for s, v in enumerate(rng.lognormal(m, 0.2, 10))} for m in (1.0, 0.5))
    exact = stats.paired_ratio(a, b)
    censored = stats.censored_ratio(*({s: Hit(value=v, budget=99.0) for s, v in x.items()} for x in (a, b)))
    assert (censored.ratio, censored.low, censored.high) == pytest.approx((exact.ratio, exact.low, exact.high))
    assert censored.upper_logs == ()


def test_a_baseline_that_misses_leaves_the_upper_end_open_only() -> None:
    baseline = {s: Hit(value=50.0, budget=100.0) if s < 4 else Hit(value=None, budget=100.0) for s in range(10)}
    candidate = {s: Hit(value=10.0, budget=100.0) for s in range(10)}
    found = stats.censored_ratio(baseline, candidate)
    assert found.low == pytest.approx(5.0)
    assert math.isinf(found.high)
    assert math.isnan(found.ratio)
    assert stats.censored_ratio(candidate, baseline).low == 0.0


def test_a_few_misses_of_the_candidate_keep_an_upper_end() -> None:
    baseline = {s: Hit(value=20.0, budget=100.0) for s in range(10)}
    candidate = {s: Hit(value=None if s == 0 else 10.0, budget=100.0) for s in range(10)}
    found = stats.censored_ratio(baseline, candidate)
    assert found.low == 0.0
    assert found.high == pytest.approx(2.0)


@pytest.mark.parametrize(("hits", "n"), [(0, 6), (3, 6), (10, 10), (41, 97)])
def test_wilson_agrees_with_scipy(hits: int, n: int) -> None:
    expected = scipy_stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert stats.wilson(hits, n) == (pytest.approx(expected.low, abs=1e-12), pytest.approx(expected.high, abs=1e-12))


def test_wilson_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError, match="rate"):
        stats.wilson(3, 2)


def test_equivalence_needs_the_whole_interval() -> None:
    assert stats.equivalent(stats.estimate([0.01] * 6), 1.05)
    assert not stats.equivalent(stats.estimate([0.0, 0.06, 0.0, 0.0, 0.0, 0.0]), 1.05)


def test_slopes_recover_a_power_law_above_the_launch_knee() -> None:
    sizes = [64.0, 128.0, 256.0, 512.0, 1024.0]
    times = [max(1e-5, 1e-12 * n**3) for n in sizes]
    kept = stats.above_knee(sizes, times)
    assert kept == [512.0, 1024.0]
    assert stats.slope(kept, [1e-12 * n**3 for n in kept]) == pytest.approx(3.0)
    assert stats.local_slopes([1.0, 2.0, 4.0], [1.0, 4.0, 32.0]) == pytest.approx([2.0, 3.0])


def test_blocks_needed_shrinks_with_the_distance_to_the_nearest_bound() -> None:
    logs = [math.log(1.3) + x for x in (-0.2, -0.1, -0.05, 0.05, 0.1, 0.2)]
    found = stats.estimate(logs)
    near, far = stats.blocks_needed(found, [1.25]), stats.blocks_needed(found, [1.6])
    assert near is not None
    assert far is not None
    assert near == math.ceil(6 * (found.half_width / (math.log(found.ratio) - math.log(1.25))) ** 2)
    assert near > far
    assert stats.blocks_needed(stats.estimate([0.0] * 6), [1.0]) is None


def test_blocks_to_reach_a_level() -> None:
    assert [stats.blocks_to_reach(level) for level in (0.95, 0.96875, 0.99)] == [6, 6, 8]
