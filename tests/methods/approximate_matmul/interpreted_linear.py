"""Run by test_linear_interpreted.py in a process of its own: the interpreter is chosen when triton is imported."""

import os

assert os.environ.get("TRITON_INTERPRET") == "1", "run with TRITON_INTERPRET=1"

import torch

from methods.approximate_matmul.linear import fused, products
from methods.approximate_matmul.linear.base import Estimator
from methods.approximate_matmul.linear.int8 import SMALLEST, Int8, up
from methods.approximate_matmul.linear.int8_static import Int8Static

generator = torch.Generator().manual_seed(0)
for n, d, width, rows in ((1, 1, 8, 32), (5, 40, 40, 5), (7, 33, 48, 32), (3, 5000, 5008, 3)):
    a = torch.randn(n, d, generator=generator) * torch.logspace(-3, 3, n)[:, None]
    a[0, 0] = 0.0
    for view in (a, a.t().contiguous().t()):
        q, scale = fused.quantise(view, width, rows, torch.int8, 127.0, SMALLEST)
        top = a.abs().amax(1, keepdim=True).clamp(min=SMALLEST)
        assert torch.equal(q[:n, :d], (a * up(top)).round().to(torch.int8))
        assert not q[n:].any()
        assert not q[:, d:].any()
        assert torch.equal(scale, (top / 127)[:, 0])
    for inverse in (torch.tensor([20.0]), torch.rand(d, generator=generator) * 300):
        q, none = fused.quantise(a, width, rows, torch.int8, 127.0, SMALLEST, inverse)
        assert torch.equal(q[:n, :d], (a * inverse).round().clamp(-127, 127).to(torch.int8))
        assert not none.numel()
    sums = torch.randint(-(2**20), 2**20, (rows, width), dtype=torch.int32, generator=generator)
    s, t = torch.rand(n, generator=generator), torch.rand(d, generator=generator)
    for dtype in (torch.float32, torch.float16):
        got = fused.scaled(sums, s, t, torch.empty(n, d, dtype=dtype))
        assert torch.equal(got, (sums[:n, :d] * s[:, None] * t).to(dtype))
    assert torch.equal(fused.scaled(sums, None, t, torch.empty(n, d)), sums[:n, :d] * t)

a = torch.randn(3, 20, generator=generator)
a[1, 4], a[2, 3] = float("nan"), float("inf")
_, scale = fused.quantise(a, 24, 3, torch.int8, 127.0, SMALLEST)
assert torch.isfinite(scale).tolist() == [True, False, False]

# The operators take the same path as on a GPU, with the CPU's integer product.
for kind, hyper in ((Int8, {}), (Int8Static, {"granularity": "column"}), (Int8Static, {"granularity": "tensor"})):
    for shape in ((1, 7, 3), (40, 33, 9)):
        a = torch.randn(shape[0], shape[1], generator=generator)
        op = Estimator(kind, hyper).fit(a, torch.randn(shape[1:], generator=generator))
        expected = op(a)
        op._weight = products.weight("int_mm", op.state["b"], op._scale)
        assert op.work == a.dtype
        assert torch.equal(op(a), expected)
# Tiles that do not divide the rows, columns or depth give the library's numbers, with and without scales of rows.
small = {"tile 16x32": products.Tile(16, 32, 4, 1)}
products.TILES |= small
for n, inner, outer in ((1, 3, 1), (16, 128, 32), (37, 130, 65), (33, 260, 257)):
    b = torch.randint(-127, 128, (inner, outer), dtype=torch.int8, generator=generator)
    a, scale = torch.randn(n, inner, generator=generator), torch.rand(outer, generator=generator) + 0.1
    plain = products.weight("int_mm", b, scale)
    for name in [*small, *(["tile 64x256"] if outer == 65 else [])]:
        given = products.weight(name, b, scale)
        assert given.width % 128 == 0
        q, steps = fused.quantise(a, given.width, given.rows(n), torch.int8, 127.0, SMALLEST)
        for rows in (steps, None):
            for dtype in (torch.float32, torch.float16):
                got = given(q, rows, torch.full((n, outer), float("nan"), dtype=dtype))
                assert torch.equal(got, plain(q[:, :inner].contiguous(), rows, torch.empty((n, outer), dtype=dtype)))
        assert products.usable(name, b, scale).name == name
products.TILES.clear()
products.TILES |= small
b = torch.randint(-127, 128, (40, 33), dtype=torch.int8, generator=generator)
scale = torch.rand(33, generator=generator) + 0.1
chosen, seconds, left_out = products.choose(b, torch.randn(5, 40, generator=generator), SMALLEST)
assert chosen in seconds
assert not left_out
assert list(seconds) == ["int_mm", *small]
assert products.usable("tile of old", b, scale).name == products.usable(None, b, scale).name == "int_mm"
products.TILES["tile wrong"] = products.Tile(16, 48, 4, 1)  # no power of two: refused by the compiler
assert products.usable("tile wrong", b, scale).name == "int_mm"

assert fused.refusal(torch.device("cpu"), 50, torch.int8, 127, SMALLEST) is None
good = fused.quantise
fused.quantise = lambda *args, **more: tuple(x + 1 for x in good(*args, **more))
assert "agree" in str(fused.refusal(torch.device("cpu"), 50, torch.int8, 127, SMALLEST))
print("ok")
