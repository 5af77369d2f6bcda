"""FOP's steps as graphs, on a CPU through an engine that records operations: replays are steps."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from methods.fop import factories
from methods.kfac.recorder import Eager, Recorder

COMMON = {"lr": 0.05, "update_period": 2, "refresh_period": 4, "damping": 0.03, "clip_value": 0.3}


def net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Tanh(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2),
        nn.Tanh(),
        nn.Conv2d(8, 9, 3, padding=1, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(9 * 16, 16),
        nn.Linear(16, 16),
        nn.Tanh(),
        nn.Linear(16, 16),
        nn.Linear(16, 150),
        nn.Linear(150, 5),
    ).to(dtype, memory_format=torch.channels_last)


def made(engine, make, **options):
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = make(model, **{**COMMON, **options})
    if engine is not None:
        optimizer.static.graphs.engine = engine
    return model, optimizer


def step(model, optimizer, k, spoil=False):
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(6, 3, 8, 8, generator=generator).double()
    y = torch.randint(0, 5, (6,), generator=generator)

    def closure(part=None, targets="data"):
        rows = slice(None) if part is None else slice(3 * part, 3 * part + 3)
        loss = functional.cross_entropy(model(x[rows]), y[rows]) * (float("nan") if spoil else 1.0)
        loss.backward()
        return loss.detach()

    optimizer.zero_grad()
    if optimizer.step_needs:
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


CASES = [
    {},
    {"split": "batch"},
    {"beta": "zero"},
    {"eta": "one", "clip": "none", "momentum": 0.0},
    {"eta_ref": "mean", "beta_max": 0.01, "eta_max": 0.9, "clip": "rms", "clip_value": 0.01},
    {"weight_decay": 0.1, "weight_decay_mode": "gradient", "split": "batch"},
    {"inverse": "eigh", "damping_mode": "exact", "damping": [[0, 0.03], [5, 0.3]]},
    {"product_dtype": "bfloat16"},
]


@pytest.mark.parametrize("options", CASES)
def test_replays_are_the_steps(options):
    found, told = [], []
    for engine in (Recorder(), Eager(), None):
        model, optimizer = made(engine, factories.fop, **options)
        for k in range(10):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 / (1 + k)
            step(model, optimizer, k)
        found.append(weights(model))
        told.append(optimizer.coefficients())
        if isinstance(engine, Eager):
            continue
        replayed = optimizer.describe()["graphs"]["replayed"]
        assert replayed >= 6 if engine else replayed == 0
        assert optimizer.counters["graph_failures"] == 0
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], found[2], rtol=1e-8, atol=1e-10)
    assert told[0] == told[1]
    assert told[0] == pytest.approx(told[2], rel=1e-7)


def test_a_bad_batch_changes_nothing_and_the_next_is_clean():
    found = []
    for engine in (Recorder(), None):
        model, optimizer = made(engine, factories.fop)
        for k in range(12):
            before = weights(model)
            step(model, optimizer, k, spoil=k == 6)
            if k == 6:
                assert torch.equal(before, weights(model))
                assert optimizer.counters["skipped_batches"] == 1
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.reset_running_stats()
        found.append(weights(model))
    assert found[0].isfinite().all()
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-10)


def test_no_half_waits_between_steps_and_the_kept_stacks_are_told():
    model, optimizer = made(Recorder(), factories.fop)
    for k in range(5):
        step(model, optimizer, k)
    told = optimizer.memory_usage()
    assert told["halves"] == 0
    # g and d in pairs.
    assert told["graphs"] >= 2 * 8 * sum(p.numel() for layer in optimizer.layers for p in layer.parameters)


def test_coefficients_after_a_step_without_a_graph_are_the_last_step_s():
    """A layer without a gradient makes one step eager; the graph of before is replayed after it."""
    told = []
    for engine in (Recorder(), None):
        model, optimizer = made(engine, factories.fop, update_period=50, refresh_period=50)
        for k in range(9):
            model[9].requires_grad_(k != 6)
            step(model, optimizer, k)
        assert len(optimizer.chosen_layers) == len(optimizer.layers)
        places = {layer: place for place, layer in enumerate(optimizer.chosen_layers)}
        told.append(torch.stack([optimizer.chosen.beta[places[layer]] for layer in optimizer.layers]))
    torch.testing.assert_close(told[0], told[1], rtol=1e-6, atol=1e-9)


def test_a_failed_capture_leaves_no_stack_behind():
    engine = Recorder()
    engine.failing = True
    model, optimizer = made(engine, factories.fop)
    for k in range(6):
        step(model, optimizer, k)
    assert optimizer.counters["graph_failures"] == 1
    assert not optimizer.static.directions.own()
    assert "graphs" not in optimizer.memory_usage()


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (factories.random_beta, {}),
        (factories.fop, {"damped": True}),
        (factories.fop, {"packed": True}),
        (factories.fop, {"factor_init": "bias-corrected"}),
        (factories.ekfac, {}),
    ],
)
def test_what_the_host_draws_or_a_relative_makes_stays_eager(make, options):
    engine = Recorder()
    model, optimizer = made(engine, make, **options)
    for k in range(6):
        step(model, optimizer, k)
    assert engine.captures == 0
