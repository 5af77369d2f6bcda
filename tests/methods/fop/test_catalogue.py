"""Recipes and search spaces of FOP, its arms and K-FAC."""

import math

import pytest

from harness.catalogue import registry
from harness.measure.training import recipe
from harness.measure.training import space as spaces

ARMS = ("fop", "fop-beta0", "fop-eta1", "fop-random", "kfac-halves")
SWEEP = {512: "cifar10-resnet18"} | {b: f"cifar10-resnet18-b{b}" for b in (2048, 4096, 8192, 16384, 32768, 50000)}
WORKLOADS = [
    *SWEEP.values(),
    *("cifar10lt-resnet32", "cifar10lt-resnet32-f50", "digits-cnn", "digits-fullbatch"),
    *("cifar100lt-resnet32", "cifar100lt-resnet32-f50"),
    *("imagenet1k-resnet50", *(f"imagenet1k-resnet50-b{b}" for b in (2048, 4096, 8192))),
    *("imagenet100-t2t-vit", *(f"imagenet100-t2t-vit-b{b}" for b in (1024, 2048, 4096))),
]
NOTES = ("evidence", "trials")


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_arm_has_a_recipe_that_its_factory_takes(workload):
    described = registry.workload(workload)
    for arm in ("kfac-cholesky", *ARMS):
        stored = recipe.recipe(workload, f"training.{arm}")
        assert stored["evidence"]
        hyper = recipe.resolve(described, registry.method(f"training.{arm}"), {})
        assert hyper.trainer["clip_norm"] is None
        assert hyper.sources["lr"] == "recipe"


@pytest.mark.parametrize("workload", [name for name in WORKLOADS if name != "digits-fullbatch"])
def test_arms_share_every_value(workload):
    stored = [recipe.recipe(workload, f"training.{arm}") for arm in ARMS]
    values = [{k: v for k, v in one.items() if k not in NOTES} for one in stored]
    rates = [one.pop("lr") for one in values]
    assert all(one == values[0] for one in values)
    # An eta near 2 doubles every step: where rates differ at all, those arms have half the others'.
    halved = [rates[-1] / 2 if arm in {"fop", "fop-beta0", "fop-random"} else rates[-1] for arm in ARMS]
    assert rates in ([rates[-1]] * len(rates), halved)


def test_on_the_full_batch_of_digits_every_arm_was_searched_equally():
    """The arm without the orthogonal term decides at equally tuned rates, so each has the best of as many trials."""
    stored = {arm: recipe.recipe("digits-fullbatch", f"training.{arm}") for arm in ("kfac-cholesky", *ARMS)}
    assert all("best of 30 trials" in one["evidence"] for one in stored.values())
    searched = {"lr", "damping", "momentum", "clip_value", "epochs"}
    kept = [{k: v for k, v in one.items() if k not in {*NOTES, *searched, "eta_ref"}} for one in stored.values()]
    assert all(one == kept[0] for one in kept)
    assert all(searched <= one.keys() for one in stored.values())


def test_the_rate_grows_with_the_batch_and_pieces_are_equal():
    for batch, name in SWEEP.items():
        kfac, fop = (recipe.recipe(name, f"training.{arm}") for arm in ("kfac-cholesky", "fop"))
        assert kfac["lr"] == 2 * fop["lr"] == pytest.approx(0.3 * batch / 512, abs=1e-3)
        assert 2 * fop.get("accumulate", 1) == kfac.get("accumulate", 1) or batch <= 2048
        assert batch / kfac.get("accumulate", 1) <= 2500
        assert kfac["update_period"] == (10 if batch == 512 else 5)
        sgd = recipe.recipe(name, "training.sgd")
        assert sgd.get("accumulate", 1) == kfac.get("accumulate", 1)


@pytest.mark.parametrize("arm", [*ARMS, "fop-singd", "fop-ekfac"])
def test_search_spaces_span_what_a_verdict_needs(arm):
    method = registry.method(f"training.{arm}")
    found = spaces.space(method, recipe.resolve(registry.workload("cifar10-resnet18"), method, {}))
    for name in ("lr", "damping"):
        assert math.log10(found[name]["high"] / found[name]["low"]) >= 3.5
    assert ("eta_ref" in found) == ("eta_ref" in method.hyper)
    if "eta_ref" in found:
        assert found["eta_ref"] == {"values": ["sum", "mean"]}
