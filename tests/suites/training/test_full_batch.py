"""The whole training set as one batch, in pieces: the same weights as in one piece, and the pieces of the recipes."""

import warnings

import pytest

from harness.catalogue import registry
from harness.measure.training import warmup
from harness.measure.training.loop import Run
from harness.measure.training.plan import TrainRequest, build
from harness.measure.training.recipe import recipe
from harness.measure.training_device import open_training

KFAC = ("damping=0.03", "update_period=1", "refresh_period=2")


def trained(method, accumulate, hyper=()):
    """Weights before and after three updates of ``digits-fullbatch``."""
    values = (f"accumulate={accumulate}", "epochs=3", *hyper)
    request = TrainRequest(
        workloads=("digits-fullbatch",), methods=(method,), seeds=1, hyper=values, device="cpu", full=True
    )
    plan = build(request)
    spec = plan.spec(plan.parts[0], plan.parts[0].arms[0], 0)
    workload = spec.found_workload()
    runtime = registry.resolve(workload.runtime)
    run = Run(
        spec=spec,
        workload=workload,
        runtime=runtime,
        data=runtime.data(workload, "cpu", False),
        device=open_training("cpu", "ieee"),
        loss=lambda model, inputs, targets: runtime.loss(model(inputs), targets),
    )
    kept = {}
    warm = run._warm_up

    def begin():
        warm()
        kept["before"] = [p.detach().clone() for p in run.model.parameters()]

    run._warm_up = begin
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = run.run()
    assert found.status in ("budget_exhausted", "target_reached"), found.reason
    return kept["before"], [p.detach() for p in run.model.parameters()]


@pytest.mark.parametrize(("method", "hyper"), [("sgd", ()), ("fop", KFAC), ("kfac-cholesky", KFAC)])
def test_pieces_train_to_the_weights_of_the_whole(method, hyper, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(warmup, "STALL_MOST", 1)
    before, whole = trained(method, 1, hyper)
    _, pieces = trained(method, 7, hyper)
    moved = max(float((a - b).norm()) for a, b in zip(whole, before, strict=True))
    apart = max(float((a - b).norm() / (a - c).norm()) for a, b, c in zip(whole, pieces, before, strict=True))
    assert moved > 1e-3
    assert apart < 1e-3


def test_the_recipes_of_fifty_thousand_go_in_pieces_that_fit():
    workload = registry.workload("cifar10-resnet18-b50000")
    assert workload.batch == 50_000
    for method in ("sgd", "lars", "adamw", "muon", "kfac-cholesky", "fop", "fop-beta0", "fop-eta1", "kfac-halves"):
        factory = registry.method(f"training.{method}")
        parts = 2 if "fop" in method or "halves" in method else 1
        pieces = parts * recipe(workload.name, factory.name).get("accumulate", 1)
        assert workload.batch / pieces <= 2500, method
