"""The trainable tree's kernels: in Triton's interpreter, which must be on before triton is imported, and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="needs triton")

from methods.approximate_matmul.learned import MaddnessConv2d, soft, tree_kernels

FILE = Path(__file__).with_name("interpreted_tree.py")
ROOT = Path(__file__).resolve().parents[3]


def test_kernels_equal_the_eager_operations_in_float64() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, str(FILE)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip().endswith("ok")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("rows", "books", "outer"), [(1, 1, 1), (37, 65, 5), (5000, 64, 33), (70_000, 200, 8)])
def test_a_product_on_a_gpu_has_the_codes_and_gradients_of_float64(rows, books, outer):
    draws = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, books, 4, generator=draws)
    thresholds, widths = torch.randn(books, 15, generator=draws), 0.3 + torch.rand(books, 4, generator=draws)
    thresholds[0, 9] = torch.inf
    tables, dy = torch.randn(books, 16, outer, generator=draws), torch.randn(rows, outer, generator=draws)
    assert tree_kernels.usable(x.cuda())
    assert torch.equal(soft.hard_codes(x.cuda(), thresholds.cuda()).cpu(), soft.hard_codes(x, thresholds))
    found = []
    for place, dtype in (("cuda", torch.float32), ("cuda", torch.float64)):
        leaves = [t.to(place, dtype).requires_grad_() for t in (x, thresholds, tables)]
        y = soft.lookup_product(leaves[0], leaves[1], widths.to(place, dtype), leaves[2], None)
        y.backward(dy.to(place, dtype))
        found.append([y, *(leaf.grad for leaf in leaves)])
    for one, exact in zip(*found, strict=True):
        assert torch.isfinite(one).all()
        assert (one.double() - exact).abs().max() < 1e-4 * exact.abs().max()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(
    ("rows", "books", "outer"), [(1, 1, 1), (37, 65, 5), (5000, 64, 128), (3000, 257, 300), (300, 128, 256)]
)
def test_integer_sums_on_a_gpu_have_the_bits_of_the_eager_operations(rows, books, outer):
    draws = torch.Generator().manual_seed(rows)
    codes = torch.randint(16, (rows, books), generator=draws, dtype=torch.uint8)
    q = torch.randint(256, (books, 16, outer), generator=draws).float()
    scale, offset = torch.rand(outer, generator=draws), torch.randn(outer, generator=draws)
    found = tree_kernels.sums(codes.cuda(), q.cuda(), scale.cuda(), offset.cuda()).cpu()
    assert torch.equal(found, soft.look_up(codes, q) * scale + offset)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_on_a_gpu_has_the_output_and_gradients_of_a_cpu(form):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(24, 40, 3, stride=2, padding=1)
    image = torch.randn(6, 24, 15, 18)
    layer = MaddnessConv2d.from_conv(conv, image, lut_bits=8)
    found = []
    for place in ("cpu", "cuda"):
        here = image.to(place, memory_format=form, copy=True).requires_grad_()
        layer.to(place).zero_grad()
        y = layer(here)
        y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape).to(place))
        found.append([one.detach().cpu().clone() for one in (y, here.grad, layer.thresholds.grad, layer.tables.grad)])
    for cpu, gpu in zip(*found, strict=True):
        # A table's last bits decide its bytes, so a byte may differ by one.
        assert (gpu - cpu).abs().max() < 2e-3 * cpu.abs().max()
