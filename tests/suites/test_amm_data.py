"""Readers of photographs and series, features, filters and probes."""

from __future__ import annotations

import io

import numpy as np
import pytest

from harness.catalogue import data
from harness.catalogue.data import archive, cache, cards, formats
from harness.errors import Unavailable, UserError
from suites.amm import features, filters, probes, sources

SERIES = """#a comment
@problemName Toy
@classLabel true a b
@data
1,2,3:a
4,5,6.5:b
"""


def source(tmp_path, **files):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return archive.folder(tmp_path, "toy")


def test_series_are_read_with_their_labels(tmp_path):
    found, meta = formats.READERS["ucr-series"](
        source(tmp_path, one=SERIES, two=SERIES), {"members": {"train": "one", "test": "two"}}
    )
    assert found["train_x"].tolist() == [[1, 2, 3], [4, 5, 6.5]]
    assert found["test_y"].tolist() == [0, 1]
    assert meta["class_names"] == ["a", "b"]
    with pytest.raises(UserError, match="different lengths"):
        formats.READERS["ucr-series"](source(tmp_path, bad=SERIES + "1,2:a\n"), {"members": {"train": "bad"}})
    with pytest.raises(UserError, match="@data"):
        formats.READERS["ucr-series"](source(tmp_path, bad="1,2:a\n"), {"members": {"train": "bad"}})


def test_photographs_are_read_without_loss(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    stream = io.BytesIO()
    image.fromarray(pixels).save(stream, "PNG")
    found, _ = formats.READERS["photos"](source(tmp_path, p=stream.getvalue()), {"members": {"cat": "p"}})
    assert np.array_equal(found["cat"], pixels)


def test_computed_features_name_their_command(tmp_path, monkeypatch):
    monkeypatch.setenv("SPEEDCLAIM_CACHE", str(tmp_path))
    for verb in (data.load, data.fetch):
        with pytest.raises(Unavailable, match=r"python -m suites\.amm\.features features-cifar10-net"):
            verb("features-cifar10-net")


def test_digit_features_are_made_on_first_use_and_repeat(tmp_path, monkeypatch):
    monkeypatch.setenv("SPEEDCLAIM_CACHE", str(tmp_path))
    first = features.load("features-digits-cnn")
    assert cache.find(cards.read("features-digits-cnn")) is not None
    x, labels = first.arrays["train_x"], first.arrays["train_y"]
    assert x.min() >= 0
    again, _ = features.digits_cnn(cards.read("features-digits-cnn"))
    assert np.array_equal(again["train_x"], x)
    b, bias = probes.softmax_probe(x, labels, 10, 1.0)
    right = (first.arrays["test_x"].astype(np.float32) @ b + bias).argmax(1) == first.arrays["test_y"]
    assert right.mean() > 0.96


def test_patches_times_kernels_are_the_filters():
    convolve = pytest.importorskip("scipy.ndimage").correlate
    picture = np.random.default_rng(1).integers(0, 256, (30, 28, 3)).astype(np.uint8)
    for name, side in (("sobel", 3), ("gauss", 5)):
        b = filters.kernels(name)
        y = filters.unfold(picture, side) @ b
        for m in range(2):
            kernel = b[:, m].reshape(side, side, 3)
            wanted = sum(convolve(picture[:, :, c].astype(float), kernel[:, :, c]) for c in range(3))
            edge = side // 2
            assert np.allclose(y[:, m], wanted[edge:-edge, edge:-edge].ravel(), rtol=1e-4, atol=1e-2)
    assert np.allclose(filters.kernels("gauss").sum(0), 3.0)
    with pytest.raises(UserError, match="sobel, gauss"):
        filters.kernels("laplace")


def test_a_softmax_probe_is_stationary():
    random = np.random.default_rng(2)
    x, labels = random.standard_normal((300, 6)), random.integers(0, 3, 300)
    b, bias = probes.softmax_probe(x, labels, 3, 1.0)
    unit = np.abs(x).max()
    logits = x @ b.astype(float) + bias
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    slope = (x / unit).T @ (share - np.eye(3)[labels]) + b.astype(float) * unit
    assert np.abs(slope).max() < 0.02


def test_prototypes_cover_every_class_and_never_more_than_there_are_rows():
    random = np.random.default_rng(3)
    labels = np.array([0] * 20 + [1] * 3)
    x = random.standard_normal((23, 4)) + 10 * labels[:, None]
    centres, owners = probes.prototypes(x, labels, 2, 10, 0)
    assert centres.shape == (10, 4)
    assert np.bincount(owners).tolist() == probes.shares(labels, 2, 10)
    assert np.bincount(owners)[1] <= 3
    assert np.abs(centres[owners == 1].mean() - 10) < 1.5
    assert sum(probes.shares(labels, 2, 100)) == 23


def test_subclasses_stay_inside_their_class():
    random = np.random.default_rng(4)
    labels = np.arange(60) % 3
    x = random.standard_normal((60, 5)) + 4 * labels[:, None]
    centres, owners = probes.subclasses(x, labels, 3, 2, 0)
    assert np.array_equal(owners[probes.nearest_subclass(x, labels, centres, owners)], labels)


def test_kernel_classifiers_read_the_archive(monkeypatch, tmp_path):
    if data.library.status("ucr-gunpoint") is not None:
        pytest.skip("the UCR set is not on this machine: speedclaim data fetch ucr-gunpoint")
    found = sources.MAKERS["ucr"]("gunpoint", (150, 320, 32), 0)
    assert found.b.shape == (320, 32)
    distance = probes.squared_distances(found.pool, found.b.T)
    powers = np.exp(-found.gamma * (distance - distance.min(1, keepdims=True)))
    scores = np.stack([powers[:, found.owners == c].sum(1) for c in range(2)], 1)
    assert (scores.argmax(1) == found.labels).mean() > 0.75
