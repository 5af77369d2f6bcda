import pytest
import torch
from torch import nn

from harness.errors import Unsupported, UserError
from methods.first_order.composite import Composite


def parts():
    weights = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    return weights, Composite({"a": torch.optim.SGD(weights[:1], lr=0.5), "b": torch.optim.AdamW(weights[1:], lr=0.25)})


def test_groups_state_and_coverage_are_the_parts():
    weights, optimizer = parts()
    assert optimizer.coverage == {"a": 2, "b": 4}
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]
    assert optimizer.param_groups[0] is optimizer.optimizers["a"].param_groups[0]

    def closure():
        optimizer.zero_grad()
        loss = sum((weight**2).sum() for weight in weights)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 6.0
    assert torch.equal(weights[0].detach(), torch.zeros(2))
    assert set(optimizer.state) == set(weights[1:])
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step(closure)
    assert torch.equal(weights[0].detach(), torch.zeros(2))
    optimizer.zero_grad()
    assert all(weight.grad is None for weight in weights)
    assert optimizer.parts() == {}
    optimizer.close()


def test_mistakes_are_told():
    weights, optimizer = parts()
    with pytest.raises(UserError, match="share a parameter"):
        Composite({"a": torch.optim.SGD(weights, lr=1.0), "b": torch.optim.SGD(weights[:1], lr=1.0)})
    with pytest.raises(UserError, match="at least one part"):
        Composite({})
    with pytest.raises(UserError, match="has the parts"):
        optimizer.load_state_dict({"parts": {"a": {}}})
    with pytest.raises(Unsupported, match="which part"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
