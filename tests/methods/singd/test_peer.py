"""Step by step beside the package singd 0.0.5 (arXiv 2312.05705's authors), where it is right."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from methods.singd.singd import SINGD

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]
package = pytest.importorskip("singd.optim.optimizer")
NAMES = {
    "dense": "dense",
    "diagonal": "diagonal",
    "block": "block30diagonal",
    "hierarchical": "hierarchical15_15",
    "tril-toeplitz": "triltoeplitz",
    "triu-toeplitz": "triutoeplitz",
    "tril-arrow": "tril",
    "triu-arrow": "triu",
}
RIGHT = [name for name in NAMES if name != "block"]


class Net(nn.Module):
    """Factors of 3 to 49: some under, some over 30 and 15 + 15."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 35, (2, 3), padding=(0, 2), dilation=(1, 2), bias=False)
        self.head = nn.Linear(35, 40)
        self.last = nn.Linear(40, 3)

    def forward(self, x):
        x = torch.tanh(self.conv2(torch.tanh(self.conv1(x)))).mean((2, 3))
        return self.last(torch.tanh(self.head(x)))


@pytest.fixture
def peer(monkeypatch):
    """Maker of the package's optimizer; its rank-1 arrows exist without being registered."""
    from singd.structures.trilbottomrightdiag import TrilBottomRightDiagonalMatrix
    from singd.structures.triutopleftdiag import TriuTopLeftDiagonalMatrix

    known = {**package.SINGD.SUPPORTED_STRUCTURES}
    known |= {"tril": TrilBottomRightDiagonalMatrix, "triu": TriuTopLeftDiagonalMatrix}
    monkeypatch.setattr(package.SINGD, "SUPPORTED_STRUCTURES", known)

    def make(model, name, period, sharing, **options):
        kinds = (NAMES[name], NAMES[name])
        return package.SINGD(model, structures=kinds, T=period, kfac_approx=sharing, **options)

    return make


def both(name, peer, sharing="expand", steps=10, **options):
    """Largest relative difference of the weights after training both, and how far they moved."""
    torch.manual_seed(0)
    start = Net()
    mine, theirs = copy.deepcopy(start), copy.deepcopy(start)
    common = {"lr": 0.05, "momentum": 0.9, "damping": 0.02, "weight_decay": 0.01, "lr_cov": 0.1, **options}
    one = SINGD(mine, structures=(name, name), update_period=2, sharing=sharing, **common)
    other = peer(theirs, name, 2, sharing, **common)
    for k in range(steps):
        generator = torch.Generator().manual_seed(k)
        x, y = torch.randn(12, 2, 6, 7, generator=generator), torch.randint(0, 3, (12,), generator=generator)
        for model, optimizer in ((mine, one), (theirs, other)):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    def apart(a, b):
        pairs = zip(a.parameters(), b.parameters(), strict=True)
        return max(float((p - q).detach().abs().max() / q.detach().abs().max()) for p, q in pairs)

    return apart(mine, theirs), apart(mine, start)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", RIGHT)
def test_steps_equal_the_packages(name, sharing, peer):
    difference, moved = both(name, peer, sharing)
    assert moved > 0.1
    assert difference < 5e-6


@pytest.mark.parametrize("options", [{"normalize_lr_cov": True}, {"kfac_like": True, "alpha1": 0.0}])
@pytest.mark.parametrize("name", ["dense", "tril-toeplitz", "hierarchical"])
def test_modes_equal_the_packages(name, options, peer):
    difference, _ = both(name, peer, **options)
    assert difference < 5e-6


def test_the_packages_blocks_multiply_by_the_wrong_transpose(peer, monkeypatch):
    """Its block-diagonal class returns K M for K^T M and K K^T for K^T K; with both mended it agrees with ours."""
    from singd.structures.blockdiagonal import Block30DiagonalMatrix

    difference, _ = both("block", peer, steps=16)
    assert difference > 5e-5
    torch.manual_seed(0)
    dense = torch.block_diag(torch.randn(30, 30), torch.randn(30, 30), torch.randn(5, 5))
    block, m = Block30DiagonalMatrix.from_dense(dense), torch.randn(65, 4)
    torch.testing.assert_close(block.rmatmat(m), dense @ m)
    assert (block.rmatmat(m) - dense.mT @ m).abs().max() > 1
    monkeypatch.setattr(Block30DiagonalMatrix, "rmatmat", lambda self, m: self.to_dense().mT @ m)

    def inner(self, X=None):
        root = self.to_dense().mT if X is None else self.to_dense().mT @ X
        return type(self).from_dense(root @ root.mT)

    monkeypatch.setattr(Block30DiagonalMatrix, "from_inner", inner)
    mended, _ = both("block", peer, steps=16)
    assert mended < 5e-6
