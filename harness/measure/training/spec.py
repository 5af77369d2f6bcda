"""What one run is asked to do, as plain data that travels to a worker and into the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from harness.catalogue import registry
from harness.catalogue.workload import Workload

#: Changes when numbers of older runs can no longer stand beside new ones.
TRAINING_PROTOCOL = 1
#: Added to the seed for the A/A alias of the baseline: other data order, other initial weights.
AA_STREAM = 1_000_003
#: Updates between two synchronisations: a whole pipeline drain costs less than a hundredth of so many small steps.
BLOCK_UPDATES = 20
#: Loss over this multiple of the first block's is divergence (measured runs that recover stay under it).
BLOW_UP = 10.0


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One training run.

    Attributes:
        workload: name of the workload.
        method: name of the method.
        arm: the method's name, or ``name#aa``.
        seed: the seed shared by all arms of a block.
        block: index of the seed.
        stream: seed of initial weights and data order (differs from ``seed`` for the A/A alias).
        factory: hyper-parameters of the method.
        trainer: hyper-parameters of the trainer.
        sources: where each value came from.
        device: ``cpu`` or ``cuda``.
        compile: forward and backward through ``torch.compile``.
        full: no early stop after the target.
        until: the level of the target that ends the run; None = the farthest.
        synthetic: generated data of the real shape.
        validation: a held-out part of the training set instead of the test set.
        max_s: budget on the training clock.
        checkpoint: file of the run's checkpoint; None = none is written.
        checkpoint_s: seconds between two checkpoints.
        checkpoint_updates: a checkpoint after as many updates too; 0 = by time alone.
        block_updates: updates between two synchronisations.
        world: processes that share each batch.
        sync_batch_norm: batch norm over the global batch; otherwise each process normalises its own slice.
        overrides: fields of the workload that this run changes; ``params`` are added to the workload's.
        extra: copied into the record's detail (evidence and trials of the recipe, number of a tuning trial).
    """

    workload: str
    method: str
    arm: str
    seed: int
    block: int
    stream: int
    factory: Mapping[str, Any]
    trainer: Mapping[str, Any]
    sources: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    compile: bool = False
    full: bool = False
    until: float | None = None
    synthetic: bool = False
    validation: bool = False
    max_s: float = 3600.0
    checkpoint: str | None = None
    checkpoint_s: float = 30.0
    checkpoint_updates: int = 0
    block_updates: int = BLOCK_UPDATES
    world: int = 1
    sync_batch_norm: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)

    def found_workload(self) -> Workload:
        """The workload of the registry, with generated data or changed fields if the spec says so."""
        found = registry.workload(self.workload)
        if self.overrides:
            params = {**found.params, **self.overrides.get("params", {})}
            found = replace(found, **{**self.overrides, "params": params})
        return replace(found, params={**found.params, "synthetic": True}) if self.synthetic else found

    @property
    def case(self) -> str:
        """The record's case."""
        return f"{self.method}/{self.workload}"

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.workload} {self.arm.removeprefix('training.')} seed {self.seed}"


def from_json(fields: Mapping[str, Any]) -> RunSpec:
    """The spec that :meth:`RunSpec.to_json` wrote."""
    return RunSpec(**fields)
