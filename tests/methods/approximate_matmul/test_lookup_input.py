"""Bad input to the look-up products: one clear error each."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.catalogue import registry
from harness.errors import Unsupported, UserError
from methods.approximate_matmul import bolt, maddness, opq, pq, save
from methods.approximate_matmul.native import binding

A, B = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), torch.ones(8, 3)
MAKERS = [maddness.make, bolt.make, pq.make, opq.make]


@pytest.mark.parametrize("make", MAKERS)
def test_fit_refuses(make: Callable[..., object]) -> None:
    estimator = make(codebooks=4, backend="torch")
    bad = A.clone()
    bad[3, 2] = float("nan")
    cases = [
        (bad, B, "not finite"),
        (A, B / 0, "not finite"),
        (A.double() * 1e60, B, "finite in float32"),
        (A[:, :3], B[:3], "codebooks <= 3"),
        (A, B[:7], "8 columns but b has 7"),
        (A[:0], B, "empty"),
        (A, B[:, :0], "empty"),
        (A[0], B, "two dimensions"),
        (A.int(), B, "cast it"),
        (A.numpy(), B, "torch tensor"),
        (A.to_sparse(), B, "dense"),
    ]
    for a, b, text in cases:
        with pytest.raises(UserError, match=text):
            estimator.fit(a, b)
    with pytest.raises(Unsupported, match="cpu and cuda"):
        estimator.fit(A.to("meta"), B.to("meta"))


@pytest.mark.parametrize("make", MAKERS)
def test_use_refuses(make: Callable[..., object]) -> None:
    estimator = make(codebooks=2, backend="torch")
    with pytest.raises(UserError, match="not fitted"):
        estimator(A)
    with pytest.raises(UserError, match="not fitted"):
        estimator.encode(A)
    op = estimator.fit(A[:20], B)
    for a, text in ((A[:, :7], "8 columns"), (A.long(), "cast it"), (A[0], "two dimensions")):
        with pytest.raises(UserError, match=text):
            op(a)
        with pytest.raises(UserError, match=text):
            op.encode(a)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"codebooks": 0}, "at least 1"),
        ({"codebooks": 2.0}, "whole number"),
        ({"codebooks": 258}, "at most 257"),
        ({"codebooks": 4128, "aggregation": "average", "upcast": 8}, "at most 257 groups"),
        ({"candidates": 0}, "at least 1"),
        ({"ridge": 0.0}, "positive"),
        ({"ridge": float("nan")}, "positive"),
        ({"ridge": float("inf")}, "finite positive number"),
        ({"ridge": "1"}, "finite positive number .* got '1'"),
        ({"ridge": True}, "finite positive number"),
        ({"lut_bits": 9}, "1 to 8"),
        ({"lut_bits": None, "aggregation": "average"}, "bytes"),
        ({"upcast": 12}, "power of two"),
        ({"aggregation": "sum"}, "exact, average"),
        ({"tables": "none"}, "prototype, direct"),
        ({"thresholds": "int4"}, "float, int8"),
        ({"compare": "<"}, ">="),
        ({"scale": "row"}, "output, shared"),
        ({"backend": "cuda"}, "auto, native"),
        ({"nonzeros": 0}, "at least 1"),
        ({"nonzeros": 2, "tables": "direct"}, "leave it None"),
        ({"min_leaf": True}, "whole number"),
        ({"seed": -1}, "at least 0"),
    ],
)
def test_options_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        maddness.make(**options)


def test_257_codebooks_are_exact_and_more_need_another_sum() -> None:
    a = torch.randn(20, 260, generator=torch.Generator().manual_seed(1))
    op = maddness.make(codebooks=257, nonzeros=1, backend="torch").fit(a, torch.ones(260, 1))
    assert op(a).isfinite().all()
    assert maddness.make(codebooks=260, nonzeros=1, lut_bits=None, backend="torch").fit(a, torch.ones(260, 1))


def test_native_says_why_it_cannot() -> None:
    with pytest.raises(Unsupported, match="8-bit"):
        maddness.make(codebooks=2, lut_bits=None, backend="native").fit(A, B)
    with pytest.raises(Unsupported, match="16 entries, not of 256"):
        pq.make(codebooks=2, backend="native").fit(A, B)
    op = maddness.make(codebooks=2, lut_bits=None).fit(A, B)
    assert op.describe()["backend"] == "torch"
    assert "8-bit" in op.describe()["not_native_because"]


def test_rows_with_nan_at_run_time_stay_finite_and_alone() -> None:
    op = maddness.make(codebooks=4, backend="torch").fit(A, B)
    spoiled = A[:4].clone()
    spoiled[1] = float("nan")
    out = op(spoiled)
    assert out.isfinite().all()
    assert torch.equal(out[[0, 2, 3]], op(A[:4])[[0, 2, 3]])


def test_loading_refuses_other_files(tmp_path: Path) -> None:
    text, other = tmp_path / "a.npz", tmp_path / "b.npz"
    text.write_text("no")
    np.savez(other, x=np.ones(2))
    for path in (text, other, tmp_path / "missing.npz"):
        with pytest.raises(UserError, match="not a saved look-up product"):
            save.load(path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [{}, {"lut_bits": None}, {"tables": "direct"}, {"aggregation": "average"}])
def test_products_beyond_float32_are_refused_and_large_ones_work(options: dict[str, object]) -> None:
    make = maddness.make(codebooks=2, backend="numpy", **options)
    for a, b in ((A * 1e30, B * 1e30), (A * 1e37, B * 1e2)):
        with pytest.raises(UserError, match=r"do not fit float32.*scale a_train, a and b down"):
            make.fit(a, b)
    plain, large = make.fit(A, B)(A), make.fit(A * 2.0**100, B)(A * 2.0**100)
    torch.testing.assert_close(large * 2.0**-100, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("make", MAKERS[1:])
def test_distances_beyond_float32_are_refused(make: Callable[..., object]) -> None:
    with pytest.raises(UserError, match=r"squared distances.*scale a_train"):
        make(codebooks=2).fit(A * 1e30, B)


@pytest.mark.parametrize("name", ["maddness", "bolt", "pq", "exact", "pca", "int8"])
def test_a_pending_negation_is_carried_out(name):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(40, 16, generator=generator), torch.randn(16, 5, generator=generator)
    op = registry.load(f"approximate_matmul.{name}")(**({} if name in ("exact", "int8") else {SIZE[name]: 4})).fit(a, b)
    negated = torch.complex(a, a).conj().imag
    assert negated.is_neg()
    assert torch.equal(op(negated), op(-a))


SIZE = {"maddness": "codebooks", "bolt": "codebooks", "pq": "codebooks", "pca": "rank"}


def test_the_kernels_refuse_a_pending_negation():
    if binding.available() is not None:
        pytest.skip(str(binding.available()))
    columns = np.zeros((4, 4), np.int32)
    with pytest.raises(Unsupported, match="pending negation"):
        binding.encode(torch.complex(torch.zeros(4, 8), torch.ones(4, 8)).conj().imag, columns, np.zeros((4, 15)))


@pytest.mark.parametrize("part", ["encode", "scan", "codes", "totals"])
def test_parts_of_an_unfitted_method_are_refused(part):
    with pytest.raises(UserError, match="not fitted"):
        getattr(registry.load("approximate_matmul.maddness")(), part)(torch.zeros(2, 16))
