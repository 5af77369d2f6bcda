"""The optimizer: against the plain twin, invariances, states, arms, the ways to bring two halves."""

import io
import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.catalogue import registry
from harness.errors import Unsupported, UserError
from harness.measure.training import state as training_state
from methods.fop import FOP, factories, reference
from methods.fop.halves import half_gradient
from methods.kfac.kfac import KFAC

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves to")
FAST = {"lr": 0.02, "update_period": 2, "refresh_period": 4, "damping": 0.03, "clip_value": 0.3, "factor_decay": 0.8}
ARMS = ("fop", "beta_zero", "eta_one", "random_beta", "kfac_halves")
BACKENDS = {
    "cholesky": {},
    "eigh": {"damping_mode": "exact"},
    "newton-schulz": {"iterations": 12},
    "rsvd": {"rank": 99, "damping_mode": "pi"},
}


@pytest.fixture
def steps(closure):
    """Steps with a closure on batches first, first + 1, ..."""

    def run(model, optimizer, batches, count, first=0, **options):
        return [optimizer.step(closure(model, *batches(k), **options)) for k in range(first, first + count)]

    return run


def build(model, arm="fop", **options):
    return getattr(factories, arm)(model, **{**FAST, **options})


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
def test_steps_equal_the_plain_twin(net, arm, options, nets, steps, distance):
    make, batches = nets[net]
    model, twin = make(), make()
    steps(model, build(model, arm, **options), batches, 7)
    steps(twin, getattr(reference, arm)(twin, **{**FAST, **options}), batches, 7)
    assert distance(model, make()) > 1e-3
    assert distance(model, twin) < 1e-8


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_every_inverse_gives_the_same_steps(backend, nets, steps, distance):
    make, batches = nets["conv"]
    model, twin = make(), make()
    steps(model, build(model, inverse=backend, **BACKENDS[backend]), batches, 5)
    mode = BACKENDS[backend].get("damping_mode", "pi")
    steps(twin, reference.fop(twin, **{**FAST, "damping_mode": mode}), batches, 5)
    assert distance(model, twin) < 1e-7


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_two_right_hand_sides_solved_together_are_those_solved_apart(backend, nets, steps):
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


def test_a_mean_reference_is_half_the_step_of_the_sum(nets, steps):
    found = {}
    for reference_ in ("sum", "mean"):
        model = nets["mlp"][0]()
        start = [p.detach().clone() for p in model.parameters()]
        steps(model, build(model, eta_ref=reference_, clip="none"), nets["mlp"][1], 1)
        found[reference_] = [p.detach() - q for p, q in zip(model.parameters(), start, strict=True)]
    for one, two in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, 2 * two)


# -- arms --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["fop", "beta_zero"])
def test_equal_halves_are_kfac_times_eta(arm, nets, steps, train, distance):
    """beta is 0, so eta is 2 in every layer: K-FAC with twice the rate."""
    make, batches = nets["mlp"]

    def doubled(k):
        x, y = batches(k)
        return torch.cat([x, x]), torch.cat([y, y])

    one, other = make(), make()
    options = {**FAST, "clip": "none"}
    steps(one, build(one, arm, clip="none"), doubled, 5)
    train(other, KFAC(other, **{**options, "lr": 2 * FAST["lr"]}), batches, 5)
    assert distance(one, other) < 1e-9


def test_kfac_on_two_halves_is_kfac_without_batch_norm(nets, steps, train, distance):
    make, batches = nets["mlp"]
    one, other = make(), make()
    steps(one, build(one, "kfac_halves"), batches, 5)
    train(other, KFAC(other, **FAST), batches, 5)
    assert distance(one, other) < 1e-9


def test_batch_norm_sees_the_halves(nets, steps, train, distance):
    make, batches = nets["conv"]
    one, other = make(), make()
    steps(one, build(one, "kfac_halves"), batches, 3)
    train(other, KFAC(other, **FAST), batches, 3)
    assert distance(one, other) > 1e-3


def test_the_arms_differ(nets, steps, distance):
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
def test_arms_without_beta_tell_the_eta_that_they_use(arm, eta, nets, steps):
    model = nets["conv"][0]()
    optimizer = build(model, arm)
    steps(model, optimizer, nets["conv"][1], 2)
    assert optimizer.coefficients() == {"beta": 0.0, "beta_negative": 0.0, "eta": eta}


def test_coefficients_are_means_over_the_layers_that_moved(nets, steps):
    """A layer that another process keeps, or without a gradient, does not count as eta = 0."""
    model = nets["mlp"][0]()
    optimizer = build(model, clip="none")
    model[0].requires_grad_(False)  # after construction: a layer of the optimizer that gets no gradient
    steps(model, optimizer, nets["mlp"][1], 3)
    assert [len(optimizer.layers), len(optimizer.chosen_layers)] == [2, 1]
    assert 1.0 <= optimizer.coefficients()["eta"] <= 2.0


def test_coefficients_are_told(nets, steps):
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


def test_swapping_the_halves_changes_nothing(nets, steps, distance):
    make, batches = nets["mlp"]

    def swapped(k):
        x, y = batches(k)
        return x.roll(3, 0), y.roll(3, 0)

    one, other = make(), make()
    steps(one, build(one), batches, 6)
    steps(other, build(other), swapped, 6)
    assert distance(one, other) < 1e-9


def test_accumulation(nets, steps, distance):
    make, batches = nets["mlp"]
    one, other = make(), make()
    steps(one, build(one), batches, 6)
    steps(other, build(other), batches, 6, pieces=3)
    assert distance(one, other) < 1e-9


@pytest.mark.parametrize("split", ["passes", "batch"])
def test_a_sum_has_the_same_beta_and_eta(split, nets, closure):
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
def test_loss_scaling_changes_nothing(split, nets, closure, distance):
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


def test_an_overflow_in_the_first_half_alone_is_skipped(nets, closure, distance):
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


# -- ways to bring halves ----------------------------------------------------------------------------------------------


def test_a_closure_and_first_half_are_the_same(nets, steps, closure, distance):
    make, batches = nets["conv"]
    one, other = make(), make()
    steps(one, build(one), batches, 5)
    optimizer = build(other)
    for k in range(5):
        optimizer.zero_grad()
        call = closure(other, *batches(k))
        call(part=0)
        optimizer.first_half()
        call(part=1)
        optimizer.step()
    assert distance(one, other) == 0.0


def test_one_backward_gives_the_same_steps_as_two_without_batch_norm(nets, steps, train, distance):
    make, batches = nets["mlp"]
    one, other = make(), make()
    losses = steps(one, build(one), batches, 6)
    assert train(other, FOP(other, **FAST), batches, 6) == pytest.approx([float(x) for x in losses], abs=1e-9)
    assert distance(one, other) < 1e-9
    assert FOP(make()).sub_batches == 1
    assert not FOP(make()).step_needs
    assert build(make()).sub_batches == 2
    assert build(make()).step_needs == {"closure"}


@pytest.mark.parametrize("split", ["passes", "batch"])
def test_channels_last_weights_take_the_same_steps(split, nets, closure, distance):
    make, batches = nets["conv"]
    models = [make(), make().to(memory_format=torch.channels_last)]
    for model in models:
        optimizer = build(model, split=split)
        for k in range(4):
            optimizer.zero_grad()
            call = closure(model, *batches(k))
            if split == "batch":
                call()
            optimizer.step(call if split == "passes" else None)
    assert distance(*models) < 1e-9


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (2, 3), padding=(0, 2), dilation=(1, 2), groups=2, bias=False),
        nn.Conv2d(2, 4, 3, padding="same"),
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
        nn.Linear(7, 3),
        nn.Linear(7, 3, bias=False),
    ],
)
def test_the_captured_half_is_the_gradient_of_the_first_half(module, nets):
    module = module.double()
    channels = getattr(module, "in_channels", 2)
    x = torch.randn(5, channels, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    optimizer = KFAC(module, lr=0.0)
    (layer,) = optimizer.layers
    y = module(x)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (y * weight)[:2].sum().backward()
    torch.testing.assert_close(half_gradient(layer, module, x, weight), layer.gradient())
    with pytest.raises(Unsupported, match="two samples"):
        half_gradient(layer, module, x[:1], weight[:1])


def test_model_targets_are_drawn_for_the_whole_batch(nets, closure, distance):
    make, batches = nets["mlp"]
    model = make()
    optimizer = build(model, fisher="monte-carlo")
    assert optimizer.step_needs == {"closure", "extra_backward"}
    optimizer.step(closure(model, *batches(0)))
    assert optimizer.statistics.factors
    assert distance(model, make()) > 1e-4
    with pytest.raises(UserError, match="use passes"):
        build(make(), split="batch", fisher="monte-carlo")


def test_without_halves_the_error_says_what_to_do(nets):
    model = nets["mlp"][0]()
    optimizer = build(model)
    x, y = nets["mlp"][1](0)
    with pytest.raises(UserError, match="call it after the first half's backward"):
        optimizer.first_half()
    functional.cross_entropy(model(x), y).backward()
    with pytest.raises(UserError, match=r"backward, first_half\(\), backward, step\(\)"):
        optimizer.step()
    optimizer.first_half()
    with pytest.raises(UserError, match="twice"):
        optimizer.first_half()
    with pytest.raises(UserError, match="belongs to split='passes'"):
        FOP(nets["mlp"][0]()).first_half()


# -- states ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
def test_resume_is_bitwise(arm, nets, steps):
    make, batches = nets["conv"]
    model = make()
    optimizer = build(model, arm)
    steps(model, optimizer, batches, 5)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    steps(model, optimizer, batches, 5, first=5)
    buffer.seek(0)
    stored = torch.load(buffer, weights_only=True)
    other = make(1)
    other.load_state_dict(stored["model"])
    resumed = build(other, arm)
    resumed.load_state_dict(stored["optimizer"])
    steps(other, resumed, batches, 5, first=5)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert training_state.digest(resumed.state_dict()) == training_state.digest(optimizer.state_dict())
    assert resumed.coefficients() == optimizer.coefficients()


@pytest.mark.parametrize("split", ["passes", "batch"])
def test_halves_of_unknown_scale_are_refused_between_statistics_too(split):
    """``unscale_`` reaches ``.grad`` alone; with the scaler given, d is that of the unscaled run."""
    x, y = torch.randn(8, 5, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3
    told = {}
    for name in ("plain", "given", "unknown"):
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=name != "plain")
        optimizer = FOP(model, lr=0.0, split=split, update_period=3, grad_scaler=scaler if name == "given" else None)
        for k in range(2):
            optimizer.zero_grad()
            for rows in (slice(0, 4), slice(4, 8)) if split == "passes" else (slice(0, 8),):
                scaler.scale(functional.cross_entropy(model(x[rows]), y[rows])).backward()
                if rows.stop == 4:
                    optimizer.first_half()
            if k == 1:
                scaler.unscale_(optimizer)
            if k == 1 and name == "unknown":
                with pytest.raises(Unsupported, match="scale of the first half"):
                    scaler.step(optimizer)
                break
            scaler.step(optimizer)
            scaler.update()
        told[name] = optimizer.chosen.s
    assert torch.allclose(told["given"], told["plain"], rtol=1e-4)


def test_a_batch_with_nan_is_skipped(nets, steps, distance):
    make, batches = nets["conv"]
    model = make().eval()
    optimizer = build(model, update_period=1)
    steps(model, optimizer, batches, 2)
    before = make()
    before.load_state_dict(model.state_dict())
    x, y = batches(2)
    x[5, 0, 2, 3] = float("nan")
    steps(model, optimizer, lambda k: (x, y), 1)
    assert distance(model, before) == 0.0
    assert optimizer.counters["skipped_batches"] == 1
    steps(model, optimizer, batches, 2, first=3)
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(v == v for v in optimizer.coefficients().values())


def test_memory_and_parts(nets, steps, closure):
    model = nets["conv"][0]()
    optimizer = build(model)
    optimizer.parts()
    closure(model, *nets["conv"][1](0))(part=0)
    optimizer.first_half()
    assert optimizer.memory_usage()["halves"] == 8 * sum(p.numel() for p in model.parameters())
    optimizer.zero_grad()
    steps(model, optimizer, nets["conv"][1], 2)
    assert optimizer.memory_usage()["halves"] == 0
    assert set(optimizer.parts()) == {"factor", "halves", "refresh", "apply"}
    assert optimizer.coverage == {"fop": 76 + 72 + 21, "adamw": 8}


def test_float32_and_autocast(nets, closure):
    for split in ("passes", "batch"):
        model = nets["conv"][0]().float()
        optimizer = build(model, split=split)
        x, y = nets["conv"][1](0)
        inner = closure(model, x.float(), y)

        def call(part=None, targets="data", inner=inner):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return inner(part, targets)

        for _ in range(3):
            optimizer.zero_grad()
            if split == "batch":
                call()
            optimizer.step(call if split == "passes" else None)
        assert all(p.isfinite().all() for p in model.parameters())
        assert optimizer.chosen.eta.isfinite().all()


# -- the catalogue -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fop", "fop-beta0", "fop-eta1", "fop-random", "kfac-halves"])
def test_the_catalogue_s_defaults_build(name, nets):
    method = registry.method(f"training.{name}")
    optimizer = registry.resolve(method.impl)(nets["mlp"][0](), **method.hyper)
    assert optimizer.sub_batches == 2


def test_importing_the_package_does_not_import_torch():
    code = "import sys, methods.fop.catalogue, methods.fop; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("kind", [KFAC, FOP])
def test_an_empty_batch_is_one_clear_error(kind, nets):
    model = nets["mlp"][0]()
    kind(model, **FAST)
    with pytest.raises(Unsupported, match=r"empty batch \(0, 4\)"):
        functional.cross_entropy(model(torch.zeros(0, 4).double()), torch.zeros(0).long(), reduction="sum").backward()


def test_one_sample_has_no_halves(nets, closure):
    model = nets["mlp"][0]()
    optimizer = build(model)
    x, y = nets["mlp"][1](0)
    with pytest.raises(Unsupported, match="empty batch"):
        optimizer.step(closure(model, x[:1], y[:1]))


@pytest.mark.parametrize("damped", [False, True])
def test_what_is_left_of_the_difference_is_orthogonal_in_the_layer_s_fisher(damped, nets, closure):
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
        lam = FAST["damping"] if damped else 0.0
        fisher = torch.kron(g + lam * torch.eye(len(g)).double(), a + lam * torch.eye(len(a)).double())
        mean, apart = (one + two) / 2, one - two
        left = apart - optimizer.chosen.s[index] * mean
        size = ((mean @ fisher @ mean) * (apart @ fisher @ apart)).sqrt()
        assert abs(float(mean @ fisher @ left)) < 1e-10 * float(size)
        assert abs(float(mean @ fisher @ apart)) > 1e-3 * float(size), "without s it is not orthogonal"
