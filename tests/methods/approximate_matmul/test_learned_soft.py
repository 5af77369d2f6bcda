"""The surrogate's gradients, and the straight-through rules that join it to the hard look-up."""

import pytest
import torch

from methods.approximate_matmul import tables as lut
from methods.approximate_matmul.learned import soft

R, C, M = 5, 3, 2


@pytest.fixture
def parts():
    draws = torch.Generator().manual_seed(3)
    x = torch.randn(R, C, 4, generator=draws, dtype=torch.float64)
    thresholds = torch.randn(C, 15, generator=draws, dtype=torch.float64)
    thresholds[1, 5] = torch.inf
    widths = 0.5 + torch.rand(C, 4, generator=draws, dtype=torch.float64)
    tables = torch.randn(C, 16, M, generator=draws, dtype=torch.float64)
    return x, thresholds, widths, tables


def _walk(x, thresholds):
    """The scalar tree."""
    codes = torch.zeros(x.shape[:2], dtype=torch.uint8)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            node = 0
            for t in range(4):
                node = 2 * node + int(x[n, c, t] >= thresholds[c, 2**t - 1 + node])
            codes[n, c] = node
    return codes


def test_codes_are_those_of_a_scalar_tree_with_ties():
    draws = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, (200, 4, 4), generator=draws).float()
    thresholds = torch.randint(-3, 4, (4, 15), generator=draws).float()
    thresholds[2, 3] = torch.inf
    assert torch.equal(soft.hard_codes(x, thresholds), _walk(x, thresholds))


def test_probabilities_sum_to_one_and_tend_to_the_hard_tree(parts):
    x, thresholds, widths, _ = parts
    p = soft.leaf_probabilities(x, thresholds, widths)
    torch.testing.assert_close(p.sum(-1), torch.ones(R, C, dtype=torch.float64))
    hard = torch.nn.functional.one_hot(_walk(x, thresholds).long(), 16).double()
    gap = (x[..., [0, 1, 1, 2, 2, 2, 2, *[3] * 8]] - thresholds).abs().min()
    cold = soft.leaf_probabilities(x, thresholds, torch.full_like(widths, float(gap) / 50))
    torch.testing.assert_close(cold, hard, atol=1e-12, rtol=0)
    assert (p - hard).abs().max() > 0.1


def test_a_node_that_does_not_split_never_goes_right():
    thresholds = torch.full((1, 15), torch.inf)
    x = torch.randn(6, 1, 4, requires_grad=True)
    p = soft.leaf_probabilities(x, thresholds, torch.ones(1, 4))
    assert torch.equal(p[:, 0, 0], torch.ones(6))
    p.square().sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_gradients_of_the_surrogate_by_finite_differences(parts):
    x, thresholds, widths, tables = parts
    finite = torch.where(thresholds.isfinite(), thresholds, 0.3)
    inputs = [value.clone().requires_grad_() for value in (x, finite, widths, tables)]
    assert torch.autograd.gradcheck(soft.soft_product, inputs)


@pytest.mark.parametrize("chunk", [2**25, 2 * 16 * C])
def test_the_hard_product_has_the_gradients_of_the_surrogate(parts, monkeypatch, chunk):
    monkeypatch.setattr(soft, "_CPU_CHUNK", chunk)
    x, thresholds, widths, tables = parts
    weights = torch.randn(R, M, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hard, smooth = ([value.clone().requires_grad_() for value in (x, thresholds, tables)] for _ in range(2))
    (soft.lookup_product(hard[0], hard[1], widths, hard[2], None) * weights).sum().backward()
    (soft.soft_product(smooth[0], smooth[1], widths, smooth[2]) * weights).sum().backward()
    for got, wanted in zip(hard[:2], smooth[:2], strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)
        assert wanted.grad.abs().max() > 0
    plain = tables.clone().requires_grad_()
    codes = _walk(x, thresholds).long()
    (plain[torch.arange(C), codes].sum(1) * weights).sum().backward()
    torch.testing.assert_close(hard[2].grad, plain.grad)


def test_rounding_of_tables_is_passed_straight_through(parts):
    x, thresholds, widths, tables = parts
    grads = []
    for bits in (None, 8):
        free = tables.clone().requires_grad_()
        soft.lookup_product(x, thresholds, widths, free, bits).sum().backward()
        grads.append(free.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("bits", [8, 4, 1])
def test_quantised_tables_are_those_of_the_plain_method(bits):
    tables = torch.randn(5, 16, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tables[:, :, 3] = 1.5
    q, scale, offset, low = soft.quantise(tables, bits)
    wanted = lut.quantise(tables.numpy(), bits)
    assert torch.equal(q, torch.from_numpy(wanted.values).double())
    torch.testing.assert_close(scale.float(), torch.from_numpy(wanted.scale))
    torch.testing.assert_close(offset.float(), torch.from_numpy(wanted.offset))
    assert ((q * scale + low - tables).abs() <= scale / 2 * (1 + 1e-9)).all()
