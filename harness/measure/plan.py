"""The plan of one invocation: which cases, which are left out and why, how long it will take."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.catalogue import registry
from harness.catalogue.method import Method
from harness.catalogue.protocol import Protocol
from harness.catalogue.suite import TIERS, Case, Problem, Suite, Tier
from harness.errors import UnknownName, UserError
from harness.measure import availability

BUDGET_REASON = "left out by the time budget"
COMPILE_REASON = "left out: every shape is compiled anew, which only chosen problems and tier full pay for"
SLOW_REASON = "left out by the quick tier: it emulates its dtype on a CPU"
VARIANT_REASON = "left out: a variant for the table of options; give --tier full or its name"
QUICK_REASON = "left out by the quick tier, which measures a chosen few methods of this suite"
#: Seconds that one compiled shape costs at the gate, and again (from the compiler's cache) in each block's process.
_COMPILE_S, _CACHED_COMPILE_S = 20.0, 2.5
#: CPU time of a half-precision or float64 product relative to float32 without native units (only an estimate).
_DTYPE_FACTOR = {"bfloat16": 4.0, "float16": 6.0, "float64": 2.0}
#: Calls that the gate makes besides the oracle: one per seed, the float64 reference (twice the work), memory, repeat.
_GATE_CALLS = 13.0
_BLOCK_CALLS = 2.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; ``suites`` and ``methods`` empty mean all."""

    suites: tuple[str, ...] = ()
    tier: Tier = "standard"
    methods: tuple[str, ...] = ()
    blocks: int | None = None
    budget_s: float | None = None
    device: str | None = None
    problems: tuple[str, ...] = ()
    inner_s: float | None = None


@dataclass(kw_only=True)
class SuitePlan:
    """One suite's share: problems still in, methods in order, and why a cell is skipped."""

    suite: Suite
    problems: list[Problem]
    methods: list[Method]
    protocol: Protocol
    skipped: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def cases(self) -> list[Case]:
        """Cells that will be measured."""
        return [
            case
            for problem in self.problems
            for method in self.methods
            if (case := Case(method=method.name, problem=problem)).id not in self.skipped
        ]

    def of_method(self, name: str) -> list[Problem]:
        """Problems that one method will be gated on."""
        return [case.problem for case in self.cases() if case.method == name]

    def drop(self, problem: Problem, reason: str = BUDGET_REASON) -> None:
        """Leave a whole problem out."""
        self.problems.remove(problem)
        for method in self.methods:
            self.skipped.setdefault(Case(method=method.name, problem=problem).id, reason)


@dataclass(kw_only=True)
class Plan:
    """Everything that one invocation will do."""

    request: Request
    device: str
    suites: list[SuitePlan]
    blocks: int
    estimate_s: float = 0.0

    def describe(self, hash_: str) -> dict[str, Any]:
        """The header's ``plan``."""
        return {
            "hash": hash_,
            "tier": self.request.tier,
            "budget_s": self.request.budget_s,
            "blocks": self.blocks,
            "estimate_s": round(self.estimate_s, 1),
            "suites": [
                {
                    "name": part.suite.name,
                    "task": part.suite.task.name,
                    "task_summary": part.suite.task.summary,
                    "task_contract": part.suite.task.contract,
                    "task_oracle": part.suite.task.oracle,
                    "task_errors": dict(part.suite.task.errors),
                    "primary_error": part.suite.task.primary_error,
                    "baseline": part.suite.baseline,
                    "protocol": part.protocol.describe(),
                    "problems": [p.describe() for p in part.problems],
                    "methods": [m.name for m in part.methods],
                }
                for part in self.suites
            ],
            "left_out": [
                {"case": case, "reason": reason} for part in self.suites for case, reason in part.skipped.items()
            ],
        }

    def hash(self, project: Mapping[str, str], environment: Mapping[str, Any]) -> str:
        """Identity of the request on this commit and machine; a file with the same hash may be resumed."""
        content = {
            "request": self.request.__dict__,
            "device": self.device,
            "cases": sorted(
                f"{m.name}/{p.id}" for part in self.suites for m in part.methods for p in part.suite.problems
            ),
            "protocols": [part.protocol.describe() for part in self.suites],
            "project": dict(project),
            "environment": dict(environment),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def build(request: Request) -> Plan:
    """Resolve names and devices; nothing is measured or imported that needs torch.

    Raises:
        UnknownName: a suite, method or problem that nothing registered.
        UserError: a device that is not here, too few blocks, an empty selection.
    """
    device = request.device or availability.devices()[0]
    if device not in availability.devices():
        raise UserError(f"--device {device}: this machine has {', '.join(availability.devices())}.")
    if request.tier not in TIERS:
        raise UserError(f"--tier {request.tier}: expected one of {', '.join(TIERS)}.")
    if request.budget_s is not None and not 0 < request.budget_s < float("inf"):
        raise UserError(f"--budget-s {request.budget_s}: expected a positive number of seconds.")
    chosen = [registry.suite(name) for name in dict.fromkeys(request.suites)] or list(registry.suites().values())
    wanted = _wanted(request, chosen)
    _check_problems(request, chosen)
    parts = [part for suite in chosen if (part := _suite(suite, request, device, wanted)) is not None]
    if not parts:
        chosen_by = "of those named" if request.problems else f"of tier {request.tier}"
        raise UserError(f"nothing to measure: no suite has a problem {chosen_by} on {device}.")
    blocks = request.blocks if request.blocks is not None else _default_blocks(request, parts)
    least = max(part.protocol.min_blocks for part in parts)
    if blocks < least:
        raise UserError(f"--blocks {blocks}: at least {least} are needed for a 95 % interval.")
    return Plan(request=request, device=device, suites=parts, blocks=blocks)


def _default_blocks(request: Request, parts: Sequence[SuitePlan]) -> int:
    protocols = [part.protocol for part in parts]
    if request.tier == "quick":
        return max(p.min_blocks for p in protocols)
    return max(p.blocks for p in protocols)


def _wanted(request: Request, suites: Sequence[Suite]) -> set[str] | None:
    if not request.methods:
        return None
    tasks = {suite.task.name for suite in suites}
    for name in request.methods:
        known = registry.method(name)
        if known.task not in tasks:
            raise UserError(f"method {name!r} solves task {known.task!r}, but the chosen suites are {sorted(tasks)}.")
    return set(request.methods)


def _check_problems(request: Request, suites: Sequence[Suite]) -> None:
    """A problem has to be one of any chosen suite; a suite without a chosen problem is left out."""
    known = {problem.id for suite in suites for problem in suite.problems}
    for name in request.problems:
        if name not in known:
            raise UnknownName("problem", name, known)


def _suite(suite: Suite, request: Request, device: str, wanted: set[str] | None) -> SuitePlan | None:
    problems = list(suite.tier(request.tier, (device,)))
    if request.problems:
        known = {p.id: p for p in suite.problems if p.device == device}
        problems = [known[name] for name in dict.fromkeys(request.problems) if name in known]
    if not problems:
        return None
    task = suite.task.name
    methods = [
        m for m in registry.methods(task).values() if wanted is None or m.name in wanted or m.name == suite.baseline
    ]
    if suite.baseline not in {m.name for m in methods}:
        registry.refuse_contested("methods", suite.baseline)
        raise UserError(f"suite {suite.name!r}: its baseline {suite.baseline!r} is not a registered method.")
    protocol = suite.protocol if request.inner_s is None else replace(suite.protocol, inner_s=request.inner_s)
    part = SuitePlan(suite=suite, problems=problems, methods=methods, protocol=protocol)
    part.broken = registry.broken_methods(task) if wanted is None else {}
    flagged = any(problem.compiled for problem in problems)
    chosen = {suite.baseline, *suite.quick, *(wanted or ())}
    for method in methods:
        named = method.name in (wanted or ())
        if request.tier == "quick" and suite.quick and method.name not in chosen:
            part.skipped |= {Case(method=method.name, problem=problem).id: QUICK_REASON for problem in problems}
            continue
        for problem in problems:
            why = availability.reason(method, device, problem.dtype)
            why = why or _too_long(method, problem, request.tier, named, flagged)
            if why:
                part.skipped[Case(method=method.name, problem=problem).id] = why
    return part


def _too_long(method: Method, problem: Problem, tier: str, named: bool, flagged: bool) -> str | None:
    """Why a cell would cost more than it tells; asking for a method by name lifts what the tier forbids.

    A compiled method keeps to the flagged problems if the selection has any, even when it is named.
    """
    if "compile" in method.tags and not problem.compiled and (flagged or not named) and tier != "full":
        return COMPILE_REASON
    if method.largest is not None and math.prod(problem.shape) > method.largest:
        return f"left out: above {method.largest} elements one call takes minutes"
    if "variant" in method.tags and tier != "full" and not named:
        return VARIANT_REASON
    if tier == "quick" and not named:
        if "compile" in method.tags:
            return COMPILE_REASON
        if "slow-cpu" in method.tags and problem.device == "cpu":
            return SLOW_REASON
    return None


def estimate(plan: Plan, flops: Mapping[str, float], flops_per_s: float, start_s: float) -> float:
    """Seconds for the whole plan = process starts + work ÷ the probe's rate."""
    total = 0.0
    for part in plan.suites:
        total += part_seconds(part, plan, flops, flops_per_s, start_s)
    return total


def part_seconds(part: SuitePlan, plan: Plan, flops: Mapping[str, float], flops_per_s: float, start_s: float) -> float:
    """Seconds of one suite."""
    workers = plan.blocks + 1
    return workers * start_s + sum(
        problem_seconds(part, problem, plan, flops, flops_per_s) for problem in part.problems
    )


def problem_seconds(
    part: SuitePlan, problem: Problem, plan: Plan, flops: Mapping[str, float], flops_per_s: float
) -> float:
    """Seconds of gate and blocks of one problem over all its methods."""
    arms, compiled, call = _work(part, problem, flops, flops_per_s)
    if arms == 0:
        return 0.0
    cuda = problem.device == "cuda"
    sampled = part.protocol.gpu_arm_s * 3 if cuda else part.protocol.inner_s
    block = compiled * _CACHED_COMPILE_S + (part.protocol.gpu_warmup_s if cuda else 0.0)
    block += (arms + 1) * (_BLOCK_CALLS * call + max(sampled, call) + 0.01) + 4 * call
    return gate_seconds(part, problem, flops, flops_per_s) + plan.blocks * block


def gate_seconds(part: SuitePlan, problem: Problem, flops: Mapping[str, float], flops_per_s: float) -> float:
    """Seconds of one problem's gate over all its methods."""
    arms, compiled, call = _work(part, problem, flops, flops_per_s)
    return arms * (_GATE_CALLS * call + 0.1) + compiled * _COMPILE_S


def _work(part: SuitePlan, problem: Problem, flops: Mapping[str, float], flops_per_s: float) -> tuple[int, int, float]:
    """Arms, those that compile themselves, and the seconds of one call."""
    arms = [m for m in part.methods if Case(method=m.name, problem=problem).id not in part.skipped]
    factor = _DTYPE_FACTOR.get(problem.dtype, 1.0) if problem.device == "cpu" else 1.0
    call = flops.get(problem.id, 0.0) * factor / flops_per_s
    return len(arms), sum("compile" in m.tags for m in arms), call


def fit(plan: Plan, flops: Mapping[str, float], flops_per_s: float, start_s: float) -> None:
    """Drop whole problems, the last first, until the estimate fits the budget; then fewer blocks, never under six."""
    budget = plan.request.budget_s
    plan.estimate_s = estimate(plan, flops, flops_per_s, start_s)
    if budget is None:
        return
    weights = sum(part.suite.weight for part in plan.suites)
    for part in plan.suites:
        share = budget * part.suite.weight / weights
        while len(part.problems) > 1 and part_seconds(part, plan, flops, flops_per_s, start_s) > share:
            part.drop(part.problems[-1])
    plan.estimate_s = estimate(plan, flops, flops_per_s, start_s)
    least = max(part.protocol.min_blocks for part in plan.suites)
    while plan.estimate_s > budget and plan.blocks > least:
        plan.blocks -= 1
        plan.estimate_s = estimate(plan, flops, flops_per_s, start_s)
