"""Clocks: how the seconds of one call are taken. A result names its clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Times one call."""

    name: str

    def time(self, call: Callable[[], object]) -> float:
        """Seconds that ``call`` took."""


class HostClock:
    """The host's monotonic clock around one call, the device synchronised before and after."""

    name = "host"

    def __init__(
        self,
        synchronize: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._synchronize = synchronize
        self._now = now

    def time(self, call: Callable[[], object]) -> float:
        """Seconds that ``call`` took, with everything it started finished."""
        self._synchronize()
        start = self._now()
        result = call()
        self._synchronize()
        elapsed = self._now() - start
        del result
        return elapsed
