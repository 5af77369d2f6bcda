"""The optimizers of this family under fast, varied options."""

import pytest

from methods.kfac import factories

FAST = {"lr": 0.05, "update_period": 2, "refresh_period": 4, "damping": 0.03, "clip_value": 0.3}
KINDS = {
    "cholesky": {},
    "cholesky-late": {"refresh_lag": 2, "stagger": True},
    "cholesky-spread": {"spread": True, "stagger": True, "factor_init": "first-batch"},
    "eigh": {"factor_init": "bias-corrected"},
    "cholesky-groups": {"spread": True, "stagger": True, "groups": 2},
    "newton_schulz": {"stagger": True},
    "ekfac": {"scaling": "intra-batch", "scale_decay": 0.5},
    "ekfac-running": {"scaling": "running"},
    "rs": {"rank": 3, "warm": True},
    "sre": {"rank": 3, "factor_init": "first-batch"},
}


@pytest.fixture(params=list(KINDS))
def kind(request):
    """Every kind, unless a test names its own."""
    return request.param


@pytest.fixture
def build():
    """``build(kind, model, **options)`` -> the optimizer."""

    def make(kind, model, **options):
        return getattr(factories, kind.split("-")[0])(model, **{**FAST, **KINDS[kind], **options})

    return make


@pytest.fixture
def factors():
    """``factors(optimizer)`` -> running means by side, of the last layer where there are several."""

    def read(optimizer):
        layers = optimizer.layers
        return {n: t for layer in layers for n, t in zip("ag", optimizer.statistics.read(layer), strict=True)}

    return read
