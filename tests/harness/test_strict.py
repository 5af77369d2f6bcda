"""Cheats that need torch: memory never written, lazy tensors, negated outputs, on the real task."""

import pytest

torch = pytest.importorskip("torch")

from harness.catalogue import registry
from harness.catalogue.method import Method
from harness.catalogue.suite import Problem
from harness.measure import gate
from harness.measure.device import open_device

PROBLEM = Problem(kind="gaussian", shape=(24, 40), dtype="float32")


def exact(G):
    U, _, Vh = torch.linalg.svd(G.double(), full_matrices=False)
    return (U @ Vh).to(G.dtype)


def uninitialised(G):
    out = torch.empty_like(G)
    out[:-1] = exact(G)[:-1]
    return out


def negated(G):
    return -exact(G)


class Lazy(torch.Tensor):
    """Would compute when it is read, outside the clock."""


def lazy(G):
    return exact(G).as_subclass(Lazy)


def negative_view(G):
    return torch._neg_view(-exact(G))


def aliases(G):
    return G.view_as(G)


def half(G):
    return exact(G).half()


_OUT = []


def own_buffer(G):
    if not _OUT or _OUT[0].shape != G.shape:
        _OUT[:] = [torch.empty_like(G)]
    return _OUT[0].copy_(exact(G))


def view_of_own_buffer(G):
    return own_buffer(G)[:]


def in_place(G):
    return G.div_(G.norm())


@pytest.fixture
def check(monkeypatch):
    runtime = registry.resolve(registry.suite("polar").task.runtime)
    device = open_device("cpu", True, "ieee")

    def run(function, problem=PROBLEM):
        monkeypatch.setattr(gate, "resolve", lambda target: globals()[target.split(":")[1]])
        method = Method(name="polar.cheat", impl=f"x:{function.__name__}", summary="x", source="tests")
        return gate.check(method=method, runtime=runtime, problem=problem, device=device, seeds=3)

    return run


@pytest.mark.parametrize(
    ("cheat", "status", "reason"),
    [
        (uninitialised, "nonfinite", "NaN"),
        (negated, "inaccurate", "cosine"),
        (lazy, "error", "expected a torch.Tensor"),
        (negative_view, "error", "lazily negated"),
        (aliases, "error", "shares the input's memory"),
        (half, "error", "dtype"),
        (own_buffer, "impure", "outputs share memory"),
        (view_of_own_buffer, "impure", "outputs share memory"),
        (in_place, "error|impure", "input"),
    ],
)
def test_a_cheat_on_tensors_is_caught(check, cheat, status, reason):
    outcome = check(cheat)
    assert outcome.status in status.split("|"), outcome
    assert reason in outcome.reason


def fewer_threads(G):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    return exact(G)


def test_changing_what_all_arms_share_is_impure_and_undone(check):
    threads = torch.get_num_threads()
    outcome = check(fewer_threads)
    assert outcome.status == "impure"
    assert "default dtype" in outcome.reason
    assert torch.get_num_threads() == threads
    assert torch.get_default_dtype() == torch.float32


def rescaled(G):
    return G / G.norm() * (0.76 * min(G.shape) ** 0.5)


def test_a_rescaled_input_is_no_polar_factor(check):
    """At 1024 a gaussian divided by a constant lies within the projected gate; it must still be refused."""
    outcome = check(rescaled, Problem(kind="gaussian", shape=(1024, 1024), dtype="float32"))
    assert outcome.status == "inaccurate"
    assert "polar_error" in outcome.reason


def test_another_coefficient_table_is_not_faithful(monkeypatch):
    """Four steps of one table in the place of five of another: inside the projection they look alike."""
    from methods.orthogonalize.newton_schulz import tail4_torch

    runtime = registry.resolve(registry.suite("polar").task.runtime)
    problem = Problem(kind="gaussian", shape=(512, 512), dtype="bfloat16")
    content = runtime.content(problem, 0)
    reference = registry.resolve(registry.method("polar.ns-torch").reference)
    oracle = runtime.oracle(content, problem)
    swapped = runtime.judge(tail4_torch(content), content, oracle, problem, reference)
    assert swapped.status == "unfaithful"
    assert "fidelity_full" in swapped.reason
    honest = runtime.judge(registry.load("polar.ns-torch")(content), content, oracle, problem, reference)
    assert honest.status == "passed", honest.reason
    assert honest.errors["fidelity_full"] < 0.06


def test_the_honest_one_passes_and_reports_its_errors(check):
    outcome = check(exact)
    assert outcome.status == "passed", outcome.reason
    assert len(outcome.errors["polar_error"]) == 3
    assert max(outcome.errors["polar_error"]) < 1e-6
    assert outcome.first_call_s > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_work_on_another_stream_is_caught():
    device = open_device("cuda", True, "ieee")
    runtime = registry.resolve(registry.suite("polar").task.runtime)
    side = torch.cuda.Stream()

    def escapes(G):
        out = torch.zeros_like(G)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(200_000_000)
            out.copy_(exact(G))
        return out

    output = escapes(torch.randn(64, 64, device="cuda"))
    assert "another stream" in device.late(lambda: runtime.snapshot(output), runtime.same)


@pytest.mark.parametrize("mode", ["ieee", "tf32", "torch-default"])
def test_precision_modes_set_both_switches(mode):
    from harness.measure.device import set_precision

    set_precision(mode)
    assert torch.backends.cuda.matmul.allow_tf32 == (mode == "tf32")
    assert torch.backends.cudnn.allow_tf32 == (mode != "ieee")
    set_precision("ieee")
