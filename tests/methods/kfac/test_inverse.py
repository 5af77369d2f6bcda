import pytest
import torch

from methods.kfac.inverse import INVERSES, inverse
from methods.kfac.refresh import Job, Refresher, Slot


def spd(count, size, seed=0, rank=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(count, size, rank or 2 * size, generator=generator, dtype=torch.float64)
    return (root @ root.mT / root.shape[2]).to(dtype)


def dense(matrix, damping, columns):
    eye = torch.eye(matrix.shape[1], dtype=matrix.dtype)
    return torch.linalg.solve(matrix + damping[:, None, None] * eye, columns)


@pytest.mark.parametrize("name", list(INVERSES))
@pytest.mark.parametrize(("count", "size"), [(1, 1), (3, 7), (2, 20)])
def test_apply_is_the_damped_solve(name, count, size):
    matrix, damping = spd(count, size), torch.linspace(0.05, 0.3, count, dtype=torch.float64)
    columns = torch.randn(count, size, 4, dtype=torch.float64)
    backend = inverse(name)
    state, good = backend.refresh(matrix, damping, None)
    assert good.tolist() == [True] * count
    torch.testing.assert_close(backend.apply(state, columns), dense(matrix, damping, columns), rtol=1e-8, atol=1e-9)
    again, good = backend.refresh(1.1 * matrix, damping, state)
    assert good.all()
    tolerance = 1e-8 if name != "newton-schulz" else 1e-5
    torch.testing.assert_close(
        backend.apply(again, columns), dense(1.1 * matrix, damping, columns), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("name", list(INVERSES))
def test_a_new_state_is_the_identity(name):
    matrix, columns = spd(2, 6), torch.randn(2, 6, 3, dtype=torch.float64)
    backend = inverse(name)
    assert torch.equal(backend.apply(backend.allocate(matrix), columns), columns)


@pytest.mark.parametrize("name", ["rsvd", "sre"])
def test_low_rank_is_exact_when_the_rank_fits_and_better_with_more_work(name):
    matrix, damping = spd(2, 30, rank=5), torch.full((2,), 0.1, dtype=torch.float64)
    columns = torch.randn(2, 30, 4, dtype=torch.float64)
    exact = dense(matrix, damping, columns)
    backend = inverse(name, rank=5, oversampling=0, power=1)
    state, _ = backend.refresh(matrix, damping, None)
    torch.testing.assert_close(backend.apply(state, columns), exact, rtol=1e-8, atol=1e-9)
    decaying = spd(1, 40)
    decaying = torch.linalg.eigh(decaying).eigenvectors
    decaying = decaying @ torch.diag(0.8 ** torch.arange(40, dtype=torch.float64)) @ decaying.mT
    errors = []
    for rank, power in [(4, 0), (8, 1), (16, 3), (40, 3)]:
        backend = inverse(name, rank=rank, oversampling=2, power=power)
        state, _ = backend.refresh(decaying, damping[:1], None)
        errors.append(
            float(
                (
                    backend.apply(state, columns[:1, :1].expand(1, 40, 4))
                    - dense(decaying, damping[:1], columns[:1, :1].expand(1, 40, 4))
                ).norm()
            )
        )
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8 < errors[0]


def test_warm_start_needs_fewer_products():
    vectors = torch.linalg.eigh(spd(1, 60)).eigenvectors
    matrix = vectors @ torch.diag(0.9 ** torch.arange(60, dtype=torch.float64)) @ vectors.mT
    damping = torch.full((1,), 0.1, dtype=torch.float64)
    found = {}
    for warm in (False, True):
        backend = inverse("rsvd", rank=10, oversampling=2, power=0, warm=warm)
        state = None
        for _ in range(6):
            state, _ = backend.refresh(matrix, damping, state)
        found[warm] = float((state["values"] - 0.9 ** torch.arange(10, dtype=torch.float64)).abs().max())
    assert found[True] < 0.2 * found[False]


def test_newton_schulz_in_half_precision_is_corrected_and_checked():
    matrix, damping = spd(2, 24, dtype=torch.float32), torch.full((2,), 0.1)
    backend = inverse("newton-schulz", iterations=8, half=True)
    state, _ = backend.refresh(matrix, damping, None)
    state, good = backend.refresh(1.05 * matrix, damping, state)
    assert good.all()
    product = (1.05 * matrix + 0.1 * torch.eye(24)) @ state["inverse"]
    assert (product - torch.eye(24)).norm() / 24**0.5 < 1e-3
    _, good = backend.refresh(matrix + torch.diag(torch.logspace(0, 4, 24)), damping, {"inverse": torch.eye(24)[None]})
    assert not good.any()


# -- the ladder --------------------------------------------------------------------------------------------------------


def refreshed(name, matrix, damping=0.01, old=None):
    refresher, slot = Refresher(inverse(name)), Slot()
    if old is not None:
        slot.state = {"inverse": old}
    refresher.refresh([Job(slot, matrix, torch.full((len(matrix),), damping, dtype=matrix.dtype))])
    refresher.settle()
    return {rung: count for rung, count in refresher.counters.items() if count}, slot.state


def test_ladder_more_damping_for_one_of_two():
    matrix = torch.stack([torch.eye(2), torch.diag(torch.tensor([1.0, -0.05]))])
    counters, state = refreshed("cholesky", matrix)
    assert counters == {"damping": 1}
    torch.testing.assert_close(state["inverse"][0], torch.eye(2) / 1.01)
    torch.testing.assert_close(state["inverse"][1], torch.diag(1 / torch.tensor([1.1, 0.05])))


def test_ladder_float64():
    counters, state = refreshed("cholesky", torch.ones(1, 2, 2), damping=1e-11)
    assert counters == {"float64": 1}
    assert state["inverse"].isfinite().all()
    assert state["inverse"][0, 0, 0] > 1e9


@pytest.mark.parametrize("name", ["cholesky", "newton-schulz"])
def test_ladder_keeps_the_old_inverse(name):
    old = torch.full((1, 2, 2), 7.0)
    counters, state = refreshed(name, torch.diag(torch.tensor([1.0, -10.0]))[None], old=old)
    assert counters == {"kept": 1}
    assert torch.equal(state["inverse"], torch.full((1, 2, 2), 7.0))


@pytest.mark.parametrize("name", list(INVERSES))
def test_ladder_survives_nan(name):
    counters, state = refreshed(name, torch.full((1, 3, 3), float("nan")))
    assert counters == {"kept": 1}
    assert all(value.isfinite().all() for value in state.values())


def test_ladder_takes_newton_schulz_to_cholesky():
    matrix = spd(1, 8, dtype=torch.float32) + torch.diag(torch.logspace(0, 4, 8))
    counters, state = refreshed("newton-schulz", matrix, old=torch.eye(8)[None])
    assert counters == {"direct": 1}
    torch.testing.assert_close((matrix + 0.01 * torch.eye(8)) @ state["inverse"], torch.eye(8)[None], rtol=0, atol=1e-3)
