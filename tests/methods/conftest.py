from itertools import pairwise

import pytest
import torch
from torch import nn

torch.set_num_threads(1)


class ConvNet(nn.Module):
    """Convolutions with stride, padding, dilation and groups, a batch norm, and a linear head."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, (2, 3), padding=(0, 2), dilation=(1, 2), groups=2, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.tanh(self.norm(self.conv1(x)))
        return self.head(torch.tanh(self.conv2(x)).mean((2, 3)))


def conv_net(seed=0):
    torch.manual_seed(seed)
    return ConvNet().double()


def mlp(seed=0, sizes=(4, 5, 3), bias=True):
    torch.manual_seed(seed)
    layers = [nn.Linear(a, b, bias=bias) for a, b in pairwise(sizes)]
    mixed = [part for layer in layers for part in (layer, nn.Tanh())]
    return nn.Sequential(*mixed[:-1]).double()


@pytest.fixture
def nets():
    """name -> (maker of a net, maker of its batch number k)."""

    def images(k, count=6):
        generator = torch.Generator().manual_seed(100 + k)
        x = torch.randn(count, 2, 6, 7, generator=generator, dtype=torch.float64)
        return x, torch.randint(0, 3, (count,), generator=generator)

    def rows(k, count=6):
        generator = torch.Generator().manual_seed(100 + k)
        x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
        return x, torch.randint(0, 3, (count,), generator=generator)

    return {"conv": (conv_net, images), "mlp": (mlp, rows)}


@pytest.fixture
def train():
    """Plain training steps on batches first, first + 1, ...; returns the losses."""

    def run(model, optimizer, batches, steps, first=0, reduction="mean", pieces=1):
        losses = []
        for k in range(first, first + steps):
            x, y = batches(k)
            optimizer.zero_grad()
            for part in torch.arange(len(x)).chunk(pieces):
                loss = nn.functional.cross_entropy(model(x[part]), y[part], reduction=reduction)
                if reduction == "mean":
                    loss = loss * len(part) / len(x)
                loss.backward()
                losses.append(loss.item())
            optimizer.step()
        return losses

    return run


@pytest.fixture
def distance():
    """Largest relative difference between two models' parameters."""

    def measure(one, other):
        pairs = zip(one.parameters(), other.parameters(), strict=True)
        return max(float((a - b).detach().abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in pairs)

    return measure
