import io

import pytest
import torch

from harness.errors import UserError
from methods.first_order import adamw, reference, sgd

SGD = [
    {},
    {"momentum": 0.0},
    {"nesterov": False, "weight_decay": 0.1},
    {"weight_decay": 0.1, "decay": "matrices", "momentum": 0.5},
    {"weight_decay": 0.1, "norm_bias_lr_factor": 3.0, "bias_lr_factor": 0.5},
]
ADAMW = [{}, {"decay": "all", "weight_decay": 0.3}, {"beta1": 0.5, "beta2": 0.7, "eps": 1e-3, "weight_decay": 0.0}]
CASES = [*((sgd.make, reference.sgd, h) for h in SGD), *((adamw.make, reference.adamw, h) for h in ADAMW)]


@pytest.mark.parametrize(("make", "plain", "hyper"), CASES)
@pytest.mark.parametrize("count", [1, 7])
def test_steps_equal_the_plain_twin(make, plain, hyper, count, net, run_steps, distance):
    model, twin = net(), net()
    run_steps(make(model, lr=0.05, **hyper), model, count)
    run_steps(plain(twin, lr=0.05, **hyper), twin, count)
    assert distance(model, net()) > 0.01
    assert distance(model, twin) < 1e-12


def test_the_factor_of_norm_shifts_scales_the_rate_and_not_the_decay():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = sgd.make(model, lr=0.5, weight_decay=0.1, norm_bias_lr_factor=64.0)
    [shift] = [g for g in optimizer.param_groups if g["lr"] != 0.5]
    assert [p is model[1].bias for p in shift["params"]] == [True]
    assert (shift["lr"], shift["lr"] * shift["weight_decay"]) == pytest.approx((32.0, 0.05))
    assert sum(optimizer.coverage.values()) == 15
    with pytest.raises(UserError, match="positive"):
        sgd.make(model, norm_bias_lr_factor=0.0)


def test_sgd_by_hand():
    model = torch.nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(2.0)
    optimizer = sgd.make(model, lr=0.5, momentum=0.5, weight_decay=0.25)
    model.weight.grad = torch.ones(1, 1, dtype=torch.float64)
    optimizer.step()  # g = 1.5, v = 1.5, direction 2.25
    assert model.weight.item() == 0.875
    optimizer.step()  # g = 1.21875, v = 1.96875, direction 2.203125
    assert model.weight.item() == 0.875 - 0.5 * 2.203125


@pytest.mark.parametrize("make", [sgd.make, adamw.make])
def test_coverage_schedule_and_exact_resume(make, net, run_steps, distance):
    model = net(torch.float32)
    optimizer = make(model, lr=0.1)
    assert sum(optimizer.coverage.values()) == sum(p.numel() for p in model.parameters())
    run_steps(optimizer, model, 2)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = net(torch.float32, seed=1)
    other.load_state_dict(saved["model"])
    resumed = make(other, lr=0.3)
    resumed.load_state_dict(saved["optimizer"])
    run_steps(resumed, other, 3, first=2)
    run_steps(optimizer, model, 3, first=2)
    assert distance(model, other) == 0.0
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = net(torch.float32)
    before.load_state_dict(model.state_dict())
    run_steps(optimizer, model, 1)
    assert distance(model, before) == 0.0


@pytest.mark.parametrize("make", [sgd.make, adamw.make])
def test_frozen_and_unused_parameters_stay(make, net, set_gradients):
    model, start = net(), net()
    model.up.requires_grad_(False)
    optimizer = make(model, lr=0.1)
    assert sum(optimizer.coverage.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    set_gradients(model, 0)
    model.down.weight.grad = None
    optimizer.step()
    assert torch.equal(model.up.weight, start.up.weight)
    assert torch.equal(model.down.weight, start.down.weight)
    assert not torch.equal(model.head.weight, start.head.weight)


@pytest.mark.parametrize("make", [sgd.make, adamw.make])
def test_mistakes_are_told(make, net):
    with pytest.raises(UserError, match="decay is one of"):
        make(net(), weight_decay=0.1, decay="some")
    with pytest.raises(UserError, match="nothing can be trained"):
        make(net().requires_grad_(False))
