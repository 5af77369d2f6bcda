"""PyTorch's dynamically quantised linear layer as a method: accuracy, libraries, inputs, saving."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from harness.catalogue.registry import load
from harness.errors import UserError
from methods.approximate_matmul.linear import base, int8_torch

NAME = "approximate_matmul.int8-torch"


def data(n: int, d: int, m: int, seed: int = 0) -> tuple[Any, Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(n, d, generator=generator) + 0.3, torch.randn(d, m, generator=generator)
    return a, b, torch.randn(max(n, 20), d, generator=generator)


def fit(a_train: Any, b: Any) -> Any:
    return load(NAME)().fit(a_train, b)


def plain(a: np.ndarray, b: np.ndarray, bits: int) -> np.ndarray:
    """The same scheme in float64."""
    low, high = min(a.min(), 0.0), max(a.max(), 0.0)
    scale = (high - low) / (2**bits - 1)
    zero = np.round(-low / scale)
    step = np.abs(b).max(0) / 127
    return ((np.clip(np.round(a / scale) + zero, 0, 2**bits - 1) - zero) * scale) @ (np.round(b / step) * step)


@pytest.mark.parametrize("shape", [(1, 64, 1), (7, 5, 3), (33, 130, 17), (200, 64, 100)])
def test_it_is_the_scheme_that_it_says(shape: tuple[int, int, int]) -> None:
    a, b, a_train = data(*shape, seed=shape[0])
    op = fit(a_train, b)
    bits = int(op.choices["engine"].rsplit("-", 1)[1])
    wanted = torch.from_numpy(plain(a.double().numpy(), b.double().numpy(), bits))
    # Beside rounded ties of a few entries, each worth a step of A.
    assert float((op(a) - wanted).norm() / wanted.norm()) < 3e-3
    assert "linear_dynamic" in op.describe()["backend"]


def test_what_is_kept_does_not_saturate_and_torch_s_own_choice_stays() -> None:
    before = torch.backends.quantized.engine
    usable, _ = int8_torch._usable(torch.full((40, 6), 127, dtype=torch.int8), torch.ones(6))
    assert torch.backends.quantized.engine == before
    assert usable
    for call in usable.values():
        assert float((call(torch.ones(2, 40)) - 127 * 40).abs().max()) <= 0.05 * 127 * 40


def test_a_library_that_saturates_is_taken_with_seven_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def packed(engine: str, bits: int, b: Any, scale: Any) -> Any:
        top = 127.0 * len(b) / (2 if bits == 8 else 1)
        return lambda a: ((a @ b.float()) * scale).clamp(-top, top)

    monkeypatch.setattr(int8_torch, "_packed", packed)
    known = next(one for one in torch.backends.quantized.supported_engines if one != "none")
    monkeypatch.setattr(int8_torch, "ENGINES", (known, "elsewhere"))
    usable, left_out = int8_torch._usable(torch.ones(40, 6, dtype=torch.int8), torch.ones(6))
    assert list(usable) == [f"{known}-7"]
    assert left_out == [f"{known}-8: sums saturate", "elsewhere: not in this torch"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_layouts_dtypes_and_no_rows(dtype: Any) -> None:
    a, b, a_train = (value.to(dtype) for value in data(24, 30, 9))
    op = fit(a_train, b)
    kept = a.clone()
    y = op(a)
    assert (y.dtype, y.shape) == (dtype, (24, 9))
    assert torch.equal(a, kept)
    assert torch.equal(op(a.t().contiguous().t()), y)
    assert op(a[:0]).shape == (0, 9)
    with pytest.raises(UserError, match="30 columns"):
        op(a[:, :7])


def test_rows_without_a_scale_are_refused_or_not_finite() -> None:
    a, b, a_train = data(24, 30, 9)
    op = fit(a_train, b)
    a[3, 2] = float("inf")
    refused = False
    try:
        answer = op(a)
    except UserError as error:
        refused = "NaN or infinite" in str(error)
    assert refused or not bool(torch.isfinite(answer[3]).all())


def test_saved_and_read_again(tmp_path: Any) -> None:
    a, b, a_train = data(24, 30, 9)
    op = fit(a_train, b)
    op.save(tmp_path / "op.npz")
    other = base.load(tmp_path / "op.npz")
    assert torch.equal(other(a), op(a))
    other.choices["engine"] = "elsewhere-8"
    other.prepare()
    assert float((other(a) - op(a)).norm() / op(a).norm()) < 0.1
