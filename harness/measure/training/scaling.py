"""Scaling runs: the same steps on 1, 2, 4 … processes, with the batch of each or of all of them kept.

Generated data, no target, no evaluation but the first and the last. The rounds are interleaved: every round visits
every number of processes once, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import SpeedclaimError, UserError
from harness.measure.training import executor, probe
from harness.measure.training.listener import Listener, Silent
from harness.measure.training.plan import TrainRequest, build
from harness.measure.training.recipe import full_name
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


@dataclass(frozen=True, kw_only=True)
class Point:
    """One invocation."""

    world: int
    per_rank: int
    modes: tuple[str, ...]
    sharding: str
    methods: tuple[str, ...]


def points(asked: Asked) -> list[Point]:
    """Every combination once; one process and one batch are the same point in both modes."""
    found: dict[tuple[int, int, str], list[str]] = {}
    for mode in asked.modes:
        for world in asked.worlds:
            each = asked.per_rank if mode == "weak" else asked.per_rank // world
            for sharding in ("none", "owner") if world > 1 and asked.sharded else ("none",):
                found.setdefault((world, each, sharding), []).append(mode)
    made = [
        Point(
            world=world,
            per_rank=each,
            modes=tuple(modes),
            sharding=sharding,
            methods=_methods(asked, world, sharding, modes),
        )
        for (world, each, sharding), modes in found.items()
    ]
    return [point for point in made if point.methods]


def _methods(asked: Asked, world: int, sharding: str, modes: Sequence[str]) -> tuple[str, ...]:
    if sharding != "none":
        return asked.sharded
    if asked.brief and world > 1 and list(modes) == ["strong"]:
        return tuple(name for name in asked.methods if name not in asked.sharded)
    return asked.methods


def request(asked: Asked, point: Point, round_: int) -> TrainRequest:
    """The training request of one point."""
    batch, updates = point.per_rank * point.world, asked.blocks * asked.period
    images = max(4 * batch, 2 * 1024)
    params = {"synthetic_images": images}
    own = dict(asked.overrides)
    params |= own.pop("params", {})
    overrides = {"batch": batch, "eval_every": 2**62, "max_s": 1e9, **own, "params": params}
    names = {full_name(name).removeprefix("training.") for name in point.methods}
    hyper = [text for text in asked.hyper if "." not in text.partition("=")[0] or text.partition(".")[0] in names]
    if point.sharding != "none":
        hyper.append(f"sharding={point.sharding}")
    note = {"modes": list(point.modes), "world": point.world, "per_rank": point.per_rank, "sharding": point.sharding,
            "round": round_}  # fmt: skip
    return TrainRequest(
        workloads=(asked.workload,),
        methods=point.methods,
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
        block_updates=asked.period,
        world=World(nproc=point.world),
        overrides=tuple(overrides.items()),
        notes=(("scaling", note),),
    )


def measure(
    asked: Asked,
    out: Path,
    command: str,
    listener: Listener | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[list[Path], dict[str, str]]:
    """Run every point of every round; returns the record files, and what could not be run with its reason.

    One point's failure is told and the rest goes on.

    Raises:
        UserError: a mistake that no point can survive, before anything runs.
    """
    check(asked)
    files: list[Path] = []
    failed: dict[str, str] = {}
    for round_ in range(asked.rounds):
        for point in _turned(points(asked), round_):
            label = f"{point.world} x {point.per_rank} ({' and '.join(point.modes)}), {', '.join(point.methods)}"
            label += f", sharding={point.sharding}" if point.sharding != "none" else ""
            say(f"round {round_ + 1} of {asked.rounds}: {label}")
            try:
                plan = build(request(asked, point, round_))
                plan.phase = "scaling"
                files.append(executor.execute(plan, out, command, listener or Silent()).path)
            except SpeedclaimError as error:
                failed[label] = str(error)
                say(f"  left out: {error}")
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
    one = Point(world=1, per_rank=asked.per_rank, modes=asked.modes, sharding="none", methods=asked.methods)
    probe.check(build(request(asked, one, 0)))


def _turned(found: Sequence[Point], round_: int) -> list[Point]:
    """Forwards and backwards in turn."""
    return list(found) if round_ % 2 == 0 else list(reversed(found))
