"""The fast optimizer against the plain twin with dense Kronecker solves."""

import dataclasses

import pytest
import torch
from torch import nn

from harness.catalogue import registry
from methods.kfac import brand_reference, factories, reference
from methods.kfac.kfac import KFAC

COMMON = {"lr": 0.05, "update_period": 2, "refresh_period": 4, "damping": 0.03, "clip_value": 0.3, "factor_decay": 0.8}

#: The kept modes must be unique: a running mean that starts at the identity has many equal eigenvalues.
CUT = {"rank": 3, "power": 60, "oversampling": 10, "factor_init": "first-batch"}

CASES = [
    ("cholesky", "kfac", {}),
    ("cholesky", "kfac", {"damping_mode": "same", "clip": "rms", "momentum": 0.0}),
    ("cholesky", "kfac", {"damping_mode": "same", "clip": "none", "sharing": "reduce", "factor_init": "first-batch"}),
    ("cholesky", "kfac", {"factor_init": "bias-corrected", "weight_decay": 0.1}),
    ("cholesky", "kfac", {"weight_decay": 0.1, "weight_decay_mode": "decoupled", "weight_decay_start": 3}),
    ("cholesky", "kfac", {"weight_decay": 0.1, "weight_decay_mode": "gradient", "loss_terms": "batch+sequence"}),
    ("cholesky", "kfac", {"damping": [[0, 0.1], [3, 0.01]], "refresh_period": [[0, 4], [4, 2]]}),
    ("eigh", "eigh", {}),
    ("eigh", "eigh", {"damping_mode": "adaptive-exact", "damping": 0.1, "sharing": "reduce"}),
    ("eigh", "kfac", {"damping_mode": "pi"}),
    ("eigh", "kfac", {"damping_mode": "same"}),
    ("newton_schulz", "kfac", {"iterations": 12}),
    ("ekfac", "ekfac", {"refresh_period": 6}),
    ("ekfac", "ekfac", {"refresh_period": 6, "scale_decay": 0.5, "loss_terms": "batch+sequence"}),
    ("ekfac", "ekfac", {"refresh_period": 6, "scaling": "running"}),
    ("rs", "low_rank", {"damping_mode": "pi"}),
    ("sre", "low_rank", {"damping_mode": "pi", "power": 1}),
    ("rs", "low_rank", {"damping_mode": "pi", **CUT}),
    ("rs", "low_rank", {"damping_mode": "pi", **CUT, "continuation": True, "warm": True}),
    ("rs", "low_rank", {"damping_mode": "same", **CUT, "oversampling": 20, "rank": [[0, 2], [4, 4]]}),
    # Steps with little adaptive damping amplify rounding by orders of magnitude.
    ("rs", "low_rank", {"damping_mode": "adaptive", **CUT, "oversampling": 20, "damping": 1.0}),
    ("rs_warm", "low_rank", {"damping_mode": "pi"}),
    # A subspace as wide as the factor: exact from the first refresh on.
    ("rs_warm", "low_rank", {"damping_mode": "pi", "dense": False}),
    ("rs_warm", "low_rank", {"damping_mode": "same", "dense": False, "factor_init": "first-batch"}),
]


@pytest.mark.parametrize("net", ["conv", "mlp"])
@pytest.mark.parametrize(("fast", "plain", "options"), CASES)
@pytest.mark.filterwarnings("ignore:.*leaves to")
def test_steps_equal_the_plain_twin(net, fast, plain, options, nets, train, distance):
    make, batches = nets[net]
    model, twin = make(), make()
    options = {**COMMON, **options}
    train(model, getattr(factories, fast)(model, **options), batches, 9)
    train(twin, getattr(reference, plain)(twin, **options), batches, 9)
    assert distance(model, make()) > 1e-2
    assert distance(model, twin) < 1e-8


@pytest.mark.parametrize("mode", ["adaptive"])
def test_adaptive_damping_estimates_the_largest_eigenvalue(mode, nets, train, distance):
    """The estimate is a lower bound from 20 products, so steps agree to its accuracy only."""
    make, batches = nets["mlp"]
    model, twin = make(), make()
    options = {**COMMON, "damping_mode": mode}
    train(model, factories.cholesky(model, **options), batches, 5)
    train(twin, reference.kfac(twin, **options), batches, 5)
    assert distance(model, twin) < 1e-3


class Wide(nn.Module):
    """A wide linear layer between a convolution and a narrow head."""

    def __init__(self):
        super().__init__()
        self.conv, self.wide, self.head = nn.Conv2d(2, 2, 3), nn.Linear(40, 24), nn.Linear(24, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.wide(torch.tanh(self.conv(x)).flatten(1))))


BRAND = {"lr": 0.05, "rank": 9, "refresh_period": 2, "update_period": 1, "weight_decay": 0.01, "oversampling": 40}


@pytest.mark.parametrize("initial", ["identity", "first-batch", "bias-corrected"])
@pytest.mark.parametrize(
    ("fast", "plain", "options"),
    [
        ("b", "brand", {}),
        ("b", "brand", {"damping_mode": "same", "brand_period": 2, "brand_rank": 4, "continuation": False}),
        ("b", "brand", {"truncate": True, "momentum": 0.9}),
        ("b_r", "brand_overwritten", {"overwrite_period": 2}),
        ("b_r", "brand_overwritten", {"overwrite_period": 2, "brand_period": 2}),
    ],
)
def test_brand_steps_equal_the_plain_twin(initial, fast, plain, options, nets, train, distance):
    models = []
    for _ in range(3):
        torch.manual_seed(0)
        models.append(Wide().double())
    options = {**BRAND, "factor_init": initial, **options}
    one, other = getattr(factories, fast)(models[0], **options), getattr(brand_reference, plain)(models[1], **options)
    for model, optimizer in zip(models, (one, other), strict=False):
        train(model, optimizer, nets["conv"][1], 9)
    assert [layer.name for layer in one.held] == ["head", "wide"]
    assert distance(models[0], models[2]) > 1e-2
    assert distance(models[0], models[1]) < 1e-7


def test_a_smaller_batch_leaves_the_spectrum_continued(nets, train, distance):
    """Fewer new modes than before: those that were not kept still count as the smallest kept one."""
    models, batches = [], nets["conv"][1]
    for _ in range(2):
        torch.manual_seed(0)
        models.append(Wide().double())
    options = {**BRAND, "update_period": 2, "factor_init": "first-batch", "continuation": True, "damping": 1e-3}
    one, other = factories.b(models[0], **options), brand_reference.brand(models[1], **options)
    for model, optimizer in zip(models, (one, other), strict=True):
        train(model, optimizer, lambda k: batches(k, 3 if k == 4 else 6), 8)
    assert distance(models[0], models[1]) < 1e-7


def test_every_randomized_or_online_method_is_registered_with_its_defaults():
    """The catalogue's values are those that the factories use."""
    for name in ("rs-kfac", "sre-kfac", "rs-kfac-warm", "b-kfac", "b-r-kfac", "b-kfac-c", "seng"):
        method = registry.method(f"training.{name}")
        torch.manual_seed(0)
        model = Wide()
        plain = registry.resolve(method.impl)(model)
        full = registry.resolve(method.impl)(model, **method.hyper)
        assert isinstance(plain, KFAC)
        assert dataclasses.replace(full.options, exclude=()) == plain.options
        pair = [{k: v for k, v in vars(one.backend).items() if k != "_cholesky"} for one in (full, plain)]
        assert pair[0] == pair[1]
        if method.reference:
            assert callable(registry.resolve(method.reference))
