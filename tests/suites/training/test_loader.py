import numpy as np
import pytest
import torch

from harness.errors import UserError
from suites.training import loader
from suites.training.augment import Augment
from suites.training.loader import ResidentImages, channel_statistics, held_out
from suites.training.stream import Epochs, pieces

FULL = Augment(pad=2, mode="reflect", flip="alternating", cutout=3)


@pytest.mark.parametrize("augment", [Augment(), FULL], ids=["plain", "augmented"])
@pytest.mark.parametrize("split", [1, 7, 50, 60, 61, 200])
def test_the_stream_does_not_depend_on_the_batch(pictures, augment, split):
    data = ResidentImages(*pictures, augment=augment)
    whole = data.train(9, 0, 200)
    parts = [data.train(9, first, min(split, 200 - first)) for first in range(0, 200, split)]
    assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)


@pytest.mark.parametrize("first", [0, 59, 60, 137, 6_000_000_001])
def test_it_resumes_at_any_position(pictures, first):
    seen = ResidentImages(*pictures, augment=FULL)
    seen.train(2, 0, 30)
    expected = seen.train(2, first, 13)
    fresh = ResidentImages(*pictures, augment=FULL).train(2, first, 13)
    assert torch.equal(fresh.inputs, expected.inputs)
    assert torch.equal(fresh.targets, expected.targets)


def test_each_epoch_is_a_permutation_of_its_own(pictures):
    data = ResidentImages(*pictures)
    orders = [data.positions(0, epoch * 60, 60)[0] for epoch in range(3)]
    for order in orders:
        assert order.sort().values.tolist() == list(range(60))
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], data.positions(1, 0, 60)[0])


def test_torch_generators_change_nothing(pictures):
    data = ResidentImages(*pictures, augment=FULL)
    torch.manual_seed(0)
    first = data.train(0, 0, 60).inputs
    state = torch.get_rng_state()
    torch.manual_seed(1)
    fresh = ResidentImages(*pictures, augment=FULL)
    assert torch.equal(fresh.train(0, 0, 60).inputs, first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("augment", [Augment(), FULL], ids=["plain", "augmented"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_shapes_dtypes_and_memory_formats(pictures, augment, channels_last):
    full = ResidentImages(*pictures, augment=augment, channels_last=channels_last)
    half = ResidentImages(*pictures, augment=augment, channels_last=channels_last, dtype=torch.bfloat16)
    for fetch in (
        lambda data: data.train(0, 3, 9),
        lambda data: data.constant(9),
        lambda data: next(data.evaluation("test", 9)),
    ):
        batch, low = fetch(full), fetch(half)
        assert batch.inputs.shape == (9, 3, 8, 8)
        assert batch.inputs.dtype == torch.float32
        assert torch.equal(low.inputs, batch.inputs.to(torch.bfloat16))
        assert batch.targets.dtype == torch.int64
        memory = torch.channels_last if channels_last else torch.contiguous_format
        assert batch.inputs.is_contiguous(memory_format=memory)


def test_statistics_are_exact_and_normalize_the_set(pictures):
    train, _ = pictures
    mean, deviation = channel_statistics(train[0])
    scaled = train[0].reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, scaled.mean(0), rtol=1e-12)
    np.testing.assert_allclose(deviation, scaled.std(0), rtol=1e-12)
    seen = ResidentImages(*pictures).train(0, 0, 60).inputs
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_statistics_do_not_depend_on_the_chunks(pictures, monkeypatch):
    train, _ = pictures
    before = channel_statistics(train[0])
    monkeypatch.setattr(loader, "_CHUNK", 7)
    assert np.array_equal(before, channel_statistics(train[0]))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (700, 3, 5, 3), (513, 32, 32, 1)])
@pytest.mark.parametrize("white", [False, True])
def test_channel_statistics_are_exact(shape, white):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images = np.full_like(images, 255) if white else images
    mean, deviation = channel_statistics(images)
    flat = images.reshape(-1, shape[-1]).astype(np.int64)
    assert np.array_equal(mean, flat.sum(0) / len(flat) / 255.0)
    expected = np.sqrt(np.maximum((flat**2).sum(0) / len(flat) - flat.mean(0) ** 2, 1e-12)) / 255.0
    assert np.array_equal(deviation, expected)


def test_a_constant_channel_is_survived():
    images = np.zeros((4, 4, 4, 1), np.uint8)
    data = ResidentImages((images, np.arange(4)), (images, np.arange(4)))
    assert data.train(0, 0, 4).inputs.isfinite().all()


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_keeping_images_normalized_changes_nothing(pictures, monkeypatch, limit):
    monkeypatch.setattr(loader, "READY_BYTES", limit)
    data = ResidentImages(*pictures)
    assert (data._ready is None) == (limit == 0)
    images = data._plain(torch.from_numpy(pictures[0][0])[data.positions(0, 5, 20)[0]])
    assert torch.equal(data.train(0, 5, 20).inputs, images)


def test_evaluation_is_whole_in_order_and_plain(pictures):
    data = ResidentImages(*pictures, augment=FULL)
    batches = list(data.evaluation("test", 7))
    assert [len(batch.targets) for batch in batches] == [7, 7, 6]
    assert torch.cat([batch.targets for batch in batches]).tolist() == pictures[1][1].tolist()
    images = torch.cat([batch.inputs for batch in batches])
    mean, deviation = data.mean.view(3, 1, 1), data.deviation.view(3, 1, 1)
    expected = (torch.from_numpy(pictures[1][0]).permute(0, 3, 1, 2) / 255 - mean) / deviation
    torch.testing.assert_close(images, expected.float(), atol=2e-6, rtol=0)


def test_another_split_is_refused(pictures):
    with pytest.raises(UserError, match="validation"):
        next(ResidentImages(*pictures).evaluation("validation", 4))


def test_the_constant_batch_repeats_when_asked_for_more(pictures):
    data = ResidentImages(*pictures, augment=FULL)
    batch = data.constant(130)
    assert torch.equal(batch.inputs[:60], batch.inputs[60:120])
    assert batch.targets[:60].tolist() == pictures[0][1].tolist()


def test_evaluation_crops_the_middle(pictures):
    data = ResidentImages(*pictures, side=4)
    whole = ResidentImages(*pictures)
    cropped, full = next(data.evaluation("test", 5)), next(whole.evaluation("test", 5))
    assert torch.equal(cropped.inputs, full.inputs[:, :, 2:6, 2:6])


@pytest.mark.parametrize("size", [11, 60, 50_000])
def test_a_tenth_is_held_out_always_the_same(size):
    kept, held = held_out(size)
    assert len(held) == max(1, round(size / 10))
    assert np.array_equal(np.sort(np.concatenate([kept, held])), np.arange(size))
    assert np.array_equal(held, held_out(size)[1])
    assert (np.diff(held) > 0).all()


@pytest.mark.parametrize(("first", "count"), [(-1, 3), (0, 0)])
def test_impossible_positions_are_refused(first, count):
    with pytest.raises(UserError, match="position"):
        list(pieces(first, count, 10))


def test_pieces_cover_what_was_asked():
    found = [(p.epoch, p.start, p.stop) for p in pieces(8, 25, 10)]
    assert found == [(0, 8, 10), (1, 0, 10), (2, 0, 10), (3, 0, 3)]


def test_tables_are_made_once_and_old_ones_dropped():
    made = []
    epochs = Epochs(lambda seed, epoch: made.append((seed, epoch)) or (seed, epoch))
    for epoch in (0, 0, 1, 0, 1, 2, 2, 0):
        assert epochs.table(5, epoch) == (5, epoch)
    assert made == [(5, 0), (5, 1), (5, 2), (5, 0)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_gpu_sees_the_same_samples(pictures):
    host, device = (ResidentImages(*pictures, augment=FULL, device=name) for name in ("cpu", "cuda"))
    a, b = host.train(1, 40, 50), device.train(1, 40, 50)
    torch.testing.assert_close(b.inputs.cpu(), a.inputs, atol=2e-6, rtol=0)
    assert torch.equal(b.targets.cpu(), a.targets)


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_made_ahead_are_the_same(pictures, channels_last):
    """In order, from anywhere, for another seed or size, and made one after the other only when they must be."""
    plain = ResidentImages(*pictures, augment=FULL, channels_last=channels_last)
    one = plain.train(0, 0, 10).inputs
    ahead = ResidentImages(
        *pictures, augment=FULL, channels_last=channels_last, ahead_bytes=3 * one.numel() * one.element_size()
    )
    calls = []
    make = ahead._made
    ahead._made = lambda *place: calls.append(place) or make(*place)
    places = [(9, first, 10) for first in range(0, 100, 10)]
    places += [(9, 75, 10), (9, 80, 5), (9, 85, 10), (2, 85, 10), (2, 0, 10), (2, 3, 40)]
    for place in places:
        mine, wanted = ahead.train(*place), plain.train(*place)
        assert torch.equal(mine.inputs, wanted.inputs)
        assert torch.equal(mine.targets, wanted.targets)
        assert mine.inputs.stride() == wanted.inputs.stride()
    # The first request tells nothing about the next; from 75 on all lies in the last piece.
    assert calls == [(9, 0, 10), (9, 10, 30), (9, 40, 30), (9, 70, 30), (2, 85, 10), (2, 0, 10), (2, 3, 40)]


def test_a_rank_s_share_of_each_batch_brings_nothing_ahead(pictures):
    data = ResidentImages(*pictures, augment=FULL, ahead_bytes=1 << 20)
    calls = []
    make = data._made
    data._made = lambda *place: calls.append(place) or make(*place)
    for first in range(0, 60, 20):
        data.train(0, first, 10)
    assert calls == [(0, 0, 10), (0, 20, 10), (0, 40, 10)]
    data.train(0, 50, 10)
    assert calls[-1][2] > 10
    data.forget()
    data.train(0, 60, 10)
    assert calls[-1] == (0, 60, 10), "a run begins with nothing ahead"
