"""The suite ``preconditioning``: inputs, gate, and wrong back-ends that it must catch."""

from types import SimpleNamespace

import pytest
import torch

from harness.catalogue import registry
from harness.catalogue.method import Method
from harness.catalogue.suite import Problem
from harness.catalogue.task import Stateful
from harness.errors import UserError
from harness.measure import gate, micro, plan
from harness.measure.device import open_device
from methods.kfac import preconditioning
from methods.kfac.inverse_plain import ExactLowRank
from methods.kfac.preconditioner_rows import Brand
from suites import preconditioning_inputs as inputs
from suites.preconditioning import SUITE, WIDEST, WIDTHS
from suites.preconditioning_runtime import RUNTIME

EXACT = ("cholesky", "cholesky-solve", "torch-inv", "eigh", "newton-schulz")
LOW_RANK = ("rsvd", "sre", "subspace")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problem(kind="refresh", shape=(16, 40), dtype="float32"):
    return Problem(kind=kind, shape=shape, dtype=dtype, params={"damping": 0.01, "decay": 0.95})


def check(method, made, **hyper):
    found = registry.method(f"preconditioning.{method}") if isinstance(method, str) else method
    found = Method(**{**{f: getattr(found, f) for f in found.__dataclass_fields__}, "hyper": {**found.hyper, **hyper}})
    device = open_device("cpu", True, "ieee")
    torch.set_num_threads(1)
    return gate.check(method=found, runtime=RUNTIME, problem=made, device=device, seeds=2)


def test_the_suite_is_registered_with_the_claimed_widths():
    assert registry.suite("preconditioning") is SUITE
    grid = {p.shape[1] for p in SUITE.tier("standard", ("cuda",)) if p.kind == "refresh" and p.shape[0] == 256}
    assert grid == set(WIDTHS)
    assert any(p.shape[1] == WIDEST for p in SUITE.tier("full", ("cuda",)))
    assert all(p.shape[1] <= 256 for p in SUITE.tier("quick", ("cpu",)))
    assert len({p.id for p in SUITE.problems}) == len(SUITE.problems)
    assert isinstance(RUNTIME, Stateful)


@pytest.mark.parametrize("width", [1, 2, 17, 64, 97])
def test_the_mixing_is_orthogonal_for_every_width(width):
    basis = inputs.mixed(torch.eye(width, dtype=torch.float64), 3)
    assert torch.allclose(basis.mT @ basis, torch.eye(width, dtype=torch.float64), atol=1e-12)
    if width > 16:
        assert basis.abs().max() < 0.95


def test_factors_have_the_declared_spectrum_and_rows_its_mean():
    made = problem(shape=(16, 30), dtype="float64")
    values = torch.linalg.eigvalsh(inputs.prior(made, 30)).flip(0)
    assert torch.allclose(values, inputs.spectrum(made, 30), atol=1e-12)
    assert values[0] == pytest.approx(1.0)
    assert int((values >= 1 / 33).sum()) == 10
    many = inputs.rows(made, 30, 40_000, 0)
    assert (many.mT @ many / len(many) - inputs.prior(made, 30)).norm() < 0.05


@pytest.mark.parametrize("kind", ["refresh", "apply", "update"])
@pytest.mark.parametrize("method", EXACT)
def test_exact_back_ends_solve_the_dense_system(method, kind):
    outcome = check(method, problem(kind))
    assert outcome.status == "passed", outcome.reason
    assert max(outcome.errors["solve_error"]) < 1e-4
    assert set(outcome.errors) <= set(SUITE.task.errors)


@pytest.mark.parametrize("method", LOW_RANK)
def test_low_rank_back_ends_are_exact_at_full_rank_and_pay_below(method):
    full = check(method, problem(), rank=40)
    assert full.status == "passed", full.reason
    assert max(full.errors["solve_error"]) < 1e-3
    cut = check(method, problem(), rank=12)
    assert cut.status == "passed", cut.reason
    assert min(cut.errors["solve_error"]) > 2 * max(cut.errors["fidelity_error"]) > 0


def test_brand_follows_the_mean_while_it_fits_and_refuses_narrow_layers():
    outcome = check("brand", problem(shape=(8, 40)), rank=24)
    assert outcome.status == "passed", outcome.reason
    assert max(outcome.errors["fidelity_error"]) < 5e-2
    refused = check("brand", problem(shape=(16, 40)), rank=24)
    assert refused.status == "unsupported"
    assert "24 + 16" in refused.reason


def test_brand_is_exact_where_nothing_is_cut():
    rows = torch.randn(3, 5, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = Brand(4, 30, damping=0.1, decay=0.9, rank=20, oversampling=2, power=2)
    mean = torch.zeros(30, 30, dtype=torch.float64)
    for index, batch in enumerate(rows):
        layer.update(batch)
        layer.refresh()
        mean = (0.9 * mean + 0.1 * batch.mT @ batch / 5) if index else batch.mT @ batch / 5
    gradient = torch.eye(4, 30, dtype=torch.float64)
    wanted = torch.linalg.solve(mean + 0.1 * torch.eye(30), gradient.mT).mT
    assert torch.allclose(layer.precondition(gradient), wanted, atol=1e-10)


def test_seng_inverts_the_empirical_fisher():
    outcome = check("seng", problem(shape=(12, 40)))
    assert outcome.status == "passed", outcome.reason
    assert max(outcome.errors["fidelity_error"]) < 1e-5
    generator = torch.Generator().manual_seed(1)
    a, g, v = (torch.randn(*s, dtype=torch.float64, generator=generator) for s in ((6, 5), (6, 3), (3, 5)))
    layer = preconditioning.seng(3, 5, damping=0.3)
    layer.update(a, g)
    layer.refresh()
    rows = torch.stack([torch.outer(g[n], a[n]).flatten() for n in range(6)]) / 6**0.5
    wanted = torch.linalg.solve(0.3 * torch.eye(15) + rows.mT @ rows, v.flatten()).reshape(3, 5)
    assert torch.allclose(layer.precondition(v), wanted, atol=1e-12)


def test_methods_on_rows_have_no_factor_to_update():
    for method in ("brand", "seng"):
        outcome = check(method, problem("update"))
        assert outcome.status == "unsupported"
        assert "no running factor" in outcome.reason


class _Wrong:
    """Cholesky with one thing wrong; subclasses say what."""

    def __new__(cls, d_out, d_in, damping=0.01, decay=0.95):
        made = preconditioning.cholesky(d_out, d_in, damping=damping, decay=decay)
        return cls.spoilt(made, damping)


def _replaced(**methods):
    class Spoilt(_Wrong):
        @staticmethod
        def spoilt(made, damping):
            for name, function in methods.items():
                setattr(made, name, SimpleNamespace(made=made, call=function).call.__get__(made))
            return made

    return Spoilt


WRONG = {
    "undamped": _replaced(refresh=lambda self: (setattr(self, "damping", 1e-4), type(self).refresh(self))[1]),
    "stale": _replaced(refresh=lambda self: None),
    "identity": _replaced(precondition=lambda self, v: v.clone()),
    "nan": _replaced(precondition=lambda self, v: v * float("nan")),
    "alias": _replaced(precondition=lambda self, v: v),
}


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("undamped", "inaccurate"),
        ("stale", "inaccurate"),
        ("identity", "inaccurate"),
        ("nan", "nonfinite"),
        ("alias", "error"),
    ],
)
def test_a_wrong_back_end_is_caught(monkeypatch, name, status):
    monkeypatch.setattr(preconditioning, "spoilt_for_test", WRONG[name], raising=False)
    wrong = Method(
        name="preconditioning.wrong",
        impl="methods.kfac.preconditioning:spoilt_for_test",
        summary="wrong",
        source="this test",
        hyper={"damping": 0.01, "decay": 0.95},
    )
    assert check(wrong, problem()).status == status


@pytest.mark.parametrize(
    ("kind", "shape"), [("refresh", (16, 640)), ("refresh_flat", (16, 1200)), ("apply", (640, 640))]
)
def test_an_inverse_without_its_factor_is_caught_at_every_width(monkeypatch, kind, shape):
    """V / lam is close to the inverse of a wide factor in most of its directions, but not in those that matter."""
    sides = 2 if kind == "apply" else 1
    monkeypatch.setattr(
        preconditioning, "spoilt_for_test", _low_rank_without_modes(preconditioning.rsvd, sides), raising=False
    )
    found = registry.method("preconditioning.rsvd")
    fields = {f: getattr(found, f) for f in found.__dataclass_fields__}
    wrong = Method(**{**fields, "impl": "methods.kfac.preconditioning:spoilt_for_test"})
    outcome = check(wrong, problem(kind, shape), rank=40)
    assert outcome.status == "unfaithful"
    assert "fidelity_residual" in outcome.reason


def _low_rank_without_modes(factory, sides):
    def make(d_out, d_in, **options):
        made = factory(d_out, d_in, **options)
        made.precondition = lambda v: v / made.damping**sides
        return made

    return make


def test_calls_start_from_the_same_state_and_blocks_time_them():
    made = problem()
    op = RUNTIME.bind(registry.load("preconditioning.newton-schulz"), made, {"iterations": 1})
    content = RUNTIME.content(made, 5)
    outputs = []
    for _ in range(2):
        RUNTIME.rewind(op)
        outputs.append(op(content))
    assert RUNTIME.same(outputs[0], outputs[1])
    assert not RUNTIME.same(outputs[0], op(content))  # one more iteration from the inverse just found
    device = open_device("cpu", True, "ieee")
    timing = micro.time_arm(
        op=op, runtime=RUNTIME, problem=made, content=content, device=device, protocol=SUITE.protocol
    )
    assert min(timing.samples["op_s"][1]) > 0
    RUNTIME.rewind(op)
    assert RUNTIME.same(timing.output, op(content))
    held = RUNTIME.held_bytes(op)["state_bytes"]
    assert held >= 2 * 40 * 40 * 4


def test_contents_differ_by_seed_and_step_and_leave_the_factor_symmetric():
    made = problem()
    one, two = RUNTIME.content(made, 0), RUNTIME.content(made, 1)
    assert not RUNTIME.same(one, two)
    assert not RUNTIME.same(RUNTIME.vary(one, 1), RUNTIME.vary(one, 2))
    assert torch.equal(one["factor"], one["factor"].mT)
    assert RUNTIME.work_flops(made) > 0
    assert RUNTIME.work_bytes(made) == 4 * (16 * 40 + 1600)


def test_the_twin_of_wide_factors_finds_the_leading_pairs_without_a_full_decomposition(monkeypatch):
    made = problem(shape=(8, 60), dtype="float64")
    factor = inputs.prior(made, 60)[None]
    full = ExactLowRank(rank=10).leading(factor)
    monkeypatch.setattr(ExactLowRank, "DENSE_UP_TO", 20)
    part = ExactLowRank(rank=10).leading(factor)
    assert part[0].shape == (1, 20)
    assert torch.allclose(part[0][:, :10], full[0][:, :10], rtol=1e-9)
    assert torch.allclose((part[1][0, :, :10].mT @ full[1][0, :, :10]).abs(), torch.eye(10).double(), atol=1e-6)


def test_a_problem_of_one_of_two_suites_leaves_the_other_out():
    request = plan.Request(suites=("preconditioning", "polar"), problems=("apply-64x256-float32-cpu",), device="cpu")
    [part] = plan.build(request).suites
    assert (part.suite.name, [problem.id for problem in part.problems]) == ("preconditioning", [*request.problems])
    with pytest.raises(UserError, match="unknown problem 'nope'"):
        plan.build(plan.Request(suites=("preconditioning", "polar"), problems=("nope",), device="cpu"))
    with pytest.raises(UserError, match="no suite has a problem of those named on cpu"):
        plan.build(plan.Request(problems=("apply-512x1153-float32-cuda",), device="cpu"))
