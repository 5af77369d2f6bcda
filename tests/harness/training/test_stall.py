"""The share of an update that waits for data, told on a device whose clock is scripted."""

from types import SimpleNamespace

import pytest
import torch

from harness.catalogue.workload import Batch
from harness.measure.training import warmup

BATCH, PLAIN, RARE = 4, 1.0, 9.0


class Scripted:
    """A stepper and its device: an update takes ``PLAIN``, every ``period``-th ``RARE`` more, a batch ``wait``.

    The loader makes ``ahead`` batches at once.
    """

    def __init__(self, kind, period, wait, ahead, monkeypatch):
        self.now, self.inside, self.updates, self.asked = 0.0, 0.0, 0, 0
        self.period, self.wait, self.ahead, self.batch = period, wait, ahead, BATCH
        self.device = SimpleNamespace(kind=kind, synchronize=lambda: None, release=lambda: None)
        self.buckets = SimpleNamespace(collect=self.collect)
        self.ranks = SimpleNamespace(first=lambda seconds: warmup.STALL_S + 1)
        monkeypatch.setattr(warmup, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def collect(self):
        found, self.inside = {"data": self.inside}, 0.0
        return found

    def forget(self):
        self.asked = 0

    def train(self, seed, first, count):
        self.now += self.wait * self.ahead if self.asked % self.ahead == 1 % self.ahead else 0.0
        self.asked += 1
        return Batch(torch.full((count,), float(first)), torch.zeros(count))

    def update(self, fetch, first):
        before = self.now
        fetch(first, self.batch)
        self.inside += self.now - before
        self.updates += 1
        self.now += PLAIN + (RARE if self.updates % self.period == 0 else 0.0)


@pytest.mark.parametrize(("kind", "ahead"), [("cpu", 1), ("cuda", 1), ("cuda", 8)])
@pytest.mark.parametrize("period", [8, 10, 30, 1000])
@pytest.mark.parametrize("wait", [0.0, 0.25, 2.0])
def test_periodic_work_of_a_method_is_no_stall_and_a_slow_loader_is_one(kind, ahead, period, wait, monkeypatch):
    stepper = Scripted(kind, period, wait, ahead, monkeypatch)
    found = warmup._stall(stepper, stepper, 0)
    least = wait / (PLAIN + wait + RARE / min(period, warmup.STALL_GROUP[kind]))
    assert least - 1e-9 <= found <= wait / (PLAIN + wait) + 1e-9
    assert (found > 0.05) == (wait > 0)


@pytest.mark.parametrize(("wait", "pairs"), [(0.0, warmup.STALL_PAIRS), (0.25, warmup.STALL_MOST)])
def test_where_nothing_waits_the_fewest_pairs_say_so(wait, pairs, monkeypatch):
    monkeypatch.setattr(warmup, "STALL_S", 1e9)
    stepper = Scripted("cpu", 10, wait, 1, monkeypatch)
    stepper.ranks = SimpleNamespace(first=lambda seconds: seconds)
    warmup._stall(stepper, stepper, 0)
    assert stepper.updates == 1 + 2 * pairs
