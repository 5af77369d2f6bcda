"""Hardware counters: read where an ordinary user may, else a reason; never an exception."""

import errno
import itertools
import os
import sys

import pytest
import torch

from suites.amm import counters, runtime
from suites.amm.contents import Rows

linux = pytest.mark.skipif(sys.platform != "linux", reason="perf_event_open is Linux's")


def busy():
    return sum(i * i for i in range(50_000))


@linux
def test_counting_works_on_events_that_every_kernel_has(monkeypatch):
    """The software clock of a task (type 1, config 1): no hardware needed."""
    monkeypatch.setattr(counters, "EVENTS", {"task_clock": (1, 1)})
    before = len(os.listdir("/proc/self/fd"))
    found, why = counters.per_call([busy, lambda: None, busy])
    if why:
        pytest.skip(why)
    long, short, again = found["task_clock"]
    assert long > 5 * short
    assert again > 5 * short
    assert len(os.listdir("/proc/self/fd")) == before, "counters are closed"


@pytest.mark.parametrize("error", [errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENOSYS, errno.EMFILE])
def test_what_is_refused_is_told_once_and_nothing_runs(monkeypatch, error):
    def refuse(kind, config, thread):
        raise counters.Refused(counters._why(error))

    monkeypatch.setattr(counters, "_open", refuse)
    found, why = counters.per_call([lambda: pytest.fail("ran without a counter")])
    assert found == {}
    assert why.startswith("cache_misses, l1d_misses, instructions: ")
    assert why.count(counters._why(error)) == 1


def test_other_systems_say_so(monkeypatch):
    monkeypatch.setattr(counters.sys, "platform", "darwin")
    assert "darwin" in counters.per_call([busy])[1]


@linux
def test_a_counter_that_stands_still_is_none(monkeypatch):
    monkeypatch.setattr(counters, "EVENTS", {"task_clock": (1, 1)})
    monkeypatch.setattr(counters, "_total", lambda handles: 7.0)
    found, why = counters.per_call([busy, busy])
    assert found == {}
    assert "stands still" in why or "forbids" in why


@linux
def test_a_failing_call_closes_every_counter(monkeypatch):
    monkeypatch.setattr(counters, "EVENTS", {"task_clock": (1, 1)})
    before = len(os.listdir("/proc/self/fd"))
    if not counters.per_call([busy])[0]:
        pytest.skip("no counters here")
    with pytest.raises(ZeroDivisionError):
        counters.per_call([lambda: 1 // 0])
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_suite_counts_calls_on_changing_buffers(monkeypatch):
    seen = []
    monkeypatch.setattr(counters, "per_call", lambda calls: ({"cache_misses": [float(c()) for c in calls]}, "l1d: no"))
    rows = Rows(a=torch.arange(12.0).view(6, 2), index=torch.arange(6).numpy())
    numbers, why = runtime.count_events(lambda r: seen.append(float(r.a[0, 0])) or len(seen), rows)
    assert why == "l1d: no"
    counts, unit = numbers["cache_misses"]
    assert unit == "lines"
    assert counts[0] == runtime.COUNTED_BUFFERS + 1, "the first round warms up"
    assert all(one != two for one, two in itertools.pairwise(seen))
