"""Timing one arm of one block: new content for every timed call, copied outside the clock."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from harness.catalogue.protocol import Protocol
from harness.catalogue.suite import Problem
from harness.catalogue.task import TaskRuntime
from harness.errors import SpeedclaimError
from harness.measure.clock import Clock
from harness.measure.device import Device

BUFFERS = 2


@dataclass(kw_only=True)
class Timing:
    """Samples of one arm: metric -> (clock name, seconds); ``output`` belongs to the content ``checked``."""

    samples: dict[str, tuple[str, list[float]]] = field(default_factory=dict)
    output: Any = None
    checked: Any = None
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
    """Warm up once, take one output for checking, then sample every clock of the device.

    Args:
        op: the bound method.
        runtime: the task's run-time side.
        problem: the problem.
        content: this block's content, shared by all arms; its output is the one that is checked.
        device: where it runs.
        protocol: how much is sampled.
        offset: first step of ``runtime.vary``, so that arms of one block see different variations.
    """
    buffers = [runtime.buffer_like(content) for _ in range(BUFFERS)]
    runtime.fill(buffers[0], content)
    timing = Timing(checked=content)
    timing.output = runtime.snapshot(op(buffers[0]))
    device.synchronize()
    feed = _Feed(runtime, content, buffers, offset)
    for metric, clock in device.clocks().items():
        slow = timing.samples and min(timing.samples["op_s"][1]) > protocol.hot_below_s
        if slow:
            timing.notes[metric] = f"not taken: a call of more than {protocol.hot_below_s:g} s outlives any cache"
            continue
        timing.samples[metric] = (clock.name, _sample(op, feed, clock, device, protocol))
    typical = sorted(timing.samples["op_s"][1])[len(timing.samples["op_s"][1]) // 2]
    if device.kind == "cuda" and typical < protocol.graph_below_s:
        _sample_graph(timing, op, feed, device, protocol)
    return timing


class _Feed:
    """Rotating buffers with content that was never seen before."""

    def __init__(self, runtime: TaskRuntime, content: Any, buffers: list[Any], offset: int) -> None:
        self._runtime, self._content, self._buffers = runtime, content, buffers
        self._step = offset

    def next(self) -> Any:
        """The next buffer, freshly filled."""
        self._step += 1
        buffer = self._buffers[self._step % len(self._buffers)]
        return self.refill(buffer)

    def refill(self, buffer: Any) -> Any:
        """New content in this very buffer (a captured graph reads one address)."""
        self._step += 1
        self._runtime.fill(buffer, self._runtime.vary(self._content, self._step))
        return buffer


def _sample(op: Callable[[Any], Any], feed: _Feed, clock: Clock, device: Device, protocol: Protocol) -> list[float]:
    samples: list[float] = []
    total = 0.0
    while not _enough(len(samples), total, device.kind, protocol):
        buffer = feed.next()
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
    timing.samples["op_graph_s"] = (clock.name, samples)


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
    return peak


def energy_pass(
    *, op: Callable[[Any], Any], runtime: TaskRuntime, content: Any, device: Device, seconds: float, call_s: float
) -> float | str:
    """Joules per call over at least ``seconds`` of repeated calls, or the reason why there is no figure."""
    before = device.energy_j()
    if before is None:
        return "no readable energy counter (NVML or RAPL)"
    calls = max(3, int(seconds / max(call_s, 1e-6)))
    buffer = runtime.buffer_like(content)
    runtime.fill(buffer, content)
    for _ in range(calls):
        op(buffer)
    device.synchronize()
    after = device.energy_j()
    if after is None or after <= before:
        return f"the energy counter did not move in {calls} calls"
    return (after - before) / calls
