"""How many operations a step dispatches: each costs the host some microseconds, whatever its size."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from methods.singd import factories

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves to")
#: Six shapes: plain step, update step (its plain part counted), statistics inside backward of eight layers.
BOUNDS = {
    "dense": (32, 500, 355),
    "diagonal": (12, 125, 110),
    "block30": (100, 240, 290),
    "hierarchical15": (112, 600, 430),
    "tril_toeplitz": (32, 175, 460),
    "rank1_arrow": (100, 300, 360),
}


class Launches(TorchDispatchMode):
    """Counts dispatched operations, views too."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self):
        return sum(self.found.values())


def net(repeats):
    """Convolutions 3-8-8-16-16, ``repeats`` more of the last shape, batch norms, and a head of two layers."""
    torch.manual_seed(0)
    layers, inputs = [], 3
    for width in (8, 8, 16, 16, *[16] * repeats):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))
    return nn.Sequential(*layers, *head)


def counts(name, repeats):
    """Operations of a plain step, of an update step, and of its statistics."""
    model = net(repeats)
    optimizer = getattr(factories, name)(model, update_period=2)
    found = []
    for k in range(4):
        generator = torch.Generator().manual_seed(k)
        x, y = torch.randn(4, 3, 8, 8, generator=generator), torch.randint(0, 10, (4,), generator=generator)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        with Launches() as backward:
            loss.backward()
        with Launches() as step:
            optimizer.step()
        found.append((backward.total, step.total))
    (with_sums, update), (without, plain) = found[2:]
    return plain, update, with_sums - without


@pytest.mark.parametrize("name", BOUNDS)
def test_a_step_dispatches_few_operations_however_many_layers_are_alike(name):
    shallow, deep = counts(name, 2), counts(name, 6)
    for number, bound in zip(shallow, BOUNDS[name], strict=True):
        assert 0 < number <= bound
    assert deep[0] == shallow[0]
    assert deep[1] == shallow[1]


def test_the_gradients_buffer_lives_during_a_step_alone():
    model = net(2)
    optimizer = factories.dense(model)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 8, 8)).sum().backward()
        optimizer.step()
        assert [buffer.untyped_storage().nbytes() for buffer in optimizer._apply.buffers] == [0]
