"""The GPU model against a table worked out by hand (microseconds, two significant figures and more)."""

from __future__ import annotations

import dataclasses

import pytest

from harness.errors import UserError
from methods.approximate_matmul.gpu import model
from methods.approximate_matmul.gpu.model import H100, Shape

# n, d, m, C: bf16, int8, look-ups, one-hot, sparse one-hot, best against bf16, against int8, row-major against bf16
TABLE = [
    ((1_000_000, 512, 100, 16), (408, 237, 109, 109, 109, 3.7, 2.2, 1.0)),
    ((1_000_000, 512, 100, 64), (408, 237, 432, 237, 237, 1.7, 1.0, 1.0)),
    ((1_000_000, 27, 2, 4), (19.3, 10.3, 12, 12, 12, 1.6, 0.86, 1.0)),
    ((65536, 4096, 128, 64), (185, 95, 36, 17, 17, 11, 5.7, 1.0)),
    ((65536, 4096, 128, 256), (185, 95, 145, 50, 50, 3.7, 1.9, 1.0)),
    ((65536, 1024, 1024, 16), (172, 86, 72, 48, 48, 3.6, 1.8, 1.9)),
    ((65536, 1024, 1024, 64), (172, 86, 290, 86, 56, 2.0, 1.0, 1.9)),
    ((65536, 1024, 1024, 128), (172, 86, 579, 172, 86, 1.0, 0.5, 1.0)),
    ((65536, 768, 3072, 12), (388, 194, 163, 137, 137, 2.8, 1.4, 2.3)),
    ((65536, 768, 3072, 96), (388, 194, 1304, 388, 194, 1.0, 0.5, 1.0)),
    ((4096, 4096, 4096, 64), (172, 86, 72, 22, 13, 8, 4, 7.3)),
    ((4096, 4096, 4096, 256), (172, 86, 290, 86, 43, 2.0, 1.0, 2.0)),
    ((4096, 4096, 4096, 512), (172, 86, 579, 172, 86, 1.0, 0.5, 1.0)),
]
#: The table rounds to two figures; the smallest entry, 13, by 4 %.
CLOSE = 0.045


@pytest.mark.parametrize(("sizes", "expected"), TABLE, ids=str)
def test_table(sizes, expected):
    n, d, m, codebooks = sizes
    shape = Shape(n=n, d=d, m=m, codebooks=codebooks)
    got = [1e6 * model.dense_s(shape, H100, "bf16"), 1e6 * model.dense_s(shape, H100, "int8")]
    got += [1e6 * model.fused_s(shape, H100, way, "feature") for way in ("alu", "onehot", "onehot-sparse")]
    got += [model.best_speedup(shape, H100, "onehot", "feature", dense) for dense in ("bf16", "int8")]
    got += [model.best_speedup(shape, H100, "onehot", "row", "bf16")]
    assert got == pytest.approx(expected, rel=CLOSE)


def test_small_product_is_a_few_microseconds():
    small = Shape(n=10_000, d=512, m=10, codebooks=16)
    assert 1e6 * model.dense_s(small, H100, "bf16") == pytest.approx(3.5, rel=0.02)
    assert 1e6 * model.dense_s(small, H100, "int8") == pytest.approx(1.8, rel=0.02)
    assert model.fused_s(small, H100, "onehot", "feature") < 2e-6


@pytest.mark.parametrize(
    ("against", "expected"),
    [("bf16", (13.4, 27, 8, 4)), ("int8", (27, 54, 16, 8)), ("fp8", (27, 54, 16, 8))],
)
def test_break_even(against, expected):
    got = [model.break_even(H100, way, against) for way in model.WAYS]
    assert got == pytest.approx(expected, rel=0.01)


def test_rates_of_lookups():
    assert H100.lookups("shared") == pytest.approx(29.7e12, rel=2e-3)
    assert H100.lookups("alu") == pytest.approx(14.8e12, rel=2e-3)
    assert H100.lookups("onehot") == pytest.approx(49.9e12, rel=1e-3)


def test_break_even_is_where_the_bounds_cross():
    """With endless bandwidth, look-ups at D / C = break-even take exactly as long as the dense product."""
    fast = dataclasses.replace(H100, bytes_s=1e30)
    for dense in model.DENSE:
        d = int(model.break_even(fast, "onehot", dense)) * 64
        shape = Shape(n=4096, d=d, m=4096, codebooks=64)
        assert model.best_speedup(shape, fast, "onehot", "row", dense) == pytest.approx(1.0)


def test_fusing_saves_the_codes():
    shape = Shape(n=65536, d=4096, m=16, codebooks=256)
    apart = model.encode_s(shape, H100, "feature") + model.scan_s(shape, H100, "onehot")
    together = model.fused_s(shape, H100, "onehot", "feature")
    assert apart - together == pytest.approx(2 * 65536 * 256 / H100.bytes_s, rel=1e-6)


def test_measured_rates_count():
    slow = dataclasses.replace(H100, int8_ops=H100.int8_ops / 4, fp8_flops=H100.fp8_flops / 4)
    assert model.break_even(slow, "onehot", "bf16") == pytest.approx(4 * model.break_even(H100, "onehot", "bf16"))


def test_verdict_says_why():
    lost = model.verdict(Shape(n=65536, d=1024, m=1024, codebooks=128), H100, "row", "int8")
    assert lost.startswith("cannot win: D/C = 8, break-even 16 against int8")
    assert "operations" in lost
    assert model.verdict(Shape(n=65536, d=4096, m=128, codebooks=64), H100, "feature", "bf16").startswith("can win")


def test_impossible_shapes():
    with pytest.raises(UserError, match="codebooks <= d"):
        Shape(n=10, d=4, m=3, codebooks=5)
    with pytest.raises(UserError, match="m >= 1"):
        Shape(n=10, d=4, m=0)
