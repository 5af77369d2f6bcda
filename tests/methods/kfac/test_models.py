"""Models and the outside of the optimizer: shared and unused layers, left-overs, casts, hooks, fallback."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.measure.training import state as training_state
from methods.kfac import factories, fallback
from methods.kfac.kfac import KFAC
from methods.kfac.options import parse

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves to")


def test_a_tied_layer_has_the_rows_of_all_its_calls(factors):
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


def test_a_model_cast_after_construction(nets, train, build, factors):
    model = nets["conv"][0]().float()
    optimizer = build("ekfac", model)
    train(model, optimizer, lambda k: (nets["conv"][1](k)[0].float(), nets["conv"][1](k)[1]), 3)
    model.double()
    train(model, optimizer, nets["conv"][1], 5, first=3)
    assert {t.dtype for t in factors(optimizer).values()} == {torch.float64}
    assert all(p.isfinite().all() for p in model.parameters())


def test_in_place_activations_and_evaluation_do_not_disturb(nets, train, distance, build):
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


def test_close_removes_every_hook(nets, train, build):
    model = nets["conv"][0]()
    assert training_state.hooks(model) == 0
    optimizer = build("cholesky", model, fisher="type-2")
    assert training_state.hooks(model) == 4
    optimizer.close()
    optimizer.close()
    assert training_state.hooks(model) == 0


def test_parts_memory_and_sgd_fallback(nets, train, build):
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


def test_a_compiled_loss_gives_the_same_steps(nets, distance, build):
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
