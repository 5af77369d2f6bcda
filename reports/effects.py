"""Speed-ups of stored blocks, per file and problem, by :mod:`harness.judge.stats`; never across files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import pandas as pd

from harness.judge import stats
from reports.plain import number

ALIAS = "{}#aa"
TIME = "op_s"

#: (file, task, problem, arm).
Arm = tuple[str, str, str, str]


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
    timed: pd.DataFrame, baselines: Mapping[tuple[str, str], str | None], wanted: Collection[Arm]
) -> dict[Arm, Effect]:
    """(file, task, problem, arm) -> effect over the file's baseline of that task, for the ``wanted`` arms.

    The alias of a baseline is always included where the problem is wanted at all.
    """
    blocks: dict[Arm, dict[int, float]] = {}
    columns = ("file", "task", "problem", "arm", "block", "value")
    for file, task, problem, arm, block, value in zip(*(timed[name] for name in columns), strict=True):
        blocks.setdefault((file, task, problem, arm), {})[int(block)] = float(value)
    found: dict[Arm, Effect] = {}
    noises: dict[tuple[str, str, str], float | None] = {}
    for file, task, problem, arm in wanted:
        baseline = baselines.get((file, task))
        if baseline is None:
            continue
        base = blocks.get((file, task, problem, baseline), {})
        alias = (file, task, problem, ALIAS.format(baseline))
        if alias[:3] not in noises:
            noises[alias[:3]] = _noise(base, blocks.get(alias, {}))
            _add(found, alias, base, blocks, noises[alias[:3]])
        if arm != baseline:
            _add(found, (file, task, problem, arm), base, blocks, noises[alias[:3]])
    return found


def _noise(base: Mapping[int, float], alias: Mapping[int, float]) -> float | None:
    return number(stats.noise_floor(base, alias)) if base.keys() & alias.keys() else None


def _add(
    found: dict[Arm, Effect], key: Arm, base: Mapping[int, float], blocks: Mapping[Arm, dict[int, float]],
    noise: float | None,
) -> None:  # fmt: skip
    own = blocks.get(key, {})
    shared = [block for block in base if block in own]
    if not shared:
        return
    estimate = stats.paired_ratio(base, own)
    found[key] = Effect(
        ratio=estimate.ratio,
        low=estimate.low,
        high=estimate.high,
        level=estimate.level,
        enough=estimate.enough,
        n=estimate.n,
        noise=noise,
        per_block={block: base[block] / own[block] for block in shared},
    )
