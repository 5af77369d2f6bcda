"""The share of an update that waits for data, told on a device whose clock is scripted."""

from types import SimpleNamespace

import pytest
import torch

from harness.catalogue.workload import Batch
from harness.measure.training import warmup

BATCH, PLAIN, RARE = 4, 1.0, 9.0


class Scripted:
    """A stepper and its device: an update takes ``PLAIN``, every ``period``-th ``RARE`` more, a batch ``wait``."""

    def __init__(self, kind, period, wait):
        self.now, self.updates, self.period, self.wait = 0.0, 0, period, wait
        self.batch = BATCH
        self.device = SimpleNamespace(
            kind=kind,
            synchronize=lambda: None,
            mark=lambda: self.now,
            seconds=lambda one, other: other - one,
            release=lambda: None,
        )
        self.buckets = SimpleNamespace(collect=dict)
        self.ranks = SimpleNamespace(first=lambda seconds: warmup.STALL_S + 1)

    def train(self, seed, first, count):
        self.now += self.wait
        return Batch(torch.full((count,), float(first)), torch.zeros(count))

    def update(self, fetch, first):
        fetch(first, self.batch)
        self.updates += 1
        self.now += PLAIN + (RARE if self.updates % self.period == 0 else 0.0)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("period", [7, 8, 10, 30, 1000])
@pytest.mark.parametrize("wait", [0.0, 0.25])
def test_periodic_work_of_a_method_is_no_stall(kind, period, wait):
    stepper = Scripted(kind, period, wait)
    found = warmup._stall(stepper, stepper, 0)
    assert found == pytest.approx(1 - PLAIN / (PLAIN + wait))
