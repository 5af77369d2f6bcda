"""Brand's update against dense running means, and the optimizers on it."""

import io

import pytest
import torch
from torch import nn

from harness.errors import UserError
from harness.measure.training import state as training_state
from methods.kfac import factories
from methods.kfac.inverse import brand

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves to")
BASE = {
    "lr": 0.05,
    "update_period": 1,
    "refresh_period": 2,
    "rank": 8,
    "clip_value": 0.3,
    "weight_decay": 0.0,
    "damping": 0.1,
}
KINDS = {
    "b": {},
    "b-sparse": {"brand_period": 2, "factor_init": "bias-corrected", "truncate": True},
    "b-adaptive": {"adaptive_brand_rank": True, "adaptive_rank": True, "factor_init": "first-batch"},
    "b_r": {"overwrite_period": 2},
    "b_c": {"correction_period": 2, "damping_mode": "pi"},
    "b_c-both": {"correction_period": 3, "overwrite_period": 2, "correction_share": 0.5, "inverse": "sre"},
}


def build(kind, model, **more):
    return getattr(factories, kind.split("-")[0])(model, **{**BASE, **KINDS[kind], **more})


class Wide(nn.Module):
    """A convolution, a wide head whose inputs and outputs both are, and a narrow one."""

    def __init__(self):
        super().__init__()
        self.conv, self.wide, self.head = nn.Conv2d(2, 3, 3), nn.Linear(60, 40), nn.Linear(40, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.wide(torch.tanh(self.conv(x)).flatten(1))))


def wide(seed=0):
    torch.manual_seed(seed)
    return Wide().double()


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(vectors, values):
    return (vectors * values[:, None]) @ vectors.mT


def orthonormal(vectors):
    eye = torch.eye(vectors.shape[2], dtype=vectors.dtype).expand(len(vectors), -1, -1)
    torch.testing.assert_close(vectors.mT @ vectors, eye, rtol=0, atol=1e-12)


# -- the update --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "count"), [(0, 4), (1, 1), (5, 7), (10, 10)])
def test_an_update_is_exact(rank, count):
    vectors = torch.linalg.qr(random(2, 20, max(rank, 1))).Q[:, :, :rank]
    values, columns = random(2, rank, seed=1).abs(), random(2, 20, count, seed=2)
    new_vectors, new_values = brand.update(vectors, values, columns)
    assert new_vectors.shape == (2, 20, rank + count)
    orthonormal(new_vectors)
    wanted = dense(vectors, values) + columns @ columns.mT
    torch.testing.assert_close(dense(new_vectors, new_values), wanted, rtol=1e-10, atol=1e-10)
    assert (new_values.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("case", ["inside", "zero", "repeated"])
def test_columns_without_new_directions_keep_the_basis_orthonormal(case):
    vectors, values = torch.linalg.qr(random(1, 30, 6)).Q, random(1, 6, seed=1).abs()
    columns = {
        "inside": vectors @ random(1, 6, 5),
        "zero": torch.zeros(1, 30, 5, dtype=torch.float64),
        "repeated": random(1, 30, 1).expand(-1, -1, 5),
    }[case]
    for _ in range(3):
        new_vectors, new_values = brand.update(vectors, values, columns)
        orthonormal(new_vectors)
        wanted = dense(vectors, values) + columns @ columns.mT
        torch.testing.assert_close(dense(new_vectors, new_values), wanted, rtol=1e-10, atol=1e-10)
        vectors, values = new_vectors[:, :, :8], new_values[:, :8]


def test_a_running_mean_is_exact_while_the_rank_fits_and_best_after():
    keep, basis = torch.tensor(0.9, dtype=torch.float64), random(3, 40, seed=9)
    mean, vectors, values = torch.zeros(40, 40).double(), random(1, 40, 0), random(1, 0)
    for k in range(8):
        rows = random(5, 3, seed=k) @ basis
        mean = keep * mean + (1 - keep) * rows.mT @ rows
        vectors, values = brand.follow(vectors, values, rows[None], keep, 6)
        torch.testing.assert_close(dense(vectors, values)[0], mean, rtol=1e-10, atol=1e-10)
        orthonormal(vectors)
    for k in range(8):
        rows = random(5, 40, seed=50 + k)
        vectors, values = brand.follow(vectors, values, rows[None], keep, 6)
        assert vectors.shape[2] == 11
    orthonormal(vectors)


def test_many_rows_enter_piece_by_piece():
    keep, rows = torch.tensor(0.5, dtype=torch.float64), random(1, 50, 2) @ random(1, 2, 12, seed=1)
    vectors, values = brand.follow(random(1, 12, 0), random(1, 0), rows, keep, 9)
    torch.testing.assert_close(dense(vectors, values), 0.5 * rows.mT @ rows, rtol=1e-10, atol=1e-10)
    assert vectors.shape[2] <= 12
    orthonormal(vectors)


def test_a_correction_is_exact_for_all_modes_and_helps_for_some():
    truth = torch.linalg.qr(random(1, 30, 30)).Q
    matrix = dense(truth, (0.5 ** torch.arange(30)).double()[None])
    vectors = torch.linalg.qr(truth[:, :, :6] + 0.1 * random(1, 30, 6, seed=3)).Q
    shift = torch.tensor(0.0, dtype=torch.float64)

    def error(pair):
        return float((dense(*pair) - vectors @ (vectors.mT @ matrix @ vectors) @ vectors.mT).norm())

    wrong = (vectors, torch.full((1, 6), 0.3, dtype=torch.float64))
    some = brand.correct(*wrong, matrix, shift, brand.choice(6, 0.5, 0))
    every = brand.correct(*wrong, matrix, shift, brand.choice(6, 1.0, 0))
    assert error(every) < 1e-12
    assert error(every) < error(some) < error(wrong)
    for found in (some, every):
        orthonormal(found[0])
        assert (found[1].diff(dim=1) <= 0).all()
    shifted = brand.correct(*wrong, matrix + 0.7 * torch.eye(30), shift + 0.7, brand.choice(6, 1.0, 0))
    torch.testing.assert_close(shifted[1], every[1])


# -- the optimizers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("initial", ["identity", "first-batch", "bias-corrected"])
@pytest.mark.parametrize("mode", ["adaptive", "same", "pi"])
def test_brand_layers_equal_dense_running_means_while_the_rank_fits(initial, mode, train, nets):
    """Four batches of 6 rows fit into 30 modes: the preconditioner is the dense one's, identity share and all."""
    common = {**BASE, "damping_mode": mode, "factor_init": initial, "lr": 0.0, "refresh_period": 1}
    del common["rank"]
    model, twin = wide(), wide()
    one, other = factories.b(model, rank=30, continuation=False, **common), factories.cholesky(twin, **common)
    for net, optimizer in ((model, one), (twin, other)):
        train(net, optimizer, nets["conv"][1], 4)
    layer, same = (next(x for x in o.layers if x.name == "wide") for o in (one, other))
    assert one.held[layer].sides == (True, True)
    assert layer not in one.statistics.factors
    gradient = random(1, 40, 61)
    wanted = other.direction(same, gradient)
    # With "adaptive" the dense method estimates the largest eigenvalue from below.
    tolerance = 1e-3 if mode == "adaptive" else 1e-7
    scale = float(wanted.abs().max())
    torch.testing.assert_close(one.direction(layer, gradient), wanted, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("kind", ["b_r", "b_c-both"])
def test_an_overwrite_puts_the_dense_modes_in(kind, train, nets):
    """After more batches than fit, Brand's pairs drift off; the overwrite brings the dense mean's own modes."""
    model = wide()
    optimizer = build(kind, model, lr=0.0, rank=12, oversampling=49, power=1, refresh_period=5)
    layer = optimizer.layers[1]

    def error():
        """Of 12 modes; the sketch is as wide as the matrix, so its modes are exact."""
        a = optimizer.statistics.read(layer)[0][0]
        share = 0.95 ** optimizer.held[layer].count
        state = optimizer.slots[layer][0].state
        best, vectors = torch.linalg.eigh(a - share * torch.eye(len(a)))
        wanted = (vectors[:, -12:] * best[-12:]) @ vectors[:, -12:].mT
        kept = dense(state["vectors"][:, :, :12], state["values"][:, :12])[0]
        return float((kept - wanted).norm() / wanted.norm())

    train(model, optimizer, nets["conv"][1], 10)
    before = error()
    train(model, optimizer, nets["conv"][1], 1, first=10)
    assert optimizer.steps == 11
    assert error() < 1e-6
    assert before > 1e-4


def test_sides_memory_and_coverage(train, nets):
    model = wide()
    optimizer = build("b", model, rank=20)
    train(model, optimizer, nets["conv"][1], 5)
    conv, middle, head = optimizer.layers
    # 20 + 6 rows fit below 61, 40 and 41 columns, not below 3.
    assert {layer.name: optimizer.held[layer].sides for layer in (middle, head)} == {
        "wide": (True, True),
        "head": (True, False),
    }
    assert set(optimizer.statistics.factors) == {conv}
    usage = optimizer.memory_usage()
    assert usage["factors"] == 8 * (19**2 + 3**2 + 3**2)
    pairs = [(61, 26), (40, 26), (41, 26), (19, 19), (3, 3), (3, 3)]
    assert usage["inverses"] == 8 * sum(d * r + r + 1 for d, r in pairs)
    assert usage["pending"] == 0
    assert optimizer.describe()["ranks"]["wide"] == [26, 26]
    assert optimizer.coverage == {"b-kfac": 57 + 2440 + 123}


def test_shared_positions_count_as_rows(train):
    """24 rows of 6 samples and 4 positions: more than fit beside 8 modes of a narrow layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 24), nn.Tanh(), nn.Linear(24, 3)).double()
    optimizer = build("b", model)
    x = random(6, 4, 40)
    model(x).square().mean().backward()
    optimizer.step()
    assert [optimizer.held[layer].sides for layer in optimizer.layers if layer in optimizer.held] == [(True, False)]
    optimizer.zero_grad()
    model(random(40, 4, 40)).square().mean().backward()
    optimizer.step()
    orthonormal(optimizer.slots[optimizer.layers[0]][0].state["vectors"])


@pytest.mark.parametrize("kind", list(KINDS))
def test_resume_is_bitwise(kind, nets, train):
    batches, model = nets["conv"][1], wide()
    optimizer = build(kind, model)
    fresh = training_state.copied(optimizer.state_dict())
    empty = training_state.digest(fresh)
    train(model, optimizer, batches, 7)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    train(model, optimizer, batches, 6, first=7)
    buffer.seek(0)
    stored = torch.load(buffer, weights_only=True)
    other = wide(1)
    other.load_state_dict(stored["model"])
    resumed = build(kind, other)
    resumed.load_state_dict(stored["optimizer"])
    train(other, resumed, batches, 6, first=7)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert training_state.digest(resumed.state_dict()) == training_state.digest(optimizer.state_dict())
    optimizer.load_state_dict(fresh)
    assert training_state.digest(optimizer.state_dict()) == empty


@pytest.mark.parametrize("kind", list(KINDS))
def test_accumulation_and_loss_scale_change_nothing(kind, nets, train, distance):
    batches, models = nets["conv"][1], [wide(), wide(), wide()]
    train(models[0], build(kind, models[0]), batches, 7)
    train(models[1], build(kind, models[1]), batches, 7, pieces=3)
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=256.0), build(kind, models[2])
    for k in range(7):
        optimizer.zero_grad()
        x, y = batches(k)
        scaler.scale(nn.functional.cross_entropy(models[2](x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert distance(models[1], models[0]) < 1e-6
    assert distance(models[2], models[0]) < 1e-5
    assert distance(models[0], wide()) > 1e-2


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_batch_with_nan_changes_nothing_but_its_count(kind, nets, train, distance):
    batches = nets["conv"][1]
    model = wide().float()
    optimizer = build(kind, model)

    def single(k):
        x, y = batches(k)
        return (x * float("nan") if k in (0, 4) else x).float(), y

    train(model, optimizer, single, 1)
    assert distance(model, wide().float()) == 0.0
    train(model, optimizer, single, 3, first=1)
    layer = optimizer.layers[1]
    state = {key: value.clone() for key, value in optimizer.slots[layer][0].state.items()}
    before = dense(state["vectors"], state["values"])
    train(model, optimizer, single, 1, first=4)
    assert optimizer.counters["skipped_batches"] == 2
    assert optimizer.counters["brand_failures"] == 0
    after = optimizer.slots[layer][0].state
    if "overwrite_period" not in KINDS[kind]:
        torch.testing.assert_close(dense(after["vectors"], after["values"]), before)
    model.double()
    train(model, optimizer, batches, 4, first=5)
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_brand_rank_follows_the_tail(nets, train):
    model = wide()
    optimizer = build("b-adaptive", model, rank=12, factor_decay=0.5)
    train(model, optimizer, nets["conv"][1], 12)
    # The floor of 70 is above these widths, so a rank only grows, up to d - 1.
    ranks = optimizer.held[optimizer.layers[1]].ranks
    assert all(12 <= rank < 61 for rank in ranks)


def test_a_layer_that_joins_later(train):
    torch.manual_seed(0)
    model = nn.ModuleDict({"one": nn.Linear(30, 30), "two": nn.Linear(30, 30)}).double()
    for kind in ("b", "b_r"):
        optimizer = build(kind, model, refresh_period=50)
        for k in range(3):
            optimizer.zero_grad()
            z = model["one"](random(5, 30, seed=k))
            (model["two"](z) if k else z).square().mean().backward()
            optimizer.step()
        assert optimizer.counters["without_factors"] == 0
        optimizer.close()


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        ({"inverse": "cholesky"}, "rsvd or sre"),
        ({"brand_period": 0}, "brand_period is a whole number of at least 1; got 0"),
        ({"correction_share": 0.0}, "correction_share is a number above 0 and at most 1; got 0.0"),
        ({"brand_rank": 0}, "rank is a whole number of at least 1; got 0"),
        ({"subsample": 0.5}, "subsample has to be 1"),
        ({"damping_mode": "exact"}, "needs both factors' eigenvectors"),
    ],
)
def test_wrong_options_are_refused(chosen, text):
    with pytest.raises(UserError) as caught:
        factories.b(wide(), **chosen)
    assert text in str(caught.value)
