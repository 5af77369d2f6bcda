"""Timing one arm of one block: new content for every timed call, copied outside the clock."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from harness.catalogue.protocol import Protocol
from harness.catalogue.suite import Problem
from harness.catalogue.task import Divided, Stateful, TaskRuntime
from harness.errors import SpeedclaimError
from harness.measure.clock import Clock
from harness.measure.device import Device

BUFFERS = 2
#: End of the names of parts that are timed on one buffer.
HOT = "_hot_s"
#: Of the memory pass: enough to see how far they scatter. They come from one process: together they are one unit.
ENERGY_WINDOWS = 6
#: NVML refreshes its energy counter about every 20 to 100 ms, RAPL every millisecond.
LONGEST_TICK_S = 2.0
#: Calls between two looks at the counter last as long as this many looks, a window as long as a few such batches.
LOOKS, BATCHES, MOST_CALLS = 10.0, 4, 1 << 16


@dataclass(kw_only=True)
class Timing:
    """Samples of one arm: metric -> (clock name, seconds); ``output`` belongs to the content ``checked``."""

    samples: dict[str, tuple[str, list[float]]] = field(default_factory=dict)
    output: Any = None
    graph_output: Any = None
    checked: Any = None
    state: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def time_arm(
    *,
    op: Callable[[Any], Any],
    runtime: TaskRuntime,
    problem: Problem,
    content: Any,
    device: Device,
    protocol: Protocol,
    offset: int = 0,
) -> Timing:
    """Warm up, sample every clock of the device, and keep the output of the last timed call for checking.

    The call whose output is kept is like every other timed call for the method: it cannot know that it is looked at.

    Args:
        op: the bound method.
        runtime: the task's run-time side.
        problem: the problem.
        content: this block's content, shared by all arms; the last timed call gets it.
        device: where it runs.
        protocol: how much is sampled.
        offset: first step of ``runtime.vary``, so that arms of one block see different variations.
    """
    buffers = [runtime.buffer_like(content) for _ in range(BUFFERS)]
    timing = Timing(checked=content)
    feed = _Feed(runtime, op, content, buffers, offset)
    buffer = feed.next()
    op(buffer)  # the first call may compile; what follows warms up past it
    device.synchronize()
    device.warm_up(lambda: op(buffer), protocol.gpu_arm_s)
    for metric, clock in device.clocks().items():
        slow = timing.samples and min(timing.samples["op_s"][1]) > protocol.hot_below_s
        if slow:
            timing.notes[metric] = f"not taken: calls of more than {protocol.hot_below_s:g} s are timed by one clock"
            continue
        samples = _sample(op, feed.next, clock, device, protocol)
        if not timing.samples:
            timing.state = device.state()
            samples.append(_checked_sample(timing, op, feed, clock, device))
        timing.samples[metric] = (clock.name, samples)
    _sample_parts(timing, op, feed, device, protocol)
    typical = sorted(timing.samples["op_s"][1])[len(timing.samples["op_s"][1]) // 2]
    if device.kind == "cuda" and typical < protocol.graph_below_s:
        _sample_graph(timing, op, feed, device, protocol)
    return timing


def _sample_parts(timing: Timing, op: Callable[[Any], Any], feed: _Feed, device: Device, protocol: Protocol) -> None:
    """Parts of the operation after a warm-up call each, on the device's first clock or, where named so, a hot one."""
    if not isinstance(feed.runtime, Divided):
        return
    clocks = device.clocks()
    first = next(iter(clocks.values()))
    for metric, part in feed.runtime.parts(op).items():
        buffer, hot = feed.next(), metric.endswith(HOT)
        part(buffer)
        clock = clocks.get("op_hot_s", first) if hot else first
        draw = functools.partial(_same, buffer) if hot else feed.next
        timing.samples[metric] = (clock.name, _sample(part, draw, clock, device, protocol))


def _same(buffer: Any) -> Any:
    return buffer


def _checked_sample(timing: Timing, op: Callable[[Any], Any], feed: _Feed, clock: Clock, device: Device) -> float:
    """One more timed call, on the block's own content; its output is kept."""
    buffer = feed.original()
    kept: list[Any] = []
    device.synchronize()
    elapsed = clock.time(lambda: kept.append(op(buffer)))
    timing.output = feed.runtime.snapshot(kept[0])
    return elapsed


class _Feed:
    """Rotating buffers with content that was never seen before; a stateful operation is put back with each."""

    def __init__(
        self, runtime: TaskRuntime, op: Callable[[Any], Any], content: Any, buffers: list[Any], offset: int
    ) -> None:
        self.runtime, self.content, self._op, self._buffers = runtime, content, op, buffers
        self._step = offset

    def fill(self, buffer: Any, content: Any) -> Any:
        """Copy ``content`` and put the operation back."""
        self.runtime.fill(buffer, content)
        if isinstance(self.runtime, Stateful):
            self.runtime.rewind(self._op)
        return buffer

    def original(self) -> Any:
        """The next buffer with the content itself, unvaried."""
        self._step += 1
        return self.fill(self._buffers[self._step % len(self._buffers)], self.content)

    def next(self) -> Any:
        """The next buffer, freshly filled."""
        self._step += 1
        buffer = self._buffers[self._step % len(self._buffers)]
        return self.refill(buffer)

    def refill(self, buffer: Any) -> Any:
        """New content in this very buffer (a captured graph reads one address)."""
        self._step += 1
        return self.fill(buffer, self.runtime.vary(self.content, self._step))


def _sample(
    op: Callable[[Any], Any], draw: Callable[[], Any], clock: Clock, device: Device, protocol: Protocol
) -> list[float]:
    samples: list[float] = []
    total = 0.0
    while not _enough(len(samples), total, device.kind, protocol):
        buffer = draw()
        device.synchronize()
        elapsed = clock.time(functools.partial(op, buffer))
        samples.append(elapsed)
        total += elapsed
    return samples


def _enough(count: int, total_s: float, kind: str, protocol: Protocol) -> bool:
    """A GPU: ten calls or 50 ms. A CPU: as many as fit in 100 ms, at least one and at most ``max_inner``."""
    if kind == "cuda":
        return count >= protocol.gpu_min_calls or (count > 0 and total_s >= protocol.gpu_arm_s)
    return count >= protocol.max_inner or (count >= protocol.min_inner and total_s >= protocol.inner_s)


def _sample_graph(timing: Timing, op: Callable[[Any], Any], feed: _Feed, device: Device, protocol: Protocol) -> None:
    buffer = feed.next()
    try:
        clock = device.graph_clock(lambda: op(buffer))
    except (SpeedclaimError, RuntimeError) as error:
        timing.notes["op_graph_s"] = f"cannot be captured as a CUDA graph: {' '.join(str(error).split())[:200]}"
        return
    samples = []
    for _ in range(protocol.gpu_min_calls):
        feed.refill(buffer)
        device.synchronize()
        samples.append(clock.time(lambda: None))
    feed.fill(buffer, feed.content)
    samples.append(clock.time(lambda: None))
    device.synchronize()
    timing.samples["op_graph_s"] = (clock.name, samples)
    timing.graph_output = feed.runtime.snapshot(getattr(clock, "output", timing.output))


def memory_pass(*, op: Callable[[Any], Any], runtime: TaskRuntime, content: Any, device: Device) -> dict[str, float]:
    """Peak memory of one call after one warm-up call, with its output alive."""
    buffer = runtime.buffer_like(content)
    runtime.fill(buffer, content)
    op(buffer)
    device.synchronize()
    device.peak_start()
    output = op(buffer)
    device.synchronize()
    peak = device.peak()
    del output
    return {**peak, **runtime.held_bytes(op)} if isinstance(runtime, Stateful) else peak


def energy_pass(
    *,
    op: Callable[[Any], Any],
    runtime: TaskRuntime,
    content: Any,
    device: Device,
    seconds: float,
    count: int = ENERGY_WINDOWS,
) -> list[float] | str:
    """Joules per call in ``count`` windows of ``seconds`` together or longer, each from tick to tick of the counter.

    Calls follow each other without waiting for the device between two looks at the counter: a look may take longer
    than a call, and one after each would charge it the idle device's joules.

    Returns:
        One value a window, or why there is none.
    """
    if device.energy_j() is None:
        return "no readable energy counter (NVML or RAPL)"
    buffer = runtime.buffer_like(content)
    runtime.fill(buffer, content)

    def together(calls: int) -> float:
        begin = time.monotonic()
        for _ in range(calls):
            op(buffer)
        device.synchronize()
        return time.monotonic() - begin

    def until_tick(least_s: float) -> tuple[float, int]:
        """Call until the counter has moved and ``least_s`` are over: the counter there, and the calls made."""
        begin, last, made = time.monotonic(), device.energy_j(), 0
        while time.monotonic() - begin < least_s + LONGEST_TICK_S:
            together(calls)
            made += calls
            now = device.energy_j()
            if now is not None and now != last and time.monotonic() - begin >= least_s:
                return now, made
            last = now
        raise TimeoutError

    calls, batch_s = _batch(together, LOOKS * _look_s(device))
    try:
        start, _ = until_tick(0.0)
        windows = []
        for _ in range(count):
            end, made = until_tick(max(seconds / count, BATCHES * batch_s if calls > 1 else 0.0))
            windows.append((end - start) / made)
            start = end
    except TimeoutError:
        return f"the energy counter did not move within {LONGEST_TICK_S:g} s"
    # A counter that wraps around in one window costs that window alone.
    return [joules for joules in windows if joules > 0] or "the energy counter does not grow"


def _look_s(device: Device) -> float:
    """Seconds of one look at the counter, the shortest of three."""
    spent = []
    for _ in range(3):
        begin = time.monotonic()
        device.energy_j()
        spent.append(time.monotonic() - begin)
    return min(spent)


def _batch(together: Callable[[int], float], least_s: float) -> tuple[int, float]:
    """How many calls last ``least_s``, and what they last."""
    together(1)  # a first call may build or fault in what later ones find
    calls = 1
    while (spent := together(calls)) < least_s and calls < MOST_CALLS:
        calls = min(MOST_CALLS, max(2 * calls, round(1.1 * calls * least_s / max(spent, 1e-9))))
    return calls, spent
