"""The networks and recipes of the randomized and online K-FAC experiments."""

import pytest
import torch

from harness.catalogue import registry
from harness.measure.training import recipe, schedule
from suites.training import nets

EQUAL = ("training.kfac-eigh", "training.kfac-cholesky", "training.rs-kfac", "training.sre-kfac")


def hyper(workload, method):
    return recipe.resolve(registry.workload(workload), registry.method(method), {})


def test_the_wide_network_has_a_head_of_16384():
    net = nets.build("vgg16-bn", wide=True)
    assert net.head[0].weight.shape == (2048, 16_384)
    assert sum(p.numel() for p in nets.build("vgg16-bn").parameters()) == 14_990_922
    with torch.no_grad():
        assert net.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_equal_arms_differ_in_their_inverse_alone():
    own = {"rank", "oversampling", "power", "continuation", "warm", "seed", "evidence"}
    seen = []
    for name in EQUAL:
        found = hyper("cifar10-vgg16bn", name)
        given = {k: v for k, v in found.factory.items() if found.sources[k] == "recipe" and k not in own}
        seen.append((given, dict(found.trainer)))
    assert all(one == seen[0] for one in seen)
    assert seen[0][0]["refresh_period"] == 30


def test_the_published_arms_are_unequal_as_published():
    eigh, rs = (hyper("cifar10-vgg16bn-paper", name) for name in ("training.kfac-eigh", "training.rs-kfac"))
    assert eigh.factory["refresh_period"] == 30
    assert rs.factory["refresh_period"] == [[0, 50], [3900, 30]]
    assert (eigh.factory["damping_mode"], rs.factory["damping_mode"]) == ("adaptive-exact", "adaptive")
    rates = [found.factory["lr"] * schedule.of(found.trainer, 200, 9766) for found in (eigh, rs)]
    assert rates == pytest.approx([0.2, 0.1], rel=1e-4)


@pytest.mark.parametrize(
    ("epoch", "rate"), [(1, 0.3), (2, 0.1), (12, 0.1), (13, 0.03), (18, 0.01), (27, 0.003), (40, 1e-3)]
)
def test_the_learning_rate_follows_the_published_table(epoch, rate):
    found = hyper("cifar10-vgg16bn", "training.rs-kfac")
    update = round((epoch - 0.5) * 195.3)
    assert found.factory["lr"] * schedule.of(found.trainer, update, 9766) == pytest.approx(rate, rel=1e-4)
