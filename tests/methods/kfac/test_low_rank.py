"""Low-rank inverses: oracles, rank schedules, the adaptive rank, and the subspace without a decomposition."""

import io

import pytest
import torch

from harness.errors import UserError
from harness.measure.training import state as training_state
from methods.kfac import factories
from methods.kfac.inverse import inverse
from methods.kfac.inverse.subspace import Subspace, orthonormal
from methods.kfac.rank import Ranks, Rule
from methods.kfac.refresh import Job, Refresher, Slot

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves to")
NAMES = ["rsvd", "sre", "subspace"]
FAST = {"lr": 0.05, "update_period": 2, "refresh_period": 4, "damping": 0.03, "clip_value": 0.3}


def spectrum(size, values, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    full = torch.zeros(size, dtype=torch.float64)
    full[: len(values)] = torch.as_tensor(values, dtype=torch.float64)
    return ((vectors * full) @ vectors.mT)[None].to(dtype)


def solve(matrix, damping, columns):
    return torch.linalg.solve(matrix + damping * torch.eye(matrix.shape[1], dtype=matrix.dtype), columns)


def cut(matrix, rank, damping, continuation=False):
    """The inverse with the largest modes alone."""
    values, vectors = torch.linalg.eigh(matrix[0])
    rest = damping + (values[-rank] if continuation else 0.0)
    weight = 1 / (values[-rank:] + damping) - 1 / rest
    return ((vectors[:, -rank:] * weight) @ vectors[:, -rank:].mT + torch.eye(len(values)) / rest)[None]


def options(name):
    return {"dense": False} if name == "subspace" else {}


@pytest.mark.parametrize("continuation", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_leading_modes_are_found(name, continuation):
    matrix = spectrum(30, 0.5 ** torch.arange(30))
    columns = torch.randn(1, 30, 4, dtype=torch.float64)
    extra = 0 if name == "subspace" else 4
    backend = inverse(name, rank=6, oversampling=extra, power=3, continuation=continuation, **options(name))
    state = None
    for _ in range(8):
        state, good = backend.refresh(matrix, torch.tensor([0.1], dtype=torch.float64), state)
        assert good.all()
    wanted = cut(matrix, 6, 0.1, continuation) @ columns
    torch.testing.assert_close(backend.apply(state, columns), wanted, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_exact_while_the_rank_fits(name):
    matrix = spectrum(40, [3.0, 2.0, 1.0, 0.5, 0.25])
    columns = torch.randn(1, 40, 3, dtype=torch.float64)
    backend = inverse(name, rank=5, oversampling=3, power=1, **options(name))
    state = None
    for factor in (1.0, 1.1):
        state, good = backend.refresh(factor * matrix, torch.tensor([0.1], dtype=torch.float64), state)
        assert good.all()
        torch.testing.assert_close(
            backend.apply(state, columns), solve(factor * matrix, 0.1, columns), rtol=1e-8, atol=1e-9
        )


@pytest.mark.parametrize("name", NAMES)
def test_relative_damping_is_a_share_of_the_largest_eigenvalue(name):
    matrix = spectrum(20, 4.0 * 0.6 ** torch.arange(20))
    columns = torch.randn(1, 20, 3, dtype=torch.float64)
    for dense in (False, True):
        if name != "subspace" and dense:
            continue
        chosen = {"dense": dense} if name == "subspace" else {}
        backend = inverse(name, rank=20, relative=True, **chosen)
        state, _ = backend.refresh(matrix, torch.tensor([0.05], dtype=torch.float64), None)
        torch.testing.assert_close(backend.apply(state, columns), solve(matrix, 0.2, columns), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_two_sketches_of_one_seed_agree_and_of_another_differ(name):
    matrix, damping = spectrum(30, 0.9 ** torch.arange(30)), torch.tensor([0.1], dtype=torch.float64)
    found = []
    for seed in (0, 0, 1):
        backend = inverse(name, rank=4, oversampling=1, power=1, seed=seed, **options(name))
        found.append(backend.refresh(matrix, damping, None)[0]["vectors"])
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


# -- the subspace ------------------------------------------------------------------------------------------------------


def test_cholesky_qr_of_many_sizes():
    generator = torch.Generator().manual_seed(0)
    stacks = [
        spectrum(d, torch.logspace(0, -2.9, d), d, torch.float32)[:, :, :6].repeat(k, 1, 1) * 1e3
        + 0.1 * torch.randn(k, d, 6, generator=generator)
        for d, k in [(9, 2), (40, 1), (6, 3)]
    ]
    bases, good = orthonormal(stacks)
    assert good.tolist() == [True] * 6
    for basis, stack in zip(bases, stacks, strict=True):
        torch.testing.assert_close(basis.mT @ basis, torch.eye(6).expand(len(basis), -1, -1), rtol=0, atol=2e-6)
        torch.testing.assert_close(basis @ (basis.mT @ stack), stack, rtol=1e-4, atol=1e-2)
    singular = torch.ones(1, 8, 3)
    assert not orthonormal([singular])[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_matrices_keep_the_basis_orthonormal(dtype):
    """The product with a matrix of rank 2 has 2 independent columns; the shifted one has all of them."""
    backend = inverse("subspace", rank=8, oversampling=2, dense=False)
    state = None
    for k in range(4):
        matrix = spectrum(50, [1.0, 0.7], seed=k, dtype=dtype)
        state, good = backend.refresh(matrix, torch.full((1,), 0.05, dtype=dtype), state)
        assert good.all()
        gram = state["vectors"].mT @ state["vectors"]
        torch.testing.assert_close(gram, torch.eye(10, dtype=dtype)[None], rtol=0, atol=1e-5)


def test_a_drifting_matrix_is_followed():
    """One product a refresh is as good as the published four with a singular value decomposition."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, 121, dtype=torch.float64) ** -1.0
    warm, cold = inverse("subspace", rank=30, dense=False), inverse("rsvd", rank=30, power=4)
    matrix, state = torch.eye(120, dtype=torch.float64)[None], None
    damping, columns = (
        torch.tensor([0.02], dtype=torch.float64),
        torch.randn(1, 120, 5, generator=generator, dtype=torch.float64),
    )
    for k in range(60):
        rows = torch.randn(48, 120, generator=generator, dtype=torch.float64) * scale
        turned = rows + 0.1 * rows.roll(k % 7, 1)
        matrix = 0.95 * matrix + 0.05 * turned.mT @ turned / 48
        if k % 3 == 0:
            state, good = warm.refresh(matrix, damping, state)
            assert good.all()
    exact = solve(matrix, 0.02, columns)
    errors = [
        float((one.apply(found, columns) - exact).norm() / exact.norm())
        for one, found in ((warm, state), (cold, cold.refresh(matrix, damping, None)[0]))
    ]
    assert errors[0] < 1.1 * errors[1]


def test_all_sizes_in_one_call_equal_one_by_one():
    jobs, alone = [], []
    for size, count in [(50, 1), (50, 2), (37, 1), (8, 1), (8, 1), (33, 1)]:
        matrix = torch.cat([spectrum(size, 0.8 ** torch.arange(size), seed=size + k) for k in range(count)])
        damping = torch.linspace(0.1, 0.2, count, dtype=torch.float64)
        jobs.append(Job(Slot(), matrix, damping))
        alone.append(Job(Slot(), matrix, damping))
    backend = inverse("subspace", rank=10, oversampling=2)
    together, single = Refresher(backend), Refresher(backend)
    for _ in range(2):
        together.refresh(jobs)
        for job in alone:
            single.refresh([job])
    for one, other in zip(jobs, alone, strict=True):
        assert set(one.slot.state) == ({"inverse"} if one.matrix.shape[1] <= 24 else set(other.slot.state))
        for key, value in one.slot.state.items():
            torch.testing.assert_close(value, other.slot.state[key], rtol=1e-9, atol=1e-11)
    assert sum(together.counters.values()) == 0


def test_a_lost_basis_climbs_to_householder():
    """A basis that cannot be orthonormalised: the first rung begins anew."""
    matrix, damping = spectrum(40, 0.8 ** torch.arange(40)), torch.tensor([0.1], dtype=torch.float64)
    refresher, slot = Refresher(inverse("subspace", rank=6, oversampling=2)), Slot()
    refresher.refresh([Job(slot, matrix, damping)])
    wanted = slot.state["values"].clone()
    slot.state["vectors"][:, :, 1] = slot.state["vectors"][:, :, 0]
    slot.state["values"].zero_()
    matrix_before = matrix.clone()
    refresher.refresh([Job(slot, matrix, damping)])
    refresher.settle()
    assert torch.equal(matrix, matrix_before)
    assert refresher.counters["direct"] == 1
    torch.testing.assert_close(slot.state["values"], wanted)


def test_half_width_bases_are_orthonormalised_again(nets, train):
    model = nets["conv"][0]().float()
    optimizer = factories.rs_warm(model, rank=2, oversampling=1, inverse_dtype="bfloat16", **FAST)
    losses = train(model, optimizer, lambda k: (nets["conv"][1](0)[0].float(), nets["conv"][1](0)[1]), 25)
    assert losses[-1] < 0.5 * losses[0]
    state = optimizer.slots[optimizer.layers[0]][0].state
    assert state["vectors"].dtype == torch.bfloat16
    assert sum(optimizer.refresher.counters.values()) == 0


# -- ranks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wanted", [3, 9, 40])
def test_a_state_of_another_rank_stands_for_the_same_until_refreshed(name, wanted):
    matrix = spectrum(30, [3.0, 2.0, 1.0])
    damping, columns = torch.tensor([0.1], dtype=torch.float64), torch.randn(1, 30, 2, dtype=torch.float64)
    backend = inverse(name, rank=5, oversampling=1, **options(name))
    state, _ = backend.refresh(matrix, damping, None)
    before = backend.apply(state, columns)
    state = backend.resized(state, wanted)
    assert backend.kept(state) == min(wanted, 30)
    torch.testing.assert_close(backend.apply(state, columns), before, rtol=1e-7, atol=1e-8)
    state, good = backend.refresh(matrix, damping, state)
    assert good.all()
    assert backend.kept(state) == min(wanted, 30)
    torch.testing.assert_close(backend.apply(state, columns), solve(matrix, 0.1, columns), rtol=1e-7, atol=1e-8)


def test_the_rule():
    rule = Rule()
    assert [rule.next(100, ratio) for ratio in (0.06, 0.04, 0.02, float("nan"))] == [110, 100, 90, 100]
    assert rule.next(15, 0.0) == 10
    assert rule.next(10, 0.0) == 10
    assert rule.next(5, 0.0) == 5
    assert rule.next(695, 0.9) == 700
    assert rule.next(800, 0.9) == 800


def test_ratios_are_read_once_and_taken_anew_when_stale():
    ranks, asked = Ranks(20, Rule()), []

    def ratio():
        asked.append(1)
        return torch.tensor(0.5)

    ranks.watch({"one": torch.tensor(0.0), "two": torch.tensor(0.5)}, stamp=0)
    assert ranks.next("one", 30, 0, 0, ratio) == 20
    assert ranks.next("two", 30, 0, 1, ratio) == 40
    assert ranks.next("one", 30, 0, 0, ratio) == 40
    assert len(asked) == 2
    assert Ranks([[0, 5], [10, 7]]).next("one", 5, 10, 0, ratio) == 7


KINDS = {
    "rs": {"rank": [[0, 2], [5, 4]]},
    "sre": {"rank": 3, "adaptive_rank": True, "rank_floor": 1, "warm": True},
    "rs_warm": {"rank": 2, "oversampling": 1},
    "rs_warm-late": {"rank": 2, "oversampling": 1, "dense": False, "refresh_lag": 2, "packed": True},
    "rs_warm-scheduled": {"rank": [[0, 1], [4, 3]], "oversampling": 1, "dense": False},
    "rs_warm-adaptive": {"rank": 2, "oversampling": 1, "adaptive_rank": True, "rank_floor": 1, "dense": False},
}


def build(kind, model, **more):
    return getattr(factories, kind.split("-")[0])(model, **{**FAST, **KINDS[kind], **more})


def test_a_schedule_of_the_rank(nets, train):
    model = nets["mlp"][0]()
    optimizer = build("rs", model)
    train(model, optimizer, nets["mlp"][1], 4)
    assert optimizer.describe()["ranks"] == {"0": [2, 2], "2": [2, 2]}
    train(model, optimizer, nets["mlp"][1], 5, first=4)
    assert optimizer.describe()["ranks"] == {"0": [4, 4], "2": [4, 3]}


def test_the_rank_follows_the_spectrum(nets, train):
    """Wide layers with few samples: the tail is flat at first (the start's identity), then far below the target."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 60), torch.nn.Tanh(), torch.nn.Linear(60, 3)).double()
    optimizer = factories.rs(model, rank=12, adaptive_rank=True, update_period=1, refresh_period=1, factor_decay=0.5)
    ranks = []
    for k in range(30):
        train(model, optimizer, nets["mlp"][1], 1, first=k)
        ranks.append(optimizer.describe()["ranks"]["2"][0])
    assert ranks[0] == 12
    assert max(ranks) > 12
    assert ranks[-1] == 10


@pytest.mark.parametrize("kind", list(KINDS))
def test_resume_is_bitwise(kind, nets, train):
    make, batches = nets["conv"]
    model = make()
    optimizer = build(kind, model)
    train(model, optimizer, batches, 7)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    train(model, optimizer, batches, 8, first=7)
    buffer.seek(0)
    stored = torch.load(buffer, weights_only=True)
    other = make(1)
    other.load_state_dict(stored["model"])
    resumed = build(kind, other)
    resumed.load_state_dict(stored["optimizer"])
    train(other, resumed, batches, 8, first=7)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert training_state.digest(resumed.state_dict()) == training_state.digest(optimizer.state_dict())


@pytest.mark.parametrize("kind", list(KINDS))
def test_accumulation_and_loss_scale_change_nothing(kind, nets, train, distance):
    make, batches = nets["mlp"]
    models = [make(), make(), make()]
    train(models[0], build(kind, models[0]), batches, 7)
    train(models[1], build(kind, models[1]), batches, 7, pieces=3)
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=256.0), build(kind, models[2])
    for k in range(7):
        optimizer.zero_grad()
        x, y = batches(k)
        scaler.scale(torch.nn.functional.cross_entropy(models[2](x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert distance(models[1], models[0]) < 1e-8
    assert distance(models[2], models[0]) < 1e-6
    assert distance(models[0], make()) > 1e-2


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_batch_with_nan_and_a_cast(kind, nets, train):
    make, batches = nets["mlp"]
    model = make().float()
    optimizer = build(kind, model)

    def single(k):
        x, y = batches(k)
        return (x * float("nan") if k == 4 else x).float(), y

    train(model, optimizer, single, 6)
    assert optimizer.counters["skipped_batches"] == 1
    model.double()
    train(model, optimizer, batches, 8, first=6)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        ({"rank": 0}, "rank is a whole number of at least 1; got 0"),
        ({"rank": [[0, 5], [3, 0.5]]}, "rank is a whole number of at least 1; got 0.5"),
        ({"rank_target": 1.5}, "rank_target is a number above 0 and below 1; got 1.5"),
        ({"rank_floor": 0}, "rank_floor is a whole number of at least 1; got 0"),
        ({"rank_floor": 20, "rank_cap": 10}, "rank_cap is a whole number of at least 20; got 10"),
        ({"oversampling": -1}, "oversampling is a whole number of at least 0; got -1"),
    ],
)
def test_wrong_ranks_are_refused(chosen, text, nets):
    with pytest.raises(UserError) as caught:
        factories.rs(nets["mlp"][0](), **chosen)
    assert text in str(caught.value)


def test_an_adaptive_rank_needs_new_bases_at_once(nets):
    with pytest.raises(UserError, match="refresh_lag is 0"):
        factories.rs(nets["mlp"][0](), adaptive_rank=True, refresh_lag=1)


def test_the_subspace_needs_a_product(nets):
    with pytest.raises(UserError, match="power is a whole number of at least 1; got 0"):
        factories.rs_warm(nets["mlp"][0](), power=0)


@pytest.mark.parametrize("size", [7, 40])
def test_a_carried_basis_from_the_right(size):
    torch.manual_seed(0)
    backend = Subspace(rank=6, oversampling=2)
    rows = torch.randn(3, 50, size, dtype=torch.float64)
    state, good = backend.refresh(rows.mT @ rows / 50, torch.full((3,), 0.1, dtype=torch.float64), None)
    assert good.all()
    x = torch.randn(3, 5, size, dtype=torch.float64)
    torch.testing.assert_close(backend.from_the_right(state, x), backend.apply_right(state, x))
