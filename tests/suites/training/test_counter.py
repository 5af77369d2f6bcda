import numpy as np
import pytest
import torch
from scipy import stats

from suites.training import counter

GOLDEN = [2, 8, 0, 5, 9, 7, 6, 3, 4, 1]


def _philox(words, key):
    """Philox4x32-10 in Python integers, straight from the paper's definition."""
    c, k = list(words), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize(
    ("words", "key", "expected"),
    [
        # Known answers of Random123, the authors' own implementation (kat_vectors).
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(words, key, expected):
    found = counter.philox(tuple(torch.tensor([word]) for word in words), key)
    assert tuple(int(word) for word in found) == expected


def test_words_equal_the_definition_in_python_integers():
    seed, epoch, stream = 2**63 + 12345, 7, counter.NOISE
    index = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**32, 2**40 + 17])
    found = counter.uniform_bits(seed, stream, epoch, index)
    key = (seed % 2**32, seed >> 32)
    for row, place in zip(found.tolist(), index.tolist(), strict=True):
        assert row == _philox((place % 2**32, place >> 32, epoch, stream), key)
    assert found.dtype == torch.int64
    assert found.shape == (6, 4)


def test_words_do_not_depend_on_the_neighbours():
    index = torch.arange(1000)
    whole = counter.uniform_bits(5, 1, 2, index)
    assert torch.equal(whole[313:317], counter.uniform_bits(5, 1, 2, index[313:317]))
    assert torch.equal(whole.view(10, 100, 4), counter.uniform_bits(5, 1, 2, index.view(10, 100)))


def test_negative_seeds_are_seeds_of_their_own():
    index = torch.arange(8)
    assert torch.equal(counter.uniform_bits(-1, 0, 0, index), counter.uniform_bits(2**64 - 1, 0, 0, index))


@pytest.mark.parametrize("word", range(4))
def test_bytes_are_uniform(word):
    words = counter.uniform_bits(11, counter.AUGMENT, 0, torch.arange(64_000))[:, word].numpy().astype(np.uint32)
    counts = np.bincount(words.view(np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("bound", [3, 9, 250, 2**31])
def test_below_stays_below_and_is_uniform(bound):
    values = counter.below(counter.uniform_bits(1, 0, 0, torch.arange(90_000))[:, 0], bound)
    assert int(values.min()) >= 0
    assert int(values.max()) < bound
    bins = min(bound, 9)
    counts = np.bincount((values.numpy() * bins // bound), minlength=bins)
    expected = np.array([(-(-(j + 1) * bound // bins)) - (-(-j * bound // bins)) for j in range(bins)]) / bound
    assert stats.chisquare(counts, expected * counts.sum()).pvalue > 1e-4


@pytest.mark.parametrize("bound", [0, 2**31 + 1])
def test_below_refuses_bounds_that_would_overflow(bound):
    with pytest.raises(ValueError, match="bound"):
        counter.below(torch.zeros(1, dtype=torch.int64), bound)


def test_extreme_words_stay_inside():
    words = torch.tensor([0, 2**32 - 1])
    assert counter.below(words, 9).tolist() == [0, 8]
    assert counter.below(words, 2**31).tolist() == [0, 2**31 - 1]
    low, high = counter.unit(words).tolist()
    assert 0 < low < 1e-6
    assert 1 - 1e-6 < high < 1


def test_seeds_epochs_streams_and_neighbours_are_uncorrelated():
    index = torch.arange(20_000)
    base = counter.unit(counter.uniform_bits(1, 0, 0, index))
    others = {
        "seed": counter.unit(counter.uniform_bits(2, 0, 0, index)),
        "high seed": counter.unit(counter.uniform_bits(1 + 2**32, 0, 0, index)),
        "epoch": counter.unit(counter.uniform_bits(1, 0, 1, index)),
        "stream": counter.unit(counter.uniform_bits(1, 1, 0, index)),
        "neighbour": counter.unit(counter.uniform_bits(1, 0, 0, index + 1)),
        "word": base.roll(1, 1),
    }
    for name, other in others.items():
        assert abs(float(torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1])) < 0.02, name


@pytest.mark.parametrize("count", [1, 7, 40_001])
def test_normals(count):
    values = counter.normal(0, counter.NOISE, count, "cpu")
    assert values.shape == (count,)
    if count > 1000:
        assert stats.kstest(values.numpy(), "norm").pvalue > 1e-4
        assert torch.equal(values[:1000], counter.normal(0, counter.NOISE, 40_000, "cpu")[:1000])


@pytest.mark.parametrize("size", [1, 2, 97, 5000])
def test_permutation_visits_each_sample_once(size):
    order = counter.permutation(3, 1, size, "cpu")
    assert order.sort().values.tolist() == list(range(size))


def test_permutation_golden_values():
    assert counter.permutation(0, 0, 10, "cpu").tolist() == GOLDEN


def test_permutations_differ_and_their_positions_are_uniform():
    size = 8
    orders = torch.stack([counter.permutation(seed, epoch, size, "cpu") for seed in range(40) for epoch in range(20)])
    counts = torch.stack([(orders[:, place, None] == torch.arange(size)).sum(0) for place in range(size)]).numpy()
    assert stats.chisquare(counts.flatten(), ddof=2 * size - 2).pvalue > 1e-4
    assert len(torch.unique(orders, dim=0)) > 780


def test_ties_are_broken_by_index(monkeypatch):
    monkeypatch.setattr(counter, "uniform_bits", lambda *_: torch.zeros(6, 4, dtype=torch.int64))
    assert counter.permutation(0, 0, 6, "cpu").tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_same_bits_on_the_gpu():
    index = torch.arange(100_000)
    assert torch.equal(counter.uniform_bits(9, 1, 3, index.cuda()).cpu(), counter.uniform_bits(9, 1, 3, index))
    assert torch.equal(counter.permutation(9, 3, 50_000, "cuda").cpu(), counter.permutation(9, 3, 50_000, "cpu"))
