"""Exact Fisher and GGN blocks by autograd, dense solves, and convolutions against ``unfold``."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from methods.kfac import damping, factories
from methods.kfac.kfac import KFAC
from methods.kfac.layers import averaged_rows, find, input_rows

ONCE = {"factor_init": "first-batch", "update_period": 1, "refresh_period": 1, "damping": 0.1, "lr": 0.0}


def block(model, layer, x, hessian, terms):
    """(1 / R) sum_r J_r^T H_r J_r over the row-major matrix [W b] of one layer; hessian(z): (R, C, C)."""
    names = {id(p): n for n, p in model.named_parameters()}

    def outputs(*tensors):
        held = dict(zip([names[id(p)] for p in layer.parameters], tensors, strict=True))
        return torch.func.functional_call(model, held, (x,)).flatten(0, -2)

    parts = torch.autograd.functional.jacobian(outputs, tuple(p.detach() for p in layer.parameters))
    d_out = layer.weight.shape[0]
    jac = torch.cat([part.reshape(*part.shape[:2], d_out, -1) for part in parts], 3).flatten(2)
    return torch.einsum("rci,rcd,rdj->ij", jac, hessian(outputs(*layer.parameters).detach()), jac) / terms


def mse_hessian(z):
    return (2.0 / z.shape[-1] * torch.eye(z.shape[-1], dtype=z.dtype)).expand(len(z), -1, -1)


def softmax_hessian(z):
    p = torch.softmax(z, -1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def kron(optimizer, layer):
    held = optimizer.statistics.factors[layer]
    return torch.kron(held.g[0], held.a[0])


def closure_of(model, x, y, loss):
    def closure(part=None, targets="data"):
        z = model(x)
        drawn = torch.multinomial(torch.softmax(z.detach(), -1), 1)[:, 0] if targets == "model" else y
        value = loss(z, drawn)
        value.backward()
        return value

    return closure


class PerPosition(nn.Sequential):
    """Deep linear, a loss at every position."""


class Pooled(nn.Sequential):
    """Deep linear, pooled over the positions before the loss."""

    def forward(self, x):
        return super().forward(x).mean(1)


class PooledConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 3, 3, stride=2, padding=1, dilation=2), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "shape", "options"),
    [
        (PerPosition, (7, 4), {}),
        (PerPosition, (6, 5, 4), {"loss_terms": "batch+sequence"}),
        (Pooled, (6, 5, 4), {"sharing": "reduce"}),
        (PooledConv, (6, 2, 7, 6), {"sharing": "reduce"}),
    ],
)
def test_type_2_equals_the_exact_ggn_in_deep_linear_nets(kind, shape, options):
    torch.manual_seed(0)
    linear = [nn.Linear(4, 3), nn.Linear(3, 5, bias=False), nn.Linear(5, 2)]
    model = (kind() if kind is PooledConv else kind(*linear)).double()
    x = torch.randn(shape, dtype=torch.float64)
    optimizer = KFAC(model, fisher="type-2", loss="mse", **ONCE, **options)
    target = torch.randn_like(model(x))
    optimizer.step(closure_of(model, x, target, functional.mse_loss))
    terms = target.shape[:-1].numel()
    for layer in optimizer.layers:
        wanted = block(model, layer, x, mse_hessian, terms)
        torch.testing.assert_close(kron(optimizer, layer), wanted, rtol=1e-11, atol=1e-13)


def test_type_2_equals_the_exact_ggn_for_one_sample(nets):
    model = nets["mlp"][0]()
    x, y = nets["mlp"][1](0, 1)
    optimizer = KFAC(model, fisher="type-2", **ONCE)
    optimizer.step(closure_of(model, x, y, functional.cross_entropy))
    for layer in optimizer.layers:
        wanted = block(model, layer, x, softmax_hessian, 1)
        torch.testing.assert_close(kron(optimizer, layer), wanted, rtol=1e-11, atol=1e-14)


def test_monte_carlo_tends_to_the_exact_fisher(nets):
    model = nets["mlp"][0]()
    x, y = nets["mlp"][1](0, 1)
    optimizer = KFAC(model, fisher="monte-carlo", mc_samples=600, **ONCE)
    torch.manual_seed(1)
    optimizer.step(closure_of(model, x, y, functional.cross_entropy))
    for layer in optimizer.layers:
        wanted = block(model, layer, x, softmax_hessian, 1)
        assert (kron(optimizer, layer) - wanted).norm() < 0.15 * wanted.norm()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_empirical_fisher_of_one_sample_is_exact(reduction, nets, train):
    model = nets["mlp"][0]()
    x, y = nets["mlp"][1](0, 1)
    optimizer = KFAC(model, reduction=reduction, **ONCE)
    train(model, optimizer, lambda k: (x, y), 1, reduction=reduction)
    for layer in optimizer.layers:
        gradient = layer.gradient().flatten()
        torch.testing.assert_close(kron(optimizer, layer), torch.outer(gradient, gradient))


@pytest.mark.parametrize("mode", damping.MODES)
def test_direction_is_the_dense_solve_in_every_damping_mode(mode, nets, train):
    model = nets["mlp"][0]()
    name = "eigh" if mode in damping.JOINT else "cholesky"
    optimizer = KFAC(model, inverse=name, damping_mode=mode, **ONCE)
    train(model, optimizer, nets["mlp"][1], 1)
    for layer in optimizer.layers:
        a, g = (m[0] for m in optimizer.statistics.read(layer))
        gradient = torch.randn(1, *[layer.d_out, layer.d_in], dtype=torch.float64)
        if mode in damping.JOINT:
            top = torch.linalg.eigvalsh(a)[-1] * torch.linalg.eigvalsh(g)[-1] if mode != "exact" else 1.0
            dense = torch.kron(g, a) + 0.1 * top * torch.eye(layer.d_in * layer.d_out).double()
        else:
            one, other = damping.separate(mode, 0.1, a[None], g[None])
            if mode == "pi":
                torch.testing.assert_close(one * other, torch.full_like(one, 0.1))
                torch.testing.assert_close(one / other, (a.trace() / len(a) / g.trace() * len(g))[None])
            dense = torch.kron(g + other * torch.eye(len(g)).double(), a + one * torch.eye(len(a)).double())
        wanted = torch.linalg.solve(dense, gradient.flatten()).reshape(gradient.shape)
        torch.testing.assert_close(optimizer.direction(layer, gradient), wanted, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(optimizer.directions([layer], [gradient])[0], wanted, rtol=1e-8, atol=1e-10)
        tolerance = 1e-4 if mode == "adaptive-exact" else 1e-8
        (back,) = optimizer.multiply([layer], [wanted], damped=True)
        torch.testing.assert_close(back, gradient, rtol=tolerance, atol=tolerance)
        (plain,) = optimizer.multiply([layer], [gradient])
        torch.testing.assert_close(plain[0], g @ gradient[0] @ a)


def test_a_transposed_eigenbasis_would_be_seen(nets, train):
    """The mistake of several public implementations is far outside the tolerance above."""
    model = nets["mlp"][0]()
    optimizer = factories.eigh(model, **ONCE)
    train(model, optimizer, nets["mlp"][1], 1)
    layer = optimizer.layers[0]
    gradient = torch.randn(1, layer.d_out, layer.d_in, dtype=torch.float64)
    right = optimizer.direction(layer, gradient)
    for slot in optimizer.slots[layer]:
        slot.state["vectors"] = slot.state["vectors"].mT.contiguous()
    wrong = optimizer.direction(layer, gradient)
    assert (wrong - right).norm() > 0.1 * right.norm()


def test_largest_eigenvalue():
    torch.manual_seed(0)
    roots = torch.randn(4, 9, 30, dtype=torch.float64) + 0.5
    stack = roots @ roots.mT
    torch.testing.assert_close(damping.largest(stack), torch.linalg.eigvalsh(stack)[:, -1], rtol=1e-3, atol=0.0)
    assert damping.largest(torch.zeros(2, 3, 3)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": (2, 3), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2},
        {"kernel_size": 1, "groups": 4},
        {"kernel_size": (2, 3), "padding": "same", "dilation": (3, 1)},
        {"kernel_size": 2, "padding": "valid", "stride": 3},
        {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular"},
        {"kernel_size": (3, 2), "padding": "same", "padding_mode": "reflect", "groups": 2},
    ],
)
def test_rows_times_weight_are_the_convolution(options):
    torch.manual_seed(0)
    module = nn.Conv2d(4, 8, bias=False, **options).double()
    x = torch.randn(3, 4, 7, 8, dtype=torch.float64)
    layers, *_ = find(nn.Sequential(module))
    rows = input_rows(module, x)
    weight = layers[0].matrix([module.weight])
    out = torch.einsum("gnsi,goi->ngos", rows, weight).flatten(1, 2)
    wanted = module(x)
    torch.testing.assert_close(out, wanted.flatten(2))
    torch.testing.assert_close(averaged_rows(module, x), rows.mean(2, keepdim=True))
    assert torch.equal(layers[0].views(weight)[0], module.weight)


def test_conv_factors_equal_unfold():
    torch.manual_seed(0)
    module = nn.Conv2d(4, 6, (2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2).double()
    x = torch.randn(5, 4, 6, 7, dtype=torch.float64)
    model = nn.Sequential(module, nn.Flatten())
    optimizer = KFAC(model, **ONCE)
    z = model(x)
    functional.mse_loss(z, torch.ones_like(z), reduction="sum").div(5).backward()
    optimizer.step()
    held = optimizer.statistics.factors[optimizer.layers[0]]
    columns = functional.unfold(x, (2, 3), (1, 2), (1, 2), (2, 1))
    gradient = (2 * (z - 1)).detach().reshape(5, 6, -1)
    for group in range(2):
        rows = columns.chunk(2, 1)[group].transpose(1, 2).flatten(0, 1)
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1)
        torch.testing.assert_close(held.a[group], rows.mT @ rows / len(rows))
        out = gradient[:, 3 * group : 3 * group + 3].transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(held.g[group], out.mT @ out / 5)


def test_ekfac_scales_are_the_fishers_diagonal_in_the_basis(nets, train):
    """s = E_n[(Q_G^T dW_n Q_A)^2] by one backward for each sample."""
    model = nets["conv"][0]().eval()
    x, y = nets["conv"][1](0)
    optimizer = factories.ekfac(
        model, lr=0.0, update_period=1, refresh_period=100, factor_init="first-batch", fallback_lr=0.0, exclude=[]
    )
    train(model, optimizer, lambda k: (x, y), 2)
    for layer in optimizer.layers:
        qa, qg = (slot.state["vectors"] for slot in optimizer.slots[layer])
        total = 0.0
        for n in range(len(x)):
            loss = functional.cross_entropy(model(x[n : n + 1]), y[n : n + 1])
            grads = torch.autograd.grad(loss, layer.parameters)
            total = total + (qg.mT @ layer.matrix(grads) @ qa) ** 2
        torch.testing.assert_close(optimizer.scales[layer], total / len(x))


@pytest.mark.parametrize("mode", ["pi", "same", "adaptive"])
def test_damping_of_all_layers_at_once(mode):
    torch.manual_seed(0)
    factors = []
    for groups, d_in, d_out in [(1, 4, 3), (2, 5, 6), (1, 7, 2)]:
        pair = [torch.randn(groups, 9, d, dtype=torch.float64) for d in (d_in, d_out)]
        factors.append(tuple(rows.mT @ rows for rows in pair))
    together = damping.separate_all(mode, 0.1, factors)
    for (a, g), found in zip(factors, together, strict=True):
        for one, wanted in zip(found, damping.separate(mode, 0.1, a, g), strict=True):
            torch.testing.assert_close(one, wanted)
