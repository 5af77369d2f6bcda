"""Half precision: every structure stays finite and definite where K-FAC's running mean in bfloat16 turns indefinite."""

import pytest
import torch
from torch import nn

from methods.singd.singd import SINGD
from methods.singd.structures import STRUCTURES

D, N, RHO, STEPS = 64, 256, 0.95, 200


def batch(k, basis, scales):
    """Rows (N, D) with a wide spectrum in a fixed basis."""
    generator = torch.Generator().manual_seed(k)
    return torch.randn(N, D, generator=generator, dtype=torch.float64) * scales @ basis.mT


@pytest.fixture(scope="module")
def stream():
    """Maker of batch k: eigenvalues of the second moment from 1 to a few 1e-5."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
    scales = torch.logspace(0, -2.2, D, dtype=torch.float64)
    return lambda k: batch(k, basis, scales)


def running_mean(stream, dtype):
    """K-FAC's factor after STEPS batches, kept in ``dtype``."""
    mean = torch.eye(D, dtype=dtype)
    for k in range(STEPS):
        x = stream(k).to(dtype)
        mean = RHO * mean + (1 - RHO) * (x.mT @ x / N)
    return mean.double()


def test_kfacs_running_mean_in_bfloat16_is_indefinite(stream):
    exact, half = running_mean(stream, torch.float64), running_mean(stream, torch.bfloat16)
    assert 1e-5 < torch.linalg.eigvalsh(exact).min() < 1e-4
    smallest = torch.linalg.eigvalsh((half + half.mT) / 2).min()
    assert smallest < -1e-3
    assert torch.linalg.cholesky_ex((half + half.mT) / 2 + 1e-3 * torch.eye(D)).info != 0
    assert torch.linalg.cholesky_ex(exact).info == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_many_steps_in_half_precision_stay_finite(name, dtype, stream):
    torch.manual_seed(0)
    model = nn.Linear(D, 16, bias=False).bfloat16()
    # More than it takes K-FAC's mean to lose its definiteness; the densest factors for longer still.
    long = 500 if name in ("dense", "tril", "hierarchical") else 250
    steps = long if dtype == "bfloat16" else 40
    optimizer = SINGD(
        model, 1e-3, structures=(name, name), preconditioner_dtype=dtype, update_period=1, damping=1e-3, lr_cov=0.02
    )
    batches = [stream(k)[:64].bfloat16() for k in range(50)]
    target = torch.randn(D, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    for k in range(steps):
        optimizer.zero_grad()
        x = batches[k % len(batches)]
        (model(x) - x @ target).square().sum(1).mean().backward()
        optimizer.step()
    assert optimizer.counters == {"skipped_batches": 0, "overflowed_steps": 0}
    assert model.weight.isfinite().all()
    moved = False
    for factor in optimizer.factors(optimizer.layers[0]):
        assert factor.dtype == getattr(torch, dtype)
        assert factor.isfinite().all()
        square = factor[0].double() @ factor[0].double().mT
        assert torch.linalg.eigvalsh(square).min() > 0
        moved |= bool((square - torch.eye(len(square))).abs().max() > 0.05)
    assert moved
