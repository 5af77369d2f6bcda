"""The optimizer against the plain twin, its arms, and what must change nothing."""

import json

import pytest
import torch
from torch.nn import functional

from methods.fop import reference
from methods.kfac.kfac import KFAC

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves to")
ARMS = ("fop", "beta_zero", "eta_one", "random_beta", "kfac_halves")
BACKENDS = {
    "cholesky": {},
    "eigh": {"damping_mode": "exact"},
    "newton-schulz": {"iterations": 12},
    "rsvd": {"rank": 99, "damping_mode": "pi"},
}


# -- against the twin --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["mlp", "conv"])
@pytest.mark.parametrize(
    ("arm", "options"),
    [
        *((arm, {}) for arm in ARMS),
        ("fop", {"eta_ref": "mean", "damping_mode": "same", "clip": "rms"}),
        ("fop", {"damped": True}),
        ("fop", {"weight_decay": 0.1, "weight_decay_mode": "gradient", "clip": "none", "momentum": 0.0}),
        ("fop", {"weight_decay": 0.1, "weight_decay_mode": "decoupled", "factor_init": "bias-corrected"}),
        ("fop", {"weight_decay": 0.1, "sharing": "reduce", "factor_init": "first-batch"}),
    ],
)
def test_steps_equal_the_plain_twin(net, arm, options, nets, steps, distance, fast, build):
    make, batches = nets[net]
    model, twin = make(), make()
    steps(model, build(model, arm, **options), batches, 7)
    steps(twin, getattr(reference, arm)(twin, **{**fast, **options}), batches, 7)
    assert distance(model, make()) > 1e-3
    assert distance(model, twin) < 1e-8


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_every_inverse_gives_the_same_steps(backend, nets, steps, distance, fast, build):
    make, batches = nets["conv"]
    model, twin = make(), make()
    steps(model, build(model, inverse=backend, **BACKENDS[backend]), batches, 5)
    mode = BACKENDS[backend].get("damping_mode", "pi")
    steps(twin, reference.fop(twin, **{**fast, "damping_mode": mode}), batches, 5)
    assert distance(model, twin) < 1e-7


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_two_right_hand_sides_solved_together_are_those_solved_apart(backend, nets, steps, build):
    make, batches = nets["conv"]
    model = make()
    optimizer = build(model, inverse=backend, **BACKENDS[backend])
    steps(model, optimizer, batches, 3)
    generator = torch.Generator().manual_seed(0)
    for layer in optimizer.layers:
        a, g = (slot.state for slot in optimizer.slots[layer])
        shape = (2, layer.groups, layer.d_out, layer.d_in)
        sides = torch.randn(shape, generator=generator, dtype=torch.float64)
        together = optimizer.solve_pairs(a, g, *sides)
        for side in (0, 1):
            torch.testing.assert_close(together[side], optimizer.direction(layer, sides[side]))


def test_a_mean_reference_is_half_the_step_of_the_sum(nets, steps, build):
    found = {}
    for reference_ in ("sum", "mean"):
        model = nets["mlp"][0]()
        start = [p.detach().clone() for p in model.parameters()]
        steps(model, build(model, eta_ref=reference_, clip="none"), nets["mlp"][1], 1)
        found[reference_] = [p.detach() - q for p, q in zip(model.parameters(), start, strict=True)]
    for one, two in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, 2 * two)


@pytest.mark.parametrize("damped", [False, True])
def test_what_is_left_of_the_difference_is_orthogonal_in_the_layer_s_fisher(damped, nets, closure, fast, build):
    """With the optimizer's own s, and F = G x A (or its damped form) as a dense matrix."""
    make, batches = nets["mlp"]
    model = make()
    optimizer = build(model, lr=0.0, damped=damped, damping_mode="same")
    for k in range(3):
        optimizer.step(closure(model, *batches(k)))
    x, y = batches(2)
    halves = []
    optimizer.close()
    for rows in (slice(0, 3), slice(3, 6)):
        model.zero_grad()
        functional.cross_entropy(model(x[rows]), y[rows]).backward()
        halves.append([layer.gradient().flatten() for layer in optimizer.chosen_layers])
    for index, (layer, one, two) in enumerate(zip(optimizer.chosen_layers, *halves, strict=True)):
        a, g = (m[0] for m in optimizer.statistics.read(layer))
        lam = fast["damping"] if damped else 0.0
        fisher = torch.kron(g + lam * torch.eye(len(g)).double(), a + lam * torch.eye(len(a)).double())
        mean, apart = (one + two) / 2, one - two
        left = apart - optimizer.chosen.s[index] * mean
        size = ((mean @ fisher @ mean) * (apart @ fisher @ apart)).sqrt()
        assert abs(float(mean @ fisher @ left)) < 1e-10 * float(size)
        assert abs(float(mean @ fisher @ apart)) > 1e-3 * float(size), "without s it is not orthogonal"


# -- arms --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["fop", "beta_zero"])
def test_equal_halves_are_kfac_times_eta(arm, nets, steps, train, distance, fast, build):
    """beta is 0, so eta is 2 in every layer: K-FAC with twice the rate."""
    make, batches = nets["mlp"]

    def doubled(k):
        x, y = batches(k)
        return torch.cat([x, x]), torch.cat([y, y])

    one, other = make(), make()
    options = {**fast, "clip": "none"}
    steps(one, build(one, arm, clip="none"), doubled, 5)
    train(other, KFAC(other, **{**options, "lr": 2 * fast["lr"]}), batches, 5)
    assert distance(one, other) < 1e-9


def test_kfac_on_two_halves_is_kfac_without_batch_norm(nets, steps, train, distance, fast, build):
    make, batches = nets["mlp"]
    one, other = make(), make()
    steps(one, build(one, "kfac_halves"), batches, 5)
    train(other, KFAC(other, **fast), batches, 5)
    assert distance(one, other) < 1e-9


def test_batch_norm_sees_the_halves(nets, steps, train, distance, fast, build):
    make, batches = nets["conv"]
    one, other = make(), make()
    steps(one, build(one, "kfac_halves"), batches, 3)
    train(other, KFAC(other, **fast), batches, 3)
    assert distance(one, other) > 1e-3


def test_the_arms_differ(nets, steps, distance, build):
    make, batches = nets["mlp"]
    found = []
    for arm in ARMS:
        model = make()
        steps(model, build(model, arm, clip="none"), batches, 4)
        found.append(model)
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            assert distance(one, other) > 1e-4


@pytest.mark.parametrize(("arm", "eta"), [("beta_zero", 2.0), ("kfac_halves", 1.0)])
def test_arms_without_beta_tell_the_eta_that_they_use(arm, eta, nets, steps, build):
    model = nets["conv"][0]()
    optimizer = build(model, arm)
    steps(model, optimizer, nets["conv"][1], 2)
    assert optimizer.coefficients() == {"beta": 0.0, "beta_negative": 0.0, "eta": eta}


def test_coefficients_are_means_over_the_layers_that_moved(nets, steps, build):
    """A layer that another process keeps, or without a gradient, does not count as eta = 0."""
    model = nets["mlp"][0]()
    optimizer = build(model, clip="none")
    model[0].requires_grad_(False)  # after construction: a layer of the optimizer that gets no gradient
    steps(model, optimizer, nets["mlp"][1], 3)
    assert [len(optimizer.layers), len(optimizer.chosen_layers)] == [2, 1]
    assert 1.0 <= optimizer.coefficients()["eta"] <= 2.0


def test_coefficients_are_told(nets, steps, build):
    model = nets["conv"][0]()
    optimizer = build(model)
    steps(model, optimizer, nets["conv"][1], 4)
    told = optimizer.describe()
    assert told["projection"] == {"split": "passes", "eta_ref": "sum", "beta": "optimal", "eta": "optimal"}
    assert 1.0 <= told["coefficients"]["eta"] <= 2.0
    assert 0.0 < told["coefficients"]["c"] < 1.0
    assert 0.0 <= told["coefficients"]["beta_negative"] <= 1.0
    json.dumps(told)
    assert len(optimizer.chosen.beta) == len(optimizer.chosen_layers) == 3


# -- invariances -------------------------------------------------------------------------------------------------------


def test_swapping_the_halves_changes_nothing(nets, steps, distance, build):
    make, batches = nets["mlp"]

    def swapped(k):
        x, y = batches(k)
        return x.roll(3, 0), y.roll(3, 0)

    one, other = make(), make()
    steps(one, build(one), batches, 6)
    steps(other, build(other), swapped, 6)
    assert distance(one, other) < 1e-9


def test_accumulation(nets, steps, distance, build):
    make, batches = nets["mlp"]
    one, other = make(), make()
    steps(one, build(one), batches, 6)
    steps(other, build(other), batches, 6, pieces=3)
    assert distance(one, other) < 1e-9


@pytest.mark.parametrize("split", ["passes", "batch"])
def test_a_sum_has_the_same_beta_and_eta(split, nets, closure, build):
    found = []
    for reduction in ("mean", "sum"):
        model = nets["mlp"][0]()
        optimizer = build(model, split=split, reduction=reduction, factor_init="first-batch", clip="none")
        call = closure(model, *nets["mlp"][1](0), reduction=reduction)
        if split == "batch":
            call()
            optimizer.step()
        else:
            optimizer.step(call)
        found.append(optimizer.chosen)
    torch.testing.assert_close(found[0].beta, found[1].beta)
    torch.testing.assert_close(found[0].eta, found[1].eta)


@pytest.mark.parametrize("split", ["passes", "batch"])
def test_loss_scaling_changes_nothing(split, nets, closure, distance, build):
    make, batches = nets["mlp"]
    plain, scaled = make(), make()
    for model, scaler in ((plain, None), (scaled, torch.amp.GradScaler("cpu", init_scale=1024.0))):
        optimizer = build(model, split=split)
        for k in range(5):
            optimizer.zero_grad()
            call = closure(model, *batches(k), scale=None if scaler is None else scaler.scale)
            if split == "passes":
                call(part=0)
                optimizer.first_half()
                call(part=1)
            else:
                call()
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
    assert distance(scaled, plain) < 1e-6


def test_an_overflow_in_the_first_half_alone_is_skipped(nets, closure, distance, build):
    make, batches = nets["mlp"]
    model = make()
    optimizer = build(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    call = closure(model, *batches(0), scale=scaler.scale)
    call(part=0)
    model[0].weight.grad[0, 0] = float("inf")
    optimizer.first_half()
    call(part=1)
    scaler.step(optimizer)
    assert distance(model, make()) == 0.0
    assert optimizer.counters["overflowed_steps"] == 1
