import numpy as np
import pytest
import torch

from harness.errors import UserError
from suites.training.tokens import ResidentTokens


def _data(length=1000, context=16, **options):
    train = np.arange(length, dtype=np.uint16)
    held = np.arange(5000, 5000 + max(32, length // 2), dtype=np.uint16)
    return ResidentTokens(train, held, context=context, **options)


def test_targets_follow_their_inputs():
    batch = _data().train(0, 0, 9)
    assert batch.inputs.shape == batch.targets.shape == (9, 16)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert torch.equal(batch.targets, batch.inputs + 1)
    assert torch.equal(batch.inputs, batch.inputs[:, :1] + torch.arange(16))


@pytest.mark.parametrize("length", [1000, 999, 992, 33])
def test_windows_of_an_epoch_do_not_overlap_and_stay_inside(length):
    data = _data(length)
    assert data.size == length // 16 - 1
    offsets = set()
    for epoch in range(40):
        starts = data.starts(3, epoch * data.size, data.size).sort().values
        assert (starts.diff() == 16).all()
        assert int(starts[-1]) + 17 <= length
        offsets.add(int(starts[0]))
    assert offsets <= set(range(16))
    assert len(offsets) > 8


@pytest.mark.parametrize("split", [1, 13, 61, 62])
def test_the_stream_does_not_depend_on_the_batch_and_resumes(split):
    whole = _data().train(4, 0, 200)
    parts = [_data().train(4, first, min(split, 200 - first)) for first in range(0, 200, split)]
    assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)


def test_seeds_and_epochs_differ():
    data = _data()
    orders = [data.starts(seed, epoch * data.size, data.size) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_evaluation_covers_the_text_in_order():
    data = _data(windows=0)
    batches = list(data.evaluation("test", 10))
    inputs = torch.cat([batch.inputs for batch in batches])
    assert torch.equal(inputs.flatten(), torch.arange(5000, 5000 + (499 // 16) * 16))
    assert all(torch.equal(batch.targets, batch.inputs + 1) for batch in batches)


def test_fewer_evaluation_windows_are_evenly_spaced():
    inputs = torch.cat([batch.inputs for batch in _data(windows=5).evaluation("test", 2)])
    assert inputs[:, 0].tolist() == [5000 + 16 * (j * 31 // 5) for j in range(5)]


def test_the_constant_batch_repeats():
    batch = _data(64).constant(7)
    assert batch.inputs[:, 0].tolist() == [0, 16, 32, 0, 16, 32, 0]


def test_short_texts_and_other_splits_are_refused():
    with pytest.raises(UserError, match="at least 32"):
        ResidentTokens(np.arange(31), np.arange(99), context=16)
    with pytest.raises(UserError, match="validation"):
        next(_data().evaluation("validation", 1))
