"""Statistics whose unit is the block: exact signed-rank intervals of paired log ratios, noise floor, censoring.

Sources: Wilcoxon (1945) for the test, Hodges and Lehmann (1963) for the estimate, Walsh averages for its exact
interval (Hollander, Wolfe and Chicken, *Nonparametric Statistical Methods*, section 3.3), Wilson (1927) for rates,
Moses' two-sample interval (same book, section 4.3) where blocks cannot be paired.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median
from typing import TypeVar

import numpy as np

LEVEL = 0.95
#: Below six blocks the widest signed-rank interval (the range) has a level under 95 %: 1 - 2/2^5 = 93.75 %.
MIN_BLOCKS = 6
#: Least noise floor: half a per cent, below which no claim of ours is made.
MIN_FLOOR = 0.005
#: Largest n whose null distribution is enumerated; beyond it the normal limit is closer than 1e-4.
EXACT_N = 60

K = TypeVar("K", bound=Hashable)


class NoSharedBlock(ValueError):
    """Two arms, or the problems of a grid, have no block in common."""


@dataclass(frozen=True, kw_only=True)
class RatioEstimate:
    """Baseline ÷ candidate over ``n`` blocks with its interval.

    Attributes:
        ratio: Hodges-Lehmann estimate, exp of the median Walsh average; NaN when censoring leaves it open.
        low: lower end of the interval (0 when unbounded).
        high: upper end of the interval (inf when unbounded).
        level: attained two-sided confidence level of the interval.
        wanted: level that was asked for.
        n: number of blocks.
        logs: the log ratio of each block (lower ends when censored).
        upper_logs: upper ends of the log ratios when censored, else empty.
    """

    ratio: float
    low: float
    high: float
    level: float
    n: int
    wanted: float = LEVEL
    logs: tuple[float, ...] = ()
    upper_logs: tuple[float, ...] = ()

    @property
    def enough(self) -> bool:
        """Whether the attained level reaches the wanted one."""
        return self.level >= self.wanted

    @property
    def half_width(self) -> float:
        """Half the interval's width on the log scale."""
        low = math.log(self.low) if self.low > 0 else -math.inf
        return (math.log(self.high) - low) / 2 if self.high > 0 else math.inf

    def inverse(self) -> RatioEstimate:
        """Candidate ÷ baseline, from the same blocks."""
        return RatioEstimate(
            ratio=1 / self.ratio if self.ratio else math.inf,
            low=1 / self.high if self.high > 0 else math.inf,
            high=1 / self.low if self.low > 0 else math.inf,
            level=self.level,
            n=self.n,
            wanted=self.wanted,
            logs=tuple(-x for x in (self.upper_logs or self.logs)),
            upper_logs=tuple(-x for x in self.logs) if self.upper_logs else (),
        )


@functools.cache
def signed_rank_counts(n: int) -> tuple[int, ...]:
    """How many of the 2^n sign patterns give each sum of positive ranks W = 0 … n(n+1)/2.

    The generating function is the product of (1 + q^i) for i = 1 … n.
    """
    if not 0 <= n <= EXACT_N:
        raise ValueError(f"the exact signed-rank distribution is built for 0 <= n <= {EXACT_N}, got {n}")
    counts = [1]
    for rank in range(1, n + 1):
        grown = counts + [0] * rank
        for total, ways in enumerate(counts):
            grown[total + rank] += ways
        counts = grown
    return tuple(counts)


def signed_rank_cdf(n: int, w: int) -> float:
    """P(W <= w) under symmetry about zero; exact to n = 60, then the normal limit with continuity correction."""
    if w < 0:
        return 0.0
    if n <= EXACT_N:
        return float(sum(signed_rank_counts(n)[: w + 1]) / 2**n)
    mean, deviation = n * (n + 1) / 4, math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    return NormalDist().cdf((w + 0.5 - mean) / deviation)


@functools.cache
def rank_sum_counts(n: int, m: int) -> tuple[int, ...]:
    """How many of the C(n+m, n) orderings give each Mann-Whitney U = 0 … n·m (Gaussian binomial coefficients)."""
    size = n * m + 1
    counts = [1] + [0] * (size - 1)
    for i in range(1, n + 1):
        for u in range(size - 1, m + i - 1, -1):
            counts[u] -= counts[u - m - i]
        for u in range(i, size):
            counts[u] += counts[u - i]
    return tuple(counts)


@functools.cache
def _walsh_index(n: int, level: float) -> tuple[int, float]:
    """The 1-based order statistic k of the Walsh averages that bounds the interval, with the attained level."""
    pairs = n * (n + 1) // 2
    k = 1
    while k < (pairs + 1) // 2 and 2 * signed_rank_cdf(n, k) <= 1 - level + 1e-12:
        k += 1
    return k, max(0.0, 1 - 2 * signed_rank_cdf(n, k - 1))


def walsh_averages(values: Sequence[float]) -> list[float]:
    """All n(n+1)/2 means of two values (each also with itself), sorted."""
    data = np.asarray(values, dtype=float)
    rows, columns = np.triu_indices(len(data))
    return [float(x) for x in np.sort((data[rows] + data[columns]) / 2)]


def signed_rank_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float, float, float]:
    """Hodges-Lehmann estimate of a location with its exact interval.

    With fewer values than ``level`` needs, the interval is the range and the attained level says so.

    Returns:
        Estimate, lower end, upper end, attained level.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    averages = walsh_averages(values)
    k, attained = _walsh_index(len(values), level)
    return median(averages), averages[k - 1], averages[-k], attained


def estimate(logs: Sequence[float], level: float = LEVEL) -> RatioEstimate:
    """A ratio and its interval from per-block log ratios."""
    centre, low, high, attained = signed_rank_interval(logs, level)
    return RatioEstimate(
        ratio=math.exp(centre),
        low=math.exp(low),
        high=math.exp(high),
        level=attained,
        wanted=level,
        n=len(logs),
        logs=tuple(logs),
    )


def log_ratios(baseline: Mapping[K, float], candidate: Mapping[K, float]) -> dict[K, float]:
    """ln(baseline) - ln(candidate) for each block that both have.

    Raises:
        NoSharedBlock: no block is shared.
        ValueError: a value is not positive and finite.
    """
    shared = [block for block in baseline if block in candidate]
    if not shared:
        raise NoSharedBlock("baseline and candidate share no block")
    for arm in (baseline, candidate):
        for block in shared:
            if not (math.isfinite(arm[block]) and arm[block] > 0):
                raise ValueError(f"a ratio needs positive finite values; block {block!r} holds {arm[block]!r}")
    return {block: math.log(baseline[block]) - math.log(candidate[block]) for block in shared}


def paired_ratio(baseline: Mapping[K, float], candidate: Mapping[K, float], level: float = LEVEL) -> RatioEstimate:
    """Baseline ÷ candidate, paired by block."""
    return estimate(list(log_ratios(baseline, candidate).values()), level)


def grid_ratio(cells: Sequence[tuple[Mapping[K, float], Mapping[K, float]]], level: float = LEVEL) -> RatioEstimate:
    """Geometric mean of baseline ÷ candidate over a grid of problems.

    Each block contributes the mean of its log ratios over all problems; only blocks that hold every problem count,
    so that no block's mean is taken over a different grid.
    """
    per_problem = [log_ratios(baseline, candidate) for baseline, candidate in cells]
    if not per_problem:
        raise ValueError("a geometric mean needs at least one problem")
    shared = [block for block in per_problem[0] if all(block in logs for logs in per_problem)]
    if not shared:
        raise NoSharedBlock("no block holds every problem of the grid")
    return estimate([math.fsum(logs[block] for logs in per_problem) / len(per_problem) for block in shared], level)


def unpaired_ratio(baseline: Sequence[float], candidate: Sequence[float], level: float = LEVEL) -> RatioEstimate:
    """Baseline ÷ candidate from blocks that cannot be paired: Hodges-Lehmann shift with its exact rank-sum interval."""
    n, m = len(baseline), len(candidate)
    if not n or not m or n > EXACT_N or m > EXACT_N:
        raise ValueError(f"a rank-sum interval needs 1 to {EXACT_N} blocks on each side, got {n} and {m}")
    shifts = sorted(math.log(b) - math.log(c) for b in baseline for c in candidate)
    counts, total = rank_sum_counts(n, m), math.comb(n + m, n)
    k, below = 1, counts[0]
    while k < (n * m + 1) // 2 and 2 * (below + counts[k]) / total <= 1 - level + 1e-12:
        below += counts[k]
        k += 1
    return RatioEstimate(
        ratio=math.exp(median(shifts)),
        low=math.exp(shifts[k - 1]),
        high=math.exp(shifts[-k]),
        level=max(0.0, 1 - 2 * below / total),
        wanted=level,
        n=min(n, m),
        logs=tuple(shifts),
    )


def floor_of(aa: RatioEstimate) -> float:
    """Noise floor f = max(.005, exp(max(|lo|, |hi|)) - 1) of an A/A estimate's log interval."""
    if aa.low <= 0 or not math.isfinite(aa.high):
        return math.inf
    return max(MIN_FLOOR, math.expm1(max(abs(math.log(aa.low)), abs(math.log(aa.high)))))


def noise_floor(baseline: Mapping[K, float], aa: Mapping[K, float]) -> float:
    """Noise floor of one problem from the baseline and its second alias."""
    return floor_of(paired_ratio(baseline, aa))


@dataclass(frozen=True, kw_only=True)
class Hit:
    """Time (or epochs) to a target: ``value`` is None when the budget ran out first."""

    value: float | None
    budget: float


def censored_bounds(baseline: Hit, candidate: Hit) -> tuple[float, float]:
    """Interval of ln(baseline ÷ candidate) for one seed.

    Baseline missed: [ln B - ln t, inf). Candidate missed: (-inf, ln t - ln B]. Both: the whole line, as after a
    miss whose budget is 0 (unknown).
    """
    if baseline.value is not None and candidate.value is not None:
        exact = math.log(baseline.value) - math.log(candidate.value)
        return exact, exact
    if candidate.value is not None:
        return _log(baseline.budget) - math.log(candidate.value), math.inf
    if baseline.value is not None:
        return -math.inf, math.log(baseline.value) - _log(candidate.budget)
    return -math.inf, math.inf


def _log(budget: float) -> float:
    return math.log(budget) if budget > 0 else -math.inf


def censored_ratio(baseline: Mapping[K, Hit], candidate: Mapping[K, Hit], level: float = LEVEL) -> RatioEstimate:
    """Baseline ÷ candidate of times to target, where a missing time enters as an interval.

    The lower end comes from the lower ends of all seeds, the upper end from the upper ends; the estimate is NaN when
    the two centres differ.
    """
    shared = [seed for seed in baseline if seed in candidate]
    if not shared:
        raise NoSharedBlock("baseline and candidate share no seed")
    bounds = [censored_bounds(baseline[seed], candidate[seed]) for seed in shared]
    lows, highs = [b[0] for b in bounds], [b[1] for b in bounds]
    centre, low, _, attained = signed_rank_interval(lows, level)
    other, _, high, _ = signed_rank_interval(highs, level)
    return RatioEstimate(
        ratio=math.exp(centre) if centre == other else math.nan,
        low=math.exp(low),
        high=math.exp(high),
        level=attained,
        wanted=level,
        n=len(shared),
        logs=tuple(lows),
        upper_logs=tuple(highs) if lows != highs else (),
    )


def wilson(hits: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a rate hits ÷ n."""
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"a rate needs 0 <= hits <= n and n >= 1, got {hits} of {n}")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    rate, denominator = hits / n, 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / denominator
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / denominator
    return max(0.0, centre - half), min(1.0, centre + half)


def equivalent(ratio: RatioEstimate, margin: float) -> bool:
    """Whether the whole interval lies inside [1/margin, margin]."""
    return ratio.low >= 1 / margin and ratio.high <= margin


def local_slopes(sizes: Sequence[float], values: Sequence[float]) -> list[float]:
    """Slope of ln(value) against ln(size) between each two neighbouring sizes (sorted by size)."""
    points = sorted(zip(sizes, values, strict=True))
    return [
        (math.log(right[1]) - math.log(left[1])) / (math.log(right[0]) - math.log(left[0]))
        for left, right in itertools.pairwise(points)
    ]


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of ln(value) against ln(size): the exponent of growth."""
    x, y = np.log(np.asarray(sizes, dtype=float)), np.log(np.asarray(values, dtype=float))
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def above_knee(sizes: Sequence[float], values: Sequence[float]) -> list[float]:
    """Sizes above the launch knee: those whose value is at least twice that of the smallest size.

    Below it a call costs its launches, whatever the size, and a slope there says nothing about the algorithm.
    """
    points = sorted(zip(sizes, values, strict=True))
    return [size for size, value in points if value >= 2 * points[0][1]]


def blocks_to_reach(level: float) -> int:
    """Fewest blocks whose range has at least this level: 1 - 2/2^n >= level."""
    return max(1, math.ceil(math.log2(2 / (1 - level)) - 1e-9))


def blocks_needed(ratio: RatioEstimate, bounds: Sequence[float]) -> int | None:
    """Blocks that would probably decide: n·(half-width ÷ log distance from the estimate to the nearest bound)².

    None when the estimate is open, unbounded or sits on a bound.
    """
    if not math.isfinite(ratio.ratio) or not math.isfinite(ratio.half_width):
        return None
    distance = min(abs(math.log(ratio.ratio) - math.log(bound)) for bound in bounds)
    if distance == 0:
        return None
    return max(ratio.n + 1, math.ceil(ratio.n * (ratio.half_width / distance) ** 2))
