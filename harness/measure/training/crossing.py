"""When a curve reaches a level: two evaluations in a row at or beyond it, interpolated from the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.catalogue.workload import Target


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Where a level was reached, on each axis of the curve."""

    level: float
    time_s: float
    steps: float
    samples: float

    def to_json(self) -> dict[str, float]:
        """A JSON-ready copy."""
        return {"level": self.level, "time_s": self.time_s, "steps": self.steps, "samples": self.samples}


def crossing(
    target: Target, level: float, metric: Sequence[float], axes: Mapping[str, Sequence[float]]
) -> Crossing | None:
    """The first evaluation at or beyond ``level`` whose successor is so too; None without one.

    The position is interpolated linearly in the metric between it and the evaluation before. The evaluation at step 0
    never counts: nothing was trained.

    Args:
        target: says which direction is better.
        level: the value to reach.
        metric: one value per evaluation, the first at step 0.
        axes: ``s``, ``steps`` and ``samples`` at the same evaluations.
    """
    for index in range(1, len(metric) - 1):
        if target.met(metric[index], level) and target.met(metric[index + 1], level):
            before, after = metric[index - 1], metric[index]
            share = 1.0 if target.met(before, level) or after == before else (level - before) / (after - before)
            return _at(level, index, share, axes)
    return None


def _at(level: float, index: int, share: float, axes: Mapping[str, Sequence[float]]) -> Crossing:
    place = {name: values[index - 1] + share * (values[index] - values[index - 1]) for name, values in axes.items()}
    return Crossing(level=level, time_s=place["s"], steps=place["steps"], samples=place["samples"])


def levels(target: Target) -> tuple[float, ...]:
    """The headline target and the further levels."""
    return (target.value, *(level for level in target.others if level != target.value))


def reached(target: Target, metric: Sequence[float], axes: Mapping[str, Sequence[float]]) -> list[Crossing]:
    """The crossings of every level that was reached, the headline target first when it was."""
    found = (crossing(target, level, metric, axes) for level in levels(target))
    return [item for item in found if item is not None]


def of_run(target: Target, metric: Sequence[float], axes: Mapping[str, Sequence[float]], whole: bool) -> list[Crossing]:
    """The crossings of a run's curve; in mode ``final`` the headline target only at the end of a ``whole`` schedule."""
    found = reached(target, metric, axes)
    if target.mode != "final":
        return found
    last = at_the_end(target, metric, axes) if whole else None
    return ([last] if last else []) + [item for item in found if item.level != target.value]


def at_the_end(target: Target, metric: Sequence[float], axes: Mapping[str, Sequence[float]]) -> Crossing | None:
    """Mode ``final``: the last evaluation, when it meets the target."""
    if len(metric) < 2 or not target.met(metric[-1]):
        return None
    return _at(target.value, len(metric) - 1, 1.0, axes)
