"""Invariances, states, failures and the outside of the optimizer."""

import copy
import io
import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.errors import Unsupported, UserError
from harness.measure.training import state as training_state
from methods.kfac import factories, fallback, moments, packing
from methods.kfac.kfac import KFAC
from methods.kfac.options import parse

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves to")
FAST = {"lr": 0.05, "update_period": 2, "refresh_period": 4, "damping": 0.03, "clip_value": 0.3}
KINDS = {
    "cholesky": {},
    "cholesky-late": {"refresh_lag": 2, "stagger": True},
    "cholesky-spread": {"spread": True, "stagger": True, "factor_init": "first-batch"},
    "eigh": {"factor_init": "bias-corrected"},
    "cholesky-groups": {"spread": True, "stagger": True, "groups": 2},
    "newton_schulz": {"stagger": True},
    "ekfac": {"scaling": "intra-batch", "scale_decay": 0.5},
    "ekfac-running": {"scaling": "running"},
    "rs": {"rank": 3, "warm": True},
    "sre": {"rank": 3, "factor_init": "first-batch"},
}


def build(kind, model, **options):
    return getattr(factories, kind.split("-")[0])(model, **{**FAST, **KINDS[kind], **options})


def factors(optimizer):
    return {n: t for layer in optimizer.layers for n, t in zip("ag", optimizer.statistics.read(layer), strict=True)}


# -- invariances -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cholesky", "ekfac"])
def test_accumulation(kind, nets, train, distance):
    make, batches = nets["mlp"]
    whole, pieces = make(), make()
    train(whole, build(kind, whole), batches, 7)
    train(pieces, build(kind, pieces), batches, 7, pieces=4)
    assert distance(pieces, whole) < 1e-10


def test_sum_and_mean_give_the_same_factors(nets, train):
    found = {}
    for reduction in ("mean", "sum"):
        model = nets["conv"][0]()
        optimizer = build("cholesky", model, reduction=reduction, lr=0.0, fallback_lr=0.0)
        train(model, optimizer, nets["conv"][1], 1, reduction=reduction)
        found[reduction] = factors(optimizer)
    for name, tensor in found["mean"].items():
        torch.testing.assert_close(found["sum"][name], tensor)


def test_permutation_of_the_batch(nets, train, distance):
    make, batches = nets["conv"]
    one, other = make(), make()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    train(one, build("cholesky", one), batches, 5)
    train(other, build("cholesky", other), lambda k: tuple(t[order] for t in batches(k)), 5)
    assert distance(other, one) < 1e-9


@pytest.mark.parametrize("kind", ["cholesky", "ekfac"])
def test_loss_scaling_changes_nothing(kind, nets, distance):
    make, batches = nets["mlp"]
    plain, scaled = make(), make()
    for model, scaler in ((plain, None), (scaled, torch.amp.GradScaler("cpu", init_scale=1024.0))):
        optimizer = build(kind, model)
        for k in range(6):
            optimizer.zero_grad()
            x, y = batches(k)
            loss = functional.cross_entropy(model(x), y)
            if scaler is None:
                loss.backward()
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
    assert distance(scaled, plain) < 1e-6


def test_unscaled_gradients_need_the_scaler(nets, distance):
    make, (x, y) = nets["mlp"][0], nets["mlp"][1](0)
    models = [make(), make(), make()]
    for model, given in zip(models, (False, True, None), strict=True):
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=given is not None)
        optimizer = build("cholesky", model, grad_scaler=scaler if given else None)
        scaler.scale(functional.cross_entropy(model(x), y)).backward()
        scaler.unscale_(optimizer)
        if given is False:
            with pytest.raises(Unsupported, match="grad_scaler=scaler"):
                scaler.step(optimizer)
        else:
            scaler.step(optimizer)
    assert distance(models[1], models[2]) < 1e-6


def test_an_overflowed_step_is_skipped_and_its_statistics_dropped(nets, distance):
    make, (x, y) = nets["mlp"][0], nets["mlp"][1](0)
    model = make()
    optimizer = build("cholesky", model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(functional.cross_entropy(model(x), y) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.counters["overflowed_steps"] == 1
    assert distance(model, make()) == 0.0
    assert not optimizer.statistics.sums
    assert optimizer.steps == 0


def test_bfloat16_autocast_and_weights_keep_float32_factors(nets):
    for pure in (False, True):
        model = nets["conv"][0]().float()
        model = model.bfloat16() if pure else model
        optimizer = build("cholesky", model, fallback_lr=0.0)
        for k in range(3):
            optimizer.zero_grad()
            x, y = nets["conv"][1](k)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not pure):
                loss = functional.cross_entropy(model(x.bfloat16() if pure else x.float()).float(), y)
            loss.backward()
            optimizer.step()
        assert {t.dtype for t in factors(optimizer).values()} == {torch.float32}
        assert all(p.isfinite().all() for p in model.parameters())
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16 if pure else torch.float32}


# -- running means and policy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("initial", ["identity", "first-batch", "bias-corrected"])
def test_start_of_the_running_means(initial, nets, train):
    model = nets["mlp"][0]()
    batches = [nets["mlp"][1](k) for k in range(3)]
    seen = []
    for x, _ in batches:
        rows = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
        seen.append(rows.mT @ rows / len(x))
    optimizer = build("cholesky", model, factor_init=initial, factor_decay=0.7, update_period=1)
    train(model, optimizer, lambda k: batches[k], 3)
    wanted = {"identity": torch.eye(5).double(), "first-batch": seen[0], "bias-corrected": torch.zeros(5, 5).double()}
    wanted = wanted[initial]
    for batch in seen:
        wanted = 0.7 * wanted + 0.3 * batch
    if initial == "bias-corrected":
        wanted = wanted / (1 - 0.7**3)
    torch.testing.assert_close(optimizer.statistics.read(optimizer.layers[0])[0][0], wanted)


def test_spread_statistics_take_each_layer_once_a_period(nets, train):
    model = nets["conv"][0]()
    optimizer = build("cholesky", model, spread=True, update_period=4, refresh_period=8)
    counts = []
    for k in range(13):
        train(model, optimizer, nets["conv"][1], 1, first=k)
        counts.append([int(optimizer.statistics.factors[layer].count) for layer in optimizer.layers])
    assert counts[0] == [1, 1, 1]
    changes = [[b - a for a, b in zip(one, other, strict=True)] for one, other in itertools.pairwise(counts)]
    assert changes[:7] == [[0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert counts[-1] == [4, 4, 4]
    with pytest.raises(UserError, match="spread is False for it"):
        factories.ekfac(model, spread=True)


def test_staggered_refreshes_happen(nets, train):
    model = nets["conv"][0]()
    optimizer = build("cholesky", model, stagger=True, update_period=1, refresh_period=3)
    train(model, optimizer, nets["conv"][1], 1)
    before = [optimizer.slots[layer][0].state["inverse"].clone() for layer in optimizer.layers]
    train(model, optimizer, nets["conv"][1], 3, first=1)
    after = [optimizer.slots[layer][0].state["inverse"] for layer in optimizer.layers]
    assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_a_late_refresh_is_that_of_an_earlier_step(nets, train):
    def inverses(optimizer):
        return [slot.state["inverse"].clone() for layer in optimizer.layers for slot in optimizer.slots[layer]]

    found = {}
    for lag in (0, 2):
        model = nets["conv"][0]()
        optimizer = build("cholesky", model, update_period=1, refresh_lag=lag, lr=0.0, fallback_lr=0.0)
        for k in range(11):
            train(model, optimizer, nets["conv"][1], 1, first=k)
            found[lag, k] = inverses(optimizer)
    for k in range(2, 11):
        source = k - 2 if k >= 6 else 0
        assert all(torch.equal(a, b) for a, b in zip(found[2, k], found[0, source], strict=True))
    assert not torch.equal(found[2, 5][0], found[2, 6][0])


def test_subsampled_rows_are_unbiased_for_constant_rows():
    model = nn.Sequential(nn.Conv2d(1, 2, 1)).double()
    found = []
    for share in (1.0, 0.3):
        optimizer = KFAC(model, lr=0.0, subsample=share, factor_init="first-batch")
        model(torch.ones(2, 1, 4, 5, dtype=torch.float64)).sum().div(2).backward()
        optimizer.step()
        found.append(factors(optimizer))
        optimizer.close()
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor)


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
def test_resume_is_bitwise(kind, nets, train):
    make, batches = nets["conv"]
    model = make()
    optimizer = build(kind, model)
    empty = training_state.digest(optimizer.state_dict())
    fresh = training_state.copied(optimizer.state_dict())
    train(model, optimizer, batches, 7)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    train(model, optimizer, batches, 6, first=7)
    buffer.seek(0)
    stored = torch.load(buffer, weights_only=True)
    other = make(1)
    other.load_state_dict(stored["model"])
    resumed = build(kind, other)
    resumed.load_state_dict(stored["optimizer"])
    train(other, resumed, batches, 6, first=7)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert training_state.digest(resumed.state_dict()) == training_state.digest(optimizer.state_dict())
    optimizer.load_state_dict(fresh)
    assert training_state.digest(optimizer.state_dict()) == empty


def test_packed_factors_give_the_same_steps_in_less_memory(nets, train, distance, monkeypatch):
    monkeypatch.setattr(packing, "PACKED_FROM", 4)
    make, batches = nets["conv"]
    models, optimizers = [make(), make()], []
    for model, packed in zip(models, (False, True), strict=True):
        optimizers.append(build("cholesky", model, packed=packed))
        train(model, optimizers[-1], batches, 7)
    assert distance(models[1], models[0]) < 1e-12
    usage = [optimizer.memory_usage()["factors"] for optimizer in optimizers]
    assert usage[1] < 0.75 * usage[0]
    # A state saved packed is read by an optimizer that does not pack, and the other way round.
    for first, second in ((0, 1), (1, 0)):
        optimizers[first].load_state_dict(training_state.copied(optimizers[second].state_dict()))
    for k in range(7, 10):
        for model, optimizer in zip(models, optimizers, strict=True):
            train(model, optimizer, batches, 1, first=k)
    assert distance(models[1], models[0]) < 1e-12


@pytest.mark.parametrize("kind", ["cholesky", "eigh", "newton_schulz", "ekfac"])
def test_half_width_inverses(kind, nets, train, distance):
    """Half of the memory, nearly the same steps, bitwise resume."""
    make, data = nets["conv"]

    def batches(k):
        return data(k)[0].float(), data(k)[1]

    half = {"inverse_dtype": "bfloat16", "product_dtype": "bfloat16"}
    models = [make().float() for _ in range(3)]
    optimizers = [build(kind, model, **options) for model, options in zip(models, ({}, half, half), strict=True)]
    for model, optimizer in zip(models[:2], optimizers, strict=False):
        train(model, optimizer, batches, 6)
    moved = distance(models[0], make().float())
    assert 0 < distance(models[1], models[0]) < 0.1 * moved
    wide = {"eigh": "vectors", "ekfac": "vectors"}.get(kind, "inverse")
    states = [slot.state[wide] for pair in optimizers[1].slots.values() for slot in pair]
    assert {state.dtype for state in states} == {torch.bfloat16}
    usage = [optimizer.memory_usage()["inverses"] for optimizer in optimizers[:2]]
    assert usage[1] == usage[0] - 2 * sum(state.numel() for state in states)
    models[2].load_state_dict(models[1].state_dict())
    optimizers[2].load_state_dict(training_state.copied(optimizers[1].state_dict()))
    for model, optimizer in zip(models[1:], optimizers[1:], strict=True):
        train(model, optimizer, batches, 5, first=6)
    assert all(torch.equal(p, q) for p, q in zip(models[1].parameters(), models[2].parameters(), strict=True))


@pytest.mark.parametrize(("groups", "size"), [(1, 4), (2, 7), (3, 16), (1, 65)])
def test_packing(groups, size):
    torch.manual_seed(0)
    full = torch.randn(groups, size, size)
    full = full + full.mT
    flat = packing.pack(full)
    assert flat.numel() == packing.length(groups, size) < groups * size**2 or size < 8
    assert torch.equal(packing.unpack(flat, groups, size), full)
    torch.testing.assert_close(packing.trace(flat, groups, size), full.diagonal(dim1=1, dim2=2).sum())
    more = packing.unpack(packing.add_to_diagonal(flat, groups, size, 2.0), groups, size)
    assert torch.equal(more, full + 2 * torch.eye(size))


def test_a_checkpoint_of_another_model_is_refused(nets):
    stored = build("cholesky", nets["conv"][0]()).state_dict()
    with pytest.raises(UserError, match="same model"):
        build("cholesky", nets["mlp"][0]()).load_state_dict(stored)


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_batch_with_nan_is_skipped_counted_and_reported(nets, train, distance):
    make, batches = nets["conv"]
    model = make().eval()
    optimizer = build("cholesky", model, weight_decay=0.1, weight_decay_mode="decoupled")
    train(model, optimizer, batches, 2)
    before, held = copy.deepcopy(model), {k: v.clone() for k, v in factors(optimizer).items()}
    x, y = batches(2)
    x[1, 0, 2, 3] = float("nan")
    train(model, optimizer, lambda k: (x, y), 1)
    assert optimizer.counters["skipped_batches"] == 1
    assert optimizer.describe()["counters"]["skipped_batches"] == 1
    assert distance(model, before) == 0.0
    assert all(torch.equal(v, held[k]) for k, v in factors(optimizer).items())
    train(model, optimizer, batches, 2, first=3)
    assert distance(model, before) > 1e-4
    assert optimizer.counters["skipped_batches"] == 1


def test_a_first_batch_with_nan(nets, train, distance):
    make, batches = nets["mlp"]
    for initial in ("identity", "first-batch", "bias-corrected"):
        model = make()
        optimizer = build("cholesky", model, factor_init=initial)
        x, y = batches(0)
        train(model, optimizer, lambda k, x=x, y=y: (x * float("nan"), y), 1)
        assert distance(model, make()) == 0.0
        train(model, optimizer, batches, 4, first=1)
        assert all(p.isfinite().all() for p in model.parameters())
        assert optimizer.counters["skipped_batches"] == 1


def test_no_supported_layer_is_an_error():
    with pytest.raises(Unsupported, match=r"no layer with Kronecker factors.*Embedding"):
        KFAC(nn.Sequential(nn.Embedding(3, 4), nn.LayerNorm(4)))
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(Unsupported, match="no layer"):
        KFAC(nn.Sequential(frozen, nn.LayerNorm(2)))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"damping": 0.0}, "damping is a number above 0; got 0.0"),
        ({"damping": [[0, 0.1], [5, -1.0]]}, "damping is a number above 0; got -1.0"),
        ({"update_period": 0}, "update_period is a whole number of at least 1; got 0"),
        ({"refresh_period": 2.5}, "refresh_period is a whole number of at least 1; got 2.5"),
        ({"factor_decay": 1.0}, "factor_decay is a number of at least 0 and below 1; got 1.0"),
        ({"subsample": 0.0}, "subsample is a number above 0 and at most 1; got 0.0"),
        ({"momentum": float("nan")}, "momentum is a number of at least 0 and below 1; got nan"),
        ({"lr": -1.0}, "lr is a number of at least 0; got -1.0"),
        ({"clip": "l2"}, "clip is one of kl, rms, none; got 'l2'"),
        ({"damping_mode": "exact"}, "needs both factors' eigenvectors"),
        ({"refresh_lag": 100}, "refresh_lag is a whole number of at least 0 and at most 99; got 100"),
        ({"product_dtype": "fp8"}, "product_dtype is one of as-set, float32, tf32, bfloat16; got 'fp8'"),
        ({"dampling": 1.0}, "unknown hyper-parameter 'dampling'; known: lr, momentum, damping"),
        ({"exclude": ["nothing"]}, "matches no module"),
    ],
)
def test_wrong_hyper_parameters_are_refused(options, text, nets):
    with pytest.raises(UserError) as caught:
        factories.cholesky(nets["mlp"][0](), **options)
    assert text in str(caught.value)


def test_ekfac_needs_steps_between_refreshes(nets):
    with pytest.raises(UserError, match="refresh_period of ekfac is a whole number of at least 2; got 1"):
        factories.ekfac(nets["mlp"][0](), refresh_period=1)


def test_ekfac_takes_no_late_bases(nets):
    with pytest.raises(UserError, match="refresh_lag is 0 for it, got 1"):
        factories.ekfac(nets["mlp"][0](), refresh_lag=1)


def test_a_wrong_rank_is_refused(nets):
    with pytest.raises(UserError, match="rank is a whole number of at least 1; got 0"):
        factories.rs(nets["mlp"][0](), rank=0)


def test_a_weight_used_behind_its_modules_back_is_an_error(nets):
    model = nets["mlp"][0]()
    optimizer = build("cholesky", model)
    x, _ = nets["mlp"][1](0)
    functional.linear(model[0](x).tanh(), model[2].weight, model[2].bias).sum().backward()
    with pytest.raises(Unsupported, match=r"never called.*exclude=\['2'\]"):
        optimizer.step()


def test_further_passes_need_a_closure(nets):
    optimizer = build("cholesky", nets["mlp"][0](), fisher="monte-carlo")
    assert optimizer.step_needs
    with pytest.raises(UserError, match="closure"):
        optimizer.step()


def test_monte_carlo_leaves_the_data_gradient_alone(nets, distance):
    """The direction's gradient is that of the data, whatever the drawn targets' was."""
    make, (x, y) = nets["mlp"][0], nets["mlp"][1](0)
    model = make()
    optimizer = build("cholesky", model, fisher="monte-carlo")

    def closure(part=None, targets="data"):
        z = model(x)
        drawn = torch.multinomial(torch.softmax(z.detach(), -1), 1)[:, 0] if targets == "model" else y
        loss = functional.cross_entropy(z, drawn)
        loss.backward()
        return loss

    optimizer.step(closure)
    functional.cross_entropy((plain := make())(x), y).backward()
    torch.testing.assert_close(model[0].weight.grad, plain[0].weight.grad)
    assert distance(model, make()) > 1e-4


# -- models ------------------------------------------------------------------------------------------------------------


def test_a_tied_layer_has_the_rows_of_all_its_calls():
    torch.manual_seed(0)
    shared = nn.Linear(3, 3).double()
    model = nn.Sequential(shared, nn.Tanh(), shared)
    other = nn.Linear(3, 3).double()
    other.weight, other.bias = shared.weight, shared.bias
    twice = nn.Sequential(shared, nn.Tanh(), other)
    x = torch.randn(5, 3, dtype=torch.float64)
    found = []
    for net in (model, twice):
        optimizer = KFAC(net, lr=0.0, factor_init="first-batch")
        assert len(optimizer.layers) == 1
        hidden = torch.tanh(shared(x)).detach()
        net(x).square().sum(1).mean().backward()
        optimizer.step()
        found.append(factors(optimizer))
        rows = torch.cat([torch.cat([x, hidden]), torch.ones(10, 1).double()], 1)
        torch.testing.assert_close(found[-1]["a"][0], rows.mT @ rows / 10)
        optimizer.close()
    torch.testing.assert_close(found[0]["g"], found[1]["g"])
    z = torch.tanh(x @ shared.weight.T + shared.bias).detach().requires_grad_()
    out = 2 * shared(z).detach()
    back = (out @ shared.weight.detach()) * (1 - z.detach() ** 2)
    torch.testing.assert_close(found[0]["g"][0], (out.mT @ out + back.mT @ back) / 5)


def test_leftovers_are_named_once_and_covered(nets):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm = nn.Embedding(7, 4), nn.LayerNorm(4)
            self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
            self.frozen, self.extra = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4)
            self.head.weight = self.table.weight

        def forward(self, x):
            return self.head(self.frozen(self.norm(self.inner(self.table(x)))))

    torch.manual_seed(0)
    model = Odd()
    with pytest.warns(UserWarning, match=r"table.weight \(Linear shares|table.weight \(Embedding shares") as caught:
        optimizer = KFAC(model, exclude=["extra"])
    assert len(caught) == 1
    assert [layer.name for layer in optimizer.layers] == ["inner"]
    assert optimizer.left_over["extra.bias"] == "excluded"
    assert optimizer.coverage == {"kfac": 20, "adamw": 28 + 8 + 20}
    before = copy.deepcopy(model.state_dict())
    model(torch.arange(7)).square().mean().backward()
    optimizer.step()
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert {n.split(".")[0] for n in moved} == {"table", "norm", "inner", "head"}


def test_unused_layers_wait_and_join_later():
    torch.manual_seed(0)
    model = nn.ModuleDict({"one": nn.Linear(3, 3), "two": nn.Linear(3, 3)})
    optimizer = KFAC(model, lr=0.1, update_period=1)
    start = model["two"].weight.clone()
    for both in (False, True):
        optimizer.zero_grad()
        z = model["one"](torch.randn(4, 3))
        (model["two"](z) if both else z).square().mean().backward()
        optimizer.step()
        assert torch.equal(model["two"].weight, start) is not both
    assert optimizer.counters["without_factors"] == 0


def test_a_model_cast_after_construction(nets, train):
    model = nets["conv"][0]().float()
    optimizer = build("ekfac", model)
    train(model, optimizer, lambda k: (nets["conv"][1](k)[0].float(), nets["conv"][1](k)[1]), 3)
    model.double()
    train(model, optimizer, nets["conv"][1], 5, first=3)
    assert {t.dtype for t in factors(optimizer).values()} == {torch.float64}
    assert all(p.isfinite().all() for p in model.parameters())


def test_in_place_activations_and_evaluation_do_not_disturb(nets, train, distance):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    one, other = copy.deepcopy(base), copy.deepcopy(base)
    other[1] = nn.ReLU(inplace=True)
    first, second = build("cholesky", one), build("cholesky", other)
    batches = nets["mlp"][1]
    for k in range(5):
        train(one, first, batches, 1, first=k)
        train(other, second, batches, 1, first=k)
        with torch.no_grad():
            other(batches(9)[0])
        other(batches(9)[0])
        twin = copy.deepcopy(other)
        twin(batches(8)[0]).sum().backward()
    assert distance(other, one) == 0.0


def test_close_removes_every_hook(nets, train):
    model = nets["conv"][0]()
    assert training_state.hooks(model) == 0
    optimizer = build("cholesky", model, fisher="type-2")
    assert training_state.hooks(model) == 4
    optimizer.close()
    optimizer.close()
    assert training_state.hooks(model) == 0


def test_parts_memory_and_sgd_fallback(nets, train):
    model = nets["conv"][0]()
    optimizer = build("ekfac", model, fallback="sgd", fallback_lr=0.1)
    assert optimizer.parts() == {"factor": 0.0, "refresh": 0.0, "apply": 0.0}
    train(model, optimizer, nets["conv"][1], 3)
    assert all(seconds > 0 for seconds in optimizer.parts().values())
    usage = optimizer.memory_usage()
    sizes = [(19, 4, 1), (12, 3, 2), (7, 3, 1)]
    assert usage["factors"] == 8 * sum(g * (a * a + o * o) for a, o, g in sizes)
    assert usage["inverses"] == 8 * sum(g * (a * a + a + 1 + o * o + o + 1) for a, o, g in sizes)
    assert usage["momentum"] == usage["scales"] == 8 * sum(g * a * o for a, o, g in sizes)
    assert usage["pending"] == 0
    assert usage["fallback"] == 8 * 8
    assert optimizer.coverage == {"ekfac": 76 + 72 + 21, "sgd": 8}
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1]


def test_the_fallback_steps_as_adamw_does():
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    options = parse({"fallback_weight_decay": 0.1, "fallback_lr": 0.02})
    first, second = fallback.optimizer(ours, options), fallback.optimizer(theirs, options)
    stepper = fallback.Stepper(first)
    for k in range(8):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = None if k == 5 and p is ours[0] else torch.randn_like(p)
            q.grad = None if p.grad is None else p.grad.clone()
        finite = torch.tensor(k != 3) if k % 3 == 0 else None
        stepper.step(finite)
        if finite is not None:
            second.found_inf = (~finite).float()
        second.step()
        second.__dict__.pop("found_inf", None)
        if k == 6:
            first.load_state_dict(copy.deepcopy(first.state_dict()))
        assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True)), k
    assert int(first.state[ours[1]]["step"]) == 7


def test_no_warning_without_leftovers(nets):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        factories.cholesky(nets["mlp"][0]())


def test_a_compiled_loss_gives_the_same_steps(nets, distance):
    make, batches = nets["mlp"]
    models = [make(), make()]
    for model in models:
        optimizer = build("cholesky", model)

        def loss(net, x, y):
            return functional.cross_entropy(net(x), y)

        call = torch.compile(loss, backend="aot_eager", dynamic=False) if model is models[1] else loss
        for k in range(5):
            optimizer.zero_grad()
            call(model, *batches(k)).backward()
            optimizer.step()
    assert distance(models[1], models[0]) < 1e-12
    assert distance(models[0], make()) > 1e-3


def test_a_saved_state_brings_no_larger_storage_along(nets, train, monkeypatch):
    monkeypatch.setattr(moments, "ROOM_FROM", 4)
    make, batches = nets["conv"]
    model = make()
    optimizer = KFAC(model, update_period=1, refresh_period=2)
    train(model, optimizer, batches, 3)
    storages = {}

    def walk(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list | tuple):
            for one in value:
                walk(one)
        elif isinstance(value, torch.Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()

    saved = optimizer.state_dict()
    walk(saved["layers"])
    usage = optimizer.memory_usage()
    counts = 8 * len(optimizer.layers)
    assert sum(storages.values()) <= sum(usage[key] for key in ("factors", "inverses", "momentum")) + counts
    for layer in optimizer.layers:
        assert saved["layers"][layer.name]["factor_a"].shape == (layer.groups, layer.d_in, layer.d_in)


@pytest.mark.parametrize("initial", ["identity", "bias-corrected", "first-batch"])
def test_padded_running_means_give_the_same_steps(initial, nets, train, monkeypatch):
    make, batches = nets["conv"]
    found = []
    for first in (512, 4):
        monkeypatch.setattr(moments, "ROOM_FROM", first)
        model = make()
        optimizer = KFAC(model, update_period=1, refresh_period=2, factor_init=initial)
        train(model, optimizer, batches, 3)
        other = make()
        other.load_state_dict(model.state_dict())
        resumed = KFAC(other, update_period=1, refresh_period=2, factor_init=initial)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(model, optimizer, batches, 3, first=3)
        train(other, resumed, batches, 3, first=3)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("retain", [False, True])
def test_inputs_go_during_backward_unless_another_one_may_come(retain):
    import weakref

    from methods.kfac.capture import Capture
    from methods.kfac.layers import find

    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    layers, _, _ = find(model, ())
    alive, seen = [], []

    def take(layer, module, inputs, gradients, backward):
        alive.append(sum(one() is not None for one in seen))
        seen.append(weakref.ref(inputs))

    capture = Capture(layers, take)
    capture.enabled = True
    loss = model(torch.randn(6, 4)).sum()
    loss.backward(retain_graph=retain)
    # Where nothing may follow, the second layer's inputs are gone when the first one's come.
    assert alive == [0, int(retain)]
    if retain:
        loss.backward()
        assert len(alive) == 4
    capture.close()


def test_an_output_differentiated_twice_is_told():
    model = nn.Sequential(nn.Linear(4, 5))
    optimizer = KFAC(model, update_period=1)
    out = model(torch.randn(6, 4))
    [gradient] = torch.autograd.grad(out.square().sum(), out)
    with pytest.raises(Unsupported, match="retain the graph"):
        out.backward(gradient)
    optimizer.close()
