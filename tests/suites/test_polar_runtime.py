"""The gate of the polar task: what passes, what is refused, and why."""

from __future__ import annotations

import math

import pytest
import torch

from harness.catalogue.suite import Problem
from harness.errors import UserError
from suites import polar, polar_cache, polar_runtime
from suites.polar_runtime import RUNTIME


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(polar_cache.VARIABLE, str(tmp_path / "cache"))


def problem(shape: tuple[int, ...] = (24, 40), dtype: str = "float32") -> Problem:
    return Problem(kind="gaussian", shape=shape, dtype=dtype)


def judged(change, shape=(24, 40), dtype="float32", reference=None):
    """Judge ``change(exact)`` for a gaussian input, ``exact`` being the float64 polar factor."""
    one = problem(shape, dtype)
    content = RUNTIME.content(one, 0)

    def plain(g: torch.Tensor) -> torch.Tensor:
        return reference(exact(g)).to(g.dtype)

    output = change(exact(content)).to(content.dtype)
    return RUNTIME.judge(output, content, RUNTIME.oracle(content, one), one, plain if reference else None)


def exact(g: torch.Tensor) -> torch.Tensor:
    u, _, vh = torch.linalg.svd(g.double(), full_matrices=False)
    return u @ vh


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (17, 17), (2, 9, 5), (7, 6, 8)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_the_exact_answer_passes(shape, dtype):
    verdict = judged(lambda x: x, shape, dtype)
    assert verdict.status == "passed"
    assert verdict.reason is None
    assert set(verdict.errors) == set(polar.ERRORS) - {"fidelity_error", "fidelity_full"}
    roundoff = {"float32": 1e-6, "float64": 1e-12, "float16": 1e-3, "bfloat16": 1e-2}[dtype]
    for metric in ("polar_error", "orthogonality_error", "projected_error"):
        assert verdict.errors[metric] < roundoff
    for metric in ("cosine", "sigma_min", "sigma_p50", "sigma_max"):
        assert verdict.errors[metric] == pytest.approx(1, abs=roundoff)
    assert abs(verdict.errors["dual_gap"]) < roundoff


def test_the_negated_answer_is_inaccurate():
    for reference in (None, lambda x: -x):
        verdict = judged(lambda x: -x, reference=reference)
        assert verdict.status == "inaccurate"
        assert verdict.reason is not None
        assert "cosine with the polar factor is -1" in verdict.reason
        assert verdict.errors["orthogonality_error"] < 1e-6  # which is why orthogonality alone is no gate


def test_wrong_but_finite_answers_are_inaccurate():
    assert judged(torch.zeros_like).status == "inaccurate"
    turned = judged(lambda x: torch.linalg.qr(x.mT)[0].mT.roll(1, 0) + 0.1 * x)
    assert turned.status == "inaccurate"
    constant = judged(lambda x: torch.full_like(x, 0.01))
    assert constant.status == "inaccurate"


@pytest.mark.parametrize(
    ("factor", "status", "metric"),
    [
        (0.71, "passed", None),
        (0.69, "inaccurate", "projected_error"),
        (1.29, "passed", None),
        (1.31, "inaccurate", "projected_error"),
        (1e-8, "inaccurate", "projected_error"),
        (1e20, "inaccurate", "projected_error"),
    ],
)
def test_scaled_answers(factor, status, metric):
    verdict = judged(lambda x: factor * x)
    assert verdict.status == status
    assert metric is None or metric in str(verdict.reason)
    if metric is None:
        assert verdict.errors["projected_error"] == pytest.approx(abs(factor - 1), rel=1e-4)


def test_an_overshoot_in_one_direction_is_inaccurate():
    def overshoot(x: torch.Tensor) -> torch.Tensor:
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        s[0] = 2.1
        return (u * s) @ vh

    verdict = judged(overshoot, (64, 64))
    assert verdict.status == "inaccurate"
    assert verdict.reason == "sigma_max is 2.1, its limit 2"
    assert verdict.errors["projected_error"] < 0.3


def test_absurd_and_nonfinite_entries_do_not_break_the_judge():
    for value in (1e35, math.inf, math.nan):
        verdict = judged(lambda x, value=value: torch.full_like(x, value))
        assert verdict.status == "inaccurate"
        assert verdict.reason is not None
        assert "entry" in verdict.reason


@pytest.mark.parametrize(("dtype", "limit"), sorted(polar_runtime.FIDELITY_LIMIT.items()))
def test_fidelity_gate_by_dtype(dtype, limit):
    inside = judged(lambda x: 0.5 * (1 + 0.8 * limit) * x, dtype=dtype, reference=lambda x: 0.5 * x)
    assert inside.status == "passed"  # accuracy (0.5) is the method's price, not its gate
    assert inside.errors["projected_error"] > 0.4
    outside = judged(lambda x: (1 + 1.5 * limit) * x, dtype=dtype, reference=lambda x: x)
    assert outside.status == "unfaithful"
    assert outside.reason is not None
    assert outside.reason.startswith("fidelity_error is")
    if dtype == "float64":
        assert outside.errors["fidelity_error"] == pytest.approx(1.5 * limit, rel=1e-6)


def test_only_the_judged_members_are_computed_by_the_reference():
    one = problem((30, 4, 6))
    content = RUNTIME.content(one, 0)
    before = RUNTIME.snapshot(content)
    seen = []

    def reference(member: torch.Tensor) -> torch.Tensor:
        seen.append(member.clone())
        return exact(member.zero_() + seen[-1]).float()

    oracle = RUNTIME.oracle(content, one)
    assert RUNTIME.judge(exact(content).float(), content, oracle, one, reference).status == "passed"
    assert [RUNTIME.same(member, before[part.index]) for member, part in zip(seen, oracle.parts, strict=True)] == [
        True
    ] * 4
    assert RUNTIME.same(content, before)


def test_a_broken_reference_is_unfaithful():
    verdict = judged(lambda x: x, reference=lambda x: torch.full_like(x, math.nan))
    assert verdict.status == "unfaithful"


def test_metrics_of_a_known_output():
    one = problem((3, 3), "float64")
    g = torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64))
    output = torch.diag(torch.tensor([1.1, 0.9, 0.8], dtype=torch.float64))
    errors = RUNTIME.judge(output, g, RUNTIME.oracle(g, one), one, None).errors
    assert errors["polar_error"] == pytest.approx(math.sqrt((0.01 + 0.01 + 0.04) / 3))
    assert errors["orthogonality_error"] == pytest.approx(math.sqrt((0.21**2 + 0.19**2 + 0.36**2) / 3))
    assert errors["projected_error"] == pytest.approx(errors["polar_error"])
    assert (errors["sigma_min"], errors["sigma_p50"], errors["sigma_max"]) == pytest.approx((0.8, 0.9, 1.1))
    assert errors["sigma_p02"] == pytest.approx(0.804)
    assert errors["sigma_p98"] == pytest.approx(1.092)
    assert errors["dual_gap"] == pytest.approx(1 - (4.4 + 1.8 + 0.8) / 7)
    assert errors["cosine"] == pytest.approx(2.8 / math.sqrt(3 * (1.21 + 0.81 + 0.64)))
    assert errors["bias_floor"] == pytest.approx(0, abs=1e-12)


def test_the_worst_member_of_a_batch_decides():
    one = problem((4, 12, 20), "float64")
    content = RUNTIME.content(one, 0)
    oracle = RUNTIME.oracle(content, one)
    output = torch.stack([part.polar for part in oracle.parts])
    output[2] *= 0.5
    verdict = RUNTIME.judge(output, content, oracle, one, None)
    assert verdict.status == "inaccurate"
    assert verdict.errors["projected_error"] == pytest.approx(0.5)
    assert verdict.errors["sigma_min"] == pytest.approx(0.5)
    assert verdict.errors["sigma_max"] == pytest.approx(1)
    assert verdict.errors["cosine"] == pytest.approx(1)


def test_malformed_outputs():
    one = problem()
    buffer = RUNTIME.content(one, 0)
    good = torch.empty_like(buffer)

    class Lazy(torch.Tensor):
        pass

    cases = {
        "expected a torch.Tensor, got builtins.NoneType": None,
        "got numpy.ndarray": good.numpy(),
        "got torch.nn.parameter.Parameter": torch.nn.Parameter(good),
        "Lazy": good.as_subclass(Lazy),
        "expected shape 24x40, got 40x24": good.mT,
        "expected dtype torch.float32, got torch.float64": good.double(),
        "expected device cpu, got meta": good.to("meta"),
        "expected layout": good.to_sparse(),
        "lazily negated": torch._neg_view(good),
        "shares the input's memory": buffer.view_as(buffer),
    }
    for message, output in cases.items():
        found = RUNTIME.malformed(output, buffer, one)
        assert found is not None, message
        assert message in found
    assert RUNTIME.malformed(good, buffer, one) is None
    assert RUNTIME.malformed(good.mT.contiguous().mT, buffer, one) is None  # strides are free


def test_nonfinite_is_counted():
    output = torch.zeros(3, 4, 5)
    assert RUNTIME.nonfinite(output) is None
    output[1, 2, 3], output[2, 0, 0], output[0, 0, 0] = math.nan, math.inf, -math.inf
    assert RUNTIME.nonfinite(output) == "1 elements are NaN and 2 infinite, of 60"
    assert RUNTIME.nonfinite(output[0, :1]) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_same_is_bitwise_with_nan_equal(dtype, monkeypatch):
    monkeypatch.setattr(polar_runtime, "PIECE", 16)  # several pieces, also inside a matrix
    one = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    other = RUNTIME.snapshot(one)
    assert RUNTIME.same(one, other)
    one[2, 6, 4] = other[2, 6, 4] = math.nan
    assert RUNTIME.same(one, other)
    other[2, 6, 4] = -other[2, 6, 4]  # another NaN pattern is still NaN
    assert RUNTIME.same(one, other)
    other[2, 6, 4] = 1.0
    assert not RUNTIME.same(one, other)
    zero = torch.zeros(2, 2, dtype=dtype)
    assert not RUNTIME.same(zero, -zero)
    assert not RUNTIME.same(zero, zero.reshape(4, 1))
    assert not RUNTIME.same(zero, zero.half())
    assert RUNTIME.same(one.mT, one.mT.contiguous())


def test_buffers_and_variations():
    content = RUNTIME.content(problem(), 0)
    buffer = RUNTIME.buffer_like(content)
    RUNTIME.fill(buffer, content)
    assert RUNTIME.same(buffer, content)
    assert buffer.data_ptr() != content.data_ptr()
    varied = [RUNTIME.vary(content, step) for step in range(1, 20)]
    assert len({tuple(v.flatten().tolist()) for v in [content, *varied]}) == 20
    assert all(torch.equal(v.abs(), content.abs()) for v in varied)


def test_bind():
    def double(g: torch.Tensor) -> torch.Tensor:
        return 2 * g

    op = RUNTIME.bind(double, problem(), {})
    assert torch.equal(op(torch.ones(2, 2)), torch.full((2, 2), 2.0))
    with pytest.raises(UserError, match="steps"):
        RUNTIME.bind(double, problem(), {"steps": 4})
    with pytest.raises(UserError, match="function"):
        RUNTIME.bind("text", problem(), {})


def test_planned_work():
    assert RUNTIME.work_bytes(problem((8, 4, 6), "bfloat16")) == 8 * 4 * 6 * 2
    assert RUNTIME.work_flops(problem((8, 4, 6))) == 8 * 5 * (4 * 16 * 6 + 2 * 64)
    assert RUNTIME.work_flops(problem((6, 4))) == RUNTIME.work_flops(problem((4, 6)))
