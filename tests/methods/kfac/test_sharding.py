"""K-FAC over four processes: the same weights, a share of the state each, exact resuming, one decision on a NaN."""

import json
import sys
from pathlib import Path

import pytest

from harness.errors import UserError
from methods.kfac.layers import find
from methods.kfac.sharding import Sharing, assign, keepers, numbers, shared_out
from suites.training.nets.resnet import resnet18_cifar
from suites.training.nets.vgg import VGG16


def printed(warm, script):
    done = warm.run([sys.executable, str(Path(__file__).parent / script)], timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found(warm):
    return printed(warm, "ranks_kfac.py")


@pytest.fixture(scope="module")
def gathered(warm):
    return printed(warm, "ranks_gathered.py")


@pytest.mark.parametrize("name", ["seng", "seng-sampled", "seng-sum", "b-kfac", "b-kfac-sum", "b-r-kfac-c"])
def test_gathered_samples_train_to_the_weights_of_one_process(name, gathered):
    one = gathered["arms"][name]
    assert one["moved"] > 0.01
    assert one["apart"] < 1e-9
    assert one["between"] == 0.0
    assert "communication" in one["parts"]
    assert all(not any(count.values()) for count in one["counters"]), one["counters"]


def test_brand_sides_are_those_of_the_whole_batch(gathered):
    for name in ("b-kfac", "b-r-kfac-c"):
        one = gathered["arms"][name]
        assert any(any(sides) for sides in one["alone"])
        assert one["sides"] == [one["alone"]] * 3


def test_ranks_that_saw_different_layers_are_all_told_and_do_not_wait(gathered):
    for told in gathered["refusals"]:
        assert len(told) == 12
        for case, text in told.items():
            assert "the ranks have different statistics of " in text, case
            wanted = "a, b:" if "other layers" in case or "nothing" in case else "b:"
            assert f"statistics of {wanted}" in text, case
    assert all("the first of them of the same size" in text for text in gathered["uneven"])


def test_one_rank_that_is_not_finite_stops_the_gathering_methods_too(gathered):
    assert gathered["skipped"] == [{"seng": [True, 1], "b-kfac": [True, 1]}] * 3


def test_owners_and_copies_train_to_the_weights_of_one_process(found):
    assert found["moved"] > 0.01
    assert found["plain"] < 1e-10
    assert found["owned"] < 1e-10
    assert found["between"] == 0.0


def test_ekfac_scales_are_averaged(found):
    assert found["ekfac"] < 1e-9


def test_each_rank_holds_at_most_a_third_of_the_state(found):
    names = ("factors", "inverses", "momentum")
    whole = sum(found["kept"][0][name] for name in names)
    shares = [sum(one[name] for name in names) for one in found["share"]]
    assert max(shares) <= whole / 3
    assert sum(shares) == pytest.approx(whole, rel=0.01), "every layer has one owner"
    assert len(set(found["owners"]["owners"].values())) == 4
    assert "communication" in found["parts"]


def test_a_saved_share_resumes_on_its_own_rank_alone(found):
    for rank, one in enumerate(found["resumed"]):
        assert one["same"]
        assert one["mark"] == [rank, 4]
        assert f"share of rank {rank} of 4" in one["refusal"]


def test_one_rank_that_is_not_finite_stops_all(found):
    assert found["skipped"] == [{"still": True, "skipped": 1}] * 4


@pytest.mark.parametrize("kind", ["KFAC", "FOP"])
def test_a_full_rank_hands_momenta_over_and_the_weights_stay_those_of_one_process(kind, found):
    one = found["handed"][kind]
    assert one["told"]["keepers"], "five equal layers on four ranks cannot be shared out evenly"
    assert one["apart"] < 1e-9
    names = ("factors", "inverses", "momentum")
    whole, shares = sum(one["whole"][n] for n in names), [sum(m[n] for n in names) for m in one["memory"]]
    assert sum(shares) == pytest.approx(whole, rel=0.01), "nothing is kept twice"
    fullest = max(range(4), key=lambda rank: one["memory"][rank]["factors"])
    assert one["memory"][fullest]["momentum"] < max(m["momentum"] for m in one["memory"])


@pytest.mark.parametrize(("name", "make"), [("vgg16", VGG16), ("resnet18", resnet18_cifar)])
def test_of_four_ranks_none_keeps_more_than_a_third_of_the_state(name, make):
    """K-FAC on the two CIFAR networks, by the formula: 2 (d_in^2 + d_out^2) and the momentum d_in d_out of a layer."""
    layers, _, _ = find(make(), ())
    owners, kept = shared_out(layers, [float(one.d_in**3 + one.d_out**3) for one in layers], 4, momentum=True)
    load = [0.0] * 4
    for layer, owner, keeper in zip(layers, owners, kept, strict=True):
        state, momentum = numbers(layer)
        load[owner] += state
        load[keeper] += momentum
    assert sum(load) == sum(2 * (one.d_in**2 + one.d_out**2) + one.d_in * one.d_out for one in layers)
    assert max(load) <= sum(load) / 3
    assert (owners != kept) == (name == "vgg16"), "directions are sent only where layers are too large"


def test_momenta_leave_the_fullest_rank_until_it_is_even_enough():
    assert keepers([0, 0, 1, 2], [4.0] * 4, [1.0] * 4, 3) == [1, 2, 1, 2]
    assert keepers([0, 1], [4.0] * 2, [1.0] * 2, 2) == [0, 1]
    assert keepers([0, 0, 1], [4.0, 4.0, 8.0], [1.0, 1.0, 1.0], 2) == [0, 0, 1]


def test_layers_go_to_the_least_loaded_rank_largest_first():
    owners = assign([1.0, 8.0, 5.0, 4.0, 3.0], 2)
    loads = [sum(c for c, o in zip([1.0, 8.0, 5.0, 4.0, 3.0], owners, strict=True) if o == rank) for rank in (0, 1)]
    assert max(loads) - min(loads) <= 3.0
    assert assign([2.0, 2.0, 2.0], 3) == [0, 1, 2]
    assert assign([1.0, 2.0], 1) == [0, 0]


def test_modes_are_checked():
    with pytest.raises(UserError, match="sharding is one of"):
        Sharing((), (), "some")
    alone = Sharing((), (), "owner")
    assert not alone.sharded, "one process owns every layer"
    assert alone.mark() == []
