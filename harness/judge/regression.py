"""Has a change made a case slower? Screen at 10 blocks, confirm each flagged case on 20 fresh ones.

A pull request is judged by a fresh interleaved run of its base and its head; history is for reading only. Ratios
here are base ÷ head, so under 1 means that the head is slower.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Literal

from harness.judge.stats import RatioEstimate

SCREEN_BLOCKS = 10
CONFIRM_BLOCKS = 20
#: A confirmed slowdown under 5 % fails nobody: the equivalence margin of claims.
PRACTICAL = 0.05

RegressionWord = Literal["no regression", "needs confirmation", "regression", "not confirmed", "too few blocks"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What is known about one case; ``fails`` says whether it should stop the pull request."""

    word: RegressionWord
    reason: str

    @property
    def fails(self) -> bool:
        """Whether the case is a confirmed regression."""
        return self.word == "regression"


def flagged(screen: RatioEstimate, floor: float) -> bool:
    """Whether the screen's whole interval is slower than the noise floor explains."""
    return screen.high < 1 / (1 + floor)


def decide(
    screen: RatioEstimate,
    floor: float,
    confirm: RatioEstimate | None = None,
    confirm_floor: float | None = None,
    practical: float = PRACTICAL,
) -> Decision:
    """Decide one case.

    Args:
        screen: base ÷ head over at least 10 blocks.
        floor: noise floor of the screening run.
        confirm: base ÷ head over at least 20 fresh blocks, when the screen flagged the case.
        confirm_floor: noise floor of the confirming run; None = as in the screen.
        practical: slowdown that matters.
    """
    if screen.n < SCREEN_BLOCKS:
        return Decision(word="too few blocks", reason=f"{screen.n} screening blocks, {SCREEN_BLOCKS} are needed")
    if not flagged(screen, floor):
        return Decision(word="no regression", reason=f"base ÷ head up to {screen.high:.3f}, floor {floor:.1%}")
    if confirm is None:
        return Decision(word="needs confirmation", reason=f"base ÷ head at most {screen.high:.3f} in the screen")
    if confirm.n < CONFIRM_BLOCKS:
        return Decision(word="too few blocks", reason=f"{confirm.n} confirming blocks, {CONFIRM_BLOCKS} are needed")
    threshold = max(practical, floor if confirm_floor is None else confirm_floor)
    if confirm.high < 1 / (1 + threshold):
        return Decision(word="regression", reason=f"slower by over {threshold:.1%} on {confirm.n} fresh blocks")
    return Decision(word="not confirmed", reason=f"base ÷ head up to {confirm.high:.3f} on {confirm.n} fresh blocks")


def require_fresh(screen_blocks: Iterable[Hashable], confirm_blocks: Iterable[Hashable]) -> None:
    """Refuse to confirm on blocks that the screen has seen.

    Raises:
        ValueError: a block is in both.
    """
    seen = set(screen_blocks) & set(confirm_blocks)
    if seen:
        raise ValueError(f"confirmation needs fresh blocks; {sorted(map(str, seen))[0]} was in the screen already")
