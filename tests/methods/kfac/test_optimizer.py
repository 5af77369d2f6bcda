"""What must change nothing, and the running means under every policy."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.errors import Unsupported, UserError
from methods.kfac import factories
from methods.kfac.kfac import KFAC

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves to")


# -- invariances -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cholesky", "ekfac"])
def test_accumulation(kind, nets, train, distance, build):
    make, batches = nets["mlp"]
    whole, pieces = make(), make()
    train(whole, build(kind, whole), batches, 7)
    train(pieces, build(kind, pieces), batches, 7, pieces=4)
    assert distance(pieces, whole) < 1e-10


def test_sum_and_mean_give_the_same_factors(nets, train, build, factors):
    found = {}
    for reduction in ("mean", "sum"):
        model = nets["conv"][0]()
        optimizer = build("cholesky", model, reduction=reduction, lr=0.0, fallback_lr=0.0)
        train(model, optimizer, nets["conv"][1], 1, reduction=reduction)
        found[reduction] = factors(optimizer)
    for name, tensor in found["mean"].items():
        torch.testing.assert_close(found["sum"][name], tensor)


def test_permutation_of_the_batch(nets, train, distance, build):
    make, batches = nets["conv"]
    one, other = make(), make()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    train(one, build("cholesky", one), batches, 5)
    train(other, build("cholesky", other), lambda k: tuple(t[order] for t in batches(k)), 5)
    assert distance(other, one) < 1e-9


@pytest.mark.parametrize("kind", ["cholesky", "ekfac"])
def test_loss_scaling_changes_nothing(kind, nets, distance, build):
    make, batches = nets["mlp"]
    plain, scaled = make(), make()
    for model, scaler in ((plain, None), (scaled, torch.amp.GradScaler("cpu", init_scale=1024.0))):
        optimizer = build(kind, model)
        for k in range(6):
            optimizer.zero_grad()
            x, y = batches(k)
            loss = functional.cross_entropy(model(x), y)
            if scaler is None:
                loss.backward()
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
    assert distance(scaled, plain) < 1e-6


def test_unscaled_gradients_need_the_scaler(nets, distance, build):
    make, (x, y) = nets["mlp"][0], nets["mlp"][1](0)
    models = [make(), make(), make()]
    for model, given in zip(models, (False, True, None), strict=True):
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=given is not None)
        optimizer = build("cholesky", model, grad_scaler=scaler if given else None)
        scaler.scale(functional.cross_entropy(model(x), y)).backward()
        scaler.unscale_(optimizer)
        if given is False:
            with pytest.raises(Unsupported, match="grad_scaler=scaler"):
                scaler.step(optimizer)
        else:
            scaler.step(optimizer)
    assert distance(models[1], models[2]) < 1e-6


def test_an_overflowed_step_is_skipped_and_its_statistics_dropped(nets, distance, build):
    make, (x, y) = nets["mlp"][0], nets["mlp"][1](0)
    model = make()
    optimizer = build("cholesky", model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(functional.cross_entropy(model(x), y) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.counters["overflowed_steps"] == 1
    assert distance(model, make()) == 0.0
    assert not optimizer.statistics.sums
    assert optimizer.steps == 0


def test_bfloat16_autocast_and_weights_keep_float32_factors(nets, build, factors):
    for pure in (False, True):
        model = nets["conv"][0]().float()
        model = model.bfloat16() if pure else model
        optimizer = build("cholesky", model, fallback_lr=0.0)
        for k in range(3):
            optimizer.zero_grad()
            x, y = nets["conv"][1](k)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not pure):
                loss = functional.cross_entropy(model(x.bfloat16() if pure else x.float()).float(), y)
            loss.backward()
            optimizer.step()
        assert {t.dtype for t in factors(optimizer).values()} == {torch.float32}
        assert all(p.isfinite().all() for p in model.parameters())
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16 if pure else torch.float32}


# -- running means and policy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("initial", ["identity", "first-batch", "bias-corrected"])
def test_start_of_the_running_means(initial, nets, train, build):
    model = nets["mlp"][0]()
    batches = [nets["mlp"][1](k) for k in range(3)]
    seen = []
    for x, _ in batches:
        rows = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
        seen.append(rows.mT @ rows / len(x))
    optimizer = build("cholesky", model, factor_init=initial, factor_decay=0.7, update_period=1)
    train(model, optimizer, lambda k: batches[k], 3)
    wanted = {"identity": torch.eye(5).double(), "first-batch": seen[0], "bias-corrected": torch.zeros(5, 5).double()}
    wanted = wanted[initial]
    for batch in seen:
        wanted = 0.7 * wanted + 0.3 * batch
    if initial == "bias-corrected":
        wanted = wanted / (1 - 0.7**3)
    torch.testing.assert_close(optimizer.statistics.read(optimizer.layers[0])[0][0], wanted)


def test_spread_statistics_take_each_layer_once_a_period(nets, train, build):
    model = nets["conv"][0]()
    optimizer = build("cholesky", model, spread=True, update_period=4, refresh_period=8)
    counts = []
    for k in range(13):
        train(model, optimizer, nets["conv"][1], 1, first=k)
        counts.append([int(optimizer.statistics.factors[layer].count) for layer in optimizer.layers])
    assert counts[0] == [1, 1, 1]
    changes = [[b - a for a, b in zip(one, other, strict=True)] for one, other in itertools.pairwise(counts)]
    assert changes[:7] == [[0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert counts[-1] == [4, 4, 4]
    with pytest.raises(UserError, match="spread is False for it"):
        factories.ekfac(model, spread=True)


def test_staggered_refreshes_happen(nets, train, build):
    model = nets["conv"][0]()
    optimizer = build("cholesky", model, stagger=True, update_period=1, refresh_period=3)
    train(model, optimizer, nets["conv"][1], 1)
    before = [optimizer.slots[layer][0].state["inverse"].clone() for layer in optimizer.layers]
    train(model, optimizer, nets["conv"][1], 3, first=1)
    after = [optimizer.slots[layer][0].state["inverse"] for layer in optimizer.layers]
    assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_a_late_refresh_is_that_of_an_earlier_step(nets, train, build):
    def inverses(optimizer):
        return [slot.state["inverse"].clone() for layer in optimizer.layers for slot in optimizer.slots[layer]]

    found = {}
    for lag in (0, 2):
        model = nets["conv"][0]()
        optimizer = build("cholesky", model, update_period=1, refresh_lag=lag, lr=0.0, fallback_lr=0.0)
        for k in range(11):
            train(model, optimizer, nets["conv"][1], 1, first=k)
            found[lag, k] = inverses(optimizer)
    for k in range(2, 11):
        source = k - 2 if k >= 6 else 0
        assert all(torch.equal(a, b) for a, b in zip(found[2, k], found[0, source], strict=True))
    assert not torch.equal(found[2, 5][0], found[2, 6][0])


def test_subsampled_rows_are_unbiased_for_constant_rows(factors):
    model = nn.Sequential(nn.Conv2d(1, 2, 1)).double()
    found = []
    for share in (1.0, 0.3):
        optimizer = KFAC(model, lr=0.0, subsample=share, factor_init="first-batch")
        model(torch.ones(2, 1, 4, 5, dtype=torch.float64)).sum().div(2).backward()
        optimizer.step()
        found.append(factors(optimizer))
        optimizer.close()
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor)
