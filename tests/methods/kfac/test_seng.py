"""SENG against dense Fisher matrices of single samples' gradients by autograd."""

import io

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.errors import Unsupported, UserError
from harness.measure.training import state as training_state
from methods.kfac import factories, seng_sketch

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves to")
KINDS = {
    "explicit": {},
    "implicit": {"explicit_threshold": 0, "svd_rank": 3, "col_sample": 5},
    "sampled": {"col_sample": 8},
    "exact": {"exact": True, "explicit_threshold": 60},
}


def build(kind, model, **more):
    base = {"lr": 0.1, "damping": 0.3, "update_period": 2, "fallback_lr": 0.01}
    return factories.seng(model, **{**base, **KINDS[kind], **more})


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fisher(model, layer, x, y):
    """1 / N sum_n vec(dW_n) vec(dW_n)^T, one backward for each sample."""
    rows = []
    for n in range(len(x)):
        loss = functional.cross_entropy(model(x[n : n + 1]), y[n : n + 1])
        rows.append(layer.matrix(torch.autograd.grad(loss, layer.parameters)).flatten())
    stack = torch.stack(rows)
    return stack.mT @ stack / len(x)


@pytest.mark.parametrize("threshold", [0, 10**6])
@pytest.mark.parametrize("net", ["conv", "mlp"])
def test_exact_directions_are_the_dense_solve(net, threshold, nets, train):
    model, (x, y) = nets[net][0]().eval(), nets[net][1](0)
    optimizer = factories.seng(model, lr=0.0, damping=0.3, exact=True, explicit_threshold=threshold, fallback_lr=0.0)
    train(model, optimizer, lambda k: (x, y), 1)
    for layer in optimizer.layers:
        dense = fisher(model, layer, x, y)
        gradient = random(layer.groups, layer.d_out, layer.d_in)
        wanted = torch.linalg.solve(dense + 0.3 * torch.eye(len(dense)).double(), gradient.flatten())
        found = optimizer.direction(layer, gradient)
        torch.testing.assert_close(found.flatten(), wanted, rtol=1e-9, atol=1e-11)
        (product,) = optimizer.multiply([layer], [gradient])
        torch.testing.assert_close(product.flatten(), dense @ gradient.flatten(), rtol=1e-9, atol=1e-11)
        (back,) = optimizer.multiply([layer], [found], damped=True)
        torch.testing.assert_close(back, gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_fisher_does_not_depend_on_the_reduction(reduction, nets, train):
    model, (x, y) = nets["mlp"][0](), nets["mlp"][1](0)
    optimizer = factories.seng(model, lr=0.0, exact=True, reduction=reduction)
    train(model, optimizer, lambda k: (x, y), 1, reduction=reduction)
    layer, vector = optimizer.layers[0], random(1, 5, 5)
    (product,) = optimizer.multiply([layer], [vector])
    torch.testing.assert_close(product.flatten(), fisher(model, layer, x, y) @ vector.flatten())


def test_reduced_positions_are_exact_while_the_rank_fits_and_close_after():
    a, g = random(2, 4, 9, 6), random(2, 4, 9, 2, seed=1) @ random(2, 4, 2, 5, seed=2)
    whole, vector = seng_sketch.implicit(a, g, None, 0), random(2, 5, 6, seed=3)
    reduced = seng_sketch.implicit(a, g, 2, 0)
    assert reduced.a.shape == (2, 4, 2, 6)
    torch.testing.assert_close(reduced.times(vector), whole.times(vector))
    torch.testing.assert_close(reduced.gram(None, 0), whole.gram(None, 0))
    torch.testing.assert_close(whole.gram(None, 0), seng_sketch.explicit(a, g).gram(None, 0))
    # One position less is almost as good as the best there is (Eckart and Young).
    one = seng_sketch.implicit(torch.eye(9).double().expand(2, 4, -1, -1), g, 1, 0)
    values = torch.linalg.svdvals(g)
    error = (one.a.mT @ one.g - g).norm(dim=(2, 3))
    assert (error <= 1.5 * values[..., 1]).all()
    assert (error >= values[..., 1] - 1e-9).all()


def test_transposed_products_are_adjoint():
    a, g, w, vector = random(2, 4, 3, 6), random(2, 4, 3, 5, seed=1), random(4, seed=2), random(2, 5, 6, seed=3)
    for samples in (seng_sketch.explicit(a, g), seng_sketch.implicit(a, g, None, 0)):
        torch.testing.assert_close((samples.transposed_times(w) * vector).sum(), (samples.times(vector) * w).sum())


@pytest.mark.parametrize("form", ["explicit", "implicit"])
def test_sampled_grams_are_unbiased(form):
    a, g = random(1, 3, 2, 6), random(1, 3, 2, 5, seed=1)
    samples = seng_sketch.explicit(a, g) if form == "explicit" else seng_sketch.implicit(a, g, None, 0)
    mean = torch.stack([samples.gram(3, 2 * seed) for seed in range(3000)]).mean(0)
    exact = samples.gram(None, 0)
    assert (mean - exact).norm() < 0.05 * exact.norm()
    assert not torch.allclose(samples.gram(3, 0), exact)
    torch.testing.assert_close(samples.gram(100, 0), exact)


def test_tied_layers_have_one_gradient_for_each_sample():
    torch.manual_seed(0)
    shared, head = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), head)
    x, y = random(5, 4), torch.tensor([0, 1, 2, 0, 1])
    optimizer = factories.seng(model, lr=0.0, exact=True)
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    layer, vector = optimizer.layers[0], random(1, 4, 5)
    (product,) = optimizer.multiply([layer], [vector])
    torch.testing.assert_close(product.flatten(), fisher(model, layer, x, y) @ vector.flatten())


# -- the optimizer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
def test_any_batch_size(kind, nets, train):
    make, batches = nets["conv"]
    model = make()
    optimizer = build(kind, model, update_period=1)
    x, y = batches(0, 7)
    losses = train(model, optimizer, lambda k: (x[: (7, 1, 3, 7)[k % 4]], y[: (7, 1, 3, 7)[k % 4]]), 24)
    assert losses[-1] < 0.8 * losses[0]
    assert optimizer.counters["failed_cores"] == 0


@pytest.mark.parametrize("kind", list(KINDS))
def test_resume_is_bitwise(kind, nets, train):
    make, batches = nets["conv"]
    model = make()
    optimizer = build(kind, model)
    fresh = training_state.copied(optimizer.state_dict())
    empty = training_state.digest(fresh)
    train(model, optimizer, batches, 5)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    train(model, optimizer, batches, 4, first=5)
    buffer.seek(0)
    stored = torch.load(buffer, weights_only=True)
    other = make(1)
    other.load_state_dict(stored["model"])
    resumed = build(kind, other)
    resumed.load_state_dict(stored["optimizer"])
    train(other, resumed, batches, 4, first=5)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert training_state.digest(resumed.state_dict()) == training_state.digest(optimizer.state_dict())
    optimizer.load_state_dict(fresh)
    assert training_state.digest(optimizer.state_dict()) == empty


@pytest.mark.parametrize("kind", ["explicit", "exact"])
def test_accumulation_loss_scale_and_order_change_nothing(kind, nets, train, distance):
    make, batches = nets["mlp"]
    models = [make() for _ in range(4)]
    train(models[0], build(kind, models[0]), batches, 5)
    train(models[1], build(kind, models[1]), batches, 5, pieces=4)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    train(models[2], build(kind, models[2]), lambda k: tuple(t[order] for t in batches(k)), 5)
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=256.0), build(kind, models[3])
    for k in range(5):
        optimizer.zero_grad()
        x, y = batches(k)
        scaler.scale(functional.cross_entropy(models[3](x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert distance(models[1], models[0]) < 1e-10
    assert distance(models[2], models[0]) < 1e-10
    assert distance(models[3], models[0]) < 1e-6
    assert distance(models[0], make()) > 1e-2


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_batch_with_nan_is_skipped_and_a_cast_followed(kind, nets, train, distance):
    make, batches = nets["mlp"]
    model = make().float()
    optimizer = build(kind, model, update_period=1)

    def single(k):
        x, y = batches(k, 6 if k < 3 else 4)
        return (x * float("nan") if k in (0, 3) else x).float(), y

    train(model, optimizer, single, 1)
    assert distance(model, make().float()) == 0.0
    train(model, optimizer, single, 2, first=1)
    layer, vector = optimizer.layers[0], random(1, 5, 5).float()
    before = optimizer.direction(layer, vector)
    train(model, optimizer, single, 1, first=3)
    assert optimizer.counters["skipped_batches"] == 2
    torch.testing.assert_close(optimizer.direction(layer, vector), before)
    model.double()
    train(model, optimizer, batches, 3, first=4)
    assert all(p.isfinite().all() for p in model.parameters())


def test_memory_coverage_and_the_fallbacks_step(nets, train):
    model = nets["conv"][0]()
    optimizer = factories.seng(model, lr=0.3, damping=0.5)
    train(model, optimizer, nets["conv"][1], 1)
    usage = optimizer.memory_usage()
    conv1, conv2, head = optimizer.layers
    assert [optimizer.sketches[one].u is not None for one in (conv1, conv2, head)] == [True, True, False]
    assert usage["factors"] == 8 * 6 * (4 * 19 + 6 * 12 + (7 + 3))
    assert usage["inverses"] == 8 * 3 * (6 * 6 + 1)
    assert usage["scales"] == usage["pending"] == 0
    assert optimizer.coverage == {"seng": 76 + 72 + 21, "sgd": 8}
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, pytest.approx(0.2)]


def test_monte_carlo_samples_stand_beside_each_other(nets):
    model, (x, y) = nets["mlp"][0](), nets["mlp"][1](0)
    optimizer = factories.seng(model, exact=True, fisher="monte-carlo", mc_samples=3)

    def closure(part=None, targets="data"):
        loss = functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 0, 1, 2]) if targets == "model" else y)
        loss.backward()
        return loss

    before = [p.clone() for p in model.parameters()]
    optimizer.step(closure)
    layer, vector = optimizer.layers[0], random(1, 5, 5)
    assert optimizer.sketches[layer].count == 18
    with torch.no_grad():
        for p, old in zip(model.parameters(), before, strict=True):
            p.copy_(old)
    (product,) = optimizer.multiply([layer], [vector])
    wanted = fisher(model, layer, x, torch.tensor([0, 1, 2, 0, 1, 2])) @ vector.flatten()
    torch.testing.assert_close(product.flatten(), wanted)


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        ({"svd_rank": 0}, "svd_rank is a whole number of at least 1; got 0"),
        ({"col_sample": 0.5}, "col_sample is a whole number of at least 1; got 0.5"),
        ({"damping": 0.0}, "damping is a number above 0; got 0.0"),
        ({"refresh_period": 3}, "seng has no refresh_period"),
        ({"inverse": "eigh"}, "seng has no inverse"),
    ],
)
def test_wrong_options_are_refused(chosen, text, nets):
    with pytest.raises(UserError) as caught:
        factories.seng(nets["mlp"][0](), **chosen)
    assert text in str(caught.value)


def test_a_weight_used_behind_its_modules_back_is_an_error(nets):
    model = nets["mlp"][0]()
    optimizer = build("explicit", model)
    x, _ = nets["mlp"][1](0)
    functional.linear(model[0](x).tanh(), model[2].weight, model[2].bias).sum().backward()
    with pytest.raises(Unsupported, match=r"never called.*exclude=\['2'\]"):
        optimizer.step()
