"""On a GPU: real captures of the step agree with eager steps, follow what changes, and wait for nothing."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from methods.kfac import factories

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
COMMON = {"lr": 0.05, "update_period": 3, "refresh_period": 6, "damping": 0.03, "clip_value": 0.3}


def made(make=factories.cholesky, **options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.Tanh(),
        nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=2),
        nn.Tanh(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12 * 16, 40),
        nn.LayerNorm(40),
        nn.Linear(40, 5),
    ).to("cuda", memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model, make(model, **{**COMMON, **options})


def backward(model, optimizer, k, spoil=False):
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(16, 3, 8, 8, generator=generator).cuda()
    y = torch.randint(0, 5, (16,), generator=generator).cuda()
    optimizer.zero_grad()
    (functional.cross_entropy(model(x), y) * (float("nan") if spoil else 1.0)).backward()


def step(model, optimizer, k, spoil=False):
    for group in optimizer.param_groups:
        group["lr"] = 0.05 / (1 + k)
    backward(model, optimizer, k, spoil)
    optimizer.step()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(autouse=True)
def ieee():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(
    ("make", "options", "tolerance"),
    [
        (factories.cholesky, {}, 1e-4),
        (factories.cholesky, {"stagger": True, "spread": True, "packed": True}, 1e-4),
        (factories.cholesky, {"clip": "rms", "clip_value": 0.01, "momentum": 0.0}, 1e-4),
        (factories.cholesky, {"weight_decay": 0.1, "weight_decay_mode": "decoupled", "fallback": "sgd"}, 1e-4),
        (factories.cholesky, {"product_dtype": "bfloat16", "inverse_dtype": "bfloat16", "weight_decay": 0.1}, 2e-2),
        (factories.cholesky, {"refresh_lag": 2, "damping": [[0, 0.03], [7, 0.3]]}, 1e-4),
        (factories.eigh, {"damping": [[0, 0.03], [7, 0.3]]}, 1e-3),
        (factories.rs_warm, {"rank": 12}, 1e-3),
    ],
)
def test_replays_agree_with_eager_steps(make, options, tolerance):
    found = []
    for graphs in ("on", "off"):
        model, optimizer = made(make, graphs=graphs, **options)
        start = weights(model)
        for k in range(14):
            step(model, optimizer, k)
        found.append(weights(model) - start)
        told = optimizer.describe()["graphs"]
        assert (told["captured"], told["failed"]) == ((1, 0) if graphs == "on" else (0, 0)), told
        assert told["replayed"] >= 10 or graphs == "off"
        optimizer.close()
    assert float((found[0] - found[1]).norm() / found[1].norm()) < tolerance


def test_a_bad_batch_and_a_restored_state():
    model, optimizer = made(graphs="on")
    for k in range(9):
        step(model, optimizer, k)
    before = weights(model)
    step(model, optimizer, 9, spoil=True)
    assert torch.equal(before, weights(model))
    assert optimizer.counters["skipped_batches"] == 1
    kept, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    model[1].reset_running_stats()
    runs = []
    for _ in range(2):
        for k in range(10, 15):
            step(model, optimizer, k)
        runs.append(weights(model))
        step(model, optimizer, 15)
        step(model, optimizer, 16, spoil=True)  # no statistics: nothing guards the weights
        assert not weights(model).isfinite().all()
        model.load_state_dict(kept)
        optimizer.load_state_dict(state)
        model[1].reset_running_stats()
    assert runs[0].isfinite().all()
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-4, atol=1e-6)
    assert optimizer.memory_usage()["graphs"] > 0


def test_a_replayed_step_waits_for_nothing():
    model, optimizer = made(graphs="on")
    for k in range(10):
        step(model, optimizer, k)
    backward(model, optimizer, 10)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert optimizer.describe()["graphs"]["failed"] == 0


def test_a_gradient_scaler_and_graphs():
    found = []
    for graphs in ("on", "off"):
        model, optimizer = made(graphs=graphs)
        scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
        for k in range(10):
            generator = torch.Generator().manual_seed(k)
            x, y = torch.randn(16, 3, 8, 8, generator=generator), torch.randint(0, 5, (16,), generator=generator)
            optimizer.zero_grad()
            scaler.scale(functional.cross_entropy(model(x.cuda()), y.cuda())).backward()
            scaler.step(optimizer)
            scaler.update()
        found.append(weights(model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)
