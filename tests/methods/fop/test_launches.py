"""Operations that a plain step of FOP dispatches."""

import collections
import itertools
import warnings

import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from methods.fop import factories


class Count(TorchDispatchMode):
    """Counts operations."""

    def __init__(self):
        super().__init__()
        self.found = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def plain_step(equal):
    torch.manual_seed(0)
    widths = [3, 8, *[16] * equal]
    parts = []
    for inputs, outputs in itertools.pairwise(widths):
        parts += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = factories.fop(model, split="batch", lr=1e-3, damping=0.03, update_period=2, refresh_period=4)
    for _ in range(6):
        optimizer.zero_grad()
        functional.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.arange(4)).backward()
        with Count() as step:
            optimizer.step()
    return step.found.total()


def test_operations_of_a_plain_step():
    few, many = plain_step(3), plain_step(9)
    assert few <= 380
    assert many - few <= 6 * 21
