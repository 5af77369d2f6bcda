"""The fast optimizer against the plain twin with dense Kronecker solves."""

import pytest

from methods.kfac import factories, reference

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
