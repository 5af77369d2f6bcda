"""Tests of Muon's fused passes in Triton's interpreter; ``test_muon_interpreted.py`` runs this file by itself.

The interpreter must be chosen before triton is first imported, which other tests in one pytest process would prevent.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from methods.first_order import muon_fused
from methods.first_order.muon import Muon

assert os.environ.get("TRITON_INTERPRET") == "1", "run with TRITON_INTERPRET=1"


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(3, 40, 33), (1, 1, 1), (2, 7, 5)])
def test_advance(shape, nesterov):
    gradients = [torch.randn(shape[1:]) for _ in range(shape[0])]
    momentum = torch.randn(shape)
    stack = torch.stack(gradients).double()
    wanted = momentum.double() * 0.75 + 0.25 * stack
    out = muon_fused.advance(muon_fused.Addresses().of(gradients), momentum, 0.75, nesterov, torch.float32)
    assert torch.allclose(momentum.double(), wanted, atol=1e-6)
    assert torch.allclose(out.double(), wanted * 0.75 + 0.25 * stack if nesterov else wanted, atol=1e-6)


def test_apply():
    weights = [torch.randn(40, 33) for _ in range(3)]
    before = torch.stack(weights).double()
    update = torch.randn(3, 40, 33).to(torch.float16)
    muon_fused.apply(muon_fused.Addresses().of(weights), weights[0], update, 0.5, 0.25)
    assert torch.allclose(torch.stack(weights).double(), 0.5 * before - 0.25 * update.double(), atol=1e-6)


def test_addresses_are_uploaded_when_they_change():
    tables = muon_fused.Addresses()
    first, second = torch.zeros(4), torch.zeros(4)
    table = tables.of([first, second])
    assert table.tolist() == [first.data_ptr(), second.data_ptr()]
    assert tables.of([first, second]) is table
    assert tables.of([second, first]).tolist() == [second.data_ptr(), first.data_ptr()]


def test_what_the_passes_cannot_read():
    weight, half = torch.zeros(8, 8), torch.zeros(8, 8, dtype=torch.float64)
    assert muon_fused.applies([weight], [weight.clone()], torch.bfloat16)
    assert not muon_fused.applies([weight], [weight.mT], torch.bfloat16)
    assert not muon_fused.applies([weight], [half], torch.bfloat16)
    assert not muon_fused.applies([half], [half], torch.bfloat16)
    assert not muon_fused.applies([weight], [torch.zeros(65)[1:].view(8, 8)], torch.bfloat16)


@pytest.mark.parametrize("hyper", [{}, {"nesterov": False, "weight_decay": 0.25, "adjust": "rms"}])
def test_whole_steps_equal_the_plain_path(hyper):
    torch.manual_seed(0)
    starts = [torch.randn(6, 10), torch.randn(6, 10), torch.randn(4, 3, 3, 3), torch.randn(4, 3, 3, 3)]
    starts[2:] = [start.to(memory_format=torch.channels_last) for start in starts[2:]]
    plain, fused = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    one, two = Muon(plain, **hyper), Muon(fused, **hyper)
    two._lay_out()
    for stack in two._stacks[0]:
        stack._fused, stack._tables = muon_fused, [muon_fused.Addresses(), muon_fused.Addresses()]
    for _ in range(3):
        for left, right in zip(plain, fused, strict=True):
            left.grad = torch.randn_like(left)
            right.grad = left.grad.clone()
        one.step()
        two.step()
    for left, right in zip(plain, fused, strict=True):
        assert torch.allclose(left, right, atol=1e-5)
