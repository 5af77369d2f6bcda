"""The nouns *Run* and *Measurement*: a record type that cannot hold the time of a wrong answer."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA = 1

MicroStatus = Literal[
    "passed",
    "inaccurate",
    "unfaithful",
    "nonfinite",
    "impure",
    "error",
    "timeout",
    "out_of_memory",
    "unsupported",
    "interrupted",
    "unstable",
]
TrainingStatus = Literal["target_reached", "budget_exhausted", "diverged"]
Status = Literal[MicroStatus, TrainingStatus]
STATUSES: tuple[str, ...] = get_args(MicroStatus) + get_args(TrainingStatus)

#: From best to worst: the gate's record carries the worst status over its seeds.
SEVERITY: tuple[str, ...] = (
    "passed",
    "unstable",
    "unsupported",
    "interrupted",
    "inaccurate",
    "unfaithful",
    "impure",
    "nonfinite",
    "error",
    "timeout",
    "out_of_memory",
)
_TIMED = frozenset({"passed", "target_reached"})
#: Seconds that say how long something was watched, not how fast it is; rankings never read them.
UNRANKED_SECONDS = frozenset({"elapsed_s", "censored_at_s"})

Phase = Literal["gate", "memory", "block", "training", "plan"]
PHASES: tuple[str, ...] = get_args(Phase)


class Measurement(BaseModel):
    """Raw samples of one metric. Statistics are derived from it, never stored instead.

    ``clock`` names how seconds were taken: ``host``, ``op-cold``, ``op-hot``, ``graph`` or ``none``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str = Field(min_length=1)
    unit: str
    samples: list[float] = Field(min_length=1)
    clock: str | None = None


class Run(BaseModel):
    """One case executed once in one environment.

    A timing may exist only with status ``passed`` or ``target_reached``; every other status carries a reason.
    ``arm`` is the method's name, or ``name#aa`` for the second alias of the baseline.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    record: Literal["run"] = "run"
    run: str = Field(min_length=1)
    phase: Phase
    case: str
    task: str
    method: str
    problem: str | None = None
    workload: str | None = None
    seed: int | None = None
    block: int | None = None
    arm: str
    status: Status
    reason: str | None = None
    measurements: list[Measurement] = Field(default_factory=list)
    detail: dict[str, Any] = Field(default_factory=dict)
    utc: str = ""

    @model_validator(mode="after")
    def _honest(self) -> Run:
        if self.status not in _TIMED:
            if not self.reason:
                raise ValueError(f"status {self.status!r} needs a reason")
            timed = [m.metric for m in self.measurements if is_timing(m.metric, m.unit)]
            training = self.phase == "training"
            forbidden = [t for t in timed if not training or t == "time_to_target_s"]
            if forbidden:
                raise ValueError(f"a run with status {self.status!r} cannot carry the timing {forbidden[0]!r}")
        return self


def is_timing(metric: str, unit: str) -> bool:
    """Whether a metric is a time that a ranking could read."""
    return (unit == "s" or metric.endswith("_s")) and metric not in UNRANKED_SECONDS


def worst(statuses: list[str]) -> str:
    """The most severe of several micro statuses."""
    return max(statuses, key=SEVERITY.index)
