"""Steps as graphs, on a CPU through an engine that records operations: replays are steps, and moving is noticed."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from methods.kfac.recorder import Recorder
from methods.singd.singd import SINGD

STRUCTURES = ("dense", "diagonal", "block", "hierarchical", "tril-toeplitz", "tril", "triu-arrow")
COMMON = {"lr": 0.05, "update_period": 2, "damping": 0.03, "lr_cov": 0.2, "block": 5, "ranks": (3, 4), "rank": 2}


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
        nn.LayerNorm(16),
        nn.Linear(16, 16),
        nn.Tanh(),
        nn.Linear(16, 16),
        nn.Linear(16, 5),
    ).to(dtype)


def made(name, engine, dtype=torch.float64, **options):
    model = net(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = SINGD(model, **{**COMMON, "structures": (name, name), **options})
    if engine is not None:
        optimizer.graphs.engine = engine
    return model, optimizer


def step(model, optimizer, k, spoil=False):
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(6, 3, 8, 8, generator=generator).to(next(model.parameters()).dtype)
    y = torch.randint(0, 5, (6,), generator=generator)
    for group in optimizer.param_groups:
        group["lr"] = 0.05 / (1 + k)
    optimizer.zero_grad()
    (functional.cross_entropy(model(x).float(), y) * (float("nan") if spoil else 1.0)).backward()
    optimizer.step()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


CASES = [
    {},
    {"momentum": 0.0, "alpha1": 0.0, "kfac_like": True},
    {"weight_decay": 0.1, "normalize_lr_cov": True, "lr_cov": [[0, 0.2], [5, 0.1]]},
    {"momentum": 0.0, "weight_decay": 0.1, "damping": [[0, 0.03], [7, 0.1]], "cache": False},
    {"fallback": "sgd"},
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("name", STRUCTURES)
def test_replayed_steps_are_eager_steps(name, options):
    engine = Recorder()
    eager, static = made(name, None, **options), made(name, engine, **options)
    for k in range(12):
        for model, optimizer in (eager, static):
            step(model, optimizer, k)
    torch.testing.assert_close(weights(static[0]), weights(eager[0]), rtol=1e-9, atol=1e-11)
    assert (weights(static[0]) - weights(net())).norm() > 1e-2
    counts = {"captured": engine.captures, "replayed": engine.replays}
    assert static[1].graphs.describe() == {"mode": "auto", **counts, "failed": 0}
    pooled = name not in ("dense", "tril")
    assert engine.captures == 2 + pooled
    # Half of the steps are update steps; AdamW has its lists after the first.
    assert engine.replays == (6 - 2) + (6 - 2 - ("fallback" not in options)) + pooled * (6 - 2)
    assert eager[1].graphs.describe()["captured"] == 0


@pytest.mark.parametrize("name", ["dense", "diagonal", "hierarchical"])
def test_a_batch_that_is_not_finite_changes_nothing_in_a_graph(name):
    model, optimizer = made(name, Recorder(), weight_decay=0.1)
    for k in range(10):
        step(model, optimizer, k)
    before, batch = weights(model), [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [(m.running_mean.clone(), m.running_var.clone()) for m in batch]
    held = [f.clone() for layer in optimizer.layers for f in optimizer.factors(layer)]
    step(model, optimizer, 10, spoil=True)
    assert torch.equal(weights(model), before)
    assert len(kept) == 1
    found = [f for layer in optimizer.layers for f in optimizer.factors(layer)]
    assert all(torch.equal(one, two) for one, two in zip(found, held, strict=True))
    assert optimizer.counters["skipped_batches"] == 1
    step(model, optimizer, 11)
    step(model, optimizer, 12)
    assert not torch.equal(weights(model), before)
    assert weights(model).isfinite().all()
    assert optimizer.graphs.describe()["failed"] == 0


@pytest.mark.parametrize("name", ["diagonal", "block", "tril-toeplitz"])
def test_half_precision_weights(name):
    ends = []
    for engine in (None, Recorder()):
        model, optimizer = made(name, engine, torch.bfloat16, momentum=0.9, weight_decay=0.01)
        for k in range(10):
            step(model, optimizer, k)
        ends.append(weights(model).double())
    assert (ends[1] - ends[0]).norm() / ends[0].norm() < 2e-2


def test_a_missing_gradient_and_a_failed_capture_go_the_eager_way():
    engine = Recorder()
    eager, static = made("block", None), made("block", engine)
    for k in range(14):
        engine.failing = k == 10
        for model, optimizer in (eager, static):
            if k == 6:
                x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(k)).double()
                optimizer.zero_grad()
                (1e-2 * model[:-1](x).square().mean()).backward()
                optimizer.step()
            else:
                step(model, optimizer, k)
    torch.testing.assert_close(weights(static[0]), weights(eager[0]), rtol=1e-9, atol=1e-11)
    assert engine.replays > 0


def test_a_loaded_state_and_a_cast_model_are_followed():
    one, other = made("hierarchical", None), made("hierarchical", Recorder())
    for k in range(8):
        step(*one, k)
        step(*other, k)
    stored = {key: value.clone() for key, value in other[0].state_dict().items()}
    state = copy.deepcopy(other[1].state_dict())
    for k in range(8, 11):
        step(*other, k)
    other[0].load_state_dict(stored)
    other[1].load_state_dict(state)
    for k in range(8, 16):
        step(*one, k)
        step(*other, k)
    torch.testing.assert_close(weights(other[0]), weights(one[0]), rtol=1e-9, atol=1e-11)
    for model, _ in (one, other):
        model.float()
    for k in range(16, 24):
        step(*one, k)
        step(*other, k)
    torch.testing.assert_close(weights(other[0]), weights(one[0]), rtol=1e-4, atol=1e-5)
