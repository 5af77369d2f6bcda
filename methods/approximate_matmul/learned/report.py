"""What replacing did: every layer that multiplies by weights is listed, replaced or not, with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """One layer that became a look-up.

    Attributes:
        name: in the model.
        kind: ``Linear`` or ``Conv2d``.
        inner: D.
        outer: M.
        codebooks: C.
        rows: training rows.
        nmse: |Y - Y_exact|^2 / |Y_exact|^2 over the training rows, before any fine-tuning, without bias.
        seconds: of fitting.
        options: what the structure is built from again.
    """

    name: str
    kind: str
    inner: int
    outer: int
    codebooks: int
    rows: int
    nmse: float
    seconds: float
    options: Mapping[str, Any]

    @property
    def multiplies_per_lookup(self) -> float:
        """D / C, multiply-adds that one look-up stands for."""
        return self.inner / self.codebooks


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """One layer that stayed, and why."""

    name: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """All layers in order of execution (those never executed come last)."""

    replaced: tuple[Replaced, ...]
    skipped: tuple[Skipped, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready copy that :meth:`from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Report:
        """The inverse of :meth:`to_json`."""
        return cls(
            replaced=tuple(Replaced(**item) for item in stored["replaced"]),
            skipped=tuple(Skipped(**item) for item in stored["skipped"]),
        )

    def __str__(self) -> str:
        lines = [
            f"{r.name}: {r.kind} {r.inner} x {r.outer}, {r.codebooks} codebooks ({r.multiplies_per_lookup:.3g} "
            f"multiply-adds a look-up), NMSE {r.nmse:.3g} on {r.rows} rows, {r.seconds:.1f} s"
            for r in self.replaced
        ]
        return "\n".join([*lines, *(f"{s.name}: kept, {s.why}" for s in self.skipped)])
