"""Speed-ups of stored blocks, per file and problem, by :mod:`harness.judge.stats`; never across files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from harness.judge import stats
from reports.plain import number

ALIAS = "{}#aa"
TIME = "op_s"


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Baseline ÷ method with its interval; ``noise`` is the problem's A/A floor, a fraction."""

    ratio: float
    low: float
    high: float
    level: float
    enough: bool
    n: int
    noise: float | None
    per_block: Mapping[int, float]

    @property
    def side(self) -> str:
        """``faster`` or ``slower`` when a full interval clears the floor, else ``level`` or ``open``."""
        if not self.enough or self.noise is None:
            return "open"
        if self.low > 1 + self.noise:
            return "faster"
        if self.high < 1 / (1 + self.noise):
            return "slower"
        return "level"


def timed_blocks(frame: pd.DataFrame) -> pd.DataFrame:
    """Block rows that may be ranked: timed, passed, not discarded."""
    keep = (
        (frame["phase"] == "block")
        & (frame["metric"] == TIME)
        & (frame["status"] == "passed")
        & frame["discarded"].isna()
    )
    return frame[keep]


def per_problem(
    timed: pd.DataFrame, baselines: Mapping[tuple[str, str], str | None]
) -> dict[tuple[str, str, str, str], Effect]:
    """(file, task, problem, arm) -> effect over the file's baseline of that task."""
    found: dict[tuple[str, str, str, str], Effect] = {}
    wide = timed.pivot_table(index=["file", "task", "problem", "block"], columns="arm", values="value", sort=False)
    for key, group in wide.groupby(level=[0, 1, 2], sort=False):
        file, task, problem = map(str, key)  # type: ignore[arg-type]
        baseline = baselines.get((file, task))
        if baseline is None or baseline not in group:
            continue
        grid = group.droplevel([0, 1, 2])
        noise = _noise(grid, baseline)
        for arm in grid.columns:
            effect = None if arm == baseline else _effect(grid, baseline, arm, noise)
            if effect is not None:
                found[file, task, problem, arm] = effect
    return found


def _noise(grid: pd.DataFrame, baseline: str) -> float | None:
    alias = ALIAS.format(baseline)
    if alias not in grid:
        return None
    pairs = grid[[baseline, alias]].dropna()
    return number(stats.noise_floor(pairs[baseline].to_dict(), pairs[alias].to_dict())) if len(pairs) else None


def _effect(grid: pd.DataFrame, baseline: str, arm: str, noise: float | None) -> Effect | None:
    pairs = grid[[baseline, arm]].dropna()
    if pairs.empty:
        return None
    found = stats.paired_ratio(pairs[baseline].to_dict(), pairs[arm].to_dict())
    return Effect(
        ratio=found.ratio,
        low=found.low,
        high=found.high,
        level=found.level,
        enough=found.enough,
        n=found.n,
        noise=noise,
        per_block=dict(zip(map(int, pairs.index), map(float, pairs[baseline] / pairs[arm]), strict=True)),
    )
