"""How many operations a step dispatches: on a slow host each costs a GPU about 20 us, whatever it does."""

import collections
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from methods.kfac import factories, refresh, shifts
from methods.kfac.inverse import cholesky
from methods.kfac.recorder import Recorder

WIDTHS = (8, 0, 16, 0, 32, 32, 0, 64, 64)


class Count(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.found = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def net(widths=WIDTHS):
    """Convolutions, batch norms and a head in VGG16's order, an eighth as wide."""
    torch.manual_seed(0)
    parts, channels = [], 3
    for width in widths:
        if width:
            parts += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            parts.append(nn.MaxPool2d(2))
    parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    return nn.Sequential(*parts).to(memory_format=torch.channels_last)


def counts(make, widths=WIDTHS, **options):
    """Operations of a plain step, of a statistics step and of one that refreshes too; and what backward has more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = net(widths)
        optimizer = make(model, lr=1e-3, damping=0.03, update_period=2, refresh_period=4, **options)
    found = []
    for k in range(7):
        generator = torch.Generator().manual_seed(k)
        x = torch.randn(4, 3, 32, 32, generator=generator).to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), torch.randint(0, 10, (4,), generator=generator))
        with Count() as backward:
            loss.backward()
        with Count() as step:
            optimizer.step()
        found.append((backward.found.total(), step.found.total()))
    return {"plain": found[5][1], "statistics": found[6][1], "refresh": found[4][1], "more": found[6][0] - found[5][0]}


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Patches instead of shifts, and the widths at which a refresh changes its ways an eighth of the real ones."""
    monkeypatch.setattr(shifts, "chosen", lambda *_: False)
    monkeypatch.setattr(refresh, "BATCH_UP_TO", 80)
    monkeypatch.setattr(cholesky, "BLOCKED_FROM", 128)
    monkeypatch.setattr(cholesky, "LEAF", 64)


@pytest.mark.parametrize(
    ("make", "limits"),
    [
        (factories.cholesky, {"plain": 70, "statistics": 200, "refresh": 950, "more": 190}),
        (factories.rs_warm, {"plain": 105, "statistics": 230, "refresh": 1870, "more": 190}),
    ],
)
def test_operations_of_a_step(make, limits, as_on_a_gpu):
    found = counts(make)
    assert all(found[kind] <= limit for kind, limit in limits.items()), found


@pytest.mark.parametrize("make", [factories.cholesky, factories.rs_warm])
def test_equal_layers_cost_a_plain_step_nothing(make):
    few, many = (counts(make, (8, *[16] * count, 0, 0, 0, 0)) for count in (3, 9))
    assert few["plain"] == many["plain"]


def test_a_layer_of_a_statistics_step(as_on_a_gpu):
    few, many = (counts(factories.cholesky, (8, *[16] * count, 0, 0, 0, 0)) for count in (3, 9))
    assert many["more"] - few["more"] <= 6 * 27
    assert many["statistics"] - few["statistics"] <= 6 * 15


class Silent(Recorder):
    """Replays nothing: what is left is what the host dispatches beside a graph."""

    def capture(self, device, work):
        super().capture(device, work)
        return lambda: None


@pytest.mark.parametrize("make", [factories.cholesky, factories.rs_warm])
def test_beside_a_graph_little_is_left(make, as_on_a_gpu):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = net()
        optimizer = make(model, damping=0.03, update_period=4, refresh_period=40, stagger=True, spread=True)
    optimizer.static.graphs.engine = Silent()
    found = []
    for k in range(12):
        x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(k))
        optimizer.zero_grad()
        model(x.to(memory_format=torch.channels_last)).square().mean().backward()
        with Count() as step:
            optimizer.step()
        if not optimizer.policy.due(k):
            found.append(step.found.total())
    assert optimizer.describe()["graphs"]["captured"] == 1
    assert max(found[4:]) <= 20, found
