"""Tests of the Triton kernels in Triton's interpreter; ``test_gpu_interpreted.py`` runs this file by itself.

The interpreter must be chosen before triton is first imported, which other tests in one pytest process would prevent.
Its bfloat16 dot is wrong, so bfloat16 products run on a GPU only (``python -m methods.approximate_matmul.gpu._bench``).
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from harness.errors import UserError
from methods.approximate_matmul import reference as plain
from methods.approximate_matmul import save, scan
from methods.approximate_matmul.gpu import _bench_checks as checks
from methods.approximate_matmul.gpu import _launch as launch
from methods.approximate_matmul.gpu import maddness
from methods.approximate_matmul.gpu._configs import Config
from methods.approximate_matmul.tables import Tables

assert os.environ.get("TRITON_INTERPRET") == "1", "run with TRITON_INTERPRET=1"

CPU = torch.device("cpu")
# rows, columns, outputs, codebooks: odd in every way, one of everything, more than one tile of everything
SHAPES = [(37, 29, 11, 5), (1, 4, 1, 1), (70, 40, 33, 9), (130, 20, 70, 5), (16, 64, 16, 16)]
SMALL = Config(bm=16, bn=16, bc=2, group=2)
MIDDLE = Config(bm=64, bn=64, bc=4, group=2)


def arrays(d: int, m: int, codebooks: int, seed: int = 0, top: int = 256):
    """Random trees on integers, so that ties happen; the last threshold of each level never lets a row go right."""
    rng = np.random.default_rng(seed)
    columns = rng.integers(0, d, (codebooks, 4)).astype(np.int32)
    thresholds = rng.integers(-2, 3, (codebooks, 15)).astype(np.float32)
    thresholds[:, [0, 6]] = [np.float32(0.5), np.inf]
    values = rng.integers(0, top, (codebooks, 16, m)).astype(np.uint8)
    scale = rng.uniform(0.01, 0.1, m).astype(np.float32)
    offset = rng.normal(size=m).astype(np.float32)
    return columns, thresholds, values, scale, offset


def rows_of(n: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> torch.Tensor:
    a = np.random.default_rng(seed).integers(-3, 4, (n, d)).astype(np.float32)
    a[0, 0] = np.nan
    a[-1, -1] = np.inf
    return torch.from_numpy(a).to(dtype)


def laid_out(a: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "feature":
        return a.T.contiguous().T
    if layout == "sliced":
        wide = torch.full((2 * a.shape[0], 3 * a.shape[1]), torch.nan, dtype=a.dtype)
        wide[::2, 1::3] = a
        return wide[::2, 1::3]
    return a


def same(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Equal bits; the interpreter truncates to bfloat16 where a GPU rounds, which is one unit in the last place."""
    if want.dtype != torch.bfloat16:
        return torch.equal(got, want)
    gap = (got.float() - want.float()).abs()
    return got.dtype == want.dtype and bool((gap <= 2**-7 * want.float().abs()).all())


def case(shape, dtype=torch.float32, layout="row", top=256):
    n, d, m, codebooks = shape
    made = arrays(d, m, codebooks, top=top)
    a = laid_out(rows_of(n, d, dtype), layout)
    codes = plain.encode(a.float().numpy(), *made[:2])
    return a, made, launch.prepare(*made, CPU), codes, np.array(plain.exact_scan(codes, made[2]))


def pack(codes: np.ndarray) -> np.ndarray:
    even, odd = codes[:, ::2], codes[:, 1::2]
    return even | np.pad(odd << 4, [(0, 0), (0, even.shape[1] - odd.shape[1])])


shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)


@shapes
@dtypes
@pytest.mark.parametrize("layout", ["row", "feature", "sliced"])
def test_codes(shape, dtype, layout):
    a, _, prepared, codes, _ = case(shape, dtype, layout)
    assert np.array_equal(launch.encode(a, prepared).numpy(), codes)


@shapes
def test_packed_codes(shape):
    a, _, prepared, codes, _ = case(shape)
    assert np.array_equal(launch.encode(a, prepared, packed=True).numpy(), pack(codes))
    small = launch.encode(a, prepared, packed=True, config=SMALL)
    assert np.array_equal(small.numpy(), pack(codes))


def test_every_leaf_and_both_sides_of_every_threshold():
    """x = threshold goes right, the float below left: all 16 leaves from hand-made rows."""
    columns = np.arange(4, dtype=np.int32)[None]
    thresholds = np.arange(1, 16, dtype=np.float32)[None] / 8
    values = np.arange(16, dtype=np.uint8).reshape(1, 16, 1)
    prepared = launch.prepare(columns, thresholds, values, np.ones(1, np.float32), np.zeros(1, np.float32), CPU)
    rows = []
    for leaf in range(16):
        node, row = 0, []
        for level in range(4):
            right = leaf >> (3 - level) & 1
            v = thresholds[0, 2**level - 1 + node]
            row.append(v if right else np.nextafter(v, np.float32(-np.inf)))
            node = 2 * node + right
        rows.append(row)
    a = torch.tensor(np.array(rows, dtype=np.float32))
    assert launch.encode(a, prepared).flatten().tolist() == list(range(16))
    assert launch.fused(a, prepared, torch.int32).flatten().tolist() == list(range(16))


@shapes
@pytest.mark.parametrize("packed", [False, True])
def test_integers(shape, packed):
    """Both designs, default and small tiles, from codes of both layouts."""
    _, _, prepared, codes, want = case(shape)
    given = torch.from_numpy(pack(codes) if packed else codes)
    for config in (None,) if packed else (None, SMALL if shape == SHAPES[0] else MIDDLE):
        got = launch.lookup(given, prepared, torch.int32, packed=packed, config=config)
        assert np.array_equal(got.numpy(), want)
        got = launch.onehot(given, prepared, torch.int32, packed=packed, config=config)
        assert np.array_equal(got.numpy(), want)


@pytest.mark.parametrize("kind", ["int8", "float16", "float8"])
@pytest.mark.parametrize("top", [256, 16])
def test_kinds_of_products(kind, top):
    """float8 takes two planes of four bits, or one when entries have only four."""
    a, _, prepared, codes, want = case(SHAPES[0], top=top)
    assert prepared.split(kind) == (kind == "float8" and top == 256)
    assert prepared.rows(kind).shape[0] == (2 if prepared.split(kind) else 1)
    got = launch.onehot(torch.from_numpy(codes), prepared, torch.int32, kind=kind, config=SMALL)
    assert np.array_equal(got.numpy(), want)
    assert np.array_equal(launch.fused(a, prepared, torch.int32, kind=kind, config=SMALL).numpy(), want)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [*((shape, "row") for shape in SHAPES), (SHAPES[0], "feature"), (SHAPES[0], "sliced"), (SHAPES[1], "feature")],
    ids=str,
)
def test_fused_integers(shape, layout):
    a, _, prepared, _, want = case(shape, torch.float16, layout)
    config = SMALL if shape == SHAPES[0] else MIDDLE
    assert np.array_equal(launch.fused(a, prepared, torch.int32, config=config).numpy(), want)


def test_bfloat16_rows_into_integer_products():
    a, _, prepared, _, want = case(SHAPES[0], torch.bfloat16)
    assert np.array_equal(launch.fused(a, prepared, torch.int32).numpy(), want)


def test_largest_sums():
    """257 codebooks of 255: 65535, the last that 16 bits hold; and of 0, which int8 stores as -128."""
    codebooks = launch.MOST_CODEBOOKS
    columns, thresholds, values, scale, offset = arrays(300, 8, codebooks)
    codes = torch.randint(0, 16, (3, codebooks), dtype=torch.uint8)
    wide = Config(bm=16, bn=16, bc=16)
    for fill, kind in ((255, "int8"), (0, "int8"), (255, "float8")):
        values[:] = fill
        prepared = launch.prepare(columns, thresholds, values, scale, offset, CPU)
        if (fill, kind) == (255, "int8"):
            assert (launch.lookup(codes, prepared, torch.int32) == fill * codebooks).all()
        assert (launch.onehot(codes, prepared, torch.int32, kind=kind, config=wide) == fill * codebooks).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_outputs_have_the_bits_of_the_twin(dtype):
    a, (_, _, values, scale, offset), prepared, codes, _ = case(SHAPES[2])
    want = torch.from_numpy(scan.scan(codes, Tables(values=values, scale=scale, offset=offset))).to(dtype)
    given = torch.from_numpy(codes)
    assert same(launch.lookup(given, prepared, dtype), want)
    assert same(launch.onehot(given, prepared, dtype), want)
    assert same(launch.fused(a, prepared, dtype), want)


def test_scalar_scale_is_broadcast():
    columns, thresholds, values, _, _ = arrays(9, 7, 3)
    prepared = launch.prepare(columns, thresholds, values, np.float32([0.5]), np.float32([1.0]), CPU)
    codes = torch.zeros(2, 3, dtype=torch.uint8)
    want = values[:, 0].sum(axis=0, dtype=np.int64) * 0.5 + 1
    assert np.array_equal(launch.lookup(codes, prepared)[1].numpy(), want.astype(np.float32))


def test_padding_is_never_read():
    """Codes in a wider store whose other bytes are 255, and A beside NaN (sliced above)."""
    _, _, prepared, codes, want = case(SHAPES[0])
    store = torch.full((2 * len(codes), 64), 255, dtype=torch.uint8)
    given = store[::2, : codes.shape[1]]
    given.copy_(torch.from_numpy(codes))
    assert np.array_equal(launch.lookup(given, prepared, torch.int32).numpy(), want)
    assert np.array_equal(launch.onehot(given, prepared, torch.int32).numpy(), want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": np.zeros((5, 3), np.int32)}, "expected columns"),
        ({"values": np.zeros((5, 16, 4), np.float32)}, "expected uint8 tables"),
        ({"values": np.zeros((4, 16, 4), np.uint8)}, "expected columns"),
    ],
)
def test_arrays_that_do_not_fit(change, message):
    names = ("columns", "thresholds", "values", "scale", "offset")
    given = dict(zip(names, arrays(9, 4, 5), strict=True)) | change
    with pytest.raises(UserError, match=message):
        launch.prepare(**given, device=CPU)


def test_tiles_beyond_the_padding_are_refused():
    _, _, prepared, codes, _ = case(SHAPES[0])
    for config in (Config(bm=16, bn=512), Config(bm=16, bn=16, bc=32)):
        with pytest.raises(UserError, match="padding"):
            launch.onehot(torch.from_numpy(codes), prepared, config=config)


def test_too_many_codebooks():
    with pytest.raises(UserError, match="257 codebooks"):
        launch.prepare(*arrays(300, 2, 258), CPU)


def test_the_checks_of_the_bench(monkeypatch):
    """They find every kernel right (but bfloat16, which the interpreter gets wrong) and a wrong table wrong."""
    monkeypatch.setattr(checks, "DEVICE", "cpu")
    lines = [line for line in checks.odd((33, 12, 9, 3), torch.float32, "feature") if "bfloat16" not in line]
    assert len(lines) >= 10
    assert all(line.startswith("right") for line in lines), lines
    fine = launch.lookup
    monkeypatch.setattr(launch, "lookup", lambda *given, **options: fine(*given, **options) + 1)
    wrong = [line for line in checks.odd((5, 12, 9, 3), torch.float32, "row") if line.startswith("WRONG")]
    assert sum(" lut" in line for line in wrong) == 3


# --- operators -------------------------------------------------------------------------------------------------------

MAKERS = {"lut": maddness.make_lut, "onehot": maddness.make_onehot, "fused": maddness.make_fused}
designs = pytest.mark.parametrize("design", MAKERS)


def data(n: int = 90, d: int = 30, m: int = 10):
    generator = torch.Generator().manual_seed(4)
    mixed = torch.randn(n, 6, generator=generator) @ torch.randn(6, d, generator=generator)
    return mixed, torch.randn(d, m, generator=generator)


@designs
@dtypes
def test_operator_equals_its_reference(design, dtype):
    a, b = data()
    op = MAKERS[design](codebooks=6).fit(a, b)
    twin = maddness.reference(codebooks=6, kind="int8").fit(a, b)
    before = a.to(dtype)
    out = op(before)
    assert (out.dtype, out.shape) == (dtype, (90, 10))
    assert same(out, twin(a.to(dtype)))
    assert torch.equal(before, a.to(dtype))
    assert torch.equal(op.encode(a), twin.encode(a))
    assert torch.equal(op.scan(op.codes(a)), twin(a))


@designs
def test_operator_approximates(design):
    a, b = data(400)
    op = MAKERS[design](codebooks=10).fit(a[:300], b)
    exact = a[300:] @ b
    assert float((op(a[300:]) - exact).square().sum() / exact.square().sum()) < 0.15


@designs
def test_operator_edges(design, tmp_path):
    a, b = data()
    op = MAKERS[design](codebooks=6).fit(a, b)
    want = op(a)
    assert torch.equal(op(a.T.contiguous().T), want)
    assert torch.equal(op(a[:1]), want[:1])
    assert op(a.double()).dtype == torch.float64
    assert torch.equal(op(a.double()).float(), want)
    assert op(a[:0]).shape == (0, 10)
    about = op.describe()
    assert about["backend"] == "triton"
    assert about["level"].startswith(design)
    op.save(tmp_path / "op.npz")
    assert torch.equal(save.load(tmp_path / "op.npz", backend="numpy")(a), want)
    with pytest.raises(UserError, match=r"gpu\.maddness:load reads"):
        save.load(tmp_path / "op.npz")
    read = maddness.load(tmp_path / "op.npz", device="cpu")
    assert torch.equal(read(a), want)
    assert read.describe() == about
    assert op.loader.endswith("gpu.maddness:load")
    assert torch.equal(op.to("cpu")(a), want)
    with pytest.raises(UserError, match="30 columns"):
        op(a[:, :5])


def test_files_of_other_methods_are_refused(tmp_path):
    a, b = data()
    maddness.reference(codebooks=6).fit(a, b).save(tmp_path / "op.npz")
    with pytest.raises(UserError, match="holds 'maddness'"):
        maddness.load(tmp_path / "op.npz", device="cpu")


def test_bytes_of_fused_leave_out_codes():
    a, b = data()
    apart, together = (maker(codebooks=6).fit(a, b) for maker in (maddness.make_onehot, maddness.make_fused))
    assert apart.bytes_read(100) - together.bytes_read(100) == 100 * 2 * 6
    by_column = [together.bytes_read(100, "columns", size) for size in (2, 4)]
    assert by_column[1] - by_column[0] == 100 * 2 * together.encoder.columns_read, "halves are read as they are"


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"backend": "torch"}, "back-end is Triton"),
        ({"aggregation": "average"}, "sums are exact"),
        ({"lut_bits": None}, "lut_bits of 1 to 8"),
        ({"kind": "int4"}, "kind must be one of"),
        ({"codebooks": 300}, "at most 257"),
    ],
)
def test_options_that_cannot_be(hyper, message):
    with pytest.raises(UserError, match=message):
        maddness.make_onehot(**hyper)


def test_lut_has_no_kind():
    with pytest.raises(UserError, match="has none"):
        maddness.make_lut(kind="int8")


def test_unfitted():
    with pytest.raises(UserError, match="not fitted"):
        maddness.make_fused()(torch.zeros(2, 2))
