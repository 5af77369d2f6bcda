"""When statistics are taken and which layers are refreshed: functions of the step alone, so a resumed run agrees."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.errors import UserError

#: Multiples of it modulo 1 keep far from each other (Knuth, The Art of Computer Programming 3, 6.4, theorem S).
GOLDEN = (5**0.5 - 1) / 2

#: A number, pieces ``[[first step, value], ...]``, or a function of the step.
Schedule = float | Sequence[Sequence[float]] | Callable[[int], float]


def value_at(schedule: Schedule, step: int) -> float:
    """The schedule's value at a step: the last piece that has begun.

    Raises:
        UserError: pieces that do not begin at step 0 or are not sorted.
    """
    if callable(schedule):
        return float(schedule(step))
    if isinstance(schedule, int | float):
        return float(schedule)
    try:
        pieces = [(int(start), float(value)) for start, value in schedule]
    except (TypeError, ValueError, OverflowError):
        pieces = []
    starts = [start for start, _ in pieces]
    if not starts or starts[0] != 0 or starts != sorted(starts):
        raise UserError(f"a schedule is a number or sorted [[step, value], ...] from step 0 on; got {schedule!r}.")
    return [value for start, value in pieces if start <= step][-1]


class Policy:
    """Statistics every ``update_period`` steps, an inverse every ``refresh_period`` steps.

    With ``stagger`` each layer is refreshed at its own step of the period; the layers' costs are spread as evenly as
    a greedy assignment (largest first, to the least loaded step) does, equally loaded steps far from each other before
    neighbours, so that a slow host catches up between two refreshes; steps of the period that take statistics begin
    with the load of the largest refresh, so that the longest step is not both. The first step refreshes all layers.

    Args:
        update_period: T_cov.
        refresh_period: T_inv, may be a schedule.
        stagger: spread the refreshes over the period.
        costs: work of each layer's refresh, any unit.
        spread: take each layer's statistics at its own step of the update period; the first step takes all.
        groups: steps of a period that both use, evenly spaced; 0: all of them. Refreshes then come one step behind
            statistics.
    """

    def __init__(
        self,
        update_period: Schedule,
        refresh_period: Schedule,
        stagger: bool,
        costs: Sequence[float],
        spread: bool = False,
        groups: int = 0,
    ) -> None:
        self.update_period, self.refresh_period, self.stagger = update_period, refresh_period, stagger
        self.spread, self._costs, self._groups = spread, list(costs), int(groups)
        self._slots: dict[int, list[int]] = {}

    def statistics_due(self, step: int) -> bool:
        """Whether the batch of this step is to be captured, for some layer at least."""
        period = max(1, int(value_at(self.update_period, step)))
        if step == 0 or not self.spread:
            return step % period == 0
        return step % period in self._steps(period)[: len(self._costs)]

    def takes(self, index: int, step: int) -> bool:
        """Whether the statistics of layer ``index`` are taken at a step that is captured."""
        if step == 0 or not self.spread:
            return True
        period = max(1, int(value_at(self.update_period, step)))
        steps = self._steps(period)
        return steps[index % len(steps)] == step % period

    def _steps(self, period: int) -> list[int]:
        """The steps of a period that layers are spread over."""
        count = min(self._groups or period, period)
        return [place * period // count for place in range(count)]

    def due(self, step: int) -> list[int]:
        """Indices of the layers to refresh at this step."""
        period = max(1, int(value_at(self.refresh_period, step)))
        everything = list(range(len(self._costs)))
        if step == 0 or not self.stagger:
            return everything if step % period == 0 else []
        return [index for index in everything if self.slots(period)[index] == step % period]

    def slots(self, period: int) -> list[int]:
        """The step of the period at which each layer is refreshed."""
        if period not in self._slots:
            every = max(1, int(value_at(self.update_period, 0)))
            crowded = 1 < every <= period and period % every == 0 and not self.spread
            busy = max(self._costs, default=0.0) if crowded else 0.0
            behind = 0 < self._groups < period
            steps = [(step + behind) % period for step in self._steps(period)]
            load = [busy if slot % every == 0 else 0.0 for slot in range(period)]
            rank = {slot: place for place, slot in enumerate(sorted(range(period), key=lambda s: s * GOLDEN % 1.0))}
            slots = [0] * len(self._costs)
            for index in sorted(range(len(slots)), key=lambda i: (-self._costs[i], i)):
                slots[index] = min(steps, key=lambda slot: (load[slot], rank[slot]))
                load[slots[index]] += self._costs[index]
            self._slots[period] = slots
        return self._slots[period]
