"""Seconds of an optimizer's parts: events on a GPU, the host's clock on a CPU, never a wait inside a step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch


class Parts:
    """Off until first read; then sums the spans of each part. Spans must not nest."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._on = False
        self._seconds: dict[str, float] = dict.fromkeys(names, 0.0)
        self._events: list[tuple[str, Any, Any]] = []

    @contextlib.contextmanager
    def span(self, name: str, cuda: bool) -> Iterator[None]:
        """Time the block as part ``name``."""
        if not self._on:
            yield
        elif cuda:
            start, end = _event(), _event()
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
        else:
            begin = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - begin

    def read(self) -> dict[str, float]:
        """Seconds by part since the last reading, which also switches the measuring on."""
        self._on = True
        if self._events:
            self._events[-1][2].synchronize()
        for name, start, end in self._events:
            self._seconds[name] += float(start.elapsed_time(end)) / 1e3
        found, self._seconds, self._events = self._seconds, dict.fromkeys(self._names, 0.0), []
        return found


def _event() -> Any:
    cuda: Any = torch.cuda
    return cuda.Event(enable_timing=True)
