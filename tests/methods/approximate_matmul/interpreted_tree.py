"""Run by test_learned_kernels.py in a process of its own: the interpreter is chosen when triton is imported."""

import os

assert os.environ.get("TRITON_INTERPRET") == "1", "run with TRITON_INTERPRET=1"

import torch

from methods.approximate_matmul.learned import soft, tree_kernels

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
assert tree_kernels.codes(x[:0], thresholds).shape == (0, 2)
assert not tree_kernels.gradients(x[:0], thresholds, widths, by_leaf[:0])[1].any()
print("ok")
