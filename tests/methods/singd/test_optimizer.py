"""Invariances, states, failures and the outside of the optimizer, for every structure."""

import copy
import io
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.errors import Unsupported, UserError
from harness.measure.training import state as training_state
from methods.singd import catalogue, factories, stacks
from methods.singd.singd import SINGD
from methods.singd.structures import STRUCTURES

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves to")
FAST = {"lr": 0.05, "update_period": 2, "damping": 0.03, "lr_cov": 0.2, "block": 5, "ranks": (3, 4), "rank": 2}


@pytest.fixture(params=list(STRUCTURES))
def name(request):
    return request.param


def build(name, model, **options):
    return SINGD(model, **{**FAST, "structures": (name, name), **options})


def factors(optimizer):
    return [factor for layer in optimizer.layers for factor in optimizer.factors(layer)]


# -- invariances -------------------------------------------------------------------------------------------------------


def test_accumulation(name, nets, train, distance):
    make, batches = nets["mlp"]
    whole, pieces = make(), make()
    train(whole, build(name, whole), batches, 5)
    train(pieces, build(name, pieces), batches, 5, pieces=4)
    assert distance(pieces, whole) < 1e-10


def test_permutation_of_the_batch(name, nets, train, distance):
    make, batches = nets["conv"]
    one, other = make(), make()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    train(one, build(name, one), batches, 4)
    train(other, build(name, other), lambda k: tuple(t[order] for t in batches(k)), 4)
    assert distance(other, one) < 1e-9


def test_sum_and_mean_give_the_same_factors(name, nets, train):
    found = []
    for reduction in ("mean", "sum"):
        model = nets["conv"][0]()
        optimizer = build(name, model, reduction=reduction, lr=0.0, fallback_lr=0.0)
        train(model, optimizer, nets["conv"][1], 3, reduction=reduction)
        found.append(factors(optimizer))
    for mean, total in zip(*found, strict=True):
        torch.testing.assert_close(total, mean)


@pytest.mark.parametrize("how", ["scaler", "unscaled first", "grown"])
def test_loss_scaling_changes_nothing(how, name, nets, distance):
    if how != "scaler" and name not in ("dense", "tril-toeplitz"):
        pytest.skip("shared code")
    make, batches = nets["mlp"]
    plain, scaled = make(), make()
    growth = {"growth_interval": 1} if how == "grown" else {}
    for model, scaler in ((plain, None), (scaled, torch.amp.GradScaler("cpu", init_scale=1024.0, **growth))):
        known = scaler if how == "unscaled first" else None
        optimizer = build(name, model, grad_scaler=known, init_grad_scale=512.0 if scaler else 1.0)
        for k in range(5):
            optimizer.zero_grad()
            x, y = batches(k)
            loss = functional.cross_entropy(model(x), y)
            if scaler is None:
                loss.backward()
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                if how == "unscaled first":
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
    assert distance(scaled, plain) < 1e-6


def test_unscaled_gradients_need_the_scaler(nets):
    model, (x, y) = nets["mlp"][0](), nets["mlp"][1](0)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer = build("dense", model)
    scaler.scale(functional.cross_entropy(model(x), y)).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(Unsupported, match="grad_scaler=scaler"):
        scaler.step(optimizer)


def test_an_overflowed_step_changes_nothing_and_is_counted(name, nets, distance):
    make, (x, y) = nets["conv"][0], nets["conv"][1](0)
    model = make().eval()
    optimizer = build(name, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(functional.cross_entropy(model(x), y) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.counters == {"overflowed_steps": 1, "skipped_batches": 0}
    assert distance(model, make()) == 0.0
    assert all(torch.equal(f, torch.eye(f.shape[-1]).expand_as(f)) for f in factors(optimizer))


def test_a_batch_with_nan_is_skipped_and_counted(name, nets, train, distance):
    make, batches = nets["conv"]
    model = make().eval()
    optimizer = build(name, model, weight_decay=0.1)
    train(model, optimizer, batches, 2)
    before, held = copy.deepcopy(model), factors(optimizer)
    held = [f.clone() for f in held]
    x, y = batches(2)
    x[1, 0, 2, 3] = float("nan")
    train(model, optimizer, lambda k: (x, y), 1)
    assert optimizer.counters == {"overflowed_steps": 0, "skipped_batches": 1}
    assert distance(model, before) == 0.0
    assert all(torch.equal(a, b) for a, b in zip(factors(optimizer), held, strict=True))
    train(model, optimizer, batches, 3, first=3)
    assert distance(model, before) > 1e-4
    assert optimizer.counters["skipped_batches"] == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_low_precision_factors_stay_close_and_keep_their_dtype(dtype, name, nets, train, distance):
    make, batches = nets["conv"]
    exact, low = make().float(), make().float()

    def single(k):
        return batches(k)[0].float(), batches(k)[1]

    options = {"lr_cov": 0.05, "damping": 0.3}
    train(exact, build(name, exact, preconditioner_dtype="float64", **options), single, 5)
    optimizer = build(name, low, preconditioner_dtype=dtype, **options)
    train(low, optimizer, single, 5)
    assert {f.dtype for f in factors(optimizer)} == {getattr(torch, dtype)}
    assert {p.dtype for p in low.parameters()} == {torch.float32}
    assert distance(low, exact) < {"bfloat16": 0.05, "float16": 0.01, "float32": 1e-4}[dtype]


def test_half_weights_and_autocast(name, nets):
    for pure in (True, False):
        model = nets["conv"][0]().to(torch.bfloat16 if pure else torch.float32)
        optimizer = build(name, model, preconditioner_dtype="bfloat16")
        for k in range(3):
            optimizer.zero_grad()
            x, y = nets["conv"][1](k)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not pure):
                loss = functional.cross_entropy(model(x.bfloat16() if pure else x.float()).float(), y)
            loss.backward()
            optimizer.step()
        assert {f.dtype for f in factors(optimizer)} == {torch.bfloat16}
        assert all(p.isfinite().all() for p in model.parameters())
        assert optimizer.counters["skipped_batches"] == 0


# -- checkpoints and moves ---------------------------------------------------------------------------------------------


def test_resume_is_bitwise(name, nets, train):
    make, batches = nets["conv"]
    model = make()
    optimizer = build(name, model)
    train(model, optimizer, batches, 5)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    train(model, optimizer, batches, 4, first=5)
    buffer.seek(0)
    stored = torch.load(buffer, weights_only=True)
    other = make(1)
    other.load_state_dict(stored["model"])
    resumed = build(name, other)
    resumed.load_state_dict(stored["optimizer"])
    train(other, resumed, batches, 4, first=5)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert training_state.digest(resumed.state_dict()) == training_state.digest(optimizer.state_dict())


def test_a_checkpoint_of_another_model_or_structure_is_refused(nets):
    stored = build("dense", nets["conv"][0]()).state_dict()
    for other in (build("dense", nets["mlp"][0]()), build("diagonal", nets["conv"][0]())):
        with pytest.raises(UserError, match="same model"):
            other.load_state_dict(stored)


def test_a_model_that_is_cast_later(name, nets, train):
    make, batches = nets["mlp"]
    model = make()
    optimizer = build(name, model)
    train(model, optimizer, batches, 2)
    before = factors(optimizer)
    model.float()
    train(model, optimizer, lambda k: (batches(k)[0].float(), batches(k)[1]), 1, first=2)
    assert {f.dtype for f in factors(optimizer)} == {torch.float32}
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(factors(optimizer), before, strict=True))
    early = make()
    optimizer = build(name, early)
    early.float()
    train(early, optimizer, lambda k: (batches(k)[0].float(), batches(k)[1]), 3)
    assert {f.dtype for f in factors(optimizer)} == {torch.float32}


# -- models ------------------------------------------------------------------------------------------------------------


class Branches(nn.Module):
    """Four layers of one shape, of which a batch may use some only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList([nn.Linear(4, 4) for _ in range(4)])

    def forward(self, x, used):
        for i in used:
            x = torch.tanh(self.parts[i](x))
        return x


def test_unused_layers_in_a_stack_keep_their_state(name):
    model = Branches().double()
    optimizer = build(name, model, update_period=1)
    assert len(optimizer.stacks) == 1
    alone = []
    for k, used in enumerate([(0, 1, 2, 3), (1, 3), (3,), (0, 3), (), (2,)]):
        optimizer.zero_grad()
        before = [[f.clone() for f in optimizer.factors(layer)] for layer in optimizer.layers]
        weights = [layer.weight.detach().clone() for layer in optimizer.layers]
        x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        if used:
            model(x, used).square().sum().backward()
        optimizer.step()
        for i, layer in enumerate(optimizer.layers):
            same = all(torch.equal(a, b) for a, b in zip(optimizer.factors(layer), before[i], strict=True))
            assert same == (i not in used)
            assert torch.equal(layer.weight, weights[i]) == (i not in used)
        alone.append(optimizer.factors(optimizer.layers[3])[0])
    assert len(alone) == 6


def test_a_stack_gives_the_same_as_its_layers_alone(name, monkeypatch):
    models = []
    for largest in (1 << 26, 1):
        monkeypatch.setattr(stacks, "_LARGEST", largest)
        model = Branches().double()
        optimizer = build(name, model, update_period=1, weight_decay=0.1)
        assert len(optimizer.stacks) == (1 if largest > 1 else 4)
        for k in range(4):
            optimizer.zero_grad()
            x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
            model(x, range(4) if k != 2 else (0, 2)).square().sum().backward()
            optimizer.step()
        models.append(model)
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_a_tied_layer_has_the_rows_of_all_its_calls(name):
    torch.manual_seed(0)
    shared = nn.Linear(3, 3).double()
    model, x = nn.Sequential(shared, nn.Tanh(), shared), torch.randn(4, 3, dtype=torch.float64)
    optimizer = build(name, model, lr=0.0)
    assert len(optimizer.layers) == 1
    model(x).square().sum().backward()
    rows = torch.cat([x, torch.tanh(shared(x)).detach()])
    rows = torch.cat([rows, torch.ones(8, 1).double()], 1)
    kind, sums = optimizer.stacks[0].a.kind, optimizer.gather.read(optimizer.layers[0], None)[0]
    eye = kind.identity(1, torch.float64, "cpu")
    torch.testing.assert_close(kind.inner(eye, sums), kind.project(rows.mT[None] / 8**0.5))
    optimizer.step()


def test_a_weight_used_behind_its_modules_back_is_an_error(nets):
    model = nets["mlp"][0]()
    optimizer = build("dense", model)
    x, _ = nets["mlp"][1](0)
    functional.linear(model[0](x).tanh(), model[2].weight, model[2].bias).sum().backward()
    with pytest.raises(Unsupported, match=r"never called.*exclude=\['2'\]"):
        optimizer.step()


def test_a_compiled_loss_gives_the_same_steps(nets, distance):
    make, batches = nets["mlp"]
    models = [make(), make()]
    for model in models:
        optimizer = build("block", model)

        def loss(net, x, y):
            return functional.cross_entropy(net(x), y)

        call = torch.compile(loss, backend="aot_eager", dynamic=False) if model is models[1] else loss
        for k in range(4):
            optimizer.zero_grad()
            call(model, *batches(k)).backward()
            optimizer.step()
    assert distance(models[1], models[0]) < 1e-12
    assert distance(models[0], make()) > 1e-3


# -- the outside -------------------------------------------------------------------------------------------------------


def test_bytes_are_the_formulas(name, nets, train):
    for options in ({}, {"alpha1": 0.0, "momentum": 0.0}, {"preconditioner_dtype": ("bfloat16", "float64")}):
        model = nets["conv"][0]().float()
        optimizer = build(name, model, **options)
        train(model, optimizer, lambda k: (nets["conv"][1](k)[0].float(), nets["conv"][1](k)[1]), 3)
        usage, formula = optimizer.memory_usage(), optimizer.memory_formula()
        assert {key: usage[key] for key in formula} == formula
        assert usage["pending"] == 0
        assert usage["fallback"] == 8 * 2 * 4 + 2 * 4
    kind = optimizer.stacks[0].a.kind
    assert formula["factors"] == sum(
        layer.groups * (2 * type(kind)(layer.d_in, kind.sizes).count + 8 * type(kind)(layer.d_out, kind.sizes).count)
        for layer in optimizer.layers
    )


def test_parts_coverage_description_and_hooks(nets, train):
    model = nets["conv"][0]()
    optimizer = build("block", model, fallback="sgd", fallback_lr=0.1)
    assert optimizer.parts() == {"statistics": 0.0, "update": 0.0, "apply": 0.0}
    train(model, optimizer, nets["conv"][1], 2)
    assert all(seconds > 0 for seconds in optimizer.parts().values())
    assert optimizer.coverage == {"singd": 76 + 72 + 21, "sgd": 8}
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1]
    assert optimizer.describe()["structures"] == ["block", "block"]
    assert optimizer.describe()["layers"]["conv2"] == [2, 3, 12]
    assert training_state.hooks(model) == 3
    optimizer.close()
    optimizer.close()
    assert training_state.hooks(model) == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"damping": -1.0}, "damping is a number of at least 0; got -1.0"),
        ({"lr_cov": [[0, 0.1], [5, -1.0]]}, "lr_cov is a number of at least 0; got -1.0"),
        ({"update_period": 0}, "update_period is a whole number of at least 1; got 0"),
        ({"alpha1": 1.0}, "alpha1 is a number of at least 0 and below 1; got 1.0"),
        ({"structures": ("dense", "sparse")}, "structures is a pair of dense, diagonal"),
        ({"structures": ("dense",)}, "structures is a pair of"),
        ({"preconditioner_dtype": "int8"}, "preconditioner_dtype is a pair of weight, float32"),
        ({"kfac_like": True}, "alpha1 must be 0; got 0.5"),
        ({"ranks": (0, 0)}, "use structure diagonal"),
        ({"block": 0}, "block is a whole number of at least 1; got 0"),
        ({"products": "fp8"}, "products is one of default, tf32, bf16; got 'fp8'"),
        ({"dampling": 1.0}, "unknown hyper-parameter 'dampling'; known: lr, momentum, damping"),
        ({"exclude": ["nothing"]}, "matches no module"),
    ],
)
def test_wrong_hyper_parameters_are_refused(options, text, nets):
    with pytest.raises(UserError) as caught:
        factories.dense(nets["mlp"][0](), **options)
    assert text in str(caught.value)


def test_the_catalogue_names_what_the_factories_take(nets):
    methods = [value for value in vars(catalogue).values() if isinstance(value, catalogue.Method)]
    assert len(methods) == 12
    for method in methods:
        model = nets["mlp"][0]()
        default = getattr(factories, method.impl.split(":")[1])(model)
        hyper = {key: value for key, value in method.hyper.items() if key != "lr"}
        given = getattr(factories, method.impl.split(":")[1])(model, lr=method.hyper["lr"], **hyper)
        assert given.options.sizes == default.options.sizes
        assert given.describe() == default.describe()
        for key, value in hyper.items():
            held = getattr(default.options, key)
            assert value == (list(held) if isinstance(held, tuple) else held), (method.name, key)


_WORKER = """
import sys, torch
from torch import distributed, nn
from torch.nn import functional
from methods.singd.singd import SINGD
torch.set_num_threads(1)
rank, name, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if rank >= 0:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 3)).double()
optimizer = SINGD(model, 0.05, structures=(name, name), damping=0.1, lr_cov=0.2, update_period=2, block=5)
for k in range(4):
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(8, 2, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (8,), generator=generator)
    mine = slice(None) if rank < 0 else slice(4 * rank, 4 * rank + 4)
    optimizer.zero_grad()
    functional.cross_entropy(model(x[mine]), y[mine]).backward()
    if rank >= 0:
        for p in model.parameters():
            distributed.all_reduce(p.grad)
            p.grad /= 2
    optimizer.step()
torch.save([p.detach() for p in model.parameters()], f"{folder}/{rank}.pt")
"""


def test_two_ranks_take_the_steps_of_one(tmp_path, monkeypatch, warm):
    name = "tril-toeplitz"
    jobs = [warm.Popen([sys.executable, "-c", _WORKER, str(rank), name, str(tmp_path)]) for rank in (0, 1)]
    monkeypatch.setattr(sys, "argv", ["worker", "-1", name, str(tmp_path)])
    exec(_WORKER, {})
    assert [job.wait(timeout=200) for job in jobs] == [0, 0]
    alone, first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (-1, 0, 1))
    for one, two, three in zip(alone, first, second, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-12)
        assert torch.equal(two, three)
