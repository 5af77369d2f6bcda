"""The declarative side of the suite of approximate products."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from harness.catalogue import dataset, registry
from harness.catalogue.suite import TIERS
from harness.measure import plan
from suites import approximate_matmul as amm


def test_listing_imports_no_torch():
    code = "import sys, suites.approximate_matmul; print([m for m in ('torch', 'numpy', 'scipy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=registry.ROOT)
    assert found.stdout.strip() == "[]"


def test_registry_finds_suite_runtime_and_baseline():
    assert registry.suite("approximate_matmul") is amm.SUITE
    assert amm.SUITE.baseline in registry.entries("methods")
    assert set(amm.SUITE.quick) <= set(registry.entries("methods"))
    assert amm.TASK.primary_error in amm.ERRORS


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tiers_nest_and_quick_comes_first(device):
    tiers = {tier: amm.SUITE.tier(tier, (device,)) for tier in TIERS}
    ids = {tier: {p.id for p in found} for tier, found in tiers.items()}
    assert ids["quick"] < ids["standard"] <= ids["full"]
    if device == "cpu":
        assert tiers["standard"][: len(tiers["quick"])] == tiers["quick"]


def test_quick_problems_need_no_download():
    for problem in amm.SUITE.tier("quick", ("cpu", "cuda")):
        assert problem.params["data"] in ("digits", "lowrank", "features:digits-cnn")


def test_every_problem_names_a_card_and_a_size():
    cards = set(dataset.cards())
    for problem in amm.SUITE.problems:
        kind, _, detail = problem.params["data"].partition(":")
        wanted = {"features": f"features-{detail}", "ucr": f"ucr-{detail}", "filter": detail.partition("@")[2]}
        assert wanted.get(kind, "digits") in cards
        hyper = problem.params["hyper"]
        assert problem.kind.endswith(f"_c{hyper['codebooks']}")
        assert hyper["codebooks"] <= min(problem.shape[1], 257)
        assert 1 <= hyper["rank"] < min(problem.shape[1:])


@pytest.mark.parametrize(
    ("codebooks", "shape", "wanted"), [(16, (512, 10), 8), (64, (512, 100), 64), (2, (512, 10), 2), (16, (27, 2), 1)]
)
def test_a_sketch_is_smaller_than_both_sides(codebooks, shape, wanted):
    assert amm.rank(codebooks, *shape) == wanted


def test_the_published_shapes_are_there():
    shapes = {p.shape for p in amm.SUITE.tier("standard", ("cpu",))}
    assert {(10_000, 512, 10), (10_000, 512, 100), (1000, 320, 128), (222 * 222, 27, 2), (220 * 220, 75, 2)} <= shapes


def test_a_suite_limits_the_methods_of_its_quick_tier(monkeypatch):
    few = replace(amm.SUITE, quick=("approximate_matmul.int8",))
    monkeypatch.setattr(registry, "suite", lambda name: few)

    def timed(request):
        (part,) = plan.build(request).suites
        return {case.method.split(".")[1] for case in part.cases()}

    asked = plan.Request(suites=("approximate_matmul",), tier="quick", device="cpu")
    assert timed(asked) == {"exact", "int8"}
    assert timed(replace(asked, methods=("approximate_matmul.pca",))) == {"exact", "pca"}
    assert {"pca", "int8", "exact"} <= timed(replace(asked, tier="standard"))


def test_variants_of_one_option_are_measured_by_name_or_in_the_full_tier():
    problem = "digits_c16-355x64x10-float32-cpu"
    named = "approximate_matmul.maddness-strict"

    def skipped(**request):
        made = plan.build(plan.Request(suites=("approximate_matmul",), device="cpu", problems=(problem,), **request))
        return made.suites[0].skipped

    case = f"{named}/{problem}"
    assert skipped(tier="standard")[case] == plan.VARIANT_REASON
    assert case not in skipped(tier="standard", methods=(named,))
    assert case not in skipped(tier="full")
