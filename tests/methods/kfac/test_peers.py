"""Parity with installable libraries where they are right: curvlinops-for-pytorch 3.0.1, asdfghjkl 0.1a5 (asdl)."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from methods.kfac.kfac import KFAC

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]
ONCE = {"factor_init": "first-batch", "update_period": 1, "refresh_period": 1, "lr": 0.0}


def conv_net():
    torch.manual_seed(0)
    parts = [nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(27, 5), nn.Tanh()]
    return nn.Sequential(*parts, nn.Linear(5, 3)).double()


def batch(*shape):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (shape[0],), generator=generator)


@pytest.mark.parametrize("fisher", ["empirical", "type-2"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_fisher_products_equal_curvlinops(sharing, fisher):
    curvlinops = pytest.importorskip("curvlinops", exc_type=ImportError)
    model, twin, (x, y) = conv_net(), conv_net(), batch(6, 2, 6, 6)
    optimizer = KFAC(model, fisher=fisher, sharing=sharing, **ONCE)

    def closure(part=None, targets="data"):
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    operator = curvlinops.KFACLinearOperator(
        twin,
        nn.CrossEntropyLoss(),
        list(twin.parameters()),
        [(x, y)],
        fisher_type=fisher,
        kfac_approx=sharing,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    vectors = [torch.randn_like(p) for p in twin.parameters()]
    products = operator @ vectors
    for index, layer in enumerate(optimizer.layers):
        pair = slice(2 * index, 2 * index + 2)
        (mine,) = optimizer.multiply([layer], [layer.matrix(vectors[pair])])
        torch.testing.assert_close(mine, layer.matrix(products[pair]), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("damping", [0.05, 1.0])
def test_steps_equal_asdl(damping):
    """Without biases, which asdl treats apart, and with its data size set to the batch."""
    asdl = pytest.importorskip("asdl")
    x, y = batch(7, 4)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)).double())
    config = asdl.PreconditioningConfig(data_size=len(x), damping=damping)
    maker = asdl.KfacGradientMaker(models[0], config, fisher_type="fisher_emp")
    maker.setup_loss_call(functional.cross_entropy, maker.setup_model_call(models[0], x), y)
    maker.forward_and_backward()
    optimizer = KFAC(models[1], damping_mode="pi", damping=damping, **ONCE)
    functional.cross_entropy(models[1](x), y).backward()
    optimizer.step()
    for layer, module in zip(optimizer.layers, (models[0][0], models[0][2]), strict=True):
        found = optimizer.direction(layer, layer.gradient())
        torch.testing.assert_close(found[0], module.weight.grad, rtol=1e-9, atol=1e-12)
