"""Tests of the Triton kernels in Triton's interpreter; ``test_triton_interpreted.py`` runs this file by itself.

The interpreter must be chosen before triton is first imported, which other tests in one pytest process would prevent.
"""

from __future__ import annotations

import itertools
import os

import pytest
import torch

from methods.orthogonalize import _triton_launch as launch
from methods.orthogonalize import reference, triton_fast, triton_published
from methods.orthogonalize._triton_configs import make

assert os.environ.get("TRITON_INTERPRET") == "1", "run with TRITON_INTERPRET=1"

TILES = {
    "square": make(32, 32, 32, 4, 2, group=2, tma=True),
    "wide": make(32, 64, 32, 4, 2, group=3, tma=True),
    "tall": make(64, 32, 32, 4, 2),
}
SHAPES = [(1, 100, 257), (1, 1, 7), (1, 33, 33), (3, 35, 50)]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3}
ENGINES = {
    "ns_symmetric": (triton_published.ns_symmetric, reference.ns_torch),
    "ns_fused": (triton_published.ns_fused, reference.ns_torch),
    "tail4": (triton_published.tail4, reference.tail4),
    "aol": (triton_published.aol, reference.aol),
    "turbo": (triton_published.turbo, reference.turbo),
    "schatten4": (triton_published.schatten4, reference.schatten4),
    "turbo_fast": (triton_fast.turbo_fast, reference.turbo),
}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def poison(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


def symmetric(batch: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    half = random(batch, n, n, seed=5) / n**0.5
    return (half + half.mT).to(dtype)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    worst = float((got.double() - want).abs().max() / want.abs().max())
    assert worst == worst, "an entry was not written, or is NaN"
    return worst


def laid_out(X: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "transposed":
        return X.mT.contiguous().mT
    if layout == "sliced":
        wide = poison(X.shape[0], 2 * X.shape[1], 3 * X.shape[2], dtype=X.dtype)
        wide[:, ::2, 1::3] = X
        return wide[:, ::2, 1::3]
    return X


def case(shape, dtype, layout="contiguous"):
    batch, n, m = shape
    X = laid_out((random(*shape) / m**0.5).to(dtype), layout)
    return X, symmetric(batch, n, dtype), random(batch, n, n, dtype=dtype, seed=9)


layouts = pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
tiles = pytest.mark.parametrize("tile", TILES)


@shapes
@layouts
def test_published_products(shape, layout):
    X, A, B = case(shape, torch.float32, layout)
    batch, n, _ = shape
    tile = make(64, 64, 64, 4, 2) if n == 100 else TILES["wide"]
    C = poison(batch, n, n)
    launch.line_1(X, C, tile)
    assert error(C, X.double() @ X.double().mT) < 2e-6
    C = poison(batch, n, n)
    launch.line_2(A, C, 0.75, -1.5, tile)
    assert error(C, 0.75 * A.double() @ A.double() - 1.5 * A.double()) < 2e-6
    Y = laid_out(poison(*shape), "transposed") if layout == "transposed" else poison(*shape)
    launch.line_3(B, X, Y, 3.25, tile)
    assert error(Y, 3.25 * X.double() + B.double() @ X.double()) < 2e-6


#: Only descriptors, which are the square tile's, mind dtype and layout together.
FAST = [
    (tile, dtype, layout)
    for tile, dtype, layout in itertools.product(TILES, TOLERANCE, ("contiguous", "transposed", "sliced"))
    if tile == "square" or dtype == torch.float32 or layout == "contiguous"
]


@pytest.mark.parametrize(("tile", "dtype", "layout"), FAST, ids=str)
def test_fast_products(tile, dtype, layout):
    # The square tile: two a side, and rows of a multiple of 16 bytes in both operands, for descriptors.
    shape = (2, 40, 72) if tile == "square" else (2, 70, 40)
    X, A, B = case(shape, dtype, layout)
    batch, n, _ = shape
    S = torch.rand(batch, n, generator=torch.Generator().manual_seed(3)) + 0.5
    bound = TOLERANCE[dtype]
    gram, square = X.double() @ X.double().mT, 0.75 * A.double() @ A.double() - 1.5 * A.double()
    C = poison(batch, n, n, dtype=dtype)
    scale = launch.gram_with_scale(X, C, TILES[tile])
    assert error(C, gram) < bound
    assert error(scale, gram.abs().sum(-1).rsqrt()) < 1e-5
    C = poison(batch, n, n, dtype=dtype)
    launch.symmetric_fast(A, C, alpha=0.75, beta=-1.5, addend=True, scale=S, config=TILES[tile])
    assert error(C, square * S.double().unsqueeze(-2)) < bound
    Y = poison(*shape, dtype=dtype)
    launch.apply_fast(B, X, Y, 3.25, scale=S, config=TILES[tile])
    assert error(Y, 3.25 * S.double().unsqueeze(-1) * X.double() + B.double() @ X.double()) < bound


@shapes
def test_fast_products_on_edges(shape):
    X, A, B = case(shape, torch.float32)
    batch, n, _ = shape
    tile = make(128, 64, 64, 4, 2) if n == 100 else TILES["square"]
    C, Y = poison(batch, n, n), poison(*shape)
    launch.symmetric_fast(X, C, config=tile)
    assert error(C, X.double() @ X.double().mT) < 2e-6
    launch.symmetric_fast(A, C, alpha=-0.5, beta=2.0, addend=True, config=tile)
    assert error(C, -0.5 * A.double() @ A.double() + 2.0 * A.double()) < 2e-6
    launch.apply_fast(B, X, Y, -1.25, config=tile)
    assert error(Y, -1.25 * X.double() + B.double() @ X.double()) < 2e-6


@tiles
def test_integers_are_exact_and_symmetric(tile):
    """Sums of small integers have no rounding, so every entry and its mirror must be exact."""
    X = torch.randint(-4, 5, (2, 75, 40), generator=torch.Generator().manual_seed(1)).float()
    want = X @ X.mT
    for product in (launch.line_1, lambda x, c, t: launch.symmetric_fast(x, c, config=t)):
        C = poison(2, 75, 75)
        product(X, C, TILES[tile])
        assert torch.equal(C, want)
        assert torch.equal(C, C.mT)


def test_mirrored_tiles_are_the_same_bits():
    X = random(1, 64, 50, dtype=torch.float16)
    C = poison(1, 64, 64, dtype=torch.float16)
    launch.symmetric_fast(X, C, config=TILES["square"])
    assert torch.equal(C[:, 32:, :32], C[:, :32, 32:].mT)


@pytest.mark.parametrize(("size", "group"), [(1, 8), (2, 1), (5, 1), (7, 3), (9, 3), (8, 8), (11, 8)])
def test_every_tile_of_the_triangle_is_visited_once(size, group):
    """With tiles of one 16 x 16 block each, a missed tile stays NaN and integers tell a wrong one."""
    n = 16 * size
    X = torch.arange(n, dtype=torch.float32).reshape(1, n, 1).expand(1, n, 16).contiguous()
    C = poison(1, n, n)
    launch.symmetric_fast(X, C, config=make(16, 16, 16, 4, 2, group=group))
    assert torch.equal(C, X @ X.mT)


def test_padding_is_never_read():
    """NaN beside the operands (between rows, and after the end) must not reach the result."""
    store = poison(40 * 64)
    X = store.as_strided((1, 33, 35), (40 * 64, 64, 1))
    X.copy_(random(1, 33, 35))
    C = poison(1, 33, 33)
    for product in (launch.line_1, lambda x, c, t: launch.symmetric_fast(x, c, config=t)):
        product(X, C, TILES["square"])
        assert error(C, X.double() @ X.double().mT) < 2e-6


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(("shape", "dtype"), [((37, 70), torch.float32), ((2, 40, 24), torch.float16)], ids=str)
def test_engine_equals_its_plain_twin(name, shape, dtype):
    engine, twin = ENGINES[name]
    G = random(*shape, dtype=dtype)
    before = G.clone()
    out = engine(G)
    assert (out.shape, out.dtype, out.device) == (G.shape, G.dtype, G.device)
    assert torch.equal(G, before)
    distance = float((out.double() - twin(G)).norm() / twin(G).norm())
    assert distance < (1e-5 if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize("name", ["ns_fused", "schatten4", "turbo_fast"])
def test_scales_and_degenerate_inputs(name):
    engine, twin = ENGINES[name]
    G = random(12, 20)
    for scale in (1e-12, 1e12):
        distance = float((engine(G * scale).double() - twin(G * scale)).norm() / twin(G * scale).norm())
        assert distance < 1e-5
    assert not engine(torch.zeros_like(G)).any()
    assert engine(torch.outer(G[:, 0], G[0])).isfinite().all()
    holed = G.clone()
    holed[4] = 0
    assert engine(holed).isfinite().all()
    assert engine(G[:1]).isfinite().all()
    holed[4, 5] = torch.nan
    assert engine(holed).isnan().any()


@pytest.mark.parametrize("name", ["turbo", "schatten4", "turbo_fast"])
def test_float16_beyond_the_range_of_a_gram_matrix(name):
    engine, twin = ENGINES[name]
    for scale in (1e-3, 1e4):
        G = random(16, 24, dtype=torch.float32).mul(scale).to(torch.float16)
        distance = float((engine(G).double() - twin(G)).norm() / twin(G).norm())
        assert distance < 5e-3


@pytest.mark.parametrize("name", ["ns_symmetric", "turbo_fast"])
def test_layouts_and_shapes(name):
    engine, _ = ENGINES[name]
    G = random(2, 12, 20)
    want = engine(G)
    assert error(engine(G.mT.contiguous()), want.mT.double()) < 1e-5
    assert error(engine(G.mT), want.mT.double()) < 1e-5
    assert error(engine(laid_out(G, "sliced")), want.double()) < 1e-5
    assert engine(G.reshape(1, 2, 12, 20)).shape == (1, 2, 12, 20)
    assert error(engine(G[1]), want[1].double()) < 1e-5
    assert engine(torch.empty(0, 4, 6)).shape == (0, 4, 6)
    assert engine(torch.empty(0, 6)).shape == (0, 6)
