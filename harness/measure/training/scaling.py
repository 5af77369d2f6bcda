"""Scaling runs: the same steps on 1, 2, 4 … processes, with the batch of each or of all of them kept.

Generated data, no target, no evaluation but the first and the last. The rounds are interleaved: every round visits
every number of processes once, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import SpeedclaimError, UserError
from harness.measure.training import executor, probe
from harness.measure.training.listener import Listener, Silent
from harness.measure.training.plan import TrainPlan, TrainRequest, build
from harness.measure.training.recipe import Hyper, full_name
from harness.measure.training.world import World

MODES = ("weak", "strong")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to measure.

    Attributes:
        workload: name of a workload that can generate its data.
        methods: methods; the ones in ``sharded`` run on several processes a second time with ``sharding=owner``.
        sharded: methods that know ``sharding``.
        worlds: numbers of processes.
        modes: ``weak`` keeps ``per_rank`` samples on each process, ``strong`` keeps ``per_rank`` for all together.
        per_rank: samples.
        rounds: repeats of everything.
        blocks: timed blocks of a run; the first one warms up and is not counted.
        period: updates of a block: a whole number of refresh periods.
        hyper: ``name=value`` or ``method.name=value`` as for ``train``.
        device: ``cpu`` or ``cuda``.
        precision: instead of the workload's.
        compile: torch.compile.
        overrides: further fields of the workload.
        brief: leave out what the other points imply: strong scaling of a shardable method with its whole state on
            each process.
        deadline_s: longest silence of a run, and longest wait of a collective.
        seconds: no point begins that would not end by then, and one that is under way is cut.
    """

    workload: str
    methods: tuple[str, ...]
    sharded: tuple[str, ...] = ()
    worlds: tuple[int, ...] = (1, 2)
    modes: tuple[str, ...] = MODES
    per_rank: int = 2048
    rounds: int = 1
    blocks: int = 3
    period: int = 20
    hyper: tuple[str, ...] = ()
    device: str | None = None
    precision: str | None = None
    compile: bool | None = None
    overrides: tuple[tuple[str, Any], ...] = ()
    brief: bool = False
    deadline_s: float = 600.0
    seconds: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Point:
    """One invocation.

    Attributes:
        world: processes.
        per_rank: samples of each.
        modes: what it is a point of.
        methods: methods that run with their whole state on each process.
        owned: methods that run with every layer's state on one process alone.
    """

    world: int
    per_rank: int
    modes: tuple[str, ...]
    methods: tuple[str, ...]
    owned: tuple[str, ...] = ()


def points(asked: Asked) -> list[Point]:
    """Every combination once; one process and one batch are the same point in both modes."""
    found: dict[tuple[int, int], list[str]] = {}
    for mode in asked.modes:
        for world in asked.worlds:
            each = asked.per_rank if mode == "weak" else asked.per_rank // world
            found.setdefault((world, each), []).append(mode)
    return [
        Point(
            world=world,
            per_rank=each,
            modes=tuple(modes),
            methods=_whole(asked, world, modes),
            owned=asked.sharded if world > 1 else (),
        )
        for (world, each), modes in found.items()
    ]


def _whole(asked: Asked, world: int, modes: Sequence[str]) -> tuple[str, ...]:
    if asked.brief and world > 1 and list(modes) == ["strong"]:
        return tuple(name for name in asked.methods if name not in asked.sharded)
    return asked.methods


def request(asked: Asked, point: Point, round_: int, left_s: float = math.inf) -> TrainRequest:
    """The training request of one point, to be cut after ``left_s`` seconds."""
    batch, updates = point.per_rank * point.world, asked.blocks * asked.period
    images = max(4 * batch, 2 * 1024)
    params = {"synthetic_images": images}
    own = dict(asked.overrides)
    params |= own.pop("params", {})
    overrides = {"batch": batch, "eval_every": 2**62, "max_s": 1e9, **own, "params": params}
    methods = tuple(dict.fromkeys(map(full_name, (*point.methods, *point.owned))))
    names = {name.removeprefix("training.") for name in methods}
    hyper = [text for text in asked.hyper if "." not in text.partition("=")[0] or text.partition(".")[0] in names]
    note = {"modes": list(point.modes), "world": point.world, "per_rank": point.per_rank, "round": round_}
    return TrainRequest(
        workloads=(asked.workload,),
        methods=methods,
        seeds=1,
        seed_start=round_,
        hyper=tuple(hyper),
        device=asked.device,
        epochs=updates * batch / params["synthetic_images"],
        precision=asked.precision,
        compile=asked.compile,
        full=True,
        synthetic=True,
        checkpoint_s=math.inf,
        deadline_s=asked.deadline_s,
        budget_s=left_s if left_s < math.inf else None,
        block_updates=asked.period,
        world=World(nproc=point.world),
        overrides=tuple(overrides.items()),
        notes=(("scaling", note),),
    )


def planned(asked: Asked, point: Point, round_: int, left_s: float = math.inf) -> TrainPlan:
    """The plan of one point: a method in ``owned`` is an arm of its own, ``METHOD#owner``."""
    plan = build(request(asked, point, round_, left_s))
    plan.phase = "scaling"
    whole, owned = ({full_name(name) for name in names} for names in (point.methods, point.owned))
    for part in plan.parts:
        part.arms = [arm for arm in part.arms if arm.method in whole] + [
            replace(arm, name=f"{arm.name}#owner", hyper=_owned(arm.hyper)) for arm in part.arms if arm.method in owned
        ]
    return plan


def _owned(hyper: Hyper | None) -> Hyper | None:
    if hyper is None:
        return None
    return replace(
        hyper,
        factory={**hyper.factory, "sharding": "owner"},
        sources={**hyper.sources, "sharding": "command line"},
    )


def label_of(point: Point) -> str:
    """A point for people."""
    names = [*point.methods, *(f"{name} with layers owned" for name in point.owned)]
    return f"{point.world} x {point.per_rank} ({' and '.join(point.modes)}): {', '.join(names)}"


def measure(
    asked: Asked,
    out: Path,
    command: str,
    listener: Listener | None = None,
    say: Callable[[str], None] = lambda text: None,
    after: Callable[[list[Path], dict[str, str]], None] = lambda files, failed: None,
) -> tuple[list[Path], dict[str, str]]:
    """Run every point of every round; returns the record files, and what could not be run with its reason.

    One point's failure is told and the rest goes on; ``after`` is called behind each with what there is so far.

    Raises:
        UserError: a mistake that no point can survive, before anything runs.
    """
    check(asked)
    files: list[Path] = []
    failed: dict[str, str] = {}
    begin, longest = time.monotonic(), 0.0
    for round_ in range(asked.rounds):
        for point in _turned(points(asked), round_):
            label = label_of(point)
            left = asked.seconds - (start := time.monotonic()) + begin
            if left <= longest:
                failed[label] = f"{max(0.0, left):.0f} s were left, and a point takes up to {longest:.0f} s"
                say(f"  left out: {label}: {failed[label]}")
                continue
            say(f"round {round_ + 1} of {asked.rounds}: {label}")
            try:
                plan = planned(asked, point, round_, left)
                files.append(executor.execute(plan, out, command, listener or Silent()).path)
            except SpeedclaimError as error:
                failed[label] = str(error)
                say(f"  left out: {error}")
            longest = max(longest, time.monotonic() - start)
            after(files, failed)
    return files, failed


def check(asked: Asked) -> None:
    """Refuse names and numbers that are wrong for every point.

    Raises:
        UserError: with the option and its range, or what a plan on one process says.
    """
    for name, least in (("per_rank", 1), ("rounds", 1), ("blocks", 2), ("period", 1)):
        if getattr(asked, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(asked, name)}: expected at least {least}.")
    measured = {full_name(name) for name in asked.methods}
    for name in asked.sharded:
        if full_name(name) not in measured:
            raise UserError(f"--sharded {name}: expected one of the methods measured: {', '.join(asked.methods)}.")
    if "strong" in asked.modes and asked.per_rank < max(asked.worlds):
        raise UserError(
            f"--per-rank {asked.per_rank}: fewer samples than the {max(asked.worlds)} processes to share them."
        )
    one = Point(world=1, per_rank=asked.per_rank, modes=asked.modes, methods=asked.methods)
    probe.check(build(request(asked, one, 0)))


def _turned(found: Sequence[Point], round_: int) -> list[Point]:
    """Forwards and backwards in turn."""
    return list(found) if round_ % 2 == 0 else list(reversed(found))
