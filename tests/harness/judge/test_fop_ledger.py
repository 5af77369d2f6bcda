"""The claims of FOP: about things that exist, able to come out either way, gated by a search where a recipe lacks."""

from __future__ import annotations

from typing import Any

import pytest

from harness.catalogue import registry
from harness.judge.claim import Claim, Search, load_claims
from harness.judge.verdict import Verdict, judge

LEDGER = [claim for claim in load_claims() if claim.file == "suites/claims/fop.toml"]
TRAINED = [claim for claim in LEDGER if claim.workload is not None]
RATIOS = [claim for claim in TRAINED if claim.baseline is not None]
LIMITS = [claim for claim in TRAINED if claim.kind == "at-most" and claim.baseline is None]
READINGS = ("sum", "mean")


def named(identity: str) -> Claim:
    return next(claim for claim in LEDGER if claim.id == identity)


def test_every_published_row_is_there() -> None:
    numbers = {claim.id.split(".")[1] for claim in LEDGER}
    assert numbers >= {f"{n:02d}" for n in range(1, 21)}
    assert len({claim.id for claim in LEDGER}) == len(LEDGER)


@pytest.mark.parametrize("claim", TRAINED, ids=lambda claim: claim.id)
def test_names_exist_and_what_no_recipe_covers_is_gated(claim: Claim) -> None:
    methods = registry.entries("methods")
    assert {claim.candidate, claim.baseline} - {None} <= set(methods)
    assert claim.workload in registry.entries("workloads")
    workload = registry.workload(str(claim.workload))
    assert ("cuda" in workload.needs) == ("cuda" in claim.needs)
    assert (claim.clock == "train") == claim.timed
    assert claim.hardware_free != bool(claim.hardware)
    if not claim.counter and not claim.hyper and claim.metric != "peak_device_bytes":
        assert claim.search is not None
        assert registry.workload(str(claim.search.workload))
        assert claim.search.readings == {"eta_ref": READINGS}
        assert claim.search.decades >= 3
    assert claim.counter or "extension" not in claim.source


# -- verdicts ----------------------------------------------------------------------------------------------------------


def put(book: Any, claim: Claim, arm: str, seed: int, values: dict[str, float], **more: Any) -> None:
    detail = {"hyper": more.pop("hyper", {}), **more.pop("detail", {})}
    shared = {"method": arm.removesuffix("#aa"), "arm": arm, "phase": "training"}
    for metric, value in values.items():
        book.row(**{**shared, "workload": claim.workload, "status": "target_reached", **more}, seed=float(seed),
                 run=f"{arm}-{seed}-{detail}", metric=metric, value=value, detail=detail)  # fmt: skip


def trained(claim: Claim, store: Any, better: float) -> Any:
    """Ten seeds: the candidate ``better`` times as good as the baseline."""
    book = store(device=(claim.hardware or "Toy").split(" or ")[0])
    own = better if claim.larger_is_better else 1 / better
    for seed in range(10):
        wobble = 1 + 1e-4 * seed
        put(book, claim, claim.candidate, seed, {claim.metric: 0.5 * own * wobble})
        for arm in (str(claim.baseline), "training.lars", "training.lars#aa"):
            put(book, claim, arm, seed, {claim.metric: 0.5 * wobble})
    return book


def trials(
    book: Any, claim: Claim, count: int = 30, decades: float = 4.0, readings: tuple[str, ...] = READINGS
) -> None:
    assert claim.search is not None
    for k in range(count):
        scale = 10 ** (decades * (k / (count - 1) - 0.5))
        hyper = {"lr": 0.1 * scale, "damping": 1e-3 * scale, "eta_ref": readings[k % len(readings)]}
        put(book, claim, claim.candidate, k, {"final_val_accuracy": 0.5}, workload=claim.search.workload,
            hyper=hyper, detail={"split": "validation"}, status="budget_exhausted")  # fmt: skip


def one(claim: Claim, book: Any) -> Verdict:
    (verdict,) = judge(claim, book.frame())
    return verdict


@pytest.mark.parametrize("claim", RATIOS, ids=lambda claim: claim.id)
def test_each_ratio_can_come_out_either_way(claim: Claim, store: Any) -> None:
    good = one(claim, trained(claim, store, 1.0 if claim.kind == "at-most" else claim.ratio or 1.3))
    assert good.verdict == "reproduced", good.reason
    bad = one(claim, trained(claim, store, 0.5))
    if claim.search is None:
        assert bad.verdict == "not reproduced"
        return
    assert (bad.verdict, "recipe unpublished: 0 of 30 tuning trials" in bad.reason) == ("inconclusive", True)
    book = trained(claim, store, 0.5)
    trials(book, claim)
    assert one(claim, book).verdict == "not reproduced"


@pytest.mark.parametrize(
    ("options", "lack"),
    [
        ({"count": 29}, "29 of 30 tuning trials of training.fop on cifar10-resnet18"),
        ({"decades": 2.5}, "trials span 2.5 of 3 decades of lr"),
        ({"readings": ("sum",)}, "eta_ref = mean was never tried"),
    ],
)
def test_a_poor_search_is_named(options: dict[str, Any], lack: str, store: Any) -> None:
    claim = named("fop.06.kfac.samples")
    book = trained(claim, store, 0.5)
    trials(book, claim, **options)
    found = one(claim, book)
    assert found.verdict == "inconclusive"
    assert f"recipe unpublished: {lack}" in found.reason


def test_a_rival_that_gets_there_refutes_only_without_a_search(store: Any) -> None:
    claim = named("fop.11.only")
    book = store(device="Toy")
    for seed in range(6):
        put(book, claim, claim.candidate, seed, {claim.metric: 1.0})
        put(book, claim, "training.muon", seed, {claim.metric: 1.0})
    assert one(claim, book).verdict == "not reproduced"
    alone = store(device="Toy")
    for seed in range(6):
        put(alone, claim, claim.candidate, seed, {"steps": 1.0}, status="budget_exhausted")
        put(alone, claim, "training.muon", seed, {"steps": 1.0}, status="budget_exhausted")
    found = one(claim, alone)
    assert (found.verdict, "recipe unpublished" in found.reason) == ("inconclusive", True)


@pytest.mark.parametrize("claim", LIMITS, ids=lambda claim: claim.id)
def test_limits_are_epochs_and_hold_or_not(claim: Claim, store: Any) -> None:
    assert claim.ratio is not None
    words = []
    for factor in (0.9, 1.5):
        book = store(device="Toy")
        for seed in range(10):
            put(book, claim, claim.candidate, seed, {claim.metric: claim.ratio * factor * (1 + 1e-4 * seed)})
        words.append(one(claim, book).verdict)
    assert words == ["reproduced", "inconclusive"]


def test_the_package_is_not_to_be_had() -> None:
    (found,) = judge(named("fop.16.package"), __import__("pandas").DataFrame())
    assert found.verdict == "not reproduced"
    assert "not found" in found.reason


def test_a_search_belongs_to_training() -> None:
    fields = named("fop.06.kfac.samples").model_dump() | {"workload": None, "problems": ("x",)}
    with pytest.raises(ValueError, match="belong to claims about a training workload"):
        Claim(**fields)
    assert Search().decades == 3.0
