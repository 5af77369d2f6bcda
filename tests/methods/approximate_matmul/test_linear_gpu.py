"""The linear methods on an NVIDIA GPU: library restrictions on shapes, float8, agreement with the plain twins."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from harness.catalogue.registry import load, method, resolve
from methods.approximate_matmul.linear import base, integers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

TASK = "approximate_matmul."
FULL = ("exact", "bf16", "int8", "int8-static", "fp8")
RANKED = ("pca", "sparse-pca", "fast-jl", "hash-jl", "osnap", "rademacher", "gauss")
RUNTIME = ("fd-amm", "cooccur", "sampling", "svd")
#: tensor cores add float8 products in short accumulators between promotions to float32
ALLOWED = {"bf16": 5e-3, "fp8": 2e-3}


def data(n: int, d: int, m: int, dtype: object = torch.float32) -> tuple:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=generator) * torch.linspace(1, 0.05, d)
    rows = torch.randn(n + 3 * d + 2, d, generator=generator) @ mix.T + 0.3
    b = torch.randn(d, m, generator=generator)
    return tuple(x.to("cuda", dtype) for x in (rows[:n], b, rows[n:]))


def gap(left: object, right: object) -> float:
    return float((left.double() - right.double()).norm() / right.double().norm())


@pytest.fixture(autouse=True)
def ieee():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 33, 5), (16, 7, 9), (17, 64, 16), (31, 100, 3), (257, 129, 65)])
def test_full_products_on_any_shape(name: str, shape: tuple) -> None:
    a, b, a_train = data(*shape)
    kept = a.clone()
    y = load(TASK + name)().fit(a_train, b)(a)
    reference = resolve(method(TASK + name).reference)().fit(a_train, b)
    assert torch.equal(a, kept)
    assert y.shape == (shape[0], shape[2])
    assert y.is_cuda
    assert gap(y, reference(a)) < ALLOWED.get(name, 2e-5)


@pytest.mark.parametrize("name", RANKED + RUNTIME)
@pytest.mark.parametrize("shape", [(1, 6, 5), (65, 24, 9), (200, 100, 40)])
def test_factored_products(name: str, shape: tuple) -> None:
    a, b, a_train = data(*shape)
    y = load(TASK + name)(rank=4).fit(a_train, b)(a)
    assert y.is_cuda
    assert gap(y, resolve(method(TASK + name).reference)(rank=4).fit(a_train, b)(a)) < 1e-4


@pytest.mark.parametrize("name", ["hash-jl", "osnap", "sparse-pca", "fast-jl"])
def test_special_backends(name: str) -> None:
    a, b, a_train = data(70, 24, 9)
    backend = "transform" if name == "fast-jl" else "sparse"
    y = load(TASK + name)(rank=4, backend=backend).fit(a_train, b)(a)
    assert gap(y, resolve(method(TASK + name).reference)(rank=4).fit(a_train, b)(a)) < 2e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", FULL)
def test_other_dtypes(name: str, dtype: object) -> None:
    a, b, a_train = data(40, 32, 16, dtype)
    y = load(TASK + name)().fit(a_train, b)(a)
    assert y.dtype == dtype
    assert gap(y, resolve(method(TASK + name).reference)().fit(a_train, b)(a)) < 2e-2


@pytest.mark.parametrize("name", integers.ENGINES)
@pytest.mark.parametrize("shape", [(1, 7, 3), (40, 64, 16), (9, 2500, 5)])
def test_engines_are_exact_at_the_extremes(name: str, shape: tuple) -> None:
    n, d, m = shape
    generator = torch.Generator().manual_seed(1)
    q = torch.randint(0, 2, (n, d), generator=generator) * 254 - 127
    b = torch.randint(0, 2, (d, m), generator=generator) * 254 - 127
    q[0], b[:, 0] = 127, 127
    answer = integers.engine(name, b.to("cuda", torch.int8))(q.to("cuda", torch.float32))
    assert torch.equal(answer.cpu().long(), q @ b)


def test_fast_accumulation_is_an_option_and_noisier() -> None:
    a, b, a_train = data(256, 1024, 64)
    exact = a.double() @ b.double()
    slow, fast = (load(TASK + "fp8")(fast_accumulation=f).fit(a_train, b)(a) for f in (False, True))
    assert gap(slow, exact) < 0.05
    assert gap(fast, exact) < 0.06


@pytest.mark.parametrize("name", ["exact", "int8", "fp8", "gauss"])
def test_saved_on_the_gpu_and_loaded(name: str, tmp_path) -> None:
    a, b, a_train = data(70, 24, 20)
    hyper = {"rank": 4} if name == "gauss" else {}
    op = load(TASK + name)(**hyper).fit(a_train, b)
    op.save(tmp_path / "op.npz")
    assert torch.equal(base.load(tmp_path / "op.npz", "cuda")(a), op(a))
