"""FOP on SINGD's factors and on EKFAC's bases: against dense float64 systems, and where they are K-FAC's own."""

import pytest
import torch

from harness.catalogue import registry
from harness.errors import Unsupported, UserError
from methods.fop import reference_singd
from methods.fop.ekfac import EKFOP
from methods.fop.fop import FOP
from methods.fop.singd import FOPSINGD
from methods.kfac.ekfac import EKFAC
from methods.singd.singd import SINGD

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves to")
SINGD_FAST = {"lr": 0.02, "update_period": 2, "damping": 0.03, "lr_cov": 0.1, "weight_decay": 0.01}
KFAC_FAST = {"lr": 0.02, "update_period": 1, "refresh_period": 2, "damping": 0.03, "clip": "none", "factor_decay": 0.8}
STRUCTURES = {
    "dense": {},
    "diagonal": {},
    "block": {"block": 3},
    "hierarchical": {"ranks": (2, 1)},
    "tril": {},
    "triu-toeplitz": {},
}


@pytest.fixture
def steps(closure):
    """Steps with a closure on batches first, first + 1, ..."""

    def run(model, optimizer, batches, count, first=0, **options):
        return [optimizer.step(closure(model, *batches(k), **options)) for k in range(first, first + count)]

    return run


# -- SINGD -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["mlp", "conv"])
@pytest.mark.parametrize("structure", list(STRUCTURES))
def test_steps_on_singd_equal_the_dense_systems(structure, net, nets, steps, distance):
    make, batches = nets[net]
    options = {**SINGD_FAST, "structures": (structure, structure), **STRUCTURES[structure]}
    model, twin, plain = make(), make(), make()
    optimizer = FOPSINGD(model, **options)
    steps(model, optimizer, batches, 7)
    dense = reference_singd.singd(twin, **options)
    steps(twin, dense, batches, 7)
    assert distance(model, twin) < 1e-8
    assert max(map(abs, dense.betas)) > 1e-3, "a projection that does nothing would pass"
    steps(plain, FOPSINGD(plain, beta="zero", eta="one", **options), batches, 7)
    assert distance(model, plain) > 1e-3


@pytest.mark.parametrize("arm", [{"beta": "random", "seed": 3}, {"beta": "zero"}, {"eta": "one"}, {"eta_ref": "mean"}])
def test_arms_on_singd_equal_the_dense_systems(arm, nets, steps, distance):
    make, batches = nets["mlp"]
    model, twin = make(), make()
    steps(model, FOPSINGD(model, **SINGD_FAST, **arm), batches, 5)
    steps(twin, reference_singd.singd(twin, **SINGD_FAST, **arm), batches, 5)
    assert distance(model, twin) < 1e-8


def test_where_singd_s_factors_are_exact_the_step_is_that_of_fop_on_damped_kfac(nets, closure):
    """K K^T and C C^T set to K-FAC's damped inverses: one step from there is FOP's with the damped F."""
    make, batches = nets["mlp"]
    model, other = make(), make()
    kfac = FOP(model, **{**KFAC_FAST, "split": "passes", "damped": True, "damping_mode": "same", "momentum": 0.0})
    singd = FOPSINGD(other, **{**SINGD_FAST, "momentum": 0.0, "weight_decay": 0.0, "lr_cov": 0.0})
    start = [p.detach().clone() for p in other.parameters()]
    kfac.step(closure(model, *batches(0)))
    for mine, theirs in zip(singd.layers, kfac.layers, strict=True):
        k, c, place = singd.sides(mine)
        for side, factor in zip((k, c), kfac.statistics.read(theirs), strict=True):
            damped = factor + KFAC_FAST["damping"] * torch.eye(factor.shape[1], dtype=torch.float64)
            side.value[place] = torch.linalg.cholesky(torch.linalg.inv(damped)).flatten(1)
            if side.kept is not None:
                side.kept[place] = side.kind.keep(side.value[place])
    singd.step(closure(other, *batches(0)))
    for one, two, before in zip(model.parameters(), other.parameters(), start, strict=True):
        assert float((one - before).norm()) > 1e-4
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)
    assert singd.chosen is not None
    torch.testing.assert_close(singd.chosen.beta, kfac.chosen.beta, rtol=1e-8, atol=0)


def test_kfac_halves_on_singd_is_singd(nets, steps, train, distance):
    make, batches = nets["mlp"]
    one, other = make(), make()
    steps(one, FOPSINGD(one, beta="zero", eta="one", **SINGD_FAST), batches, 5)
    train(other, SINGD(other, **SINGD_FAST), batches, 5)
    assert distance(one, other) < 1e-9


def test_the_projected_difference_is_orthogonal_in_singd_s_fisher(nets, closure):
    make, batches = nets["mlp"]
    model = make()
    optimizer = FOPSINGD(model, **{**SINGD_FAST, "lr": 0.0, "weight_decay": 0.0})
    optimizer.step(closure(model, *batches(0)))
    x, y = batches(1)
    found = []
    for rows in (slice(0, 3), slice(3, 6)):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        found.append([layer.gradient() for layer in optimizer.layers])
    for layer, one, two in zip(optimizer.layers, *found, strict=True):
        g, d = (one + two) / 2, one - two
        f = optimizer._fisher_times(layer, g)
        perp = d - (d * f).sum() / (g * f).sum() * g
        k, c = optimizer.factors(layer)
        dense = torch.linalg.inv(torch.kron(c[0] @ c[0].mT, k[0] @ k[0].mT))
        size = (g.flatten() @ dense @ g.flatten() * (perp.flatten() @ dense @ perp.flatten())).sqrt()
        assert abs(float(g.flatten() @ dense @ perp.flatten())) < 1e-10 * float(size)


def test_fop_on_singd_resumes_bitwise(nets, steps, distance):
    make, batches = nets["conv"]
    whole, cut = make(), make()
    steps(whole, FOPSINGD(whole, beta="random", **SINGD_FAST), batches, 6)
    first = FOPSINGD(cut, beta="random", **SINGD_FAST)
    steps(cut, first, batches, 3)
    again = FOPSINGD(cut, beta="random", **SINGD_FAST)
    again.load_state_dict(first.state_dict())
    first.close()
    steps(cut, again, batches, 3, first=3)
    assert distance(whole, cut) == 0.0


def test_fop_on_singd_tells_what_it_does_and_refuses_what_it_cannot(nets, steps, closure):
    make, batches = nets["mlp"]
    model = make()
    optimizer = FOPSINGD(model, **SINGD_FAST)
    steps(model, optimizer, batches, 2)
    assert 1.0 <= optimizer.describe()["coefficients"]["eta"] <= 2.0
    assert optimizer.memory_usage()["fisher"] > 0
    with pytest.raises(UserError, match="both halves"):
        optimizer.step()
    for wrong, kind in (({"split": "batch"}, Unsupported), ({"damped": True}, UserError), ({"rank": 0}, UserError)):
        with pytest.raises(kind):
            FOPSINGD(make(), **{**SINGD_FAST, **wrong})


# -- EKFAC -------------------------------------------------------------------------------------------------------------


def test_a_step_on_ekfac_is_that_of_the_dense_systems(nets, closure):
    """From the bases and scales that the optimizer has at its last step, everything else by definition."""
    make, batches = nets["mlp"]
    model = make()
    optimizer = EKFOP(model, **{**KFAC_FAST, "split": "passes", "momentum": 0.0})
    for k in range(4):
        optimizer.step(closure(model, *batches(k)))
    before = [p.detach().clone() for p in model.parameters()]
    x, y = batches(4)
    halves = []
    for rows in (slice(0, 3), slice(3, 6)):
        model.zero_grad()
        optimizer.capture.enabled = False
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        halves.append([layer.gradient().flatten() for layer in optimizer.layers])
    optimizer.capture.enabled = True
    optimizer.step(closure(model, x, y))
    moved = dict(zip(model.parameters(), before, strict=True))
    for layer, one, two in zip(optimizer.layers, *halves, strict=True):
        qa, qg = (slot.state["vectors"][0] for slot in optimizer.slots[layer])
        basis, s = torch.kron(qg, qa), optimizer.scales[layer].flatten()
        fisher, inverse = basis @ torch.diag(s) @ basis.mT, basis @ torch.diag(1 / (s + 0.03)) @ basis.mT
        g, d = (one + two) / 2, one - two
        perp = d - (d @ fisher @ g) / (g @ fisher @ g) * g
        beta = (g @ inverse @ perp) / (perp @ inverse @ perp)
        both = g + beta * perp
        eta = (2 * g @ inverse @ both) / (both @ inverse @ both)
        change = layer.matrix([p.detach() - moved[p] for p in layer.parameters]).flatten()
        torch.testing.assert_close(change, -0.02 * eta * inverse @ both, rtol=1e-8, atol=1e-12)
        assert abs(float(beta)) > 1e-4


def test_kfac_halves_on_ekfac_is_ekfac(nets, steps, train, distance):
    make, batches = nets["mlp"]
    one, other = make(), make()
    steps(one, EKFOP(one, split="passes", beta="zero", eta="one", **KFAC_FAST), batches, 5)
    train(other, EKFAC(other, **KFAC_FAST), batches, 5)
    assert distance(one, other) < 1e-9


def test_fop_on_ekfac_resumes_bitwise_and_refuses_running_scales(nets, steps, distance):
    make, batches = nets["conv"]
    whole, cut = make(), make()
    steps(whole, EKFOP(whole, split="passes", **KFAC_FAST), batches, 6)
    first = EKFOP(cut, split="passes", **KFAC_FAST)
    steps(cut, first, batches, 3)
    again = EKFOP(cut, split="passes", **KFAC_FAST)
    again.load_state_dict(first.state_dict())
    first.close()
    steps(cut, again, batches, 3, first=3)
    assert distance(whole, cut) == 0.0
    with pytest.raises(UserError, match="intra-batch"):
        EKFOP(make(), scaling="running")


@pytest.mark.parametrize("name", ["fop-singd", "fop-ekfac"])
def test_the_registered_methods_build_and_step(name, nets, steps):
    method = registry.method(f"training.{name}")
    model = nets["conv"][0]()
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = registry.load(method.name)(model, **method.hyper)
    steps(model, optimizer, nets["conv"][1], 2)
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))
