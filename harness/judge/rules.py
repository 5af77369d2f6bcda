"""The rules that turn an interval into a verdict word: pure functions of numbers, in the order of the protocol.

Ratios are oriented so that larger is better; r is the claim, tau its tolerance, T = r^(1 - tau), f the noise floor,
[lo, hi] the interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.judge import stats
from harness.judge.stats import RatioEstimate

Word = Literal["reproduced", "partly", "not reproduced", "inconclusive", "not testable here", "invalid"]
WORDS: tuple[Word, ...] = ("reproduced", "partly", "not reproduced", "inconclusive", "not testable here", "invalid")

#: A candidate whose error exceeds the baseline's by more than this factor reaches at most "partly".
ERROR_MARGIN = 1.10
#: Three to five seeds screen: they tell which arms deserve more seeds.
SCREEN_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A verdict word with a few words that say which branch of the rule was taken."""

    word: Word
    why: str = ""


def too_few(estimate: RatioEstimate, unit: str = "blocks") -> Outcome | None:
    """Inconclusive when the blocks (or ``unit``) cannot reach the wanted level."""
    if estimate.enough:
        return None
    needed = stats.blocks_to_reach(estimate.wanted)
    return Outcome(
        word="inconclusive",
        why=f"too few {unit}: {estimate.n} give a level of {estimate.level:.1%}, {needed} are needed for "
        f"{estimate.wanted:.1%}",
    )


def screen(estimate: RatioEstimate) -> Outcome | None:
    """Training with under six seeds: three to five screen, fewer only show that it runs; neither is a verdict."""
    few = too_few(estimate, "seeds")
    if few is None or estimate.n < SCREEN_SEEDS:
        return few
    return Outcome(word="inconclusive", why=f"{few.why}: a screen, not a verdict")


def ratio_rule(
    estimate: RatioEstimate, claimed: float, tolerance: float, floor: float, gain: str = "faster"
) -> Outcome:
    """The rule for a claimed ratio over 1; ``gain`` says what a ratio over 1 is: "faster" or "better"."""
    target, low, high = claimed ** (1 - tolerance), estimate.low, estimate.high
    if floor >= math.sqrt(claimed) - 1:
        return Outcome(word="inconclusive", why=f"noise hides the claim (floor {floor:.1%})")
    few = too_few(estimate)
    if few is not None:
        return few
    if low > 1 + floor and low >= target:
        return Outcome(word="reproduced")
    if low > 1 + floor and high < target:
        return Outcome(word="partly", why=f"{gain}, but by less than claimed")
    if high < 1 + floor:
        return _not_better(high, floor)
    if low > 1 + floor:
        return _open(f"{gain}, how much is open", estimate, (1 + floor, target))
    return _open("direction open", estimate, (1 + floor, target))


def direction_rule(estimate: RatioEstimate, floor: float) -> Outcome:
    """The rule for "A is better than B" without a number."""
    few = too_few(estimate)
    if few is not None:
        return few
    if estimate.low > 1 + floor:
        return Outcome(word="reproduced")
    if estimate.high < 1 + floor:
        return _not_better(estimate.high, floor)
    return _open("direction open", estimate, (1 + floor,))


def parity_rule(estimate: RatioEstimate, margin: float, floor: float, one_sided: bool) -> Outcome:
    """Equivalence: the interval inside [1/margin, margin]; one-sided ("no loss") needs only the lower bound."""
    if floor >= margin - 1:
        return Outcome(word="inconclusive", why=f"noise hides parity (floor {floor:.1%}, margin {margin - 1:.1%})")
    few = too_few(estimate)
    if few is not None:
        return few
    if estimate.low >= 1 / margin and (one_sided or estimate.high <= margin):
        return Outcome(word="reproduced")
    if estimate.high < 1 / margin:
        return Outcome(word="not reproduced", why="worse than the margin allows")
    if estimate.low > margin:
        return Outcome(word="not reproduced", why="not on par: better")
    bounds = (1 / margin,) if one_sided else (1 / margin, margin)
    return _open("parity open", estimate, bounds)


def at_most_rule(cost: RatioEstimate, limit: float, tolerance: float, floor: float) -> Outcome:
    """Candidate ÷ baseline stays under ``limit``; a limit under 1 is a claimed saving and follows the ratio rule."""
    if limit < 1:
        saving = ratio_rule(cost.inverse(), 1 / limit, tolerance, floor)
        return Outcome(word="partly", why="less, but not as little as claimed") if saving.word == "partly" else saving
    if limit > 1 and floor >= math.sqrt(limit) - 1:
        return Outcome(word="inconclusive", why=f"noise hides the limit (floor {floor:.1%})")
    return limit_rule(cost, limit, floor)


def limit_rule(value: RatioEstimate, limit: float, floor: float = 0.0) -> Outcome:
    """A quantity stays under ``limit``; an excess within the noise floor is no excess."""
    few = too_few(value)
    if few is not None:
        return few
    if value.high <= limit:
        return Outcome(word="reproduced")
    if value.low > limit * (1 + floor):
        return Outcome(word="not reproduced", why="over the limit")
    return _open("the limit lies inside the interval", value, (limit,))


def growth_rule(exponent: RatioEstimate, claimed: float, tolerance: float) -> Outcome:
    """The exponent of growth is at most ``claimed`` (plus ``tolerance``, in units of the exponent)."""
    few = too_few(exponent)
    if few is not None:
        return few
    if exponent.high <= claimed + tolerance:
        return Outcome(word="reproduced")
    if exponent.low > claimed + tolerance:
        return Outcome(word="not reproduced", why="grows faster than claimed")
    return Outcome(word="inconclusive", why="the claimed exponent lies inside the interval")


def often_rule(hits: int, n: int) -> Outcome:
    """More often than not: Wilson's lower bound over one half."""
    if n < stats.MIN_BLOCKS:
        return Outcome(word="inconclusive", why=f"too few runs: {n}, at least {stats.MIN_BLOCKS} are needed")
    low, high = stats.wilson(hits, n)
    if low > 0.5:
        return Outcome(word="reproduced", why=f"{hits} of {n}")
    if high < 0.5:
        return Outcome(word="not reproduced", why=f"only {hits} of {n}")
    return Outcome(word="inconclusive", why=f"{hits} of {n}: one half lies inside the interval")


def only_rule(candidate: tuple[int, int], rivals: Sequence[tuple[str, int, int]], trials: int) -> Outcome:
    """Only the candidate reaches the target: one rival that hits in most seeds refutes it.

    ``candidate`` and ``rivals`` hold hits and seeds; ``trials`` is the number of tuned rival settings tried.
    """
    for name, hits, n in rivals:
        if n >= stats.MIN_BLOCKS and 2 * hits > n:
            return Outcome(word="not reproduced", why=f"refuted: {name} reaches it too ({hits} of {n})")
    hits, n = candidate
    if n < stats.MIN_BLOCKS:
        return Outcome(word="inconclusive", why=f"too few seeds: {n}, at least {stats.MIN_BLOCKS} are needed")
    if 2 * hits <= n:
        return Outcome(word="not reproduced", why=f"the candidate itself reaches it in {hits} of {n}")
    if not rivals:
        return Outcome(word="inconclusive", why="no rival was tried")
    short = [name for name, _, seeds in rivals if seeds < stats.MIN_BLOCKS]
    if short:
        return Outcome(word="inconclusive", why=f"too few seeds of {short[0]}")
    if stats.wilson(hits, n)[0] <= 0.5:
        return Outcome(word="inconclusive", why=f"the candidate reaches it in {hits} of {n}: most seeds is open")
    return Outcome(word="reproduced", why=f"holds within {trials} trials")


def best_cell(outcomes: Sequence[tuple[Outcome, RatioEstimate]]) -> int:
    """Index of the cell that speaks for an "up to" claim.

    One reproduced cell is enough; failing that, an open cell keeps the claim open; then partly, then not reproduced.
    """
    order = ("reproduced", "inconclusive", "partly", "not reproduced")
    return min(range(len(outcomes)), key=lambda i: (order.index(outcomes[i][0].word), -outcomes[i][1].ratio))


def guard(outcome: Outcome, error_ratio: float | None, metric: str) -> Outcome:
    """Cap a good verdict by the error margin: ``error_ratio`` is the candidate's error ÷ the baseline's."""
    if outcome.word not in ("reproduced", "partly"):
        return outcome
    if error_ratio is None:
        return Outcome(word="inconclusive", why=f"the error margin is unknown: {metric} was not recorded for both")
    if error_ratio <= ERROR_MARGIN:
        return outcome
    why = f"outside the error margin: {metric} is {times(error_ratio)} times the baseline's"
    return Outcome(word="partly", why=why)


def times(ratio: float) -> str:
    """A ratio of errors for people: two decimals, three digits where it is very large or small."""
    if math.isinf(ratio):
        return "∞"
    return f"{ratio:.2f}" if 0.01 <= ratio < 1000 else f"{ratio:.3g}"


def _not_better(high: float, floor: float) -> Outcome:
    if high < 1 / (1 + floor):
        return Outcome(word="not reproduced", why="reversed")
    return Outcome(word="not reproduced", why="no gain beyond the noise floor")


def _open(why: str, estimate: RatioEstimate, bounds: Sequence[float]) -> Outcome:
    needed = stats.blocks_needed(estimate, bounds)
    if needed is None:
        return Outcome(word="inconclusive", why=why)
    amount = "over 1000 blocks" if needed > 1000 else f"about {needed} blocks"
    return Outcome(word="inconclusive", why=f"{why}; {amount} would be needed")
