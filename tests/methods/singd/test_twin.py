"""The fast optimizer against the plain twin, and the methods that must agree."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from methods.singd import factories, reference
from methods.singd.singd import SINGD
from methods.singd.structures import STRUCTURES, toeplitz

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves to")
COMMON = {"lr": 0.05, "update_period": 2, "damping": 0.03, "lr_cov": 0.2, "weight_decay": 0.01}
SMALL = {"block": 5, "ranks": (3, 4), "rank": 2}
CASES = [(name, {}) for name in STRUCTURES] + [
    ("dense", {"sharing": "reduce"}),
    ("tril-toeplitz", {"sharing": "reduce", "loss_average": "batch+sequence"}),
    ("hierarchical", {"normalize_lr_cov": True}),
    ("block", {"kfac_like": True, "alpha1": 0.0}),
    ("dense", {"alpha1": 0.0, "momentum": 0.0, "cache": False}),
    ("diagonal", {"damping": [[0, 0.1], [3, 0.01]], "lr_cov": [[0, 0.1], [4, 0.3]], "update_period": [[0, 3], [3, 1]]}),
    ("triu-arrow", {"structures": ("block", "triu-arrow")}),
    ("tril", {"structures": ("tril-toeplitz", "tril"), "loss_average": "batch+sequence"}),
]


@pytest.mark.parametrize("net", ["conv", "mlp"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_steps_equal_the_plain_twin(net, name, options, nets, train, distance):
    make, batches = nets[net]
    model, twin = make(), make()
    options = {**COMMON, **SMALL, "structures": (name, name), **options}
    train(model, SINGD(model, **options), batches, 7)
    train(twin, reference.Twin(twin, **options), batches, 7)
    assert distance(model, make()) > 1e-2
    assert distance(model, twin) < 1e-9


@pytest.mark.parametrize("name", ["ingd", "ikfac", "dense", "diagonal", "block30", "hierarchical15", "tril_toeplitz"])
def test_factories_and_twins_have_the_same_defaults(name, nets, train, distance):
    make, batches = nets["conv"]
    model, twin = make(), make()
    train(model, getattr(factories, name)(model), batches, 3)
    train(twin, getattr(reference, name)(twin), batches, 3)
    assert distance(model, twin) < 1e-10


@pytest.mark.parametrize("name", ["dense", "block", "hierarchical", "tril-toeplitz", "triu-toeplitz"])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_padded_stacks_and_spectra_equal_the_plain_twin(name, momentum, train, distance, monkeypatch):
    """Extents of 133 and 7 are padded for dense (to 136) and block (to 135 and 10); groups lie apart in X then."""
    monkeypatch.setattr(toeplitz, "_WHOLE", 0)

    def make():
        torch.manual_seed(0)
        parts = (nn.Conv2d(2, 14, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(56, 132), nn.Tanh())
        return nn.Sequential(*parts, nn.Linear(132, 133), nn.Tanh(), nn.Linear(133, 3)).double()

    def batches(k):
        generator = torch.Generator().manual_seed(k)
        x = torch.randn(6, 2, 4, 4, generator=generator, dtype=torch.float64)
        return x, torch.randint(0, 3, (6,), generator=generator)

    model, twin = make(), make()
    options = {**COMMON, **SMALL, "structures": (name, name), "momentum": momentum}
    train(model, SINGD(model, **options), batches, 4)
    train(twin, reference.Twin(twin, **options), batches, 4)
    assert distance(model, make()) > 1e-2
    assert distance(model, twin) < 1e-9


def run(name, nets, train, steps=12, **options):
    make, batches = nets["conv"]
    model = make()
    optimizer = getattr(factories, name)(model, **{**COMMON, **options})
    train(model, optimizer, batches, steps)
    return model, optimizer


def test_ingd_is_singd_dense(nets, train, distance):
    assert distance(run("ingd", nets, train)[0], run("dense", nets, train)[0]) == 0.0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("block30", {}),
        ("hierarchical15", {"ranks": (30, 0)}),
        ("rankk_arrow", {"rank": 30}),
        ("rankk_arrow", {"rank": 30, "structures": ("triu-arrow", "triu-arrow")}),
    ],
)
def test_a_structure_that_covers_every_factor_has_the_dense_trajectory(name, options, nets, train, distance):
    dense, other = run("dense", nets, train), run(name, nets, train, **options)
    assert distance(other[0], dense[0]) < 1e-11
    for one, two in zip(dense[1].layers, other[1].layers, strict=True):
        for a, b in zip(dense[1].factors(one), other[1].factors(two), strict=True):
            torch.testing.assert_close(b, a)
            assert (a - torch.eye(a.shape[-1]).double()).abs().max() > 1e-2


def test_block_factors_are_no_longer_symmetric_and_still_right(nets, train):
    """K is a product of symmetric matrices: where K^T and K differ, a multiplication by the wrong one shows."""
    _, optimizer = run("block30", nets, train, steps=20)
    k = optimizer.factors(optimizer.layers[0])[0]
    assert (k - k.mT).abs().max() > 1e-4


def moving(u, start, stop):
    """A path of matrices between two, u in [0, 1]."""
    return (1 - u) * start + u * stop


def rows_of(s):
    """Rows whose mean of outer products is ``s``."""
    return torch.linalg.cholesky(s).mT * len(s) ** 0.5


def ikfac_error(beta, total=2.0, lam=0.05):
    """Largest relative error of K K^T against K-FAC's damped inverse after beta times steps = ``total``."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(6, 6, bias=False).double()
    optimizer = factories.ikfac(model, lr=0.0, damping=lam, lr_cov=beta, update_period=1)
    ends = []
    for _ in range(4):
        x = torch.randn(6, 12, generator=generator, dtype=torch.float64)
        ends.append(x @ x.mT / 12 + 0.1 * torch.eye(6))
    running = [(1 - lam) * torch.eye(6).double()] * 2
    steps = round(total / beta)
    for k in range(steps):
        now = [moving(k / steps, ends[0], ends[1]), moving(k / steps, ends[2], ends[3])]
        running = [(1 - beta) * r + beta * s for r, s in zip(running, now, strict=True)]
        optimizer.zero_grad()
        # The mean over six terms: backward gives a sixth of these rows.
        model(rows_of(now[0])).backward(rows_of(now[1]) / 6)
        optimizer.step()
    errors = []
    for r, f in zip(running, optimizer.factors(optimizer.layers[0]), strict=True):
        right = torch.linalg.inv(r + lam * torch.eye(6))
        errors.append(float((f[0] @ f[0].mT - right).abs().max() / right.abs().max()))
    return max(errors)


def test_ikfac_follows_kfacs_inverse_at_first_order():
    errors = [ikfac_error(beta) for beta in (0.1, 0.05, 0.025, 0.0125)]
    assert errors[0] < 0.3
    for coarse, fine in pairwise(errors):
        assert 0.4 < fine / coarse < 0.6, errors
