"""Broken batches, wrong options and misuse: skipped and counted, or one clear error."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.errors import Unsupported, UserError
from methods.kfac import factories
from methods.kfac.kfac import KFAC

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves to")


def test_a_batch_with_nan_is_skipped_counted_and_reported(nets, train, distance, build, factors):
    make, batches = nets["conv"]
    model = make().eval()
    optimizer = build("cholesky", model, weight_decay=0.1, weight_decay_mode="decoupled")
    train(model, optimizer, batches, 2)
    before, held = copy.deepcopy(model), {k: v.clone() for k, v in factors(optimizer).items()}
    x, y = batches(2)
    x[1, 0, 2, 3] = float("nan")
    train(model, optimizer, lambda k: (x, y), 1)
    assert optimizer.counters["skipped_batches"] == 1
    assert optimizer.describe()["counters"]["skipped_batches"] == 1
    assert distance(model, before) == 0.0
    assert all(torch.equal(v, held[k]) for k, v in factors(optimizer).items())
    train(model, optimizer, batches, 2, first=3)
    assert distance(model, before) > 1e-4
    assert optimizer.counters["skipped_batches"] == 1


def test_a_first_batch_with_nan(nets, train, distance, build):
    make, batches = nets["mlp"]
    for initial in ("identity", "first-batch", "bias-corrected"):
        model = make()
        optimizer = build("cholesky", model, factor_init=initial)
        x, y = batches(0)
        train(model, optimizer, lambda k, x=x, y=y: (x * float("nan"), y), 1)
        assert distance(model, make()) == 0.0
        train(model, optimizer, batches, 4, first=1)
        assert all(p.isfinite().all() for p in model.parameters())
        assert optimizer.counters["skipped_batches"] == 1


def test_no_supported_layer_is_an_error():
    with pytest.raises(Unsupported, match=r"no layer with Kronecker factors.*Embedding"):
        KFAC(nn.Sequential(nn.Embedding(3, 4), nn.LayerNorm(4)))
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(Unsupported, match="no layer"):
        KFAC(nn.Sequential(frozen, nn.LayerNorm(2)))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"damping": 0.0}, "damping is a number above 0; got 0.0"),
        ({"damping": [[0, 0.1], [5, -1.0]]}, "damping is a number above 0; got -1.0"),
        ({"update_period": 0}, "update_period is a whole number of at least 1; got 0"),
        ({"refresh_period": 2.5}, "refresh_period is a whole number of at least 1; got 2.5"),
        ({"factor_decay": 1.0}, "factor_decay is a number of at least 0 and below 1; got 1.0"),
        ({"subsample": 0.0}, "subsample is a number above 0 and at most 1; got 0.0"),
        ({"momentum": float("nan")}, "momentum is a number of at least 0 and below 1; got nan"),
        ({"lr": -1.0}, "lr is a number of at least 0; got -1.0"),
        ({"clip": "l2"}, "clip is one of kl, rms, none; got 'l2'"),
        ({"damping_mode": "exact"}, "needs both factors' eigenvectors"),
        ({"refresh_lag": 100}, "refresh_lag is a whole number of at least 0 and at most 99; got 100"),
        ({"product_dtype": "fp8"}, "product_dtype is one of as-set, float32, tf32, bfloat16; got 'fp8'"),
        ({"dampling": 1.0}, "unknown hyper-parameter 'dampling'; known: lr, momentum, damping"),
        ({"exclude": ["nothing"]}, "matches no module"),
    ],
)
def test_wrong_hyper_parameters_are_refused(options, text, nets):
    with pytest.raises(UserError) as caught:
        factories.cholesky(nets["mlp"][0](), **options)
    assert text in str(caught.value)


def test_ekfac_needs_steps_between_refreshes(nets):
    with pytest.raises(UserError, match="refresh_period of ekfac is a whole number of at least 2; got 1"):
        factories.ekfac(nets["mlp"][0](), refresh_period=1)


def test_ekfac_takes_no_late_bases(nets):
    with pytest.raises(UserError, match="refresh_lag is 0 for it, got 1"):
        factories.ekfac(nets["mlp"][0](), refresh_lag=1)


def test_a_wrong_rank_is_refused(nets):
    with pytest.raises(UserError, match="rank is a whole number of at least 1; got 0"):
        factories.rs(nets["mlp"][0](), rank=0)


def test_a_weight_used_behind_its_modules_back_is_an_error(nets, build):
    model = nets["mlp"][0]()
    optimizer = build("cholesky", model)
    x, _ = nets["mlp"][1](0)
    functional.linear(model[0](x).tanh(), model[2].weight, model[2].bias).sum().backward()
    with pytest.raises(Unsupported, match=r"never called.*exclude=\['2'\]"):
        optimizer.step()


def test_further_passes_need_a_closure(nets, build):
    optimizer = build("cholesky", nets["mlp"][0](), fisher="monte-carlo")
    assert optimizer.step_needs
    with pytest.raises(UserError, match="closure"):
        optimizer.step()


def test_monte_carlo_leaves_the_data_gradient_alone(nets, distance, build):
    """The direction's gradient is that of the data, whatever the drawn targets' was."""
    make, (x, y) = nets["mlp"][0], nets["mlp"][1](0)
    model = make()
    optimizer = build("cholesky", model, fisher="monte-carlo")

    def closure(part=None, targets="data"):
        z = model(x)
        drawn = torch.multinomial(torch.softmax(z.detach(), -1), 1)[:, 0] if targets == "model" else y
        loss = functional.cross_entropy(z, drawn)
        loss.backward()
        return loss

    optimizer.step(closure)
    functional.cross_entropy((plain := make())(x), y).backward()
    torch.testing.assert_close(model[0].weight.grad, plain[0].weight.grad)
    assert distance(model, make()) > 1e-4


def test_an_output_differentiated_twice_is_told():
    model = nn.Sequential(nn.Linear(4, 5))
    optimizer = KFAC(model, update_period=1)
    out = model(torch.randn(6, 4))
    [gradient] = torch.autograd.grad(out.square().sum(), out)
    with pytest.raises(Unsupported, match="retain the graph"):
        out.backward(gradient)
    optimizer.close()
