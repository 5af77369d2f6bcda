"""Steps as graphs, on a CPU through an engine that records operations: replays are steps, and moving is noticed."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.errors import Unsupported, UserError
from methods.kfac import factories, graphs
from methods.kfac.graphs import Graphs, Scalars
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
        nn.LayerNorm(16),
        nn.Linear(16, 16),
        nn.Tanh(),
        nn.Linear(16, 16),
        nn.Linear(16, 5),
    ).to(dtype, memory_format=torch.channels_last)


def made(engine, make=factories.cholesky, model=None, **options):
    model = net() if model is None else model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = make(model, **{**COMMON, **options})
    if engine is not None:
        optimizer.static.graphs.engine = engine
    return model, optimizer


def step(model, optimizer, k, spoil=False):
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(6, 3, 8, 8, generator=generator).to(next(model.parameters()).dtype)
    y = torch.randint(0, 5, (6,), generator=generator)
    optimizer.zero_grad()
    (functional.cross_entropy(model(x), y) * (float("nan") if spoil else 1.0)).backward()
    optimizer.step()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def lr_at(optimizer, k):
    for group in optimizer.param_groups:
        group["lr"] = 0.05 / (1 + k)


CASES = [
    {},
    {"clip": "rms", "clip_value": 0.01},
    {"clip": "none", "momentum": 0.0},
    {"weight_decay": 0.1, "weight_decay_start": 5},
    {"weight_decay": 0.1, "weight_decay_mode": "decoupled", "stagger": True, "spread": True},
    {"weight_decay": 0.1, "weight_decay_mode": "gradient", "fallback_weight_decay": 0.1},
    {"fallback": "sgd"},
    {"packed": True, "damping": [[0, 0.03], [5, 0.3]]},
]


@pytest.mark.parametrize(
    ("make", "options"),
    [(factories.cholesky, one) for one in CASES] + [(one, {}) for one in (factories.eigh, factories.rs_warm)],
)
def test_replays_are_the_steps(make, options):
    more = {"rank": 6} if make is factories.rs_warm else {"damping": [[0, 0.03], [6, 0.3]]}
    found = []
    for engine in (Recorder(), Eager(), None):
        model, optimizer = made(engine, make, **{**more, **options})
        for k in range(10):
            lr_at(optimizer, k)
            step(model, optimizer, k)
        found.append(weights(model))
        if isinstance(engine, Eager):
            continue
        replayed = optimizer.describe()["graphs"]["replayed"]
        assert replayed >= 6 if engine else replayed == 0
        assert optimizer.counters["graph_failures"] == 0
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], found[2], rtol=1e-9, atol=1e-11)


def test_a_bad_batch_changes_nothing_and_the_next_is_clean():
    found = []
    for engine in (Recorder(), None):
        model, optimizer = made(engine)
        for k in range(12):
            before = weights(model)
            state = {id(p): optimizer.fallback.state[p]["exp_avg"].clone() for p in optimizer.fallback.state}
            step(model, optimizer, k, spoil=k == 6)
            if k == 6:
                assert torch.equal(before, weights(model))
                assert all(torch.equal(state[id(p)], held["exp_avg"]) for p, held in optimizer.fallback.state.items())
                assert optimizer.counters["skipped_batches"] == 1
            # Batch norm's running means have the bad batch.
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.reset_running_stats()
        found.append(weights(model))
    assert found[0].isfinite().all()
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


def test_after_a_divergence_a_restored_run_is_as_before():
    engine = Recorder()
    model, optimizer = made(engine)
    for k in range(6):
        step(model, optimizer, k)
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    state = copy.deepcopy(optimizer.state_dict())

    def rest():
        for k in range(6, 11):
            step(model, optimizer, k)
        return weights(model)

    first = rest()
    step(model, optimizer, 11, spoil=True)  # no statistics are taken: the weights are lost
    step(model, optimizer, 12)
    assert not weights(model).isfinite().all()
    model.load_state_dict(kept)
    optimizer.load_state_dict(state)
    assert torch.equal(first, rest())


def test_what_has_moved_is_captured_again():
    engine = Recorder()
    model, optimizer = made(engine)
    for k in range(6):
        step(model, optimizer, k)
    assert engine.captures == 1
    other, plain = made(None)
    for k in range(6):
        step(other, plain, k)
    for one in (model, other):
        one[0].weight.data = one[0].weight.data.clone(memory_format=torch.preserve_format)
    for k in range(6, 12):
        step(model, optimizer, k)
        step(other, plain, k)
    assert engine.captures == 2
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-9, atol=1e-11)
    model.float()
    for k in range(12, 18):
        step(model, optimizer, k)
    assert engine.captures == 3
    assert weights(model).dtype == torch.float32


def test_a_step_without_every_gradient_is_eager():
    found = []
    for engine in (Recorder(), None):
        model, optimizer = made(engine)
        for k in range(12):
            model[10].requires_grad_(k != 7)
            step(model, optimizer, k)
        found.append(weights(model))
        if engine:
            assert engine.replays >= 5
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


def test_a_failing_capture_is_counted_and_steps_go_on():
    engine = Recorder()
    engine.failing = True
    model, optimizer = made(engine)
    other, plain = made(None)
    for k in range(8):
        step(model, optimizer, k)
        step(other, plain, k)
    assert optimizer.counters["graph_failures"] == 1
    assert "not permitted" in optimizer.describe()["graphs"]["why"]
    torch.testing.assert_close(weights(model), weights(other), rtol=1e-9, atol=1e-11)
    strict, optimizer = made(engine, graphs="on")
    for k in range(graphs.WARM + 1):
        step(strict, optimizer, k)
    with pytest.raises(Unsupported, match="capture failed"):
        step(strict, optimizer, 3)


def test_modes():
    model, optimizer = made(None, graphs="on")
    with pytest.raises(Unsupported, match="graphs='auto'"):
        step(model, optimizer, 0)
    with pytest.raises(UserError, match="graphs"):
        made(None, graphs="maybe")
    engine = Recorder()
    model, optimizer = made(engine, graphs="off")
    for k in range(6):
        step(model, optimizer, k)
    assert engine.captures == engine.replays == 0
    model, optimizer = made(engine)
    with torch.autograd.set_detect_anomaly(True):
        for k in range(6):
            step(model, optimizer, k)
    assert engine.captures == 0


def test_relatives_with_directions_of_their_own_stay_eager():
    engine = Recorder()
    model, optimizer = made(engine, factories.ekfac)
    for k in range(6):
        step(model, optimizer, k)
    assert engine.captures == 0


def test_the_memory_of_graphs_is_told():
    model, optimizer = made(Recorder())
    for k in range(5):
        step(model, optimizer, k)
    gradients = sum(p.numel() for p in model.parameters()) * 8
    told = optimizer.memory_usage()
    assert told["gradients"] >= gradients
    assert told["graphs"] > 0
    assert "graphs" not in made(None)[1].memory_usage()


def test_work_that_keeps_moving_is_given_up(monkeypatch):
    monkeypatch.setattr(graphs, "MOST", 3)
    every, home = Graphs("auto", Recorder()), torch.device("cpu")
    done = torch.zeros(())
    ran = [every.run("a", key, home, lambda: done.add_(1)) for key in range(4) for _ in range(graphs.WARM + 1)]
    assert ran == [True] * (len(ran) - 1) + [False]
    assert float(done) == len(ran) - 1
    assert every.describe()["captured"] == 3
    assert not every.usable(home)


def test_scalars_keep_their_place():
    scalars = Scalars(["lr", "decay"], torch.float64, torch.device("cpu"))
    lr = scalars["lr"]
    scalars.set({"lr": 0.1, "decay": 0.2})
    assert float(lr) == 0.1
    scalars.set({"lr": 0.3, "decay": 0.2})
    assert float(lr) == 0.3
    assert float(scalars["decay"]) == 0.2
