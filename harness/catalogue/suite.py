"""The nouns *Problem*, *Case* and *Suite*: what is compared, on what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from harness.catalogue.protocol import Protocol

if TYPE_CHECKING:
    from harness.catalogue.task import Task

Tier = Literal["quick", "standard", "full"]
TIERS: tuple[Tier, ...] = ("quick", "standard", "full")
_KIND = re.compile(r"^[a-z0-9][a-z0-9_.+]*$")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One instance of a task.

    Attributes:
        kind: the input's distribution or real-data source, without ``-`` or ``/`` (it is part of the id).
        shape: dimensions of the input, outermost first.
        dtype: name of the input's dtype.
        device: ``cpu`` or ``cuda``.
        tiers: tiers that contain the problem; ``full`` contains every one.
        params: whatever else the generator needs.
        compiled: methods tagged ``compile`` run here too, which costs many seconds a shape (tier ``full``: always).
        seed: base seed; block and gate seeds are derived from it.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str
    device: Literal["cpu", "cuda"] = "cpu"
    tiers: tuple[Tier, ...] = ("standard",)
    params: Mapping[str, Any] = field(default_factory=dict)
    compiled: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not _KIND.match(self.kind):
            raise ValueError(f"a problem's kind has only a-z 0-9 _ . +; got {self.kind!r}")

    @property
    def id(self) -> str:
        """Stable identity, e.g. ``gaussian-32x1024x1024-bfloat16-cuda``."""
        return f"{self.kind}-{'x'.join(map(str, self.shape))}-{self.dtype}-{self.device}"

    def describe(self) -> dict[str, Any]:
        """A JSON-ready copy for the record's header."""
        return {
            "id": self.id,
            "kind": self.kind,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "device": self.device,
            "tiers": list(self.tiers),
            "params": dict(self.params),
            "compiled": self.compiled,
            "seed": self.seed,
        }


@dataclass(frozen=True, kw_only=True)
class Case:
    """One cell of a suite's grid; its id is shared by the store, the report and every other front."""

    method: str
    problem: Problem

    @property
    def id(self) -> str:
        """``task.method/problem-id``."""
        return f"{self.method}/{self.problem.id}"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A task with its problems and the protocol that measures them.

    Attributes:
        name: the entry point's name.
        task: the contract.
        problems: every problem of every tier.
        baseline: name of the method whose time is the numerator of every speed-up; always measured,
            together with an A/A alias of itself.
        protocol: how it is measured.
        weight: share of the time budget when several suites run.
        quick: the only methods of tier ``quick`` beside the baseline and those asked for by name; empty = all.
    """

    name: str
    task: Task
    problems: tuple[Problem, ...]
    baseline: str
    protocol: Protocol = field(default_factory=Protocol)
    weight: float = 1.0
    quick: tuple[str, ...] = ()

    def tier(self, tier: Tier, devices: tuple[str, ...] = ("cpu",)) -> tuple[Problem, ...]:
        """Problems of one tier on the given device kinds, in the suite's order; ``full`` means all of them."""
        return tuple(p for p in self.problems if p.device in devices and (tier == "full" or tier in p.tiers))
