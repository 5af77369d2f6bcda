import numpy as np
import pytest
import torch

from suites.training import augment as aug
from suites.training import counter
from suites.training.augment import Augment
from suites.training.loader import ResidentImages

EVERY = [
    Augment(),
    Augment(pad=2),
    Augment(pad=3, mode="reflect", flip="random"),
    Augment(flip="alternating"),
    Augment(pad=1, flip="alternating", cutout=3),
    Augment(cutout=4),
]


def _naive(images, order, words, augment, mean, deviation):
    """One image at a time with numpy."""
    out = []
    for index, word in zip(order.tolist(), words if words is not None else [None] * len(order), strict=True):
        image = images[index].astype(np.float64)
        height, width, _ = image.shape
        if word is not None:
            row, column, flip, hole = (int(w) for w in word)
            pad = augment.pad
            mode = {"zero": "constant", "reflect": "reflect"}[augment.mode]
            wide = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode=mode)
            top, left = row * (2 * pad + 1) // 2**32, column * (2 * pad + 1) // 2**32
            image = wide[top : top + height, left : left + width]
            if augment.flip != "none" and flip >= 2**31:
                image = image[:, ::-1]
        image = (image / 255 - mean) / deviation
        if augment.cutout and word is not None:
            image = image.copy()
            y, x = (hole >> 16) * height // 2**16, (hole & 0xFFFF) * width // 2**16
            side = augment.cutout
            rows = slice(max(0, y - side // 2), y - side // 2 + side)
            image[rows, max(0, x - side // 2) : x - side // 2 + side] = 0
        out.append(image.transpose(2, 0, 1))
    return np.stack(out)


@pytest.mark.parametrize("augment", EVERY, ids=str)
@pytest.mark.parametrize("epoch", [0, 3])
def test_batches_equal_the_naive_loop(pictures, augment, epoch):
    train, test = pictures
    data = ResidentImages(train, test, augment=augment)
    first = epoch * data.size + 20
    batch = data.train(4, first, 23)
    order, words = data.positions(4, first, 23)
    assert torch.equal(order, counter.permutation(4, epoch, 60, "cpu")[20:43])
    expected = _naive(train[0], order, words, augment, data.mean.numpy(), data.deviation.numpy())
    np.testing.assert_allclose(batch.inputs.numpy(), expected, atol=2e-6)
    assert batch.targets.tolist() == train[1][order.numpy()].tolist()


def test_alternating_flip_turns_every_image_round_each_epoch():
    augment = Augment(flip="alternating")
    bits = [aug.draw(augment, 1, epoch, 500, "cpu")[:, 2] >> 31 for epoch in range(3)]
    assert torch.equal(bits[0], 1 - bits[1])
    assert torch.equal(bits[0], bits[2])
    assert 200 < int(bits[0].sum()) < 300


def test_random_flips_are_independent_over_epochs():
    bits = [aug.draw(Augment(flip="random"), 1, epoch, 2000, "cpu")[:, 2] >> 31 for epoch in range(2)]
    assert 900 < int((bits[0] ^ bits[1]).sum()) < 1100


def test_every_crop_is_drawn_and_covers_the_whole_range(pictures):
    train, test = pictures
    seen = set()
    data = ResidentImages(train, test, augment=Augment(pad=1))
    for epoch in range(20):
        words = data.positions(0, epoch * 60, 60)[1]
        seen |= set(zip(counter.below(words[:, 0], 3).tolist(), counter.below(words[:, 1], 3).tolist(), strict=True))
    assert len(seen) == 9


def test_cutout_keeps_its_size_inside_and_is_clipped_at_the_border():
    words = torch.zeros(2, 4, dtype=torch.int64)
    words[1, 3] = (32768 << 16) | 32768
    mask = aug.hole(words, 8, 8, 4)
    assert mask[0].sum() == 4
    assert mask[1].sum() == 16
    assert mask.shape == (2, 1, 8, 8)


def test_resized_crop_of_the_whole_area_is_the_image():
    images = torch.randn(5, 3, 16, 16)
    words = torch.zeros(5, 4, dtype=torch.int64)
    # The middle of the ratio's word: a square crop.
    words[:, 2] = 0x8000
    found = aug.resized(images, words, Augment(area=1.0, flip="random"), 16)
    torch.testing.assert_close(found, images, atol=1e-3, rtol=1e-3)
    words[:, 2] |= 1 << 31
    torch.testing.assert_close(
        aug.resized(images, words, Augment(area=1.0, flip="random"), 16), images.flip(3), atol=1e-3, rtol=1e-3
    )
    torch.testing.assert_close(
        aug.resized(images, words, Augment(area=1.0, flip="none"), 16), images, atol=1e-3, rtol=1e-3
    )


def test_resized_crop_through_the_stream(pictures):
    data = ResidentImages(*pictures, augment=Augment(area=0.25, flip="random"), side=5)
    batch = data.train(0, 0, 7)
    assert batch.inputs.shape == (7, 3, 5, 5)
    assert batch.inputs.isfinite().all()
    assert not torch.equal(batch.inputs, data.train(1, 0, 7).inputs)


@pytest.mark.parametrize(
    "wrong",
    [{"pad": -1}, {"area": 1.5}, {"area": 0.2, "pad": 1}, {"area": 0.2, "cutout": 1}, {"flip": "up"}, {"mode": "x"}],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match="got"):
        Augment(**wrong)


def test_reflection_wider_than_the_image_is_refused(pictures):
    with pytest.raises(ValueError, match="reflect"):
        ResidentImages(*pictures, augment=Augment(pad=8, mode="reflect"))
