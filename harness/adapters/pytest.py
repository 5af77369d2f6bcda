"""pytest-benchmark: the local before/after loop, on the registry's cases.

A module with ``pytest_generate_tests = parametrize`` and a test that calls :func:`bench` is all it takes
(``suites/micro/bench_cases.py`` is ours). pytest is imported only when a case is skipped or fails.
"""

from __future__ import annotations

import os
from typing import Any

from harness.adapters import cases
from harness.catalogue.suite import TIERS, Tier
from harness.errors import UserError
from harness.measure import gate
from harness.record import environment

#: Environment variable: the tier whose problems are benchmarked.
TIER_VARIABLE = "SPEEDCLAIM_TIER"
MIN_ROUNDS = 5


def tier() -> Tier:
    """``$SPEEDCLAIM_TIER``, else ``quick``."""
    chosen = os.environ.get(TIER_VARIABLE, "quick")
    for known in TIERS:
        if chosen == known:
            return known
    raise UserError(f"${TIER_VARIABLE}={chosen!r}: expected one of {', '.join(TIERS)}.")


def parametrize(metafunc: Any) -> None:
    """A ``pytest_generate_tests`` hook: every registry case for the argument ``case``, its id the test's id."""
    if "case" in metafunc.fixturenames:
        grid = cases.cells(tier())
        metafunc.parametrize("case", grid, ids=[cell.id for cell in grid])


def bench(benchmark: Any, case: cases.Cell) -> None:
    """Gate one case, time it with pytest-benchmark on new content per round, check the last timed output.

    A missing need skips, a wrong answer fails, each with its reason. Rounds are grouped by problem. On a GPU every
    round is synchronised: its clock is the host's, not the device events of the store's ``op_s``.
    """
    import pytest

    why: cases.Skipped | cases.Failed
    try:
        with cases.prepare(case) as ready:
            _bench(benchmark, ready)
        return
    except (cases.Skipped, cases.Failed) as error:
        why = error
    if isinstance(why, cases.Skipped):
        pytest.skip(str(why))
    pytest.fail(str(why), pytrace=False)


def _bench(benchmark: Any, ready: cases.Ready) -> None:
    cell = ready.cell
    feed = _Feed(ready)
    op, device = ready.bind(), ready.device

    def call(buffer: Any) -> Any:
        output = op(buffer)
        device.synchronize()
        return output

    benchmark.group = cell.problem.id
    benchmark.extra_info.update(_facts(ready))
    try:
        ready.warm_up()
        output = benchmark.pedantic(call, setup=feed.next, rounds=_rounds(ready), warmup_rounds=1, iterations=1)
        ready.check(output, feed.content)
        if benchmark.stats is not None:
            ready.check_floor(benchmark.stats.stats.min)
    except cases.Failed:
        _discard(benchmark)
        raise
    except Exception as error:
        _discard(benchmark)
        status, reason = gate.failure(device, error)
        raise cases.Failed(f"{cell.id}: {status}: while timed: {reason}") from error


def _discard(benchmark: Any) -> None:
    """A wrong answer has no time: neither the table nor the JSON file may show the rounds that were taken."""
    benchmark.has_error = True
    if benchmark.stats is not None:
        benchmark.stats.stats.data.clear()


class _Feed:
    """Two rotating buffers; every round gets content that was never seen before, copied outside the clock."""

    def __init__(self, ready: cases.Ready) -> None:
        self._ready = ready
        self._buffers = [ready.runtime.buffer_like(ready.content) for _ in range(2)]
        self._step = 0
        self.content = ready.content

    def next(self) -> tuple[tuple[Any], dict[str, Any]]:
        """Positional and keyword arguments of the next round."""
        self._step += 1
        buffer = self._buffers[self._step % 2]
        self.content = self._ready.runtime.vary(self._ready.content, self._step)
        self._ready.runtime.fill(buffer, self.content)
        self._ready.device.synchronize()
        return (buffer,), {}


def _rounds(ready: cases.Ready) -> int:
    """As many calls as the protocol's inner samples, from the gate's second call."""
    protocol = ready.cell.protocol
    call_s = ready.outcome.planning_s or ready.outcome.first_call_s or protocol.inner_s
    return max(MIN_ROUNDS, min(protocol.max_inner, int(protocol.inner_s / max(call_s, 1e-9))))


def _facts(ready: cases.Ready) -> dict[str, Any]:
    cell, facts = ready.cell, ready.environment
    return {
        "case": cell.id,
        "task": ready.method.task,
        "method": cell.method,
        "problem": cell.problem.id,
        "status": ready.outcome.status,
        "errors": dict(ready.outcome.errors),
        "clock": "host",
        "device": facts["device_name"],
        "threads": facts["threads"],
        "torch": environment.version("torch"),
        "protocol": cell.protocol.version,
        "commit": environment.git()["commit"],
    }
