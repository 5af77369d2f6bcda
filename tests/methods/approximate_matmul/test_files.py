"""Files of every method of the task: one way to load them all, and a clear error for each that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from harness.catalogue import registry
from harness.errors import UserError
from methods.approximate_matmul import load, save
from methods.approximate_matmul.linear import base
from methods.approximate_matmul.linear.pca import Pca
from methods.approximate_matmul.operator import LookupProduct

GENERATOR = torch.Generator().manual_seed(5)
MIX = torch.randn(12, 12, generator=GENERATOR)
ROWS, B = torch.randn(60, 12, generator=GENERATOR) @ MIX, torch.randn(12, 6, generator=GENERATOR)
TEST = ROWS[:9]
NAMES = sorted(
    name
    for name, method in registry.methods().items()
    if method.task == "approximate_matmul" and "cuda" not in method.needs and ",".join(method.devices) != "cuda"
)


def made(name: str, **more: Any) -> Any:
    hyper = dict(registry.method(name).hyper)
    size = {key: 4 for key in ("codebooks", "rank") if key in hyper}
    return registry.load(name)(**{**hyper, **size, **more})


def fitted(name: str, **more: Any) -> Any:
    return made(name, **more).fit(ROWS, B)


def rewritten(path: Path, **changes: Any) -> Path:
    """The file with some arrays replaced, or left out where None is given."""
    with np.load(path) as stored:
        arrays = {key: stored[key] for key in stored.files}
    arrays = {key: value for key, value in {**arrays, **changes}.items() if value is not None}
    np.savez(path.with_name("changed.npz"), **arrays)
    return path.with_name("changed.npz")


@pytest.mark.parametrize("name", NAMES)
def test_one_function_and_the_operators_own_class_load_every_method(name: str, tmp_path: Path) -> None:
    op, path = fitted(name), tmp_path / "op.npz"
    op.save(path)
    for again in (load(path), type(op).load(path), op.load(path, device="cpu")):
        assert type(again) is type(op)
        assert torch.equal(again(TEST), op(TEST))
        assert again.describe() == op.describe()


@pytest.mark.parametrize("name", NAMES)
def test_an_estimator_that_is_not_fitted_saves_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not fitted, so .* was not written"):
        made(name).save(tmp_path / "op.npz")
    with pytest.raises(UserError, match="not fitted"):
        made(name).encode(TEST)
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    path = tmp_path / "op.npz"
    fitted("approximate_matmul.int8").save(path)
    with pytest.raises(UserError, match=r"expected a Pca, it holds a Int8 .*approximate_matmul\.load reads them all"):
        Pca.load(path)
    with pytest.raises(UserError, match="expected a LookupProduct"):
        LookupProduct.load(path)
    with pytest.raises(UserError, match="leave out backend='torch'"):
        load(path, backend="torch")
    fitted("approximate_matmul.maddness").save(path)
    assert load(path, backend="numpy").describe()["backend"] == "numpy"
    with pytest.raises(UserError, match="no device 'nowhere' here"):
        load(path, device="nowhere")
    about = {**json.loads(str(np.load(path)["about"])), "loader": "os:system"}
    with pytest.raises(UserError, match="names the reader 'os:system'"):
        load(rewritten(path, about=json.dumps(about)))


@pytest.mark.parametrize("name", ["approximate_matmul.maddness", "approximate_matmul.pca", "approximate_matmul.exact"])
def test_damaged_and_foreign_files_are_one_clear_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / "op.npz"
    fitted(name).save(path)
    whole = path.read_bytes()
    own = save.load if name.endswith("maddness") else base.load
    for content in (whole[: len(whole) // 2], whole[:100], b"PK\x03\x04 nothing", b"", b"\x93NUMPY"):
        path.write_bytes(content)
        for reader in (load, own):
            with pytest.raises(UserError, match=r"not a saved .*write one with op.save"):
                reader(path)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    for reader in (load, own):
        with pytest.raises(UserError, match="a single array"):
            reader(path)


def _with(name: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return f"approximate_matmul.{name}", more


F, I32 = np.float32, np.int32
INCONSISTENT = [
    (_with("maddness"), {"values": np.zeros((4, 15, 6), np.uint8)}, "values must be"),
    (_with("maddness"), {"values": np.zeros((4, 16, 6), np.int32)}, "values must be uint8 or float32"),
    (_with("maddness"), {"scale": np.ones(5, F)}, "scale must be float32"),
    (_with("maddness"), {"offset": np.ones(6)}, "offset must be float32 .* is float64"),
    (_with("maddness"), {"columns": np.full((4, 4), 12, I32)}, r"columns must lie in 0\.\.11"),
    (_with("maddness"), {"columns": np.full((4, 4), -1, I32)}, r"columns must lie in 0\.\.11"),
    (_with("maddness"), {"columns": np.zeros((3, 4), I32)}, "columns must be int32"),
    (_with("maddness"), {"thresholds": np.zeros((4, 14), F)}, "thresholds must be float32"),
    (_with("maddness"), {"starts": np.array([0, 6, 3, 9, 12], I32)}, "starts must grow from 0"),
    (_with("maddness"), {"starts": None}, "KeyError"),
    (_with("maddness"), {"hyper": "[1"}, "not a saved look-up product"),
    (_with("maddness"), {"hyper": '{"backend": "abacus"}'}, "backend must be one of"),
    (
        _with("maddness"),
        {"about": '{"version": 1, "kind": "tree", "upcast": 3, "times": {}}'},
        "upcast must be None or",
    ),
    (_with("maddness"), {"about": '{"version": 1, "kind": "tree", "upcast": 8, "times": {}}'}, "a multiple of 8"),
    (_with("maddness"), {"about": '{"version": 1, "kind": "hedge", "upcast": null, "times": {}}'}, "hedge"),
    (_with("pq"), {"centroids": np.zeros((4, 300, 3), F)}, "centroids must be 1 to 256"),
    (_with("pq"), {"centroids": np.zeros((4, 256, 2), F)}, "centroids must be float32"),
    (_with("opq"), {"rotation": np.eye(11, dtype=F)}, "rotation must be float32"),
    (_with("exact"), {"state_b": np.zeros((12, 5), F)}, r"b must be float \(12, 6\), is float32 \(12, 5\)"),
    (_with("exact"), {"state_b": np.zeros((12, 6), np.int64)}, "b must be float"),
    (_with("exact"), {"state_b": None}, "expected the arrays b, got none"),
    (_with("exact"), {"about": '{"dtype": "float31", "shape": [12, 6], "choices": {}}'}, "float31"),
    (_with("exact"), {"about": '{"dtype": "float32", "shape": [12, 6], "choices": {"call": "abacus"}}'}, "abacus"),
    (_with("int8"), {"state_b": np.zeros((12, 6), F)}, "b must be int8"),
    (_with("int8-static"), {"state_inverse": np.zeros(12, F)}, r"inverse must be float \(1\)"),
    (_with("pca"), {"state_table": np.zeros((3, 6), F)}, r"table must be float \(4, 6\)"),
    (_with("svd"), {"hyper": '{"rank": 4, "side": "left", "seed": 0}'}, "side must be one of"),
    (_with("svd"), {"hyper": '{"ranks": 4}'}, "ranks"),
    (_with("fast-jl"), {"state_projection": np.zeros((15, 4), F)}, "projection has 15 rows"),
    (_with("sampling", norms="train"), {"state_picked": np.full(4, 12)}, r"picked must lie in 0\.\.11"),
    (_with("gauss"), {"module": "methods.approximate_matmul.linear.nothing"}, "nothing"),
    (_with("gauss"), {"module": "methods.approximate_matmul.linear.base"}, "KIND"),
]


@pytest.mark.parametrize(("method", "changes", "text"), INCONSISTENT)
@pytest.mark.parametrize("backend", ["torch", None])
def test_arrays_that_do_not_fit_each_other_are_refused(method, changes, text, backend, tmp_path: Path) -> None:
    name, more = method
    look_up = "backend" in registry.method(name).hyper and "codebooks" in registry.method(name).hyper
    fitted(name, **more).save(tmp_path / "op.npz")
    path = rewritten(tmp_path / "op.npz", **changes)
    with pytest.raises(UserError, match=text) as caught:
        # A back-end that is named replaces the stored one, be it what it may.
        load(path, backend=backend if look_up and "abacus" not in str(changes) else None)
    assert str(path) in str(caught.value) or "side must" in text


def test_sums_that_overflow_16_bits_are_refused(tmp_path: Path) -> None:
    a = torch.randn(20, 260, generator=GENERATOR)
    options = {"codebooks": 258, "nonzeros": 1, "lut_bits": 7, "backend": "numpy"}
    op = registry.load("approximate_matmul.maddness")(**options).fit(a, torch.ones(260, 1))
    op.save(tmp_path / "op.npz")
    assert torch.equal(load(tmp_path / "op.npz")(a), op(a))
    with pytest.raises(UserError, match="sums of 258 entries reach 65790, more than 16 bits hold"):
        load(rewritten(tmp_path / "op.npz", values=np.full((258, 16, 1), 255, np.uint8)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("name", "more", "columns", "kind"),
    [
        ("bf16", {}, 12, torch.bfloat16),
        ("int8", {}, 12, torch.int8),
        ("int8-static", {}, 12, torch.int8),
        ("int8-static", {"granularity": "column"}, 12, torch.int8),
        ("pca", {}, 4, torch.float32),
        ("pca", {"centre": False}, 4, torch.float32),
        ("gauss", {}, 4, torch.float32),
        ("hash-jl", {"backend": "sparse"}, 4, torch.float32),
        ("fast-jl", {"backend": "transform"}, 4, torch.float32),
        ("svd", {"side": "b"}, 4, torch.float32),
        ("svd", {"side": "train"}, 4, torch.float32),
        ("sampling", {"norms": "train"}, 4, torch.float32),
    ],
)
def test_linear_codes_are_what_the_product_multiplies(name, more, columns, kind, dtype) -> None:
    op = registry.load("approximate_matmul." + name)(**({"rank": 4} if columns == 4 else {}), **more)
    op = op.fit(ROWS.to(dtype), B.to(dtype))
    a = TEST.to(dtype)
    codes = op.encode(a)
    assert codes.shape == (9, columns)
    assert codes.dtype == kind
    assert op.encode(a[:0]).shape == (0, columns)
    assert op.encode(a[:0]).dtype == kind
    with pytest.raises(UserError, match="12 columns it was fitted with"):
        op.encode(a[:, :5])
    right = {"sampling": "rows", "bf16": "b", "int8": "b", "int8-static": "b"}.get(name, "table")
    product = codes.double() @ op.state[right].double()
    if name == "int8":
        product *= a.double().abs().amax(dim=1, keepdim=True) / 127
    if "scale" in op.state:
        product *= op.state["scale"].double()
    if "offset" in op.state:
        product += op.state["offset"].double()
    assert float((product - op(a).double()).norm()) < 5e-3 * float(product.norm())


@pytest.mark.parametrize(
    ("name", "more", "why"),
    [
        ("int8-torch", {}, "quantises A inside its call"),
        ("exact", {}, "multiplies the rows of A as they are"),
        ("svd", {"rank": 4}, "sides 'b' and 'train' have codes"),
        ("sampling", {"rank": 4}, "norms='train' has codes"),
        ("fd-amm", {"rank": 4}, "depend on all rows of A at once"),
        ("cooccur", {"rank": 4}, "depend on all rows of A at once"),
    ],
)
def test_methods_without_codes_say_why(name: str, more: dict[str, Any], why: str) -> None:
    op = registry.load("approximate_matmul." + name)(**more).fit(ROWS, B)
    for rows in (TEST, TEST[:0]):
        with pytest.raises(UserError, match=f"approximate_matmul.{name} has no codes: .*{why}"):
            op.encode(rows)
