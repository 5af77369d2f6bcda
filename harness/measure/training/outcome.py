"""From a run's log to what the record keeps: measurements and detail, by status."""

from __future__ import annotations

import math
import statistics
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.catalogue.workload import Workload
from harness.measure.training.crossing import Crossing
from harness.measure.training.log import Log
from harness.measure.training.spec import RunSpec
from harness.measure.training_device import TrainingCPU

TRAIN, TOTAL = "train", "train_total"
#: metric -> (unit, samples, clock)
Measured = dict[str, tuple[str, list[float], str | None]]
#: These never hit and stay at risk to the end of the budget.
FAILED = ("diverged", "out_of_memory", "error", "timeout", "interrupted", "unsupported")
#: Measurements that only a run with status ``target_reached`` has.
OF_TARGET = ("time_to_target_s", "total_time_to_target_s", "device_s_to_target", "steps_to_target", "samples_to_target")
#: Characters of an error's text that the record keeps.
REASON = 400


@dataclass(kw_only=True)
class Outcome:
    """One run as its worker reports it."""

    status: str
    reason: str | None
    measurements: Measured = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return {
            "status": self.status,
            "reason": self.reason,
            "measurements": {name: list(value) for name, value in self.measurements.items()},
            "detail": self.detail,
        }


def hyper_detail(spec: RunSpec) -> dict[str, Any]:
    """What of a run is known before it starts."""
    return {
        "hyper": {**spec.trainer, **spec.factory},
        "hyper_sources": dict(spec.sources),
        "stream": spec.stream,
        "split": "validation" if spec.validation else "test",
        "synthetic": spec.synthetic,
        **spec.extra,
    }


def outcome(
    *,
    spec: RunSpec,
    workload: Workload,
    log: Log,
    status: str,
    reason: str | None,
    metric: str,
    updates: int | None,
    crossings: list[Crossing],
    final: Mapping[str, float],
    detail: Mapping[str, Any],
) -> Outcome:
    """Assemble the record of a run that at least began; ``updates`` is its budget, None when that is not known."""
    measured: Measured = {}
    headline = next((c for c in crossings if c.level == workload.target.value), None)
    if status == "target_reached":
        assert headline is not None
        measured |= _reached(headline, log.compile_s, spec.world)
    measured |= _always(log, workload.batch)
    measured |= _of_ranks(log, spec.world)
    found = {**hyper_detail(spec), **_spec_detail(spec, workload, log, metric, updates), **detail}
    found["crossings"] = [c.to_json() for c in crossings]
    if status != "target_reached":
        censored = _censored(log, status, updates, workload.batch, spec.max_s)
        found["censored_at"] = censored
        if censored["time_to_target_s"]:
            measured["censored_at_s"] = ("s", [censored["time_to_target_s"]], TRAIN)
    measured |= _curves(log, workload, metric)
    measured |= {f"final_{name}": ("1", [value], None) for name, value in final.items() if math.isfinite(value)}
    return Outcome(status=status, reason=reason, measurements=measured, detail=found)


def _reached(headline: Crossing, compile_s: float, world: int) -> Measured:
    return {
        "time_to_target_s": ("s", [headline.time_s], TRAIN),
        "total_time_to_target_s": ("s", [headline.time_s + compile_s], TOTAL),
        "device_s_to_target": ("s", [headline.time_s * world], TRAIN),
        "steps_to_target": ("1", [headline.steps], None),
        "samples_to_target": ("1", [headline.samples], None),
    }


def _always(log: Log, batch: int) -> Measured:
    measured: Measured = {}
    if log.train_s > 0:
        measured["elapsed_s"] = ("s", [log.train_s], TRAIN)
    measured["steps"] = ("1", [float(log.done)], None)
    measured["samples"] = ("1", [float(log.done * batch)], None)
    if log.step_s:
        measured["step_s"] = ("s", log.step_s, TRAIN)
    if any(value > 0 for value in log.optimizer_step_s):
        measured["optimizer_step_s"] = ("s", log.optimizer_step_s, TRAIN)
    outside = ("evaluation", "checkpoint", "compile")
    for name, seconds in sorted({**log.buckets, "compile": log.compile_s}.items()):
        clock = TOTAL if name == "compile" else None if name in outside else TRAIN
        measured[f"bucket_{name}_s"] = ("s", [seconds], clock)
    if log.stall is not None:
        measured["stall"] = ("1", [log.stall], None)
    for name, value, unit in (
        ("peak_device_bytes", log.device_peak, "bytes"),
        ("peak_host_bytes", log.host_peak, "bytes"),
        ("optimizer_state_bytes", float(log.state_bytes), "bytes"),
        ("energy_j", log.energy_j, "J"),
    ):
        if value is not None and (value > 0 or name == "optimizer_state_bytes"):
            measured[name] = (unit, [float(value)], None)
    return measured


def _of_ranks(log: Log, world: int) -> Measured:
    """What several processes add: bytes of each, and the share of the training clock that collectives took.

    ``communication_share`` holds rank 0's waiting for slower ranks too. ``device_s`` = training clock x processes.
    """
    if world == 1 or not log.train_s:
        return {}
    spent = log.buckets.get("communication", 0.0) + log.buckets.get("optimizer_communication", 0.0)
    measured: Measured = {
        "communication_share": ("1", [spent / log.train_s], None),
        "device_s": ("s", [log.train_s * world], TRAIN),
    }
    for name in ("peak_device_bytes", "peak_host_bytes", "optimizer_state_bytes"):
        values = [float(rank[name]) for rank in log.ranks if rank.get(name) is not None]
        if len(values) == world and max(values) > 0:
            measured[f"rank_{name}"] = ("bytes", values, None)
    return measured


def _curves(log: Log, workload: Workload, metric: str) -> Measured:
    measured: Measured = {}
    if not log.curve.get("steps"):
        return measured
    for name, values in log.curve.items():
        unit, clock = ("s", TRAIN) if name == "s" else ("1", None)
        measured[f"curve_{name}"] = (unit, list(values), clock)
        if name not in ("s", "steps", "samples"):
            measured[f"final_{name}"] = ("1", [values[-1]], None)
            best = max if "accuracy" in name or (name == metric and workload.target.larger_is_better) else min
            measured[f"best_{name}"] = ("1", [best(values)], None)
    return measured


def _censored(log: Log, status: str, updates: int | None, batch: int, max_s: float) -> dict[str, float | None]:
    """How far a run without the target was watched: a failed one stays at risk to the end of the budget."""
    steps = float(log.done)
    seconds: float | None = log.train_s or None
    if status in FAILED and updates is not None:
        steps = float(updates)
        seconds = updates * statistics.fmean(log.step_s) if log.step_s else None
        if seconds is not None and seconds > max_s:  # the budget in seconds would have ended it sooner
            steps, seconds = steps * max_s / seconds, max_s
        seconds = None if seconds is None else max(seconds, log.train_s)  # it was watched for that long
    return {"steps_to_target": steps, "samples_to_target": steps * batch, "time_to_target_s": seconds}


def _spec_detail(spec: RunSpec, workload: Workload, log: Log, metric: str, updates: int | None) -> dict[str, Any]:
    return {
        "spec": {
            "batch": workload.batch,
            "epochs": spec.trainer["epochs"],
            "updates": updates,
            "precision": spec.trainer["precision"],
            "pure_bf16": workload.pure_bf16,
            "device": spec.device,
            "compile": spec.compile,
            "channels_last": workload.channels_last,
            "block_updates": spec.block_updates,
            "max_s": spec.max_s,
            **({} if spec.until is None else {"until": spec.until}),
            **({"world": spec.world, "sync_batch_norm": spec.sync_batch_norm} if spec.world > 1 else {}),
        },
        **({"ranks": log.ranks, "drift": log.drift} if spec.world > 1 else {}),
        "updates": updates,
        "target": {
            "metric": metric,
            "value": workload.target.value,
            "larger_is_better": workload.target.larger_is_better,
            "mode": workload.target.mode,
        },
        "resumed": log.resumed,
        "braked": log.braked,
        "device_state": {"sm_mhz": log.sm_mhz, "temperature_c": log.temperature_c, "throttle": log.throttle},
        "warmup_hash_ok": log.warmup_hash_ok,
        "stopped_early": log.stopped_early,
    }


def failure(device: TrainingCPU, error: BaseException) -> tuple[str, str]:
    """Status and reason of an exception; the traceback goes to the worker's standard error."""
    text = " ".join(str(error).split())[:REASON]
    if device.is_out_of_memory(error):
        return "out_of_memory", f"{type(error).__name__}: {text}"
    traceback.print_exception(error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "torch" not in frame.filename]
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return "error", f"{type(error).__name__}: {text}{where}"
