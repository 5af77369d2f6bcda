"""The plan of one training invocation: workloads x arms x seeds, with every hyper-parameter and where it came from."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from harness.catalogue import registry
from harness.catalogue.method import Method
from harness.catalogue.suite import TIERS
from harness.catalogue.workload import Workload
from harness.errors import UserError
from harness.measure import availability
from harness.measure.training import crossing, recipe, sweep
from harness.measure.training.recipe import Hyper
from harness.measure.training.spec import AA_STREAM, BLOCK_UPDATES, TRAINING_PROTOCOL, RunSpec
from harness.measure.training.world import BACKENDS, SOLO, World
from harness.measure.worker import AA
from harness.record import nvidia


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What the user asked for. Without workloads: all of ``tier``; without methods or seeds: the workload's.

    ``side_by_side`` runs share the device at once, so their times are another device's and enter no verdict.
    ``batches`` takes the members of the one workload's family, with rates by ``lr_rule``; ``overrides`` changes fields
    of the workload, ``notes`` go into the record's detail. ``part``: seeds that another invocation planned, of which
    even one needs the baseline's alias beside it.
    """

    workloads: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    tier: str = "standard"
    seeds: int | None = None
    seed_start: int = 0
    part: bool = False
    hyper: tuple[str, ...] = ()
    batches: str | None = None
    lr_rule: str = "linear"
    device: str | None = None
    epochs: float | None = None
    precision: str | None = None
    compile: bool | None = None
    full: bool = False
    until: float | None = None
    synthetic: bool = False
    validation: bool = False
    budget_s: float | None = None
    checkpoint_s: float = 30.0
    checkpoint_updates: int = 0
    block_updates: int = BLOCK_UPDATES
    deadline_s: float = 600.0
    world: World = SOLO
    sync_batch_norm: bool = False
    side_by_side: int = 1
    overrides: tuple[tuple[str, Any], ...] = ()
    notes: tuple[tuple[str, Any], ...] = ()

    def crowd(self, device: str) -> int:
        """Runs that share one device at once."""
        return -(-self.side_by_side // max(1, nvidia.visible() if device == "cuda" else 1))


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm of a workload; ``why`` says why it cannot run here."""

    name: str
    method: str
    hyper: Hyper | None = None
    why: str | None = None


@dataclass(kw_only=True)
class Part:
    """One workload's share of the plan."""

    workload: Workload
    baseline: str
    arms: list[Arm]
    seeds: list[int]

    def runnable(self) -> list[Arm]:
        """Arms that can run here."""
        return [arm for arm in self.arms if arm.why is None]


@dataclass(kw_only=True)
class TrainPlan:
    """Everything that one invocation will do."""

    request: TrainRequest
    device: str
    parts: list[Part]
    left_out: dict[str, str] = field(default_factory=dict)
    phase: str = "train"

    def runs(self) -> int:
        """How many runs it has."""
        return sum(len(part.runnable()) * len(part.seeds) for part in self.parts)

    def spec(self, part: Part, arm: Arm, block: int) -> RunSpec:
        """One run of the plan."""
        asked, workload, seed = self.request, part.workload, part.seeds[block]
        assert arm.hyper is not None
        compiled = workload.compile and self.device == "cuda" if asked.compile is None else asked.compile
        lanes = asked.side_by_side
        extra = {
            "evidence": arm.hyper.evidence,
            "trials": arm.hyper.trials,
            "side_by_side": lanes if lanes > 1 else None,
        }
        return RunSpec(
            workload=workload.name,
            method=arm.method,
            arm=arm.name,
            seed=seed,
            block=block,
            stream=seed + AA_STREAM if arm.name.endswith(AA) else seed,
            factory=dict(arm.hyper.factory),
            trainer=dict(arm.hyper.trainer),
            sources=dict(arm.hyper.sources),
            device=self.device,
            compile=compiled,
            full=asked.full,
            until=asked.until,
            synthetic=asked.synthetic,
            validation=asked.validation,
            max_s=workload.max_s * asked.crowd(self.device),
            checkpoint_s=asked.checkpoint_s,
            checkpoint_updates=asked.checkpoint_updates,
            block_updates=asked.block_updates,
            world=asked.world.size,
            sync_batch_norm=asked.sync_batch_norm,
            overrides=dict(asked.overrides),
            extra={**{name: value for name, value in extra.items() if value is not None}, **dict(asked.notes)},
        )

    def describe(self, hash_: str) -> dict[str, Any]:
        """The header's ``plan``."""
        return {
            "hash": hash_,
            "kind": self.phase,
            "tier": self.request.tier,
            "budget_s": self.request.budget_s,
            "blocks": max((len(part.seeds) for part in self.parts), default=0),
            "estimate_s": None,
            "suites": [],
            "training_protocol": TRAINING_PROTOCOL,
            "workloads": [part.workload.describe() for part in self.parts],
            "training": [
                {
                    "workload": part.workload.name,
                    "baseline": part.baseline,
                    "arms": [arm.name for arm in part.arms],
                    "seeds": part.seeds,
                    "hyper": {arm.name: arm.hyper.to_json() for arm in part.arms if arm.hyper is not None},
                }
                for part in self.parts
            ],
            "full": self.request.full,
            **({} if self.request.until is None else {"until": self.request.until}),
            "synthetic": self.request.synthetic,
            **({"ranks": self.ranks()} if self.request.world.size > 1 else {}),
            **({"side_by_side": self.request.side_by_side} if self.request.side_by_side > 1 else {}),
            "left_out": [{"case": name, "reason": why} for name, why in sorted(self.left_out.items())],
        }

    def ranks(self) -> dict[str, Any]:
        """World size, engine and devices of several processes, and what their clock and statistics are."""
        world, asked = self.request.world, self.request
        gpus = [nvidia.describe(place) or {} for place in range(world.nproc)] if self.device == "cuda" else []
        return {
            "world": world.size,
            "nproc": world.nproc,
            "nnodes": world.nnodes,
            "backend": BACKENDS[self.device],
            "devices": [{"name": gpu.get("name"), "uuid": gpu.get("uuid")} for gpu in gpus],
            "batch_norm": "global batch" if asked.sync_batch_norm else "each process' own slice of the batch",
            "clock": "rank 0's, from when every process is ready to when the last one is done, at each block",
        }

    def hash(self, project: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
        """What must match for an unfinished file to be resumed."""
        content = {**self.describe(""), "project": project, "environment": identity, "request": repr(self.request)}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def build(request: TrainRequest) -> TrainPlan:
    """Check names, devices, data and hyper-parameters; a method's code is imported only for a name it does not list.

    Raises:
        UnknownName: a workload or method that nothing registered.
        UserError: anything else that a person can mend.
    """
    device = request.device or availability.devices()[0]
    if device not in availability.devices():
        raise UserError(f"--device {device}: this machine has {', '.join(availability.devices())}.")
    if request.seeds is not None and request.seeds < 1:
        raise UserError(f"--seeds {request.seeds}: expected at least 1.")
    if request.seed_start < 0:
        raise UserError(f"--seed-start {request.seed_start}: expected at least 0.")
    if request.epochs is not None and not 0 < request.epochs < float("inf"):
        raise UserError(f"--epochs {request.epochs:g}: expected a positive number.")
    named = [recipe.full_name(name) for name in request.methods]
    if twice := next((name for name in named if named.count(name) > 1), None):
        raise UserError(f"{twice} is named twice: name each method once.")
    if request.budget_s is not None and not 0 < request.budget_s < float("inf"):
        raise UserError(f"--budget-s {request.budget_s}: expected a positive number of seconds.")
    request.world.check(device, nvidia.visible() if device == "cuda" else 0)
    if request.side_by_side < 1:
        raise UserError(f"--side-by-side {request.side_by_side}: expected at least 1.")
    if request.side_by_side > 1 and (request.world.size > 1 or request.budget_s is not None):
        raise UserError("--side-by-side goes with neither --nproc, --nnodes nor --budget-s: choose one.")
    if request.sync_batch_norm and request.world.size == 1:
        raise UserError("--sync-batch-norm: one process has nothing to synchronise; add --nproc.")
    sweep.check(request.lr_rule)
    plan = TrainPlan(request=request, device=device, parts=[])
    for workload in _chosen(request, device):
        if why := hindrance(workload, device, request.synthetic):
            if request.workloads:
                raise UserError(f"{workload.name} cannot be trained here: {why}")
            plan.left_out[workload.name] = why
            continue
        plan.parts.append(_part(workload, request, device))
    if not plan.parts:
        reasons = "; ".join(f"{name}: {why}" for name, why in plan.left_out.items())
        raise UserError(f"nothing to train: no workload of tier {request.tier} on {device}. {reasons}".rstrip())
    return plan


def _chosen(request: TrainRequest, device: str) -> list[Workload]:
    if request.batches is not None:
        return sweep.chosen(_base(request), request.batches)
    if request.workloads:
        return [registry.workload(name) for name in dict.fromkeys(request.workloads)]
    if request.tier not in TIERS:
        raise UserError(f"--tier {request.tier}: expected one of {', '.join(TIERS)}.")
    return [w for w in registry.workloads().values() if request.tier in w.tiers and device in w.devices]


def _base(request: TrainRequest) -> Workload:
    """The workload whose rates a sweep over batch sizes starts from."""
    if len(set(request.workloads)) != 1:
        raise UserError("--batches: name one workload, the batch size whose rates the others follow.")
    return registry.workload(request.workloads[0])


def hindrance(workload: Workload, device: str, synthetic: bool = False) -> str | None:
    """Why a workload cannot be trained here; None when it can."""
    if device not in workload.devices:
        return f"it is meant for {' and '.join(workload.devices)}, not for {device}; choose another --device."
    for need in workload.needs:
        if why := availability.missing(need):
            return why
    if synthetic or not workload.data or importlib.util.find_spec("harness.catalogue.data") is None:
        return None
    from harness.catalogue import data

    return data.status(workload.data)


def _check_until(workload: Workload, request: TrainRequest) -> None:
    """The level that is to end the runs must be one that the workload's curve is watched for."""
    if request.until is None:
        return
    if request.full:
        raise UserError("--until and --full contradict each other: choose one.")
    target = workload.target
    known = ", ".join(f"{level:g}" for level in sorted(crossing.levels(target)))
    if target.mode != "crossing":
        raise UserError(f"--until {request.until:g}: {workload.name} is judged at the end of its schedule alone.")
    if request.until not in crossing.levels(target):
        raise UserError(f"--until {request.until:g}: {workload.name} is watched for {target.metric} of {known}.")


def _part(workload: Workload, request: TrainRequest, device: str) -> Part:
    _check_until(workload, request)
    methods = [registry.method(recipe.full_name(name)) for name in request.methods or workload.methods]
    for method in methods:
        if method.task != recipe.TASK:
            raise UserError(f"{method.name} solves the task {method.task!r}; training needs {recipe.TASK}.* methods.")
    names = [method.name for method in methods]
    given = recipe.parse(request.hyper, names)
    own = {"epochs": request.epochs, "precision": request.precision}
    arms = []
    for method in methods:
        chosen = {**given[method.name], **{name: value for name, value in own.items() if value is not None}}
        arm = _arm(workload, method, chosen, device)
        if request.batches is not None and request.lr_rule == "linear" and arm.hyper is not None:
            arm = replace(arm, hyper=sweep.scaled(arm.hyper, _base(request), workload, method, chosen))
        arms.append(arm)
    baseline = workload.baseline if workload.baseline in names else names[0]
    count = request.seeds if request.seeds is not None else workload.seeds
    first = next(arm for arm in arms if arm.name == baseline)
    if len(arms) > 1 and (count > 1 or request.part):
        arms.append(Arm(name=baseline + AA, method=baseline, hyper=first.hyper, why=first.why))
    seeds = list(range(request.seed_start, request.seed_start + count))
    return Part(workload=workload, baseline=baseline, arms=arms, seeds=seeds)


def _arm(workload: Workload, method: Method, given: Mapping[str, Any], device: str) -> Arm:
    why = availability.reason(method, device, "bfloat16" if workload.pure_bf16 else None)
    if why is not None:
        return Arm(name=method.name, method=method.name, why=why)
    return Arm(name=method.name, method=method.name, hyper=recipe.resolve(workload, method, given))
