import pytest
import torch

from harness.errors import UserError
from methods.first_order import lars, reference

CASES = [{}, {"weight_decay": 0.1, "eta": 0.01}, {"nesterov": True, "momentum": 0.5, "eps": 0.1}, {"momentum": 0.0}]


@pytest.mark.parametrize("hyper", CASES)
@pytest.mark.parametrize("count", [1, 6])
def test_steps_equal_the_plain_twin(hyper, count, net, run_steps, distance):
    model, twin = net(), net()
    run_steps(lars.make(model, lr=3.0, **hyper), model, count)
    run_steps(reference.lars(twin, lr=3.0, **hyper), twin, count)
    assert distance(model, net()) > 1e-3
    assert distance(model, twin) < 1e-12


def test_by_hand():
    model = torch.nn.Linear(2, 1).double()
    model.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    model.bias.data.fill_(1.0)
    optimizer = lars.make(model, lr=2.0, momentum=0.0, weight_decay=0.5, eta=0.1)
    model.weight.grad = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    model.bias.grad = torch.tensor([0.25], dtype=torch.float64)
    optimizer.step()  # |w| 5, |g| 2: t = 0.5 / 4.5
    wanted = torch.tensor([[3.0, 4.0]], dtype=torch.float64) - 2 / 9 * torch.tensor([[1.5, 4.0]], dtype=torch.float64)
    assert torch.allclose(model.weight, wanted, atol=1e-15)
    assert model.bias.item() == 0.5
    assert optimizer.coverage == {"lars": 2, "sgd": 1}


def test_zero_weight_or_gradient_gets_plain_sgd():
    model = torch.nn.Linear(2, 2, bias=False).double()
    model.weight.data.zero_()
    optimizer = lars.make(model, lr=0.5, momentum=0.0)
    model.weight.grad = torch.ones(2, 2, dtype=torch.float64)
    optimizer.step()
    assert torch.equal(model.weight.detach(), torch.full((2, 2), -0.5, dtype=torch.float64))
    model.weight.grad.zero_()
    optimizer.step()
    assert bool(model.weight.isfinite().all())


def test_the_gradient_is_left_alone_and_bad_values_are_told(net, set_gradients):
    model = net()
    set_gradients(model, 0)
    before = [parameter.grad.clone() for parameter in model.parameters()]
    lars.make(model, nesterov=True).step()
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))
    with pytest.raises(UserError, match="momentum in"):
        lars.make(net(), momentum=1.0)
