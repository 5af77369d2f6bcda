"""Every linear method: contract, plain twin, shapes, dtypes, bad input, saving."""

from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from harness.catalogue.registry import load, method, resolve
from harness.errors import Unsupported, UserError
from methods.approximate_matmul import catalogue_linear
from methods.approximate_matmul.linear import base, exact

TASK = "approximate_matmul."
FULL = ("exact", "bf16", "int8", "int8-static")
RANKED = ("pca", "sparse-pca", "fast-jl", "hash-jl", "osnap", "rademacher", "gauss")
RUNTIME = ("fd-amm", "cooccur", "sampling", "svd")
CPU = FULL + RANKED + RUNTIME
#: (method, options) whose non-default code path the twin must follow as well
OPTIONS = (
    ("exact", {"backend": "numpy"}),
    ("exact", {"backend": "linear", "rows": 7}),
    ("int8-static", {"granularity": "column"}),
    ("gauss", {"scaling": "published"}),
    ("rademacher", {"scaling": "published"}),
    ("hash-jl", {"scaling": "published", "backend": "sparse"}),
    ("osnap", {"nonzeros": 1, "backend": "sparse"}),
    ("osnap", {"nonzeros": 3, "backend": "dense"}),
    ("fast-jl", {"backend": "transform"}),
    ("fast-jl", {"scaling": "published", "density": "published", "backend": "transform"}),
    ("pca", {"centre": False}),
    ("sparse-pca", {"backend": "sparse", "alpha": 0.001}),
    ("sparse-pca", {"scaling": "published", "alpha": 0.0001}),
    ("svd", {"side": "b"}),
    ("svd", {"side": "train"}),
    ("sampling", {"norms": "train"}),
    ("fd-amm", {"shrink": "published"}),
    ("fd-amm", {"buffer": "single"}),
    ("cooccur", {"buffer": "single"}),
)


def data(n: int, d: int, m: int, seed: int = 0, dtype: object = torch.float32) -> tuple:
    """Correlated rows with a mean: a, b, a_train."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64) * torch.linspace(1, 0.05, d, dtype=torch.float64)
    rows = torch.randn(n + 3 * d + 2, d, generator=generator, dtype=torch.float64) @ mix.T + 0.3
    b = torch.randn(d, m, generator=generator, dtype=torch.float64)
    return rows[:n].to(dtype), b.to(dtype), rows[n:].to(dtype)


def options(name: str, rank: int = 3, **more: object) -> dict:
    return ({"rank": rank} if "rank" in method(TASK + name).hyper else {}) | more


def gap(left: object, right: object) -> float:
    return float((left.double() - right.double()).norm() / right.double().norm().clamp(min=1e-30))


def fitted(name: str, a_train: object, b: object, **more: object) -> base.Op:
    return load(TASK + name)(**options(name, **more)).fit(a_train, b)


def twin(name: str, a_train: object, b: object, **more: object):
    return resolve(method(TASK + name).reference)(**options(name, **more)).fit(a_train, b)


@pytest.mark.parametrize("name", CPU)
@pytest.mark.parametrize("shape", [(33, 13, 7), (65, 24, 9), (1, 6, 5), (2, 31, 30)])
def test_agrees_with_its_plain_twin(name: str, shape: tuple) -> None:
    a, b, a_train = data(*shape)
    kept = a.clone()
    op = fitted(name, a_train, b)
    y = op(a)
    assert torch.equal(a, kept)
    assert y.shape == (shape[0], shape[2])
    assert y.dtype == a.dtype
    assert torch.equal(y, op(a))
    assert gap(y, twin(name, a_train, b)(a)) < (5e-3 if name == "bf16" else 2e-5)


@pytest.mark.parametrize(("name", "more"), OPTIONS)
def test_options_agree_with_the_twin(name: str, more: dict) -> None:
    a, b, a_train = data(40, 20, 11, seed=1)
    assert gap(fitted(name, a_train, b, rank=4, **more)(a), twin(name, a_train, b, rank=4, **more)(a)) < 2e-5


@pytest.mark.parametrize("name", CPU)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_keep_their_dtype_and_meaning(name: str, dtype: object) -> None:
    a, b, a_train = data(30, 16, 8, dtype=dtype)
    y = fitted(name, a_train, b)(a)
    assert y.dtype == dtype
    loose = 2e-2 if dtype == torch.bfloat16 or name == "bf16" else 2e-3 if dtype == torch.float16 else 2e-5
    assert gap(y, twin(name, a_train, b)(a)) < loose


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 1, 3), (3, 4, 1), (17, 9, 10)])
def test_smallest_shapes(name: str, shape: tuple) -> None:
    a, b, _ = data(*shape)
    allowed = {"exact": 1e-6, "bf16": 2e-2, "int8": 3e-2, "int8-static": 5e-2}[name]
    # Fitted on the rows themselves: the static scales cover them, so that only rounding is judged.
    assert float((fitted(name, a, b)(a) - a @ b).norm()) <= allowed * float(a.norm() * b.norm())


@pytest.mark.parametrize("name", CPU)
def test_strides_do_not_matter(name: str) -> None:
    a, b, a_train = data(24, 14, 9)
    op = fitted(name, a_train, b)
    expected = op(a)
    wide = torch.full((24, 28), 7.0)
    wide[:, ::2] = a
    for view in (a.t().contiguous().t(), wide[:, ::2], a.flip(0).flip(0)):
        assert gap(op(view), expected) < 1e-5
    other = fitted(name, a_train.t().contiguous().t(), b.t().contiguous().t())
    assert gap(other(a), expected) < 1e-5


@pytest.mark.parametrize("name", CPU)
def test_saved_as_plain_arrays_and_loaded(name: str, tmp_path) -> None:
    a, b, a_train = data(20, 12, 6)
    op = fitted(name, a_train, b)
    op.save(tmp_path / "op.npz")
    with np.load(tmp_path / "op.npz", allow_pickle=False) as stored:
        assert str(stored["method"]) == TASK + name
    again = base.load(tmp_path / "op.npz")
    assert torch.equal(again(a), op(a))
    assert again.times == op.times
    assert again.describe() == op.describe()


@pytest.mark.parametrize("name", CPU)
def test_describes_itself(name: str) -> None:
    a, b, a_train = data(20, 12, 6)
    op = fitted(name, a_train, b)
    assert op.describe()["method"] == TASK + name
    assert {"backend", "level", "threads", "dtype"} <= set(op.describe())
    assert set(op.times) == {"train_s", "table_s"}
    assert op.multiplies(20) > 0
    assert op.bytes_read(40) > op.bytes_read(20) > 0
    assert op(a[:0]).shape == (0, 6)


@pytest.mark.parametrize("name", CPU)
def test_bad_input_is_one_clear_error(name: str) -> None:
    a, b, a_train = data(20, 12, 6)
    make = load(TASK + name)
    with pytest.raises(UserError, match="not fitted"):
        make(**options(name))(a)
    estimator = make(**options(name))
    with pytest.raises(UserError, match="12 columns but b has 11"):
        estimator.fit(a_train, b[:11])
    for bad in (float("nan"), float("inf")):
        broken = a_train.clone()
        broken[3, 2] = bad
        with pytest.raises(UserError, match="NaN or infinite"):
            estimator.fit(broken, b)
    with pytest.raises(UserError, match="two dimensions"):
        estimator.fit(a_train[0], b)
    with pytest.raises(UserError, match="int64"):
        estimator.fit(a_train.long(), b)
    with pytest.raises(UserError, match="empty"):
        estimator.fit(a_train[:0], b)
    op = estimator.fit(a_train, b)
    with pytest.raises(UserError, match="12 columns it was fitted with, got 11"):
        op(a[:, :11])
    with pytest.raises(UserError, match="two dimensions"):
        op(a[0])
    with pytest.raises(UserError, match="torch tensor"):
        op(a.numpy())


@pytest.mark.parametrize("name", RANKED + RUNTIME)
@pytest.mark.parametrize("rank", [0, 6, 12, 2.0, True])
def test_rank_beyond_the_limit_is_refused(name: str, rank: object) -> None:
    _, b, a_train = data(20, 12, 6)
    with pytest.raises(UserError, match="rank"):
        load(TASK + name)(rank=rank).fit(a_train, b)
    with pytest.raises(UserError, match="no rank fits"):
        load(TASK + name)(rank=1).fit(a_train, b[:, :1])


@pytest.mark.parametrize(("name", "more"), [("fd-amm", {}), ("cooccur", {}), ("cooccur", {"buffer": "single"})])
def test_a_rank_that_leaves_nothing_is_refused(name: str, more: dict) -> None:
    _, b, a_train = data(20, 12, 6)
    least = 4 if more else 2
    with pytest.raises(Unsupported, match="zero"):
        load(TASK + name)(rank=least - 1, **more).fit(a_train, b)
    assert float(load(TASK + name)(rank=least, **more).fit(a_train, b)(a_train).norm()) > 0


def test_bad_options_are_refused() -> None:
    for name, more in (
        ("exact", {"backend": "mkl"}),
        ("exact", {"rows": 0}),
        ("gauss", {"scaling": "none"}),
        ("gauss", {"seed": -1}),
        ("osnap", {"nonzeros": 0}),
        ("sparse-pca", {"alpha": -1.0}),
        ("svd", {"side": "left"}),
    ):
        with pytest.raises(UserError):
            load(TASK + name)(**more)
    _, b, a_train = data(20, 12, 6)
    with pytest.raises(UserError, match="nonzeros"):
        fitted("osnap", a_train, b, rank=2, nonzeros=3)
    with pytest.raises(UserError, match="lower it"):
        fitted("sparse-pca", a_train, b, alpha=1e6)
    with pytest.raises(UserError, match="numpy"):
        fitted("exact", a_train.half(), b.half(), backend="numpy")


@pytest.mark.parametrize("name", CPU)
def test_constant_columns_and_constant_rows(name: str) -> None:
    a, b, a_train = data(20, 12, 6)
    a_train[:, 4], a[:, 4] = 0.0, 0.0
    a_train[:, 7], a[:, 7] = 2.5, 2.5
    assert bool(torch.isfinite(fitted(name, a_train, b)(a)).all())
    constant = torch.full_like(a_train, 0.7)
    if name in ("pca", "sparse-pca"):
        with pytest.raises(UserError, match="all training rows are equal"):
            fitted(name, constant, b, **({"centre": False} if name == "pca" else {}))
    if name == "pca":
        assert torch.allclose(fitted(name, constant, b)(constant), constant @ b, atol=1e-5)
    elif name != "sparse-pca":
        assert bool(torch.isfinite(fitted(name, constant, b)(a)).all())
        assert bool(torch.isfinite(fitted(name, torch.zeros_like(a_train), b)(torch.zeros_like(a))).all())


@pytest.mark.parametrize("name", [name for name in CPU if name not in ("cooccur", "svd", "fd-amm", "int8-static")])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nonfinite_entry_never_gives_a_finite_row(name: str, bad: float) -> None:
    a, b, a_train = data(20, 12, 6)
    op = fitted(name, a_train, b)
    a[3, :] = bad
    assert not bool(torch.isfinite(op(a)[3]).any())


@pytest.mark.parametrize(
    ("name", "more"), [("svd", {}), ("fd-amm", {}), ("cooccur", {}), ("fd-amm", {"buffer": "single"})]
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nonfinite_row_of_a_run_time_factorisation_is_one_clear_error(name: str, more: dict, bad: float) -> None:
    a, b, a_train = data(20, 12, 6)
    op = fitted(name, a_train, b, **more)
    kept = op(a)
    broken = a.clone()
    broken[3, 2] = bad
    with pytest.raises(UserError, match=rf"approximate_matmul.{name} factorises a .* 1 of its 20 rows have NaN"):
        op(broken)
    assert torch.equal(op(a), kept)


def test_rows_whose_squares_overflow_are_told_so() -> None:
    a, b, a_train = data(20, 12, 6)
    with pytest.raises(UserError, match=r"squares may not fit torch\.float32; scale a down"):
        fitted("fd-amm", a_train, b)(a * 1e30)


def test_fp8_needs_a_gpu() -> None:
    _, b, a_train = data(20, 12, 6)
    assert method(TASK + "fp8").devices == ("cuda",)
    if not torch.cuda.is_available():
        with pytest.raises(Unsupported, match="NVIDIA GPU"):
            load(TASK + "fp8")().fit(a_train, b)


def test_loading_something_else_is_an_error(tmp_path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a saved product"):
        base.load(path)
    with pytest.raises(UserError, match="not a saved product"):
        base.load(tmp_path / "absent.npz")
    np.savez(path, method="m", module="os.path", hyper="{}", about="{}", times="{}")
    with pytest.raises(UserError, match="load it with that module"):
        base.load(path)


def test_descriptors_are_complete_and_torch_free() -> None:
    found = [value for value in vars(catalogue_linear).values() if hasattr(value, "impl")]
    assert {item.name for item in found} == {TASK + name for name in (*CPU, "fp8", "int8-torch", "popcount")}
    for item in found:
        assert method(item.name) == item
        for made in (item.impl, item.reference):
            # The library's own layer chooses its bits by the CPU, so no twin can follow it.
            assert made is not None or item.name == TASK + "int8-torch"
            assert made is None or resolve(made).__kwdefaults__ == (dict(item.hyper) or None)
        cost = resolve(item.cost)((100, 64, 10), 4)
        assert cost.flops > 0
        assert cost.bytes > 0
        assert importlib.import_module(item.impl.partition(":")[0]).KIND.method == item.name
    code = "import sys, methods.approximate_matmul.catalogue_linear; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("rows", [None, 5, 70])
@pytest.mark.parametrize("by_column", [False, True])
def test_the_exact_call_is_chosen_on_rows_as_they_lie(rows, by_column, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(exact.calls, "product", lambda b, sample, *_: seen.append(sample) or ("mm", {"mm": 1.0}, []))
    a = torch.randn(20, 8)
    exact.make(rows=rows).fit(a.t().contiguous().t() if by_column else a, torch.randn(8, 3))
    assert seen[0].shape == (rows or 20, 8)
    assert seen[0].stride() == ((1, rows or 20) if by_column else (8, 1))
    assert torch.equal(seen[0], a.repeat(4, 1)[: rows or 20])


def test_the_exact_call_is_chosen_and_named() -> None:
    a, b, a_train = data(50, 32, 10)
    op = fitted("exact", a_train, b, rows=40)
    assert op.choices["call"] == min(op.choices["candidates_s"], key=op.choices["candidates_s"].get)
    assert op.choices["rows"] == 40
    assert {"mm", "linear"} <= set(op.choices["candidates_s"])
    assert gap(op(a), a.double() @ b.double()) < 1e-6
