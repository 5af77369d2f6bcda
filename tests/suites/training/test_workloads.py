import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
import torch
from torch import nn

from harness.catalogue import registry
from harness.catalogue.data import names as card_names
from harness.catalogue.workload import Batch
from harness.errors import UserError
from harness.measure.training import recipe, sweep
from suites.training import images

OURS = [name for name, entry in registry.entries("workloads").items() if entry.target.startswith("suites.training.")]
IMAGES = [name for name in OURS if "gpt" not in name]
BATCHES = (512, 2048, 4096, 8192, 16384, 32768, 50000)


def _synthetic(name, **params):
    workload = registry.workload(name)
    workload = replace(workload, params={**workload.params, "synthetic": True, "synthetic_images": 40, **params})
    return workload, registry.resolve(workload.runtime)


def test_the_registered_workloads_are_these():
    expected = {
        *("digits-cnn", "digits-fullbatch", "fashion-cnn", "cifar10-small", "sotu-gpt", "sotu-gpt-cpu"),
        *("descriptions-gpt", "cifar10-vgg16bn", "cifar10-airbench", "cifar10lt-resnet32", "cifar10lt-resnet32-f50"),
        *(
            "imagenet1k-resnet50",
            "imagenet100-t2t-vit",
            "cifar10-resnet18",
            "cifar10-vgg16bn-paper",
            "cifar10-vgg16wide",
        ),
        *(f"cifar10-resnet18-b{batch}" for batch in BATCHES[1:]),
        *(f"imagenet1k-resnet50-b{batch}" for batch in (2048, 4096, 8192)),
        *(f"imagenet100-t2t-vit-b{batch}" for batch in (1024, 2048, 4096)),
        *("digits-cnn-maddness", "cifar10-resnet9", "cifar10-resnet9-maddness"),
        *(f"digits-linear-{precision}" for precision in ("fp32", "bf16", "fp16")),
        *("digits-vit", "digits-convmixer", "cifar10-vit", "cifar10-convmixer"),
        *("cifar100lt-resnet32", "cifar100lt-resnet32-f50"),
    }
    assert expected == set(OURS)


def test_descriptors_need_no_torch():
    code = "import sys; from harness.catalogue import registry; registry.workloads(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", OURS)
def test_descriptors_are_plain_and_name_known_things(name):
    workload = registry.workload(name)
    json.dumps(workload.describe())
    assert workload.data in card_names()
    assert set(workload.methods) <= set(registry.entries("methods"))
    assert workload.target.source
    assert ("cuda" in workload.needs) == (workload.devices == ("cuda",))
    if "quick" in workload.tiers:
        assert "cpu" in workload.devices


@pytest.mark.parametrize("name", OURS)
def test_recipes_are_understood_and_carry_evidence(name):
    path = resources.files("suites.training") / "recipes" / f"{name}.toml"
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    workload = registry.workload(name)
    assert set(workload.methods) <= set(tables)
    for method, values in tables.items():
        assert len(values["evidence"]) > 10, method
        recipe.resolve(workload, registry.method(method), {})


@pytest.mark.parametrize("batch", BATCHES)
def test_resnet_variants(batch):
    workload = registry.workload("cifar10-resnet18" + (f"-b{batch}" if batch > 512 else ""))
    assert workload.batch == batch
    assert workload.target.value == 0.91


def test_the_resnet_s_sizes_are_a_family():
    found = sweep.family(registry.workload("cifar10-resnet18"))
    assert tuple(found) == BATCHES
    assert [one.name for one in sweep.chosen(found[512], "50000,512")] == [
        "cifar10-resnet18",
        "cifar10-resnet18-b50000",
    ]


def test_the_full_batch_is_the_training_set():
    workload = registry.workload("digits-fullbatch")
    runtime = registry.resolve(workload.runtime)
    assert runtime.data(workload, "cpu").size == workload.batch


@pytest.mark.parametrize(
    "name", ["digits-cnn", "fashion-cnn", "cifar10-small", "digits-linear-fp32", "cifar10-airbench"]
)
def test_an_update_on_generated_images(name):
    workload, runtime = _synthetic(name)
    if "airbench" in name:
        workload = replace(workload, params={**workload.params, "net_options": {"widths": (4, 6, 8)}})
    data = runtime.data(workload, "cpu")
    torch.manual_seed(0)
    model = runtime.model(workload)
    runtime.prepare(model, data)
    batch = data.train(0, 0, 20)
    loss = runtime.loss(model(batch.inputs), batch.targets)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    found = runtime.evaluate(model, data.evaluation("test", 15))
    assert set(found) == {"accuracy", "loss"}
    facts = runtime.final(model, data)
    wanted = {"weight_sigma_spread", "weight_condition", *(f"noise_accuracy_{s}" for s in (0.1, 0.2, 0.4))}
    assert set(facts) == wanted
    assert all(np.isfinite(value) for value in facts.values())


@pytest.mark.parametrize("name", ["imagenet1k-resnet50", "imagenet100-t2t-vit"])
def test_user_supplied_sets_can_be_generated(name):
    workload, runtime = _synthetic(name, stored_side=40, side=32, synthetic_images=6)
    batch = runtime.data(workload, "cpu").train(0, 4, 4)
    assert batch.inputs.shape == (4, 3, 32, 32)
    assert int(batch.targets.max()) < workload.params["classes"]


def test_user_supplied_sets_are_read_from_files(cards, tmp_path):
    picture = pytest.importorskip("PIL.Image")
    (tmp_path / "train").mkdir()
    for number in range(4):
        picture.fromarray(np.full((30, 40, 3), 60 * number, np.uint8)).save(tmp_path / "train" / f"{number}.png")
    paths = np.array([f"train/{number}.png".encode() for number in range(4)])
    meta = {"root": str(tmp_path), "mean": [0.5] * 3, "std": [0.25] * 3, "classes": 2}
    labels = np.arange(4) % 2
    cards("folder", meta, train_path=paths, train_y=labels, test_path=paths, test_y=labels)
    workload = registry.workload("imagenet1k-resnet50")
    data = registry.resolve(workload.runtime).data(workload, "cpu", False)
    assert data.train(0, 0, 5).inputs.shape == (5, 3, 224, 224)
    held = registry.resolve(workload.runtime).data(workload, "cpu", True)
    assert (held.size, len(next(held.evaluation("validation", 9)).targets)) == (3, 1)


def test_cards_are_served_and_a_tenth_can_be_held_out(cards):
    draws = np.random.default_rng(0)
    train, test = (draws.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8) for count in (50, 10))
    cards("images", train_x=train, train_y=np.arange(50) % 10, test_x=test, test_y=np.arange(10))
    workload = registry.workload("digits-cnn")
    runtime = registry.resolve(workload.runtime)
    data, tuning = runtime.data(workload, "cpu", False), runtime.data(workload, "cpu", True)
    assert (data.size, tuning.size) == (50, 45)
    assert len(next(tuning.evaluation("validation", 99)).targets) == 5
    with pytest.raises(UserError, match="'test'"):
        next(tuning.evaluation("test", 99))


def test_the_subset_takes_the_first_of_each_class(cards):
    draws = np.random.default_rng(0)
    train, test = (draws.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8) for count in (6000, 2500))
    labels = {count: draws.permutation(np.arange(count) % 10) for count in (6000, 2500)}
    cards("images", train_x=train, train_y=labels[6000], test_x=test, test_y=labels[2500])
    workload = registry.workload("cifar10-small")
    data = registry.resolve(workload.runtime).data(workload, "cpu", False)
    assert data.size == 5000
    chosen = [i for i in range(6000) if (labels[6000][: i + 1] == labels[6000][i]).sum() <= 500]
    assert data._labels.tolist() == labels[6000][chosen].tolist()
    assert torch.equal(data._images[:3, 2:-2, 2:-2], torch.from_numpy(train[chosen[:3]]))


def test_a_class_that_is_too_small_is_named():
    with pytest.raises(UserError, match="class 1, got 2"):
        images._first_of_each((np.zeros((5, 1)), np.array([0, 0, 0, 1, 1])), 3)


def test_a_runtime_refuses_a_workload_with_another_loss():
    workload = replace(registry.workload("cifar10-airbench"), runtime="suites.training.images:RUNTIME")
    with pytest.raises(UserError, match="label_smoothing"):
        images.RUNTIME.model(workload)


def test_evaluation_counts_hits_and_leaves_the_mode_alone():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout(0.9))
    inputs, targets = torch.randn(10, 1, 2, 2), torch.arange(10) % 3
    batches = [Batch(inputs[:7], targets[:7]), Batch(inputs[7:], targets[7:])]
    found = images.SMOOTHED.evaluate(model, iter(batches))
    logits = model[1](inputs.flatten(1))
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == targets).float().mean()))
    assert found["loss"] == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-5)
    assert model.training
    with pytest.raises(UserError, match="none"):
        images.RUNTIME.evaluate(model, iter(()))


def test_views_are_averaged_with_their_weights():
    inputs = torch.randn(2, 1, 4, 4)
    seen = images.averaged(lambda x: x, inputs, 1)
    assert torch.equal(seen, inputs)
    torch.testing.assert_close(images.averaged(lambda x: x, inputs, 2), (inputs + inputs.flip(3)) / 2)
    wide = nn.functional.pad(inputs, (1, 1, 1, 1), mode="reflect")
    views = [(inputs, 0.25)] * 1 + [(inputs.flip(3), 0.25)]
    for moved in (wide[:, :, :4, :4], wide[:, :, 2:, 2:]):
        views += [(moved, 0.125), (moved.flip(3), 0.125)]
    expected = sum(weight * view for view, weight in views)
    torch.testing.assert_close(images.averaged(lambda x: x, inputs, 6), expected)
    coarse = images.averaged(lambda x: x.bfloat16(), inputs, 6)
    assert coarse.dtype == torch.float32  # averaging adds no rounding to that of the logits themselves
    with pytest.raises(UserError, match="views"):
        images.averaged(lambda x: x, inputs, 3)


@pytest.mark.parametrize("name", ["sotu-gpt-cpu", "descriptions-gpt"])
def test_an_update_on_generated_text(name):
    workload, runtime = _synthetic(name, windows=3)
    torch.manual_seed(0)
    data, model = runtime.data(workload, "cpu"), runtime.model(workload)
    batch = data.train(0, 0, 3)
    loss = runtime.loss(model(batch.inputs), batch.targets)
    loss.backward()
    assert loss.item() == pytest.approx(np.log(workload.params["vocabulary"]), abs=0.3)
    assert runtime.evaluate(model, data.evaluation("test", 2))["loss"] == pytest.approx(loss.item(), abs=0.3)
    assert set(runtime.final(model, data)) == {"weight_sigma_spread", "weight_condition"}


def test_text_cards_must_agree_with_the_network(cards):
    tokens = np.arange(4000, dtype=np.uint8) % 92
    workload = registry.workload("descriptions-gpt")
    runtime = registry.resolve(workload.runtime)
    cards("text", {"vocabulary": ["a"] * 92}, train=tokens, test=tokens[:500])
    whole, tuning = runtime.data(workload, "cpu", False), runtime.data(workload, "cpu", True)
    assert (whole.size, tuning.size) == (4000 // 64 - 1, 3600 // 64 - 1)
    assert next(tuning.evaluation("validation", 1)).inputs[0, 0] == tokens[3600]
    cards("text", {"vocabulary": ["a"] * 91}, train=tokens, test=tokens[:500])
    with pytest.raises(UserError, match="92 characters"):
        runtime.data(workload, "cpu", False)
