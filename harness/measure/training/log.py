"""What one run has seen so far: curve, step times, buckets. It travels with the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(kw_only=True)
class Log:
    """The running record of one run.

    Attributes:
        done: updates done.
        train_s: the training clock.
        compile_s: compilation and warm-up, of every process that worked on the run.
        curve: one value per evaluation of ``steps``, ``samples``, ``s``, ``train_loss`` and every metric.
        step_s: per block, mean seconds of one update.
        optimizer_step_s: per block, mean seconds of the optimizer's share of one update.
        buckets: seconds by what they were spent on.
        loss_sum: sum of the updates' losses since the last evaluation, and their number.
        first_loss: mean loss of the first block: what a blow-up is measured against.
        last_loss: mean loss of the last block.
        energy_j: joules while the training clock ran; None where they cannot be read.
        stall: share of an update that waits for data.
        device_peak: device bytes over the baseline while training.
        resumed: an earlier process did a part of the run.
        stopped_early: the target was reached before the end of the schedule.
        sm_mhz: clock of the device at each evaluation, and temperature_c its temperature.
        throttle: every throttle reason seen.
        braked: the thermal or power brake that was seen, for which a seed's times do not count in any arm.
        ranks: what each process of several said at the end: its device, its peaks, its share of the state.
        drift: largest distance between the processes' weights at an evaluation, over their norm.
    """

    done: int = 0
    train_s: float = 0.0
    compile_s: float = 0.0
    curve: dict[str, list[float]] = field(default_factory=dict)
    step_s: list[float] = field(default_factory=list)
    optimizer_step_s: list[float] = field(default_factory=list)
    buckets: dict[str, float] = field(default_factory=dict)
    loss_sum: float = 0.0
    loss_count: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    energy_j: float | None = None
    stall: float | None = None
    device_peak: float = 0.0
    host_peak: float = 0.0
    state_bytes: int = 0
    warmup_hash_ok: bool = False
    resumed: bool = False
    stopped_early: bool = False
    sm_mhz: list[float] = field(default_factory=list)
    temperature_c: list[float] = field(default_factory=list)
    throttle: list[str] = field(default_factory=list)
    braked: str | None = None
    ranks: list[dict[str, Any]] = field(default_factory=list)
    drift: float | None = None

    def saw(self, device: Mapping[str, Any]) -> None:
        """Note the device's clock, temperature and throttling; a thermal or power brake once seen stays."""
        for name in ("sm_mhz", "temperature_c"):
            if device.get(name) is not None:
                getattr(self, name).append(float(device[name]))
        self.throttle = sorted({*self.throttle, *device.get("throttle", ())})
        self.braked = self.braked or device.get("discarded")

    def evaluated(self, point: Mapping[str, float]) -> None:
        """Append one evaluation to the curve."""
        for name, value in point.items():
            self.curve.setdefault(name, []).append(float(value))

    def to_json(self) -> dict[str, Any]:
        """A plain copy for the checkpoint."""
        return asdict(self)


def from_json(stored: Mapping[str, Any]) -> Log:
    """The log that :meth:`Log.to_json` wrote."""
    return Log(**{item.name: stored[item.name] for item in fields(Log)})
