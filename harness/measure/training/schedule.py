"""Learning-rate schedules: a factor on each parameter group's own initial rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.catalogue.workload import SCHEDULES
from harness.errors import UserError


def of(trainer: Mapping[str, Any], update: int, updates: int) -> float:
    """Factor of one update by the trainer's hyper-parameters."""
    return factor(
        trainer["schedule"],
        update,
        updates,
        trainer["warmup"],
        trainer["final_lr"],
        trainer.get("milestones") or (),
        trainer.get("gamma") or 1.0,
        [(epoch / trainer["epochs"], value) for epoch, value in trainer.get("pieces") or ()],
    )


def factor(
    name: str,
    update: int,
    updates: int,
    warmup: float = 0.0,
    final: float = 0.0,
    milestones: Sequence[float] = (),
    gamma: float = 1.0,
    pieces: Sequence[tuple[float, float]] = (),
) -> float:
    """Factor of update ``update`` (from 0) of ``updates``.

    During the warm-up, a fraction of the updates, the factor rises linearly to 1. Then with p from 0 to 1:
    constant: 1; linear: 1 - p (1 - final); cosine: final + (1 - final) (1 + cos pi p) / 2;
    triangle: as linear, and the rise starts at ``final`` instead of at nothing (its peak is half-way when there is no
    warm-up);
    step: gamma to the number of ``milestones`` (fractions of the updates) that are past, ``final`` is not used;
    steps: the factor of the last of ``pieces`` (fraction of the updates, factor) that has begun.

    Raises:
        UserError: a schedule that does not exist.
    """
    if name not in SCHEDULES:
        raise UserError(f"schedule {name!r}: expected one of {', '.join(SCHEDULES)}.")
    if name == "triangle" and warmup == 0.0:
        warmup = 0.5
    rise = warmup * updates
    if update + 1 < rise:
        part = (update + 1) / rise
        return final + (1 - final) * part if name == "triangle" else part
    if name == "constant":
        return 1.0
    if name == "step":
        # A fraction such as 0.9 of 200 epochs must not miss its update by a rounding.
        return gamma ** sum(update + 1e-6 >= place * updates for place in milestones)
    if name == "steps":
        return [value for place, value in pieces if update + 1e-6 >= place * updates][-1]
    start = max(0, math.ceil(rise) - 1)
    progress = (update - start) / max(1, updates - start)
    if name == "cosine":
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress * (1 - final)


def evaluation_points(every: int, batch: int, updates: int) -> Iterator[int]:
    """Updates after which the model is evaluated: as soon as a multiple of ``every`` samples is seen, and the end."""
    samples, last = every, 0
    while (point := math.ceil(samples / batch)) < updates:
        if point > last:
            yield point
        last, samples = point, samples + every
    yield updates


def remember(optimizer: Any) -> None:
    """Keep each group's rate as ``initial_lr``.

    Raises:
        UserError: a group without ``lr``.
    """
    for group in optimizer.param_groups:
        if "lr" not in group:
            raise UserError(f"{type(optimizer).__name__}: every parameter group must carry 'lr', got {sorted(group)}.")
        group.setdefault("initial_lr", float(group["lr"]))


def apply(optimizer: Any, factor_: float) -> None:
    """Set each group's rate to ``initial_lr`` times the factor, in place where it is a tensor."""
    for group in optimizer.param_groups:
        rate = group["initial_lr"] * factor_
        if hasattr(group["lr"], "fill_"):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
