from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.catalogue.registry import resolve
from harness.errors import UserError
from methods.orthogonalize import catalogue, cost
from methods.orthogonalize.coefficients import POLAR_EXPRESS
from methods.orthogonalize.gram import gram_newton_schulz

COUNTED = ["NS_TORCH", "NS_JORDAN", "TAIL4_TORCH", "AOL_TORCH", "TURBO_TORCH", "SCHATTEN4_TORCH", "POLAR_EXPRESS"]
COUNTED += ["CANS", "GRAM", "GRAM_AOL"]


@pytest.mark.parametrize("constant", COUNTED)
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16), (3, 12, 20)])
def test_flops_are_what_torch_counts(constant, shape):
    method = getattr(catalogue, constant)
    with FlopCounterMode(display=False) as counter:
        resolve(method.impl)(torch.randn(*shape))
    work = resolve(method.cost)(shape, 4)
    assert counter.get_total_flops() == work.flops
    assert work.bytes == 2 * 4 * torch.Size(shape).numel()


def test_gram_without_restart_counts_too():
    with FlopCounterMode(display=False) as counter:
        gram_newton_schulz(torch.randn(12, 20), POLAR_EXPRESS, restart=None)
    assert counter.get_total_flops() == cost.gram((12, 20), 4, 5, None).flops


def test_known_formulas():
    n, m = 768, 3072
    assert cost.plain5((n, m), 2).flops == 5 * (4 * n * n * m + 2 * n**3)
    assert cost.symmetric4((n, m), 2).flops == 4 * (3 * n * n * m + n**3)
    assert cost.gram5((n, m), 2).flops == 8 * n * n * m + 28 * n**3
    assert cost.gram5_symmetric((n, m), 2).flops == 6 * n * n * m + 14 * n**3
    assert cost.gram((n, m), 2, 4, 2, triangles=True).flops == 6 * n * n * m + 10 * n**3
    assert cost.gram((n, m), 2, 5, None, triangles=True).flops == 3 * n * n * m + 17 * n**3


def test_reference_points_of_the_bound():
    square, wide = (4096, 4096), (4096, 11008)
    assert cost.plain5(square, 2).flops / cost.symmetric4(square, 2).flops == pytest.approx(1.875)
    assert cost.symmetric5(square, 2).flops / cost.symmetric4(square, 2).flops == 1.25
    assert cost.plain5(wide, 2).flops == pytest.approx(4380.9e9, rel=1e-4)
    assert cost.symmetric4(wide, 2).flops == pytest.approx(2491.1e9, rel=1e-4)


def test_batches_and_orientation():
    assert cost.plain5((32, 8, 16), 2).flops == 32 * cost.plain5((16, 8), 2).flops
    assert cost.svd((2, 3, 8, 16), 8).flops == 6 * cost.svd((16, 8), 8).flops > 0
    assert cost.aol_only((8, 16), 2).flops == 2 * 8 * 8 * 16 + 8 * 16
    assert cost.scale_only((8, 16), 2).flops == 3 * 8 * 16


def test_a_vector_is_the_users_mistake():
    with pytest.raises(UserError, match="two dimensions"):
        cost.plain5((7,), 4)
