"""The clock of a training run: pausable, synchronised at its readings only, with buckets that never synchronise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol


class Marker(Protocol):
    """Points in the device's time. On a CPU a mark is a reading, on a GPU an event that is read later."""

    def mark(self) -> Any:
        """A point in time, taken without waiting for the device."""

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two marks; the device has been synchronised since."""


class HostMarker:
    """Marks of the host's monotonic clock."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def mark(self) -> float:
        """Now."""
        return self._now()

    def seconds(self, start: float, end: float) -> float:
        """Their difference."""
        return end - start


class TrainClock:
    """Seconds of training, in segments between :meth:`resume` and :meth:`pause`, the device synchronised at both.

    Args:
        synchronize: waits for everything the device was given.
        now: the host's monotonic clock.
        elapsed_s: what an earlier process has already counted.
    """

    def __init__(
        self,
        synchronize: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.perf_counter,
        elapsed_s: float = 0.0,
    ) -> None:
        self._synchronize, self._now = synchronize, now
        self._elapsed_s = elapsed_s
        self._since: float | None = None

    def resume(self) -> None:
        """Begin a segment.

        Raises:
            RuntimeError: the clock runs already.
        """
        if self._since is not None:
            raise RuntimeError("the training clock runs already")
        self._synchronize()
        self._since = self._now()

    def pause(self) -> float:
        """End the segment; returns its seconds.

        Raises:
            RuntimeError: the clock does not run.
        """
        if self._since is None:
            raise RuntimeError("the training clock does not run")
        self._synchronize()
        segment = self._now() - self._since
        self._since = None
        self._elapsed_s += segment
        return segment

    def abandon(self) -> None:
        """End a segment that an error cut short; its seconds count as far as the host saw them."""
        if self._since is not None:
            self._elapsed_s += self._now() - self._since
            self._since = None

    def agree(self, elapsed_s: float) -> None:
        """Take over the reading of another process (rank 0), so that all decide alike."""
        self._elapsed_s = elapsed_s

    @property
    def elapsed_s(self) -> float:
        """Seconds of all finished segments."""
        return self._elapsed_s


class Buckets:
    """Seconds by what they were spent on. A span inside another is not counted in the outer one."""

    def __init__(self, marker: Marker, totals: Mapping[str, float] | None = None) -> None:
        self._marker = marker
        self.totals: dict[str, float] = dict(totals or {})
        self._pending: list[tuple[str, Any, Any, str | None]] = []
        self._stack: list[str] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Count what happens inside under ``name``; two marks, no synchronisation."""
        outer = self._stack[-1] if self._stack else None
        self._stack.append(name)
        start = self._marker.mark()
        try:
            yield
        finally:
            self._pending.append((name, start, self._marker.mark(), outer))
            self._stack.pop()

    def add(self, name: str, seconds: float) -> None:
        """Count seconds measured elsewhere."""
        self.totals[name] = self.totals.get(name, 0.0) + seconds

    def collect(self) -> dict[str, float]:
        """Read the marks since the last call (the device is synchronised) and return what they added."""
        added: dict[str, float] = {}
        for name, start, end, outer in self._pending:
            seconds = self._marker.seconds(start, end)
            added[name] = added.get(name, 0.0) + seconds
            if outer is not None:
                added[outer] = added.get(outer, 0.0) - seconds
        self._pending.clear()
        added = {name: max(0.0, seconds) for name, seconds in added.items()}
        for name, seconds in added.items():
            self.add(name, seconds)
        return added

    def forget(self) -> None:
        """Drop everything, finished or pending."""
        self._pending.clear()
        self._stack.clear()
        self.totals.clear()
