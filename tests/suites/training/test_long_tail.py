"""Long-tailed CIFAR-100 from a user's folder: absent, and a tiny tree in the real container under smaller cards."""

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.catalogue import data, registry
from harness.catalogue.data.derive import tail_counts
from harness.errors import Unavailable
from harness.measure.training.plan import hindrance
from harness.measure.training.recipe import recipe

NAMES = ("cifar100lt-resnet32", "cifar100lt-resnet32-f50")
CARDS = Path(__file__).parents[3] / "datasets"
LARGEST, TEST = 5, 2


@pytest.fixture
def own_places(tmp_path, monkeypatch):
    monkeypatch.setenv("SPEEDCLAIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPEEDCLAIM_CIFAR100", raising=False)
    monkeypatch.delenv("SPEEDCLAIM_DATA", raising=False)


@pytest.fixture
def tree(tmp_path, own_places, monkeypatch):
    """Five training and two test pictures of each of 100 classes, and the cards cut down to them."""
    folder, cards = tmp_path / "cifar-100-python", tmp_path / "cards"
    folder.mkdir()
    cards.mkdir()
    draws = np.random.default_rng(0)
    for name, each in (("train", LARGEST), ("test", TEST)):
        labels = draws.permutation(np.arange(100 * each) % 100)
        pixels = draws.integers(0, 256, (100 * each, 3072), dtype=np.uint8)
        pixels[:, 0] = labels  # the first red value tells the class
        content = {"data": pixels, "fine_labels": labels.tolist(), "coarse_labels": [0] * len(labels)}
        (folder / name).write_bytes(pickle.dumps(content))
    for name in ("cifar100", "cifar100-lt100", "cifar100-lt50"):
        text = (CARDS / f"{name}.toml").read_text(encoding="utf-8")
        text = re.sub(r"(?m)^md5 = .*\n", "", text).replace("largest = 500", f"largest = {LARGEST}")
        kept = sum(tail_counts(LARGEST, 50 if "50" in name else 100, 100))
        train = 100 * LARGEST if name == "cifar100" else kept
        text = re.sub(r"shape = \[(50000|10847|12608)", f"shape = [{train}", text)
        (cards / f"{name}.toml").write_text(text.replace("shape = [10000", f"shape = [{100 * TEST}"), encoding="utf-8")
    monkeypatch.setenv("SPEEDCLAIM_DATASETS", str(cards))
    monkeypatch.setenv("SPEEDCLAIM_CIFAR100", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_without_the_user_s_copy_the_line_says_what_to_set(name, own_places):
    workload = replace(registry.workload(name), needs=())
    why = hindrance(workload, "cuda")
    assert "SPEEDCLAIM_CIFAR100=/path with cifar-100-python/train and cifar-100-python/test" in why
    assert hindrance(workload, "cuda", synthetic=True) is None
    with pytest.raises(Unavailable, match="SPEEDCLAIM_CIFAR100"):
        registry.resolve(workload.runtime).data(workload, "cpu")


@pytest.mark.parametrize(("name", "total", "first", "last"), [(NAMES[0], 10_847, 500, 5), (NAMES[1], 12_608, 500, 10)])
def test_the_published_counts(name, total, first, last):
    card = data.cards.read(registry.workload(name).data)
    counts = tail_counts(int(card.derive["largest"]), float(card.derive["keep"]), 100)
    assert (sum(counts), counts[0], counts[-1]) == (total, first, last)


@pytest.mark.parametrize(("name", "factor"), [(NAMES[0], 100), (NAMES[1], 50)])
def test_a_tree_is_read_thinned_and_trained_on(name, factor, tree):
    workload = registry.workload(name)
    assert hindrance(replace(workload, needs=()), "cuda") is None
    runtime = registry.resolve(workload.runtime)
    found = runtime.data(workload, "cpu")
    counts = tail_counts(LARGEST, factor, 100)
    arrays = data.load(workload.data).arrays
    assert np.bincount(arrays["train_y"], minlength=100).tolist() == counts
    assert (arrays["train_x"][:, 0, 0, 0] == arrays["train_y"]).all(), "pictures keep their labels"
    assert np.bincount(arrays["test_y"]).tolist() == [TEST] * 100, "the test set is untouched"
    assert found.size == sum(counts)
    torch.manual_seed(0)
    model = runtime.model(workload)
    batch = found.train(0, 0, 6)
    outputs = model(batch.inputs)
    assert outputs.shape == (6, 100)
    runtime.loss(outputs, batch.targets).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert set(runtime.evaluate(model, found.evaluation("test", 50))) == {"accuracy", "loss"}


@pytest.mark.parametrize("name", NAMES)
def test_every_arm_of_the_published_table_has_the_recipe_of_cifar_10(name):
    for method in ("training.sgd", "training.kfac-cholesky", "training.fop", "training.fop-beta0"):
        own, other = (recipe(one, method) for one in (name, name.replace("cifar100", "cifar10")))
        assert own == other
        assert own["evidence"]
    assert json.dumps(registry.workload(name).describe())
