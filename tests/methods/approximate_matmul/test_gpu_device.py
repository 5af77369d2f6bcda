"""The Triton kernels and operators on an NVIDIA GPU: codes, integers and outputs have the bits of NumPy's."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from harness.catalogue.registry import load, method, resolve
from harness.errors import Unsupported, UserError
from methods.approximate_matmul.gpu import _bench_arms as arms
from methods.approximate_matmul.gpu import _bench_checks as checks
from methods.approximate_matmul.gpu import _launch as launch
from methods.approximate_matmul.gpu import maddness
from methods.orthogonalize import _triton_direct as direct

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

TASK = "approximate_matmul.maddness-triton-"
DESIGNS = ("lut", "onehot", "fused")


def data(n: int, d: int, m: int, seed: int = 0) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(4, d, generator=generator)
    rows = torch.randn(n + 400, 4, generator=generator) @ mix + 0.1 * torch.randn(n + 400, d, generator=generator)
    b = torch.randn(d, m, generator=generator)
    return rows[:n].cuda(), b.cuda(), rows[n:].cuda()


#: Every shape, dtype and layout, and all three dtypes where there are several tiles of everything. The full grid
#: compiles twice as many kernels, and what it adds are pairs that have nothing to do with each other: how rows are read
#: (dtype, layout) and how tiles are cut (shape).
ODD = [
    (0, "float32", "row"),
    (1, "float16", "row"),
    (2, "float32", "row"),
    (2, "bfloat16", "feature"),
    (2, "float16", "feature"),
    (3, "bfloat16", "feature"),
]


def test_odd_shapes_are_all_there():
    assert {place for place, _, _ in ODD} == set(range(len(checks.ODD)))


@pytest.mark.parametrize(("place", "dtype", "layout"), ODD)
def test_every_kernel_on_odd_shapes(place, dtype, layout):
    found = checks.odd(checks.ODD[place], getattr(torch, dtype), layout)
    assert [line for line in found if not line.startswith("right")] == []


def test_a_timed_shape():
    learned = checks.learned(256, 128, 32)
    a = checks.rows(4096, 256, torch.bfloat16)
    found = checks.timed_shape(arms.ours(learned, a, a.T.contiguous().T), learned, a)
    assert [line for line in found if not line.startswith("right")] == []


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("shape", [(1, 20, 1, 4), (33, 16, 3, 2), (1000, 64, 10, 16), (4097, 129, 100, 13)])
def test_operators_equal_their_plain_twin(design, shape):
    n, d, m, codebooks = shape
    a, b, a_train = data(n, d, m)
    kept = a.clone()
    op = load(TASK + design)(codebooks=codebooks).fit(a_train, b)
    twin = resolve(method(TASK + design).reference)(codebooks=codebooks).fit(a_train.cpu(), b.cpu())
    assert torch.equal(op.encode(a).cpu(), twin.encode(a.cpu()))
    assert torch.equal(op(a).cpu(), twin(a.cpu()))
    assert torch.equal(a, kept)
    assert torch.equal(op(a[:0]).cpu(), twin(a[:0].cpu()))
    wide = torch.cat([a, a], dim=1)
    assert torch.equal(op(wide[:, :d]), op(a))
    assert torch.equal(op(a.T.contiguous().T), op(a))


@pytest.mark.parametrize("kind", ["int8", "bfloat16", "float16", "float8"])
@pytest.mark.parametrize("design", ["onehot", "fused"])
def test_kinds_give_the_same_bits(design, kind):
    a, b, a_train = data(300, 48, 20)
    y = load(TASK + design)(codebooks=8, kind=kind).fit(a_train, b)(a)
    assert torch.equal(y, load(TASK + "lut")(codebooks=8).fit(a_train, b)(a))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("design", DESIGNS)
def test_dtypes(design, dtype):
    a, b, a_train = data(100, 32, 12)
    op = load(TASK + design)(codebooks=4).fit(a_train, b)
    y = op(a.to(dtype))
    assert y.dtype in (dtype, torch.float32)
    assert torch.equal(y.float(), op(a.to(dtype).float()).to(y.dtype).float())


@pytest.mark.parametrize("design", DESIGNS)
def test_saved_and_loaded(design, tmp_path):
    a, b, a_train = data(70, 24, 20)
    op = load(TASK + design)(codebooks=4).fit(a_train, b)
    op.save(tmp_path / "op.npz")
    assert torch.equal(maddness.load(tmp_path / "op.npz")(a), op(a))


def test_direct_launches_are_the_ordinary_ones():
    learned = checks.learned(64, 40, 8)
    prepared = learned.prepared()
    a, other = (checks.rows(500, 64, torch.float32, seed=seed) for seed in (0, 1))
    direct.enable()
    direct.forget()
    first = [launch.fused(x, prepared) for x in (a, other, a)]
    again = direct.state()
    direct.disable("comparison")
    direct.forget()
    plain = [launch.fused(x, prepared) for x in (a, other, a)]
    direct.enable()
    assert again["direct"], again["reason"]
    assert all(torch.equal(left, right) for left, right in zip(first, plain, strict=True))


def test_a_side_stream():
    a, b, a_train = data(2000, 64, 30)
    op = load(TASK + "onehot")(codebooks=16).fit(a_train, b)
    want = op(a)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = op(a)
    stream.synchronize()
    assert torch.equal(got, want)


def test_bad_input_is_one_clear_error():
    a, b, a_train = data(10, 24, 5)
    with pytest.raises(Unsupported, match="CUDA"):
        load(TASK + "lut")(codebooks=4).fit(a_train.cpu(), b.cpu())
    op = load(TASK + "lut")(codebooks=4).fit(a_train, b)
    with pytest.raises(UserError, match="columns"):
        op(a[:, :-1])
    with pytest.raises(UserError, match=r"op\.to"):
        op(a.cpu())
    with pytest.raises(UserError):
        load(TASK + "lut")(codebooks=25).fit(a_train, b)


@pytest.mark.parametrize("name", list(arms.DENSE["fp8"] + arms.DENSE["int8"] + arms.DENSE["bf16"]))
@pytest.mark.parametrize("shape", [(4096, 512, 10), (1000, 512, 100), (256, 64, 64)])
def test_dense_arms_of_the_bench_run(name, shape):
    n, d, m = shape
    if name.startswith("torch._scaled_mm") and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no float8 here")
    y = arms.dense(checks.rows(n, d, torch.bfloat16), m)[name]()
    assert len(y) == n
    assert torch.isfinite(y.float()).all()
