import pytest
import torch
from torch import nn

from methods.first_order import _bench_muon as bench
from methods.first_order.muon import Muon

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equal_to_torchs_muon_and_to_the_plain_passes(dtype):
    found = bench.check([(256, 768), (256, 768), (768, 256), (64, 32, 3, 3)], dtype)
    assert found["ours against torch.optim.Muon"] < bench.LIMIT
    assert found["fused against plain"] < bench.LIMIT


def test_a_captured_step_is_the_eager_one():
    assert bench.check_graph([(256, 768)] * 3 + [(768, 256)], torch.float32) < 1e-3


def test_new_gradients_at_new_addresses_are_seen():
    pytest.importorskip("triton")
    weight = nn.Parameter(torch.zeros(64, 64, device="cuda"))
    optimizer = Muon([weight], momentum=0.0, iteration_dtype="float32", orthogonalizer="polar.ns-torch")
    held = []
    for sign in (1.0, -1.0):
        weight.grad = sign * torch.eye(64, device="cuda")
        held.append(weight.grad)
        optimizer.step()
        held.append(weight.detach().clone())
    assert float(held[1].diagonal().max()) < -0.01
    assert float(weight.detach().abs().max()) < 1e-4
    assert optimizer._stacks[0][0]._fused is not None
