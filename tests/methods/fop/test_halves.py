"""The ways to bring two halves, what is kept between steps, and the catalogue's defaults."""

import io
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.catalogue import registry
from harness.errors import Unsupported, UserError
from harness.measure.training import state as training_state
from methods.fop import FOP
from methods.fop.halves import half_gradient
from methods.kfac.kfac import KFAC

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves to")
ARMS = ("fop", "beta_zero", "eta_one", "random_beta", "kfac_halves")


# -- ways to bring halves ----------------------------------------------------------------------------------------------


def test_a_closure_and_first_half_are_the_same(nets, steps, closure, distance, build):
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


def test_one_backward_gives_the_same_steps_as_two_without_batch_norm(nets, steps, train, distance, fast, build):
    make, batches = nets["mlp"]
    one, other = make(), make()
    losses = steps(one, build(one), batches, 6)
    assert train(other, FOP(other, **fast), batches, 6) == pytest.approx([float(x) for x in losses], abs=1e-9)
    assert distance(one, other) < 1e-9
    assert FOP(make()).sub_batches == 1
    assert not FOP(make()).step_needs
    assert build(make()).sub_batches == 2
    assert build(make()).step_needs == {"closure"}


@pytest.mark.parametrize("split", ["passes", "batch"])
def test_channels_last_weights_take_the_same_steps(split, nets, closure, distance, build):
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


def test_model_targets_are_drawn_for_the_whole_batch(nets, closure, distance, build):
    make, batches = nets["mlp"]
    model = make()
    optimizer = build(model, fisher="monte-carlo")
    assert optimizer.step_needs == {"closure", "extra_backward"}
    optimizer.step(closure(model, *batches(0)))
    assert optimizer.statistics.factors
    assert distance(model, make()) > 1e-4
    with pytest.raises(UserError, match="use passes"):
        build(make(), split="batch", fisher="monte-carlo")


def test_without_halves_the_error_says_what_to_do(nets, build):
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


@pytest.mark.parametrize("kind", [KFAC, FOP])
def test_an_empty_batch_is_one_clear_error(kind, nets, fast):
    model = nets["mlp"][0]()
    kind(model, **fast)
    with pytest.raises(Unsupported, match=r"empty batch \(0, 4\)"):
        functional.cross_entropy(model(torch.zeros(0, 4).double()), torch.zeros(0).long(), reduction="sum").backward()


def test_one_sample_has_no_halves(nets, closure, build):
    model = nets["mlp"][0]()
    optimizer = build(model)
    x, y = nets["mlp"][1](0)
    with pytest.raises(Unsupported, match="empty batch"):
        optimizer.step(closure(model, x[:1], y[:1]))


# -- states ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
def test_resume_is_bitwise(arm, nets, steps, build):
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


def test_a_batch_with_nan_is_skipped(nets, steps, distance, build):
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


def test_memory_and_parts(nets, steps, closure, build):
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


def test_float32_and_autocast(nets, closure, build):
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
