"""Streams, walks and judgements of the robustness suite on cases whose outcome is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.catalogue import registry
from harness.errors import UnknownName
from harness.record.store import read_headers, read_runs
from suites import robustness, robustness_drive
from suites.robustness_drive import Trace, judged, walk
from suites.robustness_streams import Stream

SHAPE = (5, 7)


def stream(**params: float) -> Stream:
    return Stream(SHAPE, 400, 10, {"condition": 2, **params}, 0)


def moments(one: Stream, step: int) -> tuple[Tensor, Tensor]:
    a, b = one.batch(step, torch.float64)
    return a.mT @ a / len(a), len(b) * b.mT @ b


def mean_moments(one: Stream, steps: range) -> tuple[Tensor, Tensor]:
    found = [moments(one, step) for step in steps]
    return sum(a for a, _ in found) / len(found), sum(g for _, g in found) / len(found)  # type: ignore[return-value]


def test_second_moments_have_the_spectrum_that_is_asked_for() -> None:
    for matrix, width in zip(mean_moments(stream(), range(50)), reversed(SHAPE), strict=True):
        wanted = torch.logspace(-2, 0, width, dtype=torch.float64)
        assert torch.linalg.eigvalsh(matrix).log10().allclose(wanted.log10(), atol=0.05)


def test_scaling_a_up_scales_g_down_so_that_the_fisher_stays() -> None:
    plain, scaled = stream(), stream(scale=8)
    (a, g), (large, small) = moments(plain, 3), moments(scaled, 3)
    assert (large / a).allclose(torch.full_like(a, 1e8))
    assert (small / g).allclose(torch.full_like(g, 1e-8))
    assert plain.gradient().equal(scaled.gradient())


def test_a_jump_comes_half_way_and_moves_a_alone() -> None:
    plain, jumping = stream(), stream(jump=4)
    assert all(x.equal(y) for x, y in zip(plain.batch(4, torch.float32), jumping.batch(4, torch.float32), strict=True))
    a, b = jumping.batch(5, torch.float64)
    assert (a / plain.batch(5, torch.float64)[0]).allclose(torch.full_like(a, 100.0))
    assert b.equal(plain.batch(5, torch.float64)[1])


def test_rank_and_rounding() -> None:
    a, _ = stream(rank=0.25).batch(0, torch.float64)
    assert int(torch.linalg.matrix_rank(a)) == 2  # a quarter of seven
    half, exact = stream().batch(1, torch.bfloat16)[0], stream().batch(1, torch.float64)[0]
    assert half.equal(exact.to(torch.bfloat16))
    assert not stream().batch(1, torch.float64)[0].equal(stream().batch(2, torch.float64)[0])
    gradient = stream().gradient()
    assert gradient.equal(gradient.to(torch.bfloat16).float())
    assert float(gradient.norm()) == pytest.approx(1.0, rel=1e-2)


def test_the_target_is_the_damped_solve_of_the_mean_moments() -> None:
    one = stream(scale=2)
    a, g = mean_moments(one, range(200))
    eye = [torch.eye(len(m), dtype=torch.float64) for m in (g, a)]
    wanted = torch.linalg.inv(g + 1e-2 * eye[0]) @ one.gradient().double() @ torch.linalg.inv(a + 1e-2 * eye[1])
    assert float((one.target(1e-2) - wanted).norm() / wanted.norm()) < 0.05


class Descent(torch.optim.Optimizer):
    """w <- w - factor^step g; the factors' dtype is accepted, as the walk hands it over."""

    factor = 1.0
    stop = math.inf

    def __init__(self, model: nn.Module, lr: float, momentum: float, weight_decay: float, preconditioner_dtype: str):
        super().__init__(model.parameters(), {"lr": lr})
        self.count, self.told = 0, preconditioner_dtype

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    size = self.factor**self.count if self.count < self.stop else float("nan")
                    parameter -= size * parameter.grad
        self.count += 1


class Growing(Descent):
    factor = 2.0


class Breaking(Descent):
    stop = 3


def test_a_walk_sees_the_gradient_from_a_weight_of_zero() -> None:
    one = stream()
    trace = walk(Descent, {}, one, "bfloat16", "float32")
    assert trace.broke is None
    assert len(trace.updates) == 10
    assert all(update.equal(one.gradient().double()) for update in trace.updates)
    assert walk(Growing, {}, one, "float32", "float32").growth == pytest.approx(2.0**9)
    assert walk(Breaking, {}, one, "float32", "float32").broke == 3


def traces(factor: float = 1.0, broke: int | None = None, **counters: int) -> Trace:
    return Trace(updates=[factor * torch.eye(2, dtype=torch.float64)] * 3, broke=broke, counters=counters)


@pytest.mark.parametrize(
    ("trace", "twin", "status", "reason"),
    [
        (traces(1.4), traces(), "passed", ""),
        (traces(1.6), traces(), "inaccurate", "off its float64 twin by 0.6"),
        (traces(20.0), traces(), "inaccurate", "factor of 20"),
        (
            traces(1.0, kept=2, damping=1),
            traces(),
            "inaccurate",
            "3 factorisations failed (ended by: 1 damping, 2 kept)",
        ),
        (traces(1.0, skipped_batches=4), traces(), "inaccurate", "4 batches skipped"),
        (traces(1.0, broke=3), traces(), "nonfinite", "update 4 is not finite (stable in float64"),
        (traces(1.0, broke=3), traces(1.0, broke=3), "nonfinite", "not finite in float64 either"),
        (traces(), traces(1.0, broke=2), "inaccurate", "not finite in float64 either"),
    ],
)
def test_the_judgement(trace: Trace, twin: Trace, status: str, reason: str) -> None:
    found = judged(trace, twin, {})
    assert found.status == status
    assert reason in (found.reason or "")
    assert all(math.isfinite(value) for value, _ in found.measured.values())
    assert ("update_error" in found.measured) == (trace.broke is None)


def test_numbers_of_a_walk_against_its_twin() -> None:
    numbers = {name: value for name, (value, _) in judged(traces(1.5, kept=1), traces(), {}).measured.items()}
    assert numbers["update_error"] == numbers["worst_update_error"] == pytest.approx(0.5)
    assert numbers["excess"] == pytest.approx(1.5)
    assert (numbers["growth"], numbers["growth_float64"], numbers["steps"]) == (1.0, 1.0, 3.0)
    assert (numbers["failed_factorisations"], numbers["rung_kept"], numbers["rung_direct"]) == (1.0, 1.0, 0.0)


def case(kind: str, dtype: str) -> Any:
    return next(p for p in robustness.SUITE.problems if (p.kind, p.dtype, p.device) == (kind, dtype, "cpu"))


def measured(method: str, kind: str, dtype: str, steps: int = 60) -> robustness_drive.Finding:
    impl = registry.resolve(registry.method(method).impl)
    return robustness_drive.measure(impl, robustness.METHODS[method], case(kind, dtype), steps, {}, method)


def test_kfac_fails_with_half_factors_alone() -> None:
    method = "training.kfac-cholesky"
    kept = measured(method, "cond1e8", "bfloat16")
    assert (kept.status, kept.measured["failed_factorisations"][0]) == ("passed", 0.0)
    assert kept.measured["target_cosine"][0] > 0.8
    half = measured(method, "cond1e8+half", "bfloat16")
    assert half.status == "inaccurate"
    assert "factorisations failed" in (half.reason or "")
    assert half.measured["least_eigenvalue"][0] < -1e-4 < 1e-9 > -kept.measured["least_eigenvalue"][0]


@pytest.mark.parametrize("method", ["training.singd-dense", "training.singd-diagonal"])
def test_singd_stays_near_its_twin_with_half_factors(method: str) -> None:
    found = measured(method, "cond1e8+half", "bfloat16")
    assert (found.status, found.reason) == ("passed", None)
    assert 1e-4 < found.measured["update_error"][0] < 0.5


def test_what_is_an_option_of_singd_alone_is_not_asked_of_kfac() -> None:
    assert measured("training.kfac-eigh", "jump_up_normalized", "float32", 2).status == "unsupported"


def test_the_suite_names_known_methods_and_every_problem_once() -> None:
    ids = [problem.id for problem in robustness.SUITE.problems]
    assert len(set(ids)) == len(ids) == 2 * len(robustness.STREAMS) * len(robustness.SETTINGS)
    assert set(robustness.METHODS) <= set(registry.entries("methods"))


def test_the_command_writes_an_ordinary_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(robustness, "STREAMS", {})
    chosen = ["--tier", "quick", "--method", "training.kfac-cholesky", "--steps", "2", "--out", str(tmp_path)]
    robustness.main(chosen)
    runs, (header,) = read_runs(tmp_path), read_headers(tmp_path)
    assert header["complete"]
    assert header["plan"]["suites"][0]["name"] == "robustness"
    assert [method["name"] for method in header["methods"]] == ["training.kfac-cholesky"]
    assert set(runs["phase"]) == {"gate"}
    assert set(runs["task"]) == {"robustness"}
    assert not runs["metric"].dropna().str.endswith("_s").any()
    assert "cases:" in capsys.readouterr().out
    with pytest.raises(UnknownName):
        robustness.main(["--method", "training.kfac-nothing"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("kind", ["cond1e8", "cond1e8+half"])
def test_a_gpu_agrees_with_the_cpu_about_who_survives(kind: str) -> None:
    for method in ("training.kfac-cholesky", "training.singd-dense"):
        impl, hyper = registry.resolve(registry.method(method).impl), robustness.METHODS[method]
        gpu = next(p for p in robustness.SUITE.problems if (p.kind, p.dtype, p.device) == (kind, "bfloat16", "cuda"))
        found = robustness_drive.measure(impl, hyper, gpu, 60, {}, method)
        assert found.status == measured(method, kind, "bfloat16").status
