import itertools
import math

import pytest
import torch
from torch import nn

from harness.catalogue import registry
from harness.catalogue.protocol import Protocol
from harness.catalogue.suite import Problem
from harness.catalogue.task import Stateful
from harness.errors import Unsupported
from harness.measure import gate, micro
from harness.measure.device import open_device
from suites import optimizer_step, optimizer_step_runtime
from suites.optimizer_step import NETWORKS, SUITE, scalars
from suites.optimizer_step_runtime import RUNTIME

METHODS = ("training.sgd", "training.adamw", "training.lars", "training.muon", "training.torch-muon")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A network of a few scalars with every role."""
    made = [
        optimizer_step.Weight("tokens.weight", (7, 6), "embedding"),
        optimizer_step.Weight("conv.weight", (5, 3, 3, 3)),
        optimizer_step.Weight("norm.weight", (5,)),
        optimizer_step.Weight("up.weight", (11, 6)),
        optimizer_step.Weight("up2.weight", (11, 6)),
        optimizer_step.Weight("down.weight", (6, 11)),
        optimizer_step.Weight("head.weight", (4, 6), "head"),
    ]
    monkeypatch.setattr(optimizer_step, "NETWORKS", {**NETWORKS, "tiny": made})
    monkeypatch.setattr(optimizer_step_runtime, "NETWORKS", {**NETWORKS, "tiny": made})
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problem(dtype="float32"):
    count = 42 + 135 + 5 + 66 * 3 + 24
    return Problem(kind="tiny", shape=(count,), dtype=dtype, device="cpu")


def check(method, dtype="float32"):
    device = open_device("cpu", True, "ieee")
    torch.set_num_threads(1)
    return gate.check(method=method, runtime=RUNTIME, problem=problem(dtype), device=device, seeds=2)


def test_networks_have_their_published_number_of_parameters():
    counts = {name: scalars(name) for name in NETWORKS}
    assert counts["vgg16_bn"] == 14_990_922
    assert counts["resnet18"] == 11_173_962
    assert counts["resnet50"] == 25_557_032
    assert counts["vit_b16"] == 86_567_656
    assert counts["gpt2_blocks"] == 12 * (12 * 768**2 + 13 * 768)
    assert counts["digits_cnn"] == 38_282
    for name, weights in NETWORKS.items():
        assert len({weight.name for weight in weights}) == len(weights), name
        assert all(math.prod(weight.shape) > 0 for weight in weights)


def test_the_suite_is_registered_with_problems_of_every_tier():
    assert registry.suite("optimizer_step") is SUITE
    assert {p.kind for p in SUITE.tier("standard", ("cuda",))} >= {"vgg16_bn", "resnet18", "gpt2_blocks", "vit_b16"}
    assert max(p.shape[0] for p in SUITE.tier("standard", ("cpu",))) < 10**6
    assert all(p.shape == (scalars(p.kind),) for p in SUITE.problems)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_every_method_passes_the_gate(name, dtype):
    outcome = check(registry.method(name), dtype)
    assert outcome.status == "passed", outcome.reason
    assert max(outcome.errors["descent_gap"]) < 0.9
    assert set(outcome.errors) == set(SUITE.task.errors)


class _Cheat(torch.optim.Optimizer):
    def __init__(self, model, change):
        super().__init__(list(model.parameters()), {})
        self.change = change

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            self.change(parameter)


def no_update(model):
    return _Cheat(model, lambda p: None)


def ascent(model):
    return _Cheat(model, lambda p: p.add_(p.grad, alpha=0.1))


def spoils_the_gradient(model):
    return _Cheat(model, lambda p: p.sub_(p.grad.mul_(0.1)))


def twice_the_rate(model, lr=0.1, **hyper):
    return torch.optim.SGD(model.parameters(), lr=2 * lr, momentum=0.9, nesterov=True)


def explodes(model):
    return _Cheat(model, lambda p: p.fill_(math.nan))


@pytest.mark.parametrize(
    ("impl", "status", "reason"),
    [
        (no_update, "inaccurate", "descent_gap is 3"),
        (ascent, "inaccurate", "down the gradient"),
        (spoils_the_gradient, "impure", "input was changed"),
        (explodes, "nonfinite", "NaN"),
    ],
)
def test_wrong_steps_are_refused(impl, status, reason, monkeypatch):
    from harness.catalogue.method import Method

    monkeypatch.setattr(gate, "resolve", lambda target: impl)
    outcome = check(Method(name="training.cheat", impl="x:y", summary="x", source="tests"))
    assert outcome.status == status
    assert reason in outcome.reason


def test_another_learning_rate_is_not_faithful(monkeypatch):
    resolved = {"methods.first_order.sgd:make": twice_the_rate}
    monkeypatch.setattr(gate, "resolve", lambda target: resolved.get(target) or registry.resolve(target))
    outcome = check(registry.method("training.sgd"))
    assert outcome.status == "unfaithful"
    assert 0.5 < max(outcome.errors["fidelity_error"]) < 2.0


@pytest.mark.parametrize("name", METHODS)
def test_a_rewound_step_gives_the_same_bits(name):
    method = registry.method(name)
    op = RUNTIME.bind(registry.resolve(method.impl), problem(), method.hyper)
    content = RUNTIME.content(problem(), 0)
    outputs = []
    for _ in range(3):
        RUNTIME.rewind(op)
        outputs.append(RUNTIME.snapshot(op(content)))
        op(RUNTIME.vary(content, 5))
    assert RUNTIME.same(outputs[0], outputs[1])
    assert RUNTIME.same(outputs[0], outputs[2])
    RUNTIME.rewind(op)
    op(content)
    assert not RUNTIME.same(outputs[0], RUNTIME.snapshot(op(content)))


def test_state_bytes_and_timing_of_a_bare_step():
    assert isinstance(RUNTIME, Stateful)
    method = registry.method("training.adamw")
    device = open_device("cpu", True, "ieee")
    torch.set_num_threads(1)
    content = RUNTIME.content(problem(), 3)
    op = RUNTIME.bind(registry.resolve(method.impl), problem(), method.hyper)
    peak = micro.memory_pass(op=op, runtime=RUNTIME, content=content, device=device)
    assert peak["optimizer_state_bytes"] == 4 * (2 * problem().shape[0] + 7)
    rewound, steps = [], []
    real = op.rewind
    op.rewind = lambda: (rewound.append(op.steps), real())
    clock = device.clocks()["op_s"]
    timed = clock.time
    clock.time = lambda call: (steps.append(len(rewound)), timed(call))[1]
    device.clocks = lambda: {"op_s": clock}
    timing = micro.time_arm(
        op=op, runtime=RUNTIME, problem=problem(), content=content, device=device,
        protocol=Protocol(inner_s=0.0, min_inner=4, max_inner=4),
    )  # fmt: skip
    assert len(timing.samples["op_s"][1]) == 5
    assert [after - before for before, after in itertools.pairwise(steps)] == [1, 1, 1, 1]
    assert RUNTIME.glance(timing.output, content, RUNTIME.oracle(content, problem()), problem())["descent_gap"] < 0.9


def test_content_depends_on_problem_and_seed_alone():
    first, again, other = (RUNTIME.content(problem(), seed) for seed in (1, 1, 2))
    assert RUNTIME.same(first, again)
    assert not RUNTIME.same(first, other)
    assert not RUNTIME.same(RUNTIME.vary(first, 2), RUNTIME.vary(first, 3))
    buffer = RUNTIME.buffer_like(first)
    RUNTIME.fill(buffer, other)
    assert RUNTIME.same(buffer, other)


@pytest.mark.parametrize("name", METHODS[:-1])
def test_the_descent_gap_is_the_same_for_every_content(name):
    """Blocks are held to the gate's worst, so the content's draw must not decide."""
    case = Problem(kind="digits_cnn", shape=(scalars("digits_cnn"),), dtype="float32", device="cpu")
    method = registry.method(name)
    op = RUNTIME.bind(registry.resolve(method.impl), case, method.hyper)
    gaps = []
    for seed in (0, 1, 1000, 1001):
        content = RUNTIME.content(case, seed)
        RUNTIME.rewind(op)
        gaps.append(RUNTIME.glance(op(content), content, RUNTIME.oracle(content, case), case)["descent_gap"])
    assert max(gaps) < 1.1 * min(gaps)


def test_hidden_state_is_refused():
    class Hidden(torch.optim.SGD):
        def state_dict(self):
            return {"hidden": torch.ones(3)}

    op = RUNTIME.bind(lambda model: Hidden(model.parameters(), lr=0.1), problem(), {})
    with pytest.raises(Exception, match="cannot be put back"):
        RUNTIME.rewind(op)


@pytest.mark.filterwarnings("ignore:.* leaves to ")
@pytest.mark.parametrize(
    "name", ["training.kfac-cholesky", "training.singd-dense", "training.fop", "training.fop-singd"]
)
def test_a_method_that_needs_the_layers_says_so(name):
    op = RUNTIME.bind(registry.resolve(registry.method(name).impl), problem(), {})
    with pytest.raises(Unsupported, match="needs the activations of a forward pass"):
        RUNTIME.rewind(op)


def test_roles_become_modules():
    model, parameters = optimizer_step_runtime.network(problem(), torch.float32)
    assert isinstance(model.tokens_weight, nn.Embedding)
    assert model.head_weight.weight is parameters[-1]
    assert len(list(model.parameters())) == 7
