"""Drives one optimizer through one stream and holds its updates to those of the same optimizer in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from harness.catalogue.suite import Problem
from harness.errors import Unsupported
from harness.record.run import Status
from suites.robustness import COMMON, ERROR_LIMIT, EXCESS_LIMIT, ROWS, RUNAWAY
from suites.robustness_streams import Stream

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Counters of K-FAC that say how failed factorisations ended.
RUNGS = ("direct", "damping", "float64", "kept")
#: Keyword of SINGD and its relatives for the dtype of their factors.
HELD = "preconditioner_dtype"


#: Metric, limit, and how a reason tells that it was passed.
LIMITS = (
    ("update_error", ERROR_LIMIT, "off its float64 twin by"),
    ("excess", EXCESS_LIMIT, "larger than its float64 twin by a factor of"),
)


@dataclass
class Trace:
    """What one walk through a stream left.

    Attributes:
        updates: D_t, float64, one a step; the walk ends at the first that is not finite.
        broke: the step at which an update was not finite.
        counters: the optimizer's own, at the end.
        least: least eigenvalue / largest of K-FAC's factors as they stand at the end; None without factors.
    """

    updates: list[Tensor] = field(default_factory=list)
    broke: int | None = None
    counters: Mapping[str, int] = field(default_factory=dict)
    least: float | None = None

    @property
    def norms(self) -> list[float]:
        """||D_t||_F."""
        return [float(update.norm()) for update in self.updates]

    @property
    def growth(self) -> float:
        """Largest norm / the first step's."""
        norms = self.norms
        return max(norms) / norms[0] if norms and norms[0] > 0 else float("inf")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Status, reason and numbers of one case."""

    status: Status
    reason: str | None
    measured: dict[str, tuple[float, str]]
    detail: dict[str, Any]


def walk(impl: Any, hyper: Mapping[str, Any], stream: Stream, dtype: str, held: str, device: str = "cpu") -> Trace:
    """One walk of a new optimizer.

    The layer is float32 (float64 for the twin) and goes forward and backward under autocast in a half type, as in
    training; its weight is zero and its gradient the stream's fixed one before every step.

    Args:
        impl: the method's factory.
        hyper: its hyper-parameters, without the dtype of the factors.
        stream: the rows.
        dtype: of rows and autocast; ``float64`` is the twin, on the rows of ``held``'s dtype.
        held: dtype name in which the preconditioner's state is kept; for the twin the dtype the rows were rounded to.
        device: where.
    """
    twin = dtype == "float64"
    own = torch.float64 if twin else torch.float32
    model = nn.Linear(stream.shape[1], stream.shape[0], bias=False, device=device, dtype=own)
    optimizer = _made(impl, model, hyper, "float64" if twin else held)
    half = DTYPES[dtype] if dtype in ("bfloat16", "float16") else None
    gradient = stream.gradient().to(device, own)
    trace = Trace()
    for step in range(stream.steps):
        a, b = stream.batch(step, DTYPES[held if twin else dtype])
        a, b = (rows.to(device, own if half is None else half) for rows in (a, b))
        with torch.no_grad():
            model.weight.zero_()
        context = torch.autocast(device, dtype=half) if half is not None else contextlib.nullcontext()
        with context:
            loss = (model(a) * b).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        model.weight.grad = gradient.clone()
        optimizer.step()
        optimizer.zero_grad()
        update = -model.weight.detach().double().cpu()
        if not bool(update.isfinite().all()):
            trace.broke = step
            break
        trace.updates.append(update)
    trace.counters = dict(getattr(optimizer, "counters", {}) or {})
    trace.least = _least(optimizer)
    close = getattr(optimizer, "close", None)
    if close is not None:
        close()
    return trace


def _made(impl: Any, model: nn.Module, hyper: Mapping[str, Any], held: str) -> Any:
    """The optimizer with its state in ``held``: by its own option, or, for K-FAC, by rounding its running factors."""
    given = {**COMMON, **hyper}
    if "refresh_period" in given:
        optimizer = impl(model, **given)
        if held in ("bfloat16", "float16"):
            _round_factors(optimizer, DTYPES[held])
        return optimizer
    return impl(model, **given, **{HELD: held})


def _round_factors(optimizer: Any, dtype: torch.dtype) -> None:
    """Store K-FAC's running factors in ``dtype``: rounded after every update, whose arithmetic stays float32.

    That is the gentlest way to keep them in half precision: what fails here fails in a half-precision sum too.
    """
    statistics = optimizer.statistics
    fold = statistics.fold

    def rounded(*arguments: Any, **options: Any) -> Any:
        done = fold(*arguments, **options)
        for factors in statistics.factors.values():
            for matrix in (factors.a, factors.g):
                matrix.copy_(matrix.to(dtype))
        return done

    statistics.fold = rounded


def _least(optimizer: Any) -> float | None:
    factors = getattr(getattr(optimizer, "statistics", None), "factors", None)
    if not factors:
        return None
    found = []
    for held in factors.values():
        for matrix in (held.a, held.g):
            whole = matrix.detach().double().cpu()
            if not bool(whole.isfinite().all()):
                return float("nan")
            values = torch.linalg.eigvalsh(whole)
            found.append(float((values[..., 0] / values[..., -1].abs().clamp_min(1e-300)).min()))
    return min(found)


def measure(
    impl: Any, hyper: Mapping[str, Any], problem: Problem, steps: int, twins: dict[Any, Trace], key: str
) -> Finding:
    """One case: the walk, its float64 twin (kept in ``twins`` under ``key`` and the stream) and the judgement."""
    params = problem.params
    stream = Stream(problem.shape, ROWS, steps, params, problem.seed)
    hyper = {**hyper, "damping": params["damping"]}
    if {"normalized", "lr_cov"} & params.keys() and "refresh_period" in hyper:
        return Finding(status="unsupported", reason="an option of SINGD alone", measured={}, detail={})
    if params.get("normalized"):
        hyper["normalize_lr_cov"] = True
    if "lr_cov" in params:
        hyper["lr_cov"] = params["lr_cov"]
    held = problem.dtype if params["held"] == "half" else "float32"
    name = (key, params["stream"], problem.dtype)
    if name not in twins:
        twins[name] = walk(impl, hyper, stream, "float64", problem.dtype, problem.device)
    try:
        trace = walk(impl, hyper, stream, problem.dtype, held, problem.device)
    except Unsupported as error:
        return Finding(status="unsupported", reason=str(error), measured={}, detail={})
    found = judged(trace, twins[name], {"held": held, "steps": steps, "hyper": dict(hyper)})
    if twins[name].broke is None:
        cosine = _cosine(twins[name].updates[-1], stream.target(float(params["damping"])))
        found.measured["target_cosine"] = (cosine, "1")
    return found


def _cosine(one: Tensor, other: Tensor) -> float:
    return float((one * other).sum() / (one.norm() * other.norm()).clamp_min(1e-300))


def judged(trace: Trace, twin: Trace, detail: Mapping[str, Any]) -> Finding:
    """The status of a walk, by its twin."""
    measured = _numbers(trace, twin)
    kept = dict(detail)
    if twin.broke is not None:
        kept["twin_broke_at"] = twin.broke
    failed = {rung: int(trace.counters.get(rung, 0)) for rung in RUNGS}
    if trace.broke is not None:
        kept["broke_at"] = trace.broke
        why = _of_twin(twin)
        return Finding(
            status="nonfinite", reason=f"update {trace.broke + 1} is not finite ({why})", measured=measured, detail=kept
        )
    reasons = []
    if sum(failed.values()):
        told = ", ".join(f"{count} {rung}" for rung, count in failed.items() if count)
        reasons.append(f"{sum(failed.values())} factorisations failed (ended by: {told})")
    if trace.counters.get("skipped_batches"):
        reasons.append(f"{trace.counters['skipped_batches']} batches skipped")
    for metric, limit, text in LIMITS:
        value = measured.get(metric, (0.0, ""))[0]
        if value > limit:
            reasons.append(f"{text} {value:.3g} (limit {limit:g})")
    if twin.broke is not None or twin.growth > RUNAWAY:
        reasons.append(_of_twin(twin))
    if reasons:
        return Finding(status="inaccurate", reason="; ".join(reasons), measured=measured, detail=kept)
    return Finding(status="passed", reason=None, measured=measured, detail=kept)


def _of_twin(twin: Trace) -> str:
    """Whether float64 would have helped."""
    if twin.broke is not None:
        return "not finite in float64 either: the recursion's own instability"
    if twin.growth > RUNAWAY:
        return f"in float64 it grows {twin.growth:.1g} times: the recursion's own instability"
    return "stable in float64: the precision's doing"


def _numbers(trace: Trace, twin: Trace) -> dict[str, tuple[float, str]]:
    errors, excess = [], []
    for got, wanted in zip(trace.updates, twin.updates, strict=False):
        size = float(wanted.norm())
        if size > 0:
            errors.append(float((got - wanted).norm()) / size)
            excess.append(float(got.norm()) / size)
    found: dict[str, float] = {"steps": float(len(trace.updates))}
    if errors:
        found |= {"worst_update_error": max(errors), "excess": max(excess)}
        if trace.broke is None:
            found["update_error"] = errors[-1]
    if trace.updates:
        found["growth"] = trace.growth
    if twin.updates:
        found["growth_float64"] = twin.growth
    if trace.least is not None:
        found["least_eigenvalue"] = trace.least
    if "kept" in trace.counters:
        found["failed_factorisations"] = float(sum(trace.counters.get(rung, 0) for rung in RUNGS))
        found |= {f"rung_{rung}": float(trace.counters.get(rung, 0)) for rung in RUNGS}
        found["skipped_batches"] = float(trace.counters.get("skipped_batches", 0))
    finite = {name: value for name, value in found.items() if value == value and abs(value) != float("inf")}
    return {name: (value, "1") for name, value in finite.items()}
