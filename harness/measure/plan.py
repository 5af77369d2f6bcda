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


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; ``suites`` and ``methods`` empty mean all, ``energy`` joules a call in every block."""

    suites: tuple[str, ...] = ()
    tier: Tier = "standard"
    methods: tuple[str, ...] = ()
    blocks: int | None = None
    budget_s: float | None = None
    device: str | None = None
    problems: tuple[str, ...] = ()
    inner_s: float | None = None
    energy: bool = False


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
