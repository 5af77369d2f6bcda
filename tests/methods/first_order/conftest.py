from __future__ import annotations

import copy

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net(nn.Module):
    """Every kind of parameter that a method meets: embedding, convolution, norm, wide and tall layers, head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.conv = nn.Conv2d(3, 5, 3, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.up = nn.Linear(6, 11)
        self.down = nn.Linear(11, 6)
        self.up2 = nn.Linear(6, 11, bias=False)
        self.scale = nn.Parameter(torch.ones(()))
        self.thin = nn.Linear(6, 1)
        self.head = nn.Linear(6, 4)


def _net(dtype: torch.dtype = torch.float64, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().to(dtype)


def _gradients(model: nn.Module, step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
        parameter.grad = drawn.to(parameter.dtype) if parameter.requires_grad else None


def _steps(optimizer: torch.optim.Optimizer, model: nn.Module, count: int, first: int = 0) -> nn.Module:
    for step in range(first, first + count):
        _gradients(model, step)
        optimizer.step()
    return model


def _distance(left: nn.Module, right: nn.Module) -> float:
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return max(float((a.detach().double() - b.detach().double()).abs().max()) for a, b in pairs)


@pytest.fixture
def net():
    return _net


@pytest.fixture
def set_gradients():
    return _gradients


@pytest.fixture
def run_steps():
    return _steps


@pytest.fixture
def distance():
    return _distance


@pytest.fixture
def clone():
    return copy.deepcopy
