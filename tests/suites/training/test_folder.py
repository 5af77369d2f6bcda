import numpy as np
import pytest
import torch

from harness.errors import UserError
from suites.training.augment import Augment
from suites.training.folder import FolderImages, centre_box, random_box

Image = pytest.importorskip("PIL.Image")
AUGMENT = Augment(area=0.3, flip="random")


@pytest.fixture
def tree(tmp_path):
    draws = np.random.default_rng(0)
    paths = []
    for number in range(12):
        name = f"{number}.png"
        array = draws.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(array if number else array[:, :, 0]).save(tmp_path / name)
        paths.append(name.encode())
    return str(tmp_path), (np.array(paths), np.arange(12) % 4), (np.array(paths[:5]), np.arange(5))


def _data(tree, augment=AUGMENT, **options):
    root, train, held = tree
    return FolderImages(
        root, train, held, mean=(0.4, 0.5, 0.6), deviation=(0.2,) * 3, augment=augment, side=16, threads=2, **options
    )


@pytest.mark.parametrize("split", [1, 5, 12])
def test_the_stream_does_not_depend_on_the_batch(tree, split):
    whole = _data(tree).train(3, 0, 30)
    data = _data(tree)
    parts = [data.train(3, first, min(split, 30 - first)) for first in range(0, 30, split)]
    assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    assert whole.inputs.shape == (30, 3, 16, 16)
    assert sorted(whole.targets[:12].tolist()) == sorted(np.arange(12) % 4)


def test_what_was_decoded_ahead_is_not_taken_for_another_position(tree):
    data = _data(tree)
    data.train(0, 0, 4)
    assert torch.equal(data.train(1, 4, 4).inputs, _data(tree).train(1, 4, 4).inputs)
    assert torch.equal(data.train(0, 9, 4).inputs, _data(tree).train(0, 9, 4).inputs)


def test_without_augmentation_the_middle_is_shown(tree):
    data = _data(tree, Augment())
    batch = next(data.evaluation("test", 3))
    assert torch.equal(batch.inputs, data.constant(3).inputs)
    index = data.positions(0, 0, 12)[0].argsort()
    assert torch.equal(data.train(0, 0, 12).inputs[index][:3], batch.inputs)
    assert [len(b.targets) for b in data.evaluation("test", 3)] == [3, 2]


def test_normalization(tree, tmp_path):
    Image.fromarray(np.full((40, 40, 3), 255, np.uint8)).save(tmp_path / "white.png")
    pair = np.array([b"white.png"]), np.zeros(1, np.int64)
    data = FolderImages(
        str(tmp_path), pair, pair, mean=(0.4, 0.5, 0.6), deviation=(0.2, 0.1, 0.4), augment=AUGMENT, side=8
    )
    torch.testing.assert_close(data.train(0, 0, 1).inputs.mean((0, 2, 3)), torch.tensor([3.0, 5.0, 1.0]))


def test_boxes():
    assert centre_box(256, 300) == (16, 38, 240, 262)
    draws = np.random.default_rng(1).integers(0, 2**32, (500, 4)).tolist()
    shares = []
    for words in draws:
        left, top, right, bottom = random_box(words, 50, 40, 0.08)
        assert 0 <= left < right <= 50 + 1e-9
        assert 0 <= top < bottom <= 40 + 1e-9
        shares.append((right - left) * (bottom - top) / 2000)
    assert 0.05 < min(shares) < 0.12
    assert 0.85 < max(shares) <= 1


def test_unknown_augmentation_and_splits_are_refused(tree):
    with pytest.raises(UserError, match="area"):
        _data(tree, Augment(pad=2))
    with pytest.raises(UserError, match="validation"):
        next(_data(tree).evaluation("validation", 2))
