import io

import pytest
import torch

from harness.errors import UserError
from methods.first_order import muon, reference, torch_muon


def moved(model, start):
    return [(a.detach() - b.detach()).float() for a, b in zip(model.parameters(), start.parameters(), strict=True)]


@pytest.mark.parametrize("hyper", [{}, {"adjust": "rms", "weight_decay": 0.2}])
def test_near_the_plain_twin(hyper, net, run_steps):
    model, twin, start = net(torch.float32), net(torch.float32), net(torch.float32)
    run_steps(torch_muon.make(model, **hyper), model, 2)
    run_steps(reference.torch_muon(twin, **hyper), twin, 2)
    for one, two in zip(moved(model, start), moved(twin, start), strict=True):
        assert (one - two).norm() <= 0.05 * two.norm()
        assert two.norm() > 0


def test_zero_grad_reaches_flattened_convolutions(net, set_gradients):
    model = net(torch.float32)
    optimizer = torch_muon.make(model)
    set_gradients(model, 0)
    optimizer.step()
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert optimizer.coverage == {
        name.replace("muon", "torch-muon"): n for name, n in muon.make(net()).coverage.items()
    }


def test_resume_and_a_late_cast(net, run_steps, distance):
    model = net(torch.float32)
    optimizer = torch_muon.make(model)
    run_steps(optimizer, model, 2)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other = net(torch.float32, seed=1)
    other.load_state_dict(weights)
    resumed = torch_muon.make(other)
    resumed.load_state_dict(state)
    run_steps(resumed, other, 2, first=2)
    run_steps(optimizer, model, 2, first=2)
    assert distance(model, other) == 0.0
    with pytest.raises(UserError, match="cast or moved"):
        run_steps(optimizer, model.double(), 1)
    with pytest.raises(UserError, match="adjust is one of"):
        torch_muon.make(net(), adjust="none")
