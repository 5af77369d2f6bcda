"""How many modes a low-rank inverse keeps: a number, a schedule, or a rule that looks at the spectrum it found."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from methods.kfac.options import in_range, values
from methods.kfac.policy import Schedule, value_at


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Next rank from the tail ratio, the smallest kept eigenvalue over the largest.

    Above ``target + above`` the rank grows by ``up``, below ``target - below`` it shrinks by ``down``. Defaults: the
    code of Puiu's distributed K-FACs for randomized decompositions.
    """

    target: float = 0.033
    above: float = 0.02
    below: float = 0.007
    up: int = 10
    down: int = 10
    floor: int = 10
    cap: int = 700

    def __post_init__(self) -> None:
        in_range("rank_target", self.target, 0.0, 1.0, left=False, right=False)
        in_range("rank_floor", self.floor, 1, whole=True)
        in_range("rank_cap", self.cap, self.floor, whole=True)

    def next(self, rank: int, ratio: float) -> int:
        """The rank after one refresh with this ratio; a ratio that is not a number keeps it."""
        if ratio > self.target + self.above:
            return min(rank + self.up, max(self.cap, rank))
        if ratio < self.target - self.below:
            return max(rank - self.down, min(self.floor, rank))
        return rank


@dataclass
class _Watch:
    ratios: Tensor
    event: Any
    stamp: int


@dataclass
class Ranks:
    """Ranks of many states. Ratios travel to the host while the device works on, and are read a refresh later.

    A ratio depends on the state alone, so after a resume, or when failed refreshes have changed states since
    (``stamp``), it is taken from the state anew, and the same ranks follow.

    Args:
        schedule: rank, or pieces [[step, rank], ...]; with a rule its value at step 0 is where it starts.
        rule: None without adaptation.
        name: of the hyper-parameter, for messages.
    """

    schedule: Schedule
    rule: Rule | None = None
    name: str = "rank"
    _watched: dict[Hashable, tuple[_Watch, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for value in values(self.schedule, self.name):
            in_range(self.name, value, 1, whole=True)

    @property
    def varies(self) -> bool:
        """Whether ranks change."""
        return self.rule is not None or not isinstance(self.schedule, int | float)

    def start(self, step: int) -> int:
        """Rank of a state that is made at this step."""
        return int(value_at(self.schedule, 0 if self.rule is not None else step))

    def watch(self, ratios: Mapping[Hashable, Tensor], stamp: int) -> None:
        """Send ratios (0-d, on one device) of refreshed states to the host. Does nothing without a rule."""
        if self.rule is None or not ratios:
            return
        together = torch.stack(list(ratios.values()))
        event: Any = None
        if together.is_cuda:
            cuda: Any = torch.cuda
            host = torch.empty(together.shape, dtype=together.dtype, pin_memory=True)
            host.copy_(together, non_blocking=True)
            event = cuda.Event()
            event.record()
            together = host
        watch = _Watch(together, event, stamp)
        self._watched |= {key: (watch, index) for index, key in enumerate(ratios)}

    def next(self, key: Hashable, rank: int, step: int, stamp: int, ratio: Any) -> int:
        """Rank of a state's next refresh.

        Args:
            key: of the state.
            rank: its rank.
            step: this step.
            stamp: changes when a state has changed behind the back.
            ratio: function without arguments that takes the ratio from the state.
        """
        if self.rule is None:
            return int(value_at(self.schedule, step))
        watch, index = self._watched.pop(key, (None, 0))
        if watch is None or watch.stamp != stamp:
            return self.rule.next(rank, float(ratio()))
        if watch.event is not None:
            watch.event.synchronize()
        return self.rule.next(rank, float(watch.ratios[index]))

    def forget(self) -> None:
        """Drop what is under way, when other states have been loaded."""
        self._watched = {}
