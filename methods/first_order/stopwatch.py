"""Seconds that a part of a step takes, without waiting for the device in the step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Stopwatch:
    """Off until first read; then it sums the calls made through it: events on a GPU, the host's clock on a CPU."""

    def __init__(self) -> None:
        self._on = False
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []

    def around(self, call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """``call``, timed while the stopwatch is on."""

        def timed(argument: Tensor) -> Tensor:
            if not self._on:
                return call(argument)
            if not argument.is_cuda:
                begin = time.perf_counter()
                result = call(argument)
                self._seconds += time.perf_counter() - begin
                return result
            start = self._event()
            result = call(argument)
            self._events.append((start, self._event()))
            return result

        return timed

    @staticmethod
    def _event() -> Any:
        """An event recorded now on the current stream."""
        cuda: Any = torch.cuda
        event = cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> float:
        """Seconds since the last reading, which also switches the stopwatch on; waits for the last timed call."""
        self._on = True
        if self._events:
            self._events[-1][1].synchronize()
        seconds = self._seconds + sum(float(start.elapsed_time(end)) for start, end in self._events) / 1e3
        self._seconds, self._events = 0.0, []
        return seconds
