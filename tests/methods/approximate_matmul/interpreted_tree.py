"""Run by test_learned_kernels.py in a process of its own: the interpreter is chosen when triton is imported."""

import os

assert os.environ.get("TRITON_INTERPRET") == "1", "run with TRITON_INTERPRET=1"

import torch

from methods.approximate_matmul.learned import soft, tree_kernels, window_kernels
from methods.approximate_matmul.learned.geometry import Geometry

generator = torch.Generator().manual_seed(0)
for rows, books in ((1, 1), (5, 3), (37, 65), (300, 16), (2100, 2)):
    x = torch.randn(rows, books, 4, generator=generator)
    thresholds = torch.randn(books, 15, generator=generator)
    thresholds[0, 4] = torch.inf
    x[0, 0, 0] = thresholds[0, 0]
    widths = 0.3 + torch.rand(books, 4, generator=generator)
    by_leaf = torch.randn(rows, 16, books, generator=generator)
    found = tree_kernels.codes(x, thresholds)
    assert torch.equal(found, soft.hard_codes(x, thresholds)), (rows, books)
    into_x, into_v = tree_kernels.gradients(x, thresholds, widths, by_leaf)
    exact_x, exact_v = soft._through_tree(x.double(), thresholds.double(), widths.double(), by_leaf.double())
    assert (into_x - exact_x).abs().max() < 1e-5 * exact_x.abs().max(), (rows, books)
    assert (into_v - exact_v).abs().max() < 1e-5 * exact_v.abs().max(), (rows, books)
for rows, books, outer in ((1, 1, 1), (37, 9, 5), (70, 16, 130), (300, 3, 17), (100, 40, 24), (5, 16, 256)):
    codes = torch.randint(16, (rows, books), generator=generator, dtype=torch.uint8)
    dy = torch.randn(rows, outer, generator=generator)
    found, exact = tree_kernels.table_gradient(codes, dy), soft._into_tables(codes, dy.double())
    assert found.shape == exact.shape
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max(), (rows, books, outer)
    q = torch.randint(256, (books, 16, outer), generator=generator).float()
    scale, offset = torch.rand(outer, generator=generator), torch.randn(outer, generator=generator)
    assert torch.equal(tree_kernels.sums(codes, q, scale, offset), soft.look_up(codes, q) * scale + offset)

for size, kernel, stride, padding, dilation in (
    ((2, 3, 5, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((1, 1, 1, 1), (1, 1), (1, 1), (0, 0), (1, 1)),
    ((3, 5, 9, 6), (2, 3), (2, 1), (0, 2), (1, 2)),
    ((2, 70, 4, 4), (3, 1), (3, 2), (2, 1), (2, 1)),
):
    shape = Geometry(kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    inner = size[1] * kernel[0] * kernel[1]
    columns = torch.randint(inner, (inner + 3,), generator=generator)
    for form in (torch.contiguous_format, torch.channels_last):
        image = torch.randn(size, generator=generator).to(memory_format=form)
        windows = shape.rows(image)
        assert torch.equal(window_kernels.gather(image, columns, shape), windows[:, columns])
        into = torch.randn(len(windows), len(columns), generator=generator)
        found = window_kernels.scatter(into, columns, image.shape, form == torch.channels_last, shape)
        image.requires_grad_()
        (exact,) = torch.autograd.grad(shape.rows(image)[:, columns], image, into)
        assert found.is_contiguous(memory_format=form)
        assert (found - exact).abs().max() <= 1e-5 * exact.abs().max(), size
    transposed = torch.randn(size[0], size[1], size[3], size[2], generator=generator).transpose(2, 3)
    assert torch.equal(window_kernels.gather(transposed, columns, shape), shape.rows(transposed)[:, columns])

assert tree_kernels.codes(x[:0], thresholds).shape == (0, 2)
assert not tree_kernels.gradients(x[:0], thresholds, widths, by_leaf[:0])[1].any()
print("ok")
