"""The workloads with look-ups: one starting point, kept, restored and trained."""

from dataclasses import replace

import pytest
import torch

from harness.catalogue import registry
from harness.errors import UserError
from suites.amm import finetune
from suites.training import replaced


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Generated images and an untrained narrow network."""
    monkeypatch.setattr(replaced, "cache_folder", lambda: tmp_path)

    def build(name, **params):
        workload = registry.workload(name)
        generated = {"synthetic": True, "synthetic_images": 60, "calibration": 40, **params}
        workload = replace(workload, params={**workload.params, **generated})
        return workload, registry.resolve(workload.runtime)

    return build


def _lookups(net):
    return [name for name, module in net.named_modules() if type(module).__name__.startswith("Maddness")]


def test_every_run_starts_from_the_same_replaced_network(small, tmp_path):
    workload, runtime = small("digits-cnn-maddness")
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = runtime.model(workload)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second = runtime.model(workload)
    assert _lookups(first) == ["conv2", "fc1"]
    for (name, one), (_, two) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(one, two), name
    assert len(list(tmp_path.glob("replaced/*.pt"))) == 1
    other, _ = small("digits-cnn-maddness", replace={"patch": 18})
    runtime.model(other)
    assert len(list(tmp_path.glob("replaced/*.pt"))) == 2


def test_an_update_and_the_final_facts(small):
    workload, runtime = small("digits-cnn-maddness")
    data = runtime.data(workload, "cpu")
    model = runtime.model(workload)
    batch = data.train(0, 0, 20)
    runtime.loss(model(batch.inputs), batch.targets).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    facts = runtime.final(model, data)
    trainable = runtime.evaluate(model, data.evaluation("test", 30))["accuracy"]
    assert facts["deployed_accuracy"] == pytest.approx(trainable, abs=0.1)
    assert "weight_condition" in facts
    start = runtime.start(workload)
    exact = runtime.evaluate(runtime.exact(workload, start.dense), data.evaluation("test", 30))["accuracy"]
    assert facts["exact_accuracy"] == pytest.approx(exact, abs=1e-6)
    assert facts["replaced_accuracy"] == pytest.approx(trainable, abs=1e-6)


def test_the_inner_convolutions_of_resnet9_are_replaced(small):
    widths = {"net_options": {"widths": (4, 6, 8)}}
    workload, runtime = small("cifar10-resnet9-maddness", synthetic_images=30, calibration=20, **widths)
    workload = replace(workload, params={**workload.params, "replace": {"patch": 9, "rows": 500}})
    start = runtime.start(workload)
    assert [(r["inner"], r["codebooks"]) for r in start.report["replaced"]] == [
        *((9 * channels, channels) for channels in (4, 6, 6, 6, 8, 8, 8)),
    ]
    assert [s["why"] for s in start.report["skipped"]] == ["it is the first layer", "it is the last layer"]
    assert start.images == 27
    model = runtime.model(workload)
    batch = runtime.data(workload, "cpu").train(0, 0, 6)
    loss = runtime.loss(model(batch.inputs), batch.targets)
    loss.backward()
    assert loss.isfinite()


def test_resnet9_has_the_parameters_that_it_states():
    net = registry.resolve("suites.training.nets:build")("resnet9")
    assert sum(p.numel() for p in net.parameters()) == 2_440_266
    net = registry.resolve("suites.training.nets:build")("resnet9", widths=(4, 4, 4))
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_the_study_gives_every_stage(small, monkeypatch):
    workload, _ = small("digits-cnn-maddness")
    monkeypatch.setattr(finetune.registry, "workload", lambda name: workload)
    monkeypatch.setattr(finetune, "CALLS", 2)
    found = finetune.study("digits-cnn-maddness", epochs=1, images=10)
    assert {"dense", "replaced", "tuned", "deployed_torch"} <= set(found["accuracy"])
    assert found["accuracy"]["deployed_torch"] == pytest.approx(found["accuracy"]["tuned"], abs=0.1)
    assert all(seconds > 0 for seconds in found["seconds_per_image"].values())
    assert found["updates"] == 1
    assert set(found["not_run"]) | set(found["seconds_per_image"]) >= {"dense", "trainable", "deployed_torch"}


def test_the_study_needs_a_network_with_lookups():
    with pytest.raises(UserError, match="replaces no layers"):
        finetune.study("digits-cnn")
