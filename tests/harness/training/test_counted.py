"""What a run keeps of an optimizer's own counts."""

import torch

from harness.measure.training.step import counted


class Counting(torch.optim.SGD):
    @property
    def counters(self):
        return {"kept": torch.tensor(2), "skipped_batches": 0}

    def memory_usage(self):
        return {"factors": 12}


def test_counters_and_memory_by_category_are_plain_numbers():
    found = counted(Counting([torch.nn.Parameter(torch.zeros(1))], lr=0.1))
    assert found == {"counters": {"kept": 2, "skipped_batches": 0}, "memory_usage": {"factors": 12}}
    assert type(found["counters"]["kept"]) is int


def test_an_optimizer_without_counts_or_with_broken_ones_tells_nothing():
    assert counted(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)) == {}
    assert counted(None) == {}

    class Broken:
        @property
        def counters(self):
            raise RuntimeError("the device is gone")

    assert counted(Broken()) == {}
