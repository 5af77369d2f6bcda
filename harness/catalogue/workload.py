"""The noun *Workload*: a training problem with its target and its budget, described without importing torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from harness.catalogue.protocol import Precision
from harness.catalogue.suite import Tier

_NAME = re.compile(r"^[a-z0-9][a-z0-9-]*$")

#: Hyper-parameters that the trainer itself takes, in every arm alike; all others go to the method's factory.
TRAINER_HYPER = (
    *("epochs", "schedule", "warmup", "final_lr", "milestones", "gamma", "pieces"),
    *("clip_norm", "precision", "accumulate"),
)
SCHEDULES = ("constant", "linear", "cosine", "triangle", "step", "steps")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a run must reach.

    Attributes:
        metric: name of an evaluation metric of the runtime, e.g. ``test_accuracy`` (a fraction) or ``val_loss``.
        value: the headline target.
        source: where the number comes from.
        larger_is_better: direction of the metric.
        others: further levels whose crossings are recorded too.
        mode: ``crossing`` (first of two evaluations in a row at or beyond the value, interpolated) or ``final`` (the
            metric at the end of a fixed schedule).
    """

    metric: str
    value: float
    source: str
    larger_is_better: bool = True
    others: tuple[float, ...] = ()
    mode: Literal["crossing", "final"] = "crossing"

    def met(self, value: float, level: float | None = None) -> bool:
        """Whether a metric's value is at or beyond ``level`` (default: the headline target)."""
        wanted = self.value if level is None else level
        return value >= wanted if self.larger_is_better else value <= wanted


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A published figure that validates the harness itself."""

    value: float
    what: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A training problem. Data, model and loss live behind ``runtime``; the harness never names them.

    Attributes:
        name: the entry point's name.
        summary: one line for people.
        data: name of the data card.
        runtime: ``"module:attr"`` of an object with the methods of :class:`WorkloadRuntime`.
        params: whatever else the runtime needs (model widths, image sizes, context length, augmentation).
        batch: samples of one update.
        epochs: default length of the schedule, in passes over the training data; also the budget.
        eval_every: samples between two evaluations; 0 = once an epoch.
        target: what a run must reach.
        methods: methods of the default comparison; the first is the baseline of every ratio and of the A/A arm.
        seeds: default number of seeds.
        max_s: a run whose training clock passes it ends with ``budget_exhausted``.
        precision: default precision mode (``bf16``: autocast with float32 weights).
        pure_bf16: weights, gradients and optimizer state in bfloat16.
        channels_last: image memory format.
        compile: forward and backward through ``torch.compile``, shared by all arms (CUDA only).
        needs: what the machine must have, as for a method (``cuda``).
        devices: device kinds it is meant for.
        tiers: tiers that contain it on these devices.
        reference: published figure that the harness itself is validated with.
        notes: departures from the source and what the reader should know.
    """

    name: str
    summary: str
    data: str
    runtime: str
    target: Target
    batch: int
    epochs: float
    params: Mapping[str, Any] = field(default_factory=dict)
    eval_every: int = 0
    methods: tuple[str, ...] = ("training.sgd", "training.adamw", "training.muon")
    seeds: int = 6
    max_s: float = 3600.0
    precision: Precision = "torch-default"
    pure_bf16: bool = False
    channels_last: bool = False
    compile: bool = False
    needs: tuple[str, ...] = ()
    devices: tuple[Literal["cpu", "cuda"], ...] = ("cpu", "cuda")
    tiers: tuple[Tier, ...] = ("standard",)
    reference: Reference | None = None
    notes: str = ""

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise ValueError(f"a workload's name has a-z 0-9 -; got {self.name!r}")
        if self.batch < 1 or self.epochs <= 0 or self.eval_every < 0 or self.max_s <= 0:
            raise ValueError(f"{self.name}: batch, epochs and max_s must be positive, eval_every not negative")
        if not self.methods:
            raise ValueError(f"{self.name}: name at least one method; the first one is the baseline")

    @property
    def baseline(self) -> str:
        """The method whose time is the numerator of every ratio, and that has an A/A alias."""
        return self.methods[0]

    def describe(self) -> dict[str, Any]:
        """A JSON-ready copy for the record's header."""
        return asdict(self)


class Batch(NamedTuple):
    """One batch on the training device: model inputs and targets."""

    inputs: Any
    targets: Any


class Data(Protocol):
    """Training and test data held whole on the training device.

    The training data is an endless stream that depends on the seed alone: sample ``k`` is position ``k % size`` of
    the order of epoch ``k // size``, augmented by a counter-based generator keyed by (seed, epoch, sample). Any split
    into batches, sub-batches or ranks sees the same samples, and a resumed run only needs the number of samples seen.
    """

    size: int

    def train(self, seed: int, first: int, count: int) -> Batch:
        """Samples ``first`` to ``first + count`` of the seed's stream."""

    def constant(self, count: int) -> Batch:
        """A resident batch that needs no work: what the stall is measured against."""

    def evaluation(self, split: str, batch: int) -> Iterator[Batch]:
        """The whole of ``test`` or ``validation``, unaugmented, in order."""


class WorkloadRuntime(Protocol):
    """What the harness asks of a workload while it trains."""

    def data(self, workload: Workload, device: str, validation: bool) -> Data:
        """The data on ``device``; ``validation`` holds a part of the training set out and hides the test set."""

    def model(self, workload: Workload) -> Any:
        """A new float32 ``torch.nn.Module`` on the CPU, drawn from torch's generator (the harness seeds it)."""

    def loss(self, outputs: Any, targets: Any) -> Any:
        """Mean training loss of one batch (a scalar tensor), from the model's outputs."""

    def evaluate(self, model: Any, batches: Iterator[Batch]) -> Mapping[str, float]:
        """Evaluation metrics by name, without the split's prefix: ``accuracy``, ``loss``."""

    def final(self, model: Any, data: Data) -> Mapping[str, float]:
        """Further facts about the trained model, outside every clock (may be empty)."""
