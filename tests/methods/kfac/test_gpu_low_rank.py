"""The randomized and online inverses on a GPU: against float64 there, and without waiting for it."""

import pytest
import torch

from methods.kfac import factories
from methods.kfac.inverse import brand, inverse
from methods.kfac.refresh import Job, Refresher, Slot

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:.*leaves to"),
]


def factor(size, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    rows = torch.randn(2 * size, size, generator=generator, device="cuda")
    rows = rows * torch.arange(1, size + 1, device="cuda") ** -0.7
    return (rows.mT @ rows / len(rows))[None]


@pytest.mark.parametrize("tf32", [False, True])
def test_a_warm_refresh_is_right_and_waits_for_nothing(tf32):
    backend = inverse("subspace", rank=60, oversampling=4, relative=True)
    refresher = Refresher(backend)
    sizes = (90, 300, 300, 513, 700)
    jobs = [Job(Slot(), factor(size), torch.full((1,), 0.1, device="cuda")) for size in sizes]
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        refresher.refresh(jobs)
        refresher.settle()
        for job in jobs:
            job.matrix = 0.86 * job.matrix + 0.14 * factor(job.matrix.shape[1], 1)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            refresher.refresh(jobs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        refresher.settle()
        assert sum(refresher.counters.values()) == 0
        for job in jobs:
            size = job.matrix.shape[1]
            columns = torch.randn(1, size, 8, device="cuda")
            whole = job.matrix.double()
            lam = 0.1 * torch.linalg.eigvalsh(whole)[0, -1]
            wanted = torch.linalg.solve(whole + lam * torch.eye(size, device="cuda").double(), columns.double())
            found = backend.apply(job.slot.state, columns)
            assert (found - wanted).norm() < 0.03 * wanted.norm()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_brand_is_exact_while_the_rank_fits():
    keep, basis = torch.tensor(0.9, device="cuda"), torch.randn(8, 1000, device="cuda")
    mean = torch.zeros(1000, 1000, device="cuda")
    vectors, values = torch.zeros(1, 1000, 0, device="cuda"), torch.zeros(1, 0, device="cuda")
    for _ in range(6):
        rows = torch.randn(32, 8, device="cuda") @ basis
        mean = keep * mean + (1 - keep) * rows.mT @ rows
        vectors, values = brand.follow(vectors, values, rows[None], keep, 20)
    found = (vectors * values[:, None]) @ vectors.mT
    assert (found[0] - mean).norm() < 1e-4 * mean.norm()


@pytest.mark.parametrize("name", ["rs", "rs_warm", "b", "b_r", "b_c", "seng"])
def test_steps_follow_those_of_the_cpu(name, nets, train, distance):
    models = [nets["conv"][0](), nets["conv"][0]().cuda()]
    options = {"lr": 0.02, "update_period": 2} | ({"refresh_period": 4, "rank": 3} if name != "seng" else {})
    for model in models:
        device = next(model.parameters()).device
        optimizer = getattr(factories, name)(model, **options)
        train(model, optimizer, lambda k, device=device: tuple(t.to(device) for t in nets["conv"][1](k)), 6)
    assert distance(models[1].cpu(), models[0]) < 1e-5
