"""Every structure of the registry against dense float64 matrices."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.errors import UserError
from methods.kfac.layers import input_rows
from methods.singd import products
from methods.singd.rows import PatchRows, PlainRows
from methods.singd.structures import STRUCTURES, Sizes, structure, toeplitz

SIZES = (1, 2, 3, 20, 47, 95)
#: Blocks of 30 meet 20, 47 and 95 with a rest; of 7 they meet 3 and 20 too.
PARAMETERS = [
    Sizes(),
    Sizes(block=7, ranks=(4, 5), rank=3),
    Sizes(block=1, ranks=(3, 0), rank=2),
    Sizes(block=47, ranks=(0, 3), rank=95),
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}


def pi(kind, s):
    """Pi by its definition: coefficients along an orthogonal basis, doubled where the transpose is outside.

    ``to_dense`` is linear, so the inner products with all basis matrices are the gradient of one inner product.
    """

    def along(matrix):
        k = torch.zeros(len(matrix), kind.count, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad((kind.to_dense(k) * matrix).sum(), k)[0]

    ones = kind.to_dense(torch.ones(1, kind.count, dtype=torch.float64))
    norms, alone = along(ones), along(ones * (ones.mT == 0))
    return kind.to_dense(along(s) / norms * (1 + (alone != 0)))


def member(kind, seed, batch=2):
    """A product of three members near the identity: float64 numbers."""
    generator = torch.Generator().manual_seed(seed)
    made = None
    for _ in range(3):
        noise = torch.randn(batch, kind.count, generator=generator, dtype=torch.float64)
        one = kind.identity(batch, torch.float64, "cpu") + 0.3 / kind.d**0.5 * noise
        made = one if made is None else kind.compose(made, one)
    return made


def close(found, wanted, dtype):
    error = (found.double() - wanted).norm() / wanted.norm().clamp_min(1e-3)
    assert found.shape == wanted.shape
    assert error < TOLERANCE[dtype], float(error)


@pytest.fixture(params=list(STRUCTURES))
def name(request):
    return request.param


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("sizes", PARAMETERS, ids=["default", "small", "thin", "wide"])
def test_products_projections_and_traces(name, sizes, dtype):
    for d in SIZES if dtype == torch.float64 else SIZES[-3::2]:
        kind = structure(name, d, sizes)
        k, other = member(kind, 0), member(kind, 1)
        wide, low = kind.to_dense(k), k.to(dtype)
        generator = torch.Generator().manual_seed(2)
        m = torch.randn(2, 5, d, generator=generator, dtype=torch.float64).mT
        x = torch.randn(2, d, 9, generator=generator, dtype=torch.float64) / 3
        close(kind.matmul(low, m.to(dtype)), wide @ m, dtype)
        close(kind.t_matmul(low, m.to(dtype)), wide.mT @ m, dtype)
        close(kind.apply(low, m.to(dtype)), wide @ wide.mT @ m, dtype)
        close(kind.to_dense(kind.compose(low, other.to(dtype))), wide @ kind.to_dense(other), dtype)
        close(kind.to_dense(kind.from_inner(low, x.to(dtype))), pi(kind, wide.mT @ x @ x.mT @ wide), dtype)
        close(kind.to_dense(kind.project(x.to(dtype))), pi(kind, x @ x.mT), dtype)
        close(kind.to_dense(kind.gram(low)), pi(kind, wide.mT @ wide), dtype)
        close(kind.trace(low), wide.diagonal(dim1=1, dim2=2).sum(1), dtype)
        close(kind.to_dense(low - 0.5 * other.to(dtype)), wide - 0.5 * kind.to_dense(other), dtype)
        added = kind.add_identity(low.clone(), -0.5)
        close(kind.to_dense(added), wide - 0.5 * torch.eye(d).double(), dtype)
        if kind.keeps(dtype):
            close(kind.apply_kept(kind.keep(low), m.to(dtype)), wide @ wide.mT @ m, dtype)


def test_identity_count_bytes_and_closure(name):
    for sizes in PARAMETERS:
        for d in SIZES:
            kind = structure(name, d, sizes)
            eye = kind.identity(3, torch.float32, "cpu")
            assert eye.shape == (3, kind.count)
            assert torch.equal(kind.to_dense(eye), torch.eye(d).expand(3, d, d))
            assert kind.nbytes(torch.bfloat16) == 2 * kind.count
            if d > 20:
                continue
            basis = kind.to_dense(torch.eye(kind.count, dtype=torch.float64))
            inner = torch.einsum("aij,bij->ab", basis, basis)
            assert torch.equal(inner, inner.diagonal().diag())
            assert (inner.diagonal() > 0).all()
            inside = basis.abs().sum(0) != 0
            product = kind.to_dense(member(kind, 3))
            assert (product[:, ~inside] == 0).all()


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("dense", 95 * 95),
        ("diagonal", 95),
        ("block", 3 * 900 + 25),
        ("hierarchical", 15 * 95 + 65 + 15 * 80),
        ("tril-toeplitz", 95),
        ("triu-toeplitz", 95),
        ("tril", 95 * 48),
        ("triu", 95 * 48),
        ("tril-arrow", 2 * 95 - 1),
        ("triu-arrow", 2 * 95 - 1),
    ],
)
def test_stored_numbers(kind, numbers):
    assert structure(kind, 95).count == numbers


def test_a_structure_that_covers_the_matrix_is_dense(name):
    """One block, hierarchical's corner, an arrow of full rank: the same map as dense."""
    if name not in ("block", "hierarchical", "tril-arrow", "triu-arrow", "dense"):
        pytest.skip("covers only d = 1")
    d, sizes = 6, Sizes(block=6, ranks=(6, 0), rank=6)
    kind, dense = structure(name, d, sizes), structure("dense", d)
    k = member(kind, 0)
    x = torch.randn(2, d, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert kind.count == dense.count
    close(kind.to_dense(kind.from_inner(k, x)).flatten(1), dense.from_inner(kind.to_dense(k).flatten(1), x), k.dtype)


@pytest.mark.parametrize("upper", [False, True])
def test_kept_spectra_apply_both_factors(upper, monkeypatch):
    monkeypatch.setattr(toeplitz, "_WHOLE", 0)
    for d in SIZES:
        kind = structure("triu-toeplitz" if upper else "tril-toeplitz", d)
        k = member(kind, 0)
        m, dense, kept = torch.randn(2, d, 5, dtype=torch.float64), kind.to_dense(k), kind.keep(k)
        close(kind.apply_kept(kept, m), dense @ dense.mT @ m, torch.float64)
        close(kind.right(kept, m.mT.contiguous(), m.dtype), m.mT @ dense @ dense.mT, torch.float64)
        assert kept.nbytes == 2 * kind.kept_bytes(torch.float64, "default")
        assert not kind.keeps(torch.bfloat16)


def test_lower_and_upper_are_transposes():
    for lower, upper in (("tril", "triu"), ("tril-toeplitz", "triu-toeplitz")):
        one, two = structure(lower, 9), structure(upper, 9)
        k = member(one, 0)
        assert torch.equal(one.to_dense(k), two.to_dense(k).mT)
    dense = structure("tril-arrow", 5, Sizes(rank=2)).to_dense(torch.ones(1, 13))
    assert torch.equal(
        dense[0], torch.tensor([[1.0, 1, 0, 0, 0]] * 2 + [[1, 1, *row] for row in torch.eye(3).tolist()])
    )
    assert torch.equal(structure("triu-arrow", 5, Sizes(rank=2)).to_dense(torch.ones(1, 13)).flip(1, 2), dense)


def test_hierarchical_pattern():
    dense = structure("hierarchical", 7, Sizes(ranks=(2, 3))).to_dense(torch.ones(1, 2 * 7 + 2 + 3 * 5))
    wanted = torch.zeros(7, 7)
    wanted[:2], wanted[4:, 2:], wanted[2, 2], wanted[3, 3] = 1, 1, 1, 1
    assert torch.equal(dense[0], wanted)


def test_a_fast_length_is_even_smooth_and_least():
    from methods.singd.structures.toeplitz import fast_length

    def smooth(n):
        for p in (2, 3, 5):
            while n % p == 0:
                n //= p
        return n == 1

    for least in (1, 2, 5, 39, 189, 1025, 9217):
        wanted = next(n for n in range(max(2, least), 4 * least + 4) if n % 2 == 0 and smooth(n))
        assert fast_length(least) == wanted


def test_padding_for_matrix_units_changes_nothing(monkeypatch, name):
    """The padded copies that a GPU's tensor cores want, on the CPU."""
    sizes = (131, 200) if name in ("dense", "tril", "triu") else (131,)
    for mode, allowed in (("default", 1e-5), ("bf16", 2e-2)):
        for d in sizes:
            kind = structure(name, d)
            k = member(kind, 0).float()
            wide = kind.to_dense(k).double()
            m, x = torch.randn(2, 300, d).mT, torch.randn(2, d, 150)
            monkeypatch.setattr(products, "_PADDED_ON", {"cpu"})
            with products.precision(mode):
                found = [kind.apply(k, m), kind.to_dense(kind.from_inner(k, x)), kind.to_dense(kind.compose(k, k))]
                if kind.keeps(torch.float32):
                    kept = kind.keep(k)
                    found.append(kind.apply_kept(kept, m))
                    assert kept.nbytes == 2 * kind.kept_bytes(torch.float32, mode)
            monkeypatch.undo()
            inner = pi(kind, wide.mT @ x.double() @ x.double().mT @ wide)
            wanted = [wide @ wide.mT @ m.double(), inner, wide @ wide, wide @ wide.mT @ m.double()]
            for one, right in zip(found, wanted, strict=False):
                assert (one.double() - right).norm() / right.norm() < allowed
    assert products.operand(torch.float32) == torch.float32


def test_rows_of_convolutions(name):
    """Sums over patches without copying them equal those over unfolded rows; strides, padding, dilation, groups."""
    torch.manual_seed(0)
    kinds = [
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (2, 3), padding=(0, 2), dilation=(1, 2), groups=2, bias=False),
        nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular", groups=4),
        nn.Conv2d(4, 2, 1),
    ]
    for module in kinds:
        module = module.double()
        x = torch.randn(5, 4, 6, 7, dtype=torch.float64)
        bias = module.bias is not None
        plain = input_rows(module, x)
        one, two = (rows for rows in (PlainRows(plain, bias, 0.5, x.dtype), PatchRows(module, x, bias, 0.5, x.dtype)))
        kind = structure(name, one.d, Sizes(block=7, ranks=(3, 4), rank=2))
        k = member(kind, 0, one.batch)
        close(kind.from_inner(k, two), kind.from_inner(k, one), torch.float64)
        many = torch.cat(list(two.pieces(limit=1)), 1)
        close(many, torch.cat(list(one.pieces()), 1), torch.float64)
        assert len(list(two.pieces(limit=1))) == 5
        close(two.squares(), many.square().sum(1), torch.float64)
        w = torch.randn(one.batch, one.d, 3, dtype=torch.float64)
        close(two.times(w), many.mT @ many @ w, torch.float64)
        if not isinstance(module.padding, str) and module.groups == 1:
            unfolded = functional.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride).mT
            close(plain[0], unfolded, torch.float64)


def test_scaled_rows_do_not_overflow_float16():
    rows = torch.full((1, 4, 50, 3), 200.0)
    for kind in (structure(name, 3) for name in STRUCTURES):
        found = kind.gather(kind.identity(1, torch.float16, "cpu"), PlainRows(rows, False, 200**-0.5, torch.float16))
        assert found.isfinite().all()
        assert found.dtype == torch.float32


def test_an_unknown_structure_is_refused():
    with pytest.raises(UserError, match=r"one of dense, diagonal.*got 'sparse'"):
        structure("sparse", 3)
