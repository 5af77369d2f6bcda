"""Synthetic training records, written through the store exactly as the trainer writes them."""

from __future__ import annotations

import gc
import importlib.util
import math
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.record.run import Measurement, Run
from harness.record.store import Writer

AA_STREAM = 1_000_003


_settled = 0


def settle() -> None:
    """Imported modules and collected tests live to the end: a collection of garbage need not walk them (0.3 s each)."""
    global _settled
    if len(sys.modules) > _settled + 100:
        gc.collect()
        gc.freeze()
        _settled = len(sys.modules)


def pytest_collection_finish() -> None:
    settle()


@pytest.fixture(autouse=True, scope="module")
def _settled_before() -> None:
    """Also what tests of other modules have imported since."""
    settle()


@dataclass(frozen=True, kw_only=True)
class Arm:
    """How one method trains: exponential approach to ``final`` with time constant ``tau`` (in evaluations)."""

    method: str
    tau: float = 3.0
    final: float = 0.99
    step_s: float = 0.004
    optimizer: float = 0.1
    fates: Mapping[int, str] = field(default_factory=dict)
    hyper: Mapping[str, Any] = field(default_factory=lambda: {"lr": 0.1, "epochs": 12.0})
    peak: float = 5e8
    state: float = 1e6
    stall: float = 0.01
    resumed: tuple[int, ...] = ()
    precision: str = "torch-default"
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class Trainer:
    """Writes one record file of training runs; everything the contract of a run asks for stands in it."""

    workload: str = "digits-cnn"
    metric: str = "test_accuracy"
    value: float = 0.98
    larger_is_better: bool = True
    start: float = 0.1
    evaluations: int = 12
    updates: int = 276
    batch: int = 64
    device: str = "cpu"
    device_name: str = "AMD EPYC 7B13"
    split: str = "test"
    utc: str = "2026-11-22T13:00:00Z"

    def write(self, path: Path, arms: Sequence[Arm], seeds: int = 6, aa: bool = True) -> Path:
        """The file with ``seeds`` runs of each arm, and of the first arm's alias when ``aa``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with Writer(path) as writer:
            writer.header(self._header(arms))
            for seed in range(seeds):
                for arm in arms:
                    writer.run(self._run(path.stem, arm, seed, alias=False))
                if aa:
                    writer.run(self._run(path.stem, arms[0], seed, alias=True))
            writer.end(utc=self.utc, elapsed_s=10.0)
        return path

    def _header(self, arms: Sequence[Arm]) -> dict[str, Any]:
        described = {
            "name": self.workload, "summary": f"{self.workload}: small", "data": "digits", "batch": self.batch,
            "epochs": 12.0, "methods": [arm.method for arm in arms], "precision": "torch-default",
            "target": {"metric": self.metric, "value": self.value, "source": "a table", "mode": "crossing",
                       "larger_is_better": self.larger_is_better, "others": []},
            "reference": {"value": 0.985, "what": "mean accuracy of tuned SGD", "source": "a README"},
            "notes": "an evaluation once an epoch",
        }  # fmt: skip
        methods = [
            {"name": arm.method, "task": "training", "summary": "an optimizer", "source": "a paper", "origin": "own"}
            for arm in arms
        ]
        return {
            "utc": self.utc, "command": f"speedclaim train {self.workload}",
            "project": {"version": "0.1.0", "commit": "0123456789abcdef", "diff": ""},
            "environment": {"device": self.device, "device_name": self.device_name, "cpu": "AMD EPYC 7B13",
                            "threads": 1, "warnings": []},
            "plan": {"hash": "cd" * 32, "tier": "quick", "suites": [], "workloads": [described],
                     "training_protocol": {"version": 1}},
            "methods": methods,
        }  # fmt: skip

    def _curve(self, arm: Arm, seed: int, stream: str) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(f"{arm.method}{seed}{stream}{self.workload}".encode()))
        k = np.arange(self.evaluations + 1)
        tau = arm.tau * math.exp(rng.normal(0, 0.05))
        wobble = rng.normal(0, 0.002, len(k)) * (k > 0)
        return arm.final + (self.start - arm.final) * np.exp(-k / tau) + wobble

    def _run(self, stem: str, arm: Arm, seed: int, alias: bool) -> Run:
        values = self._curve(arm, seed, "aa" if alias else "")
        steps = np.linspace(0, self.updates, self.evaluations + 1)
        rng = np.random.default_rng(seed + 17 * alias + zlib.crc32(arm.method.encode()))
        step_s = arm.step_s * math.exp(rng.normal(0, 0.01))
        crossing = self._crossing(values, steps)
        status = arm.fates.get(seed, "target_reached" if crossing is not None else "budget_exhausted")
        if status == "target_reached" and crossing is None:
            crossing = self.updates * 0.9
        if status in ("diverged", "out_of_memory", "error"):
            cut = 1 if status != "diverged" else 4
            values, steps, crossing = values[:cut], steps[:cut], None
        if status != "target_reached":
            crossing = None
        done = float(steps[-1])
        reason = {
            "target_reached": None,
            "budget_exhausted": f"{self.metric} stayed short of {self.value}",
            "diverged": "the loss is not finite",
            "out_of_memory": "CUDA out of memory",
            "error": "RuntimeError: singular",
            "interrupted": "stopped by the user",
        }.get(status, "no CUDA")
        budget = self.updates * step_s
        found = self._measured(arm, values, steps, step_s, done)
        detail: dict[str, Any] = {
            "hyper": {name: {"value": value, "from": "recipe"} for name, value in arm.hyper.items()},
            "spec": {"batch": self.batch, "precision": arm.precision, "updates": self.updates, "device": self.device},
            "coverage": {"muon": 30_000, "adamw": 8_000} if "muon" in arm.method else {},
            "stream": seed + AA_STREAM * alias, "crossings": [], "resumed": seed in arm.resumed,
            "warmup_hash_ok": True, "split": self.split, "updates": self.updates,
            "target": {"metric": self.metric, "value": self.value, "larger_is_better": self.larger_is_better},
        }  # fmt: skip
        if crossing is not None:
            detail["crossings"] = [
                {"level": self.value, "time_s": crossing * step_s, "steps": crossing, "samples": crossing * self.batch}
            ]
            found |= {"time_to_target_s": crossing * step_s, "total_time_to_target_s": crossing * step_s + 0.5,
                      "device_s_to_target": crossing * step_s, "steps_to_target": crossing,
                      "samples_to_target": crossing * self.batch}  # fmt: skip
        elif status not in ("interrupted", "unsupported"):
            found["censored_at_s"] = budget
            detail["censored_at"] = {"time_to_target_s": budget, "steps_to_target": float(self.updates),
                                     "samples_to_target": float(self.updates * self.batch)}  # fmt: skip
        name = f"{arm.method}#aa" if alias else arm.method
        return Run(
            run=f"{stem}-{name}-{seed}", phase="training", case=f"{arm.method}/{self.workload}", task="training",
            method=arm.method, workload=self.workload, seed=seed, block=seed, arm=name, status=status,  # type: ignore[arg-type]
            reason=reason, measurements=_measurements(found), detail=detail, utc=self.utc,
        )  # fmt: skip

    def _crossing(self, values: np.ndarray, steps: np.ndarray) -> float | None:
        """First of two evaluations in a row at the target, interpolated."""
        sign = 1 if self.larger_is_better else -1
        good = sign * values >= sign * self.value
        for k in range(1, len(values)):
            if good[k] and (k + 1 == len(values) or good[k + 1]):
                share = (self.value - values[k - 1]) / (values[k] - values[k - 1])
                return float(steps[k - 1] + min(max(share, 0.0), 1.0) * (steps[k] - steps[k - 1]))
        return None

    def _measured(
        self, arm: Arm, values: np.ndarray, steps: np.ndarray, step_s: float, done: float
    ) -> dict[str, float | list[float]]:
        total = done * step_s
        rest = total * (1 - arm.optimizer)
        data = max(0.02 * rest, min(arm.stall * total, rest))
        best = float(values.max() if self.larger_is_better else values.min())
        return {
            "elapsed_s": max(total, 1e-6), f"final_{self.metric}": float(values[-1]), f"best_{self.metric}": best,
            "steps": done, "samples": done * self.batch, "step_s": [step_s * (1 + 0.01 * k) for k in range(3)],
            "optimizer_step_s": step_s * arm.optimizer, "bucket_data_s": data, "bucket_forward_s": 0.4 * (rest - data),
            "bucket_backward_s": 0.6 * (rest - data), "bucket_optimizer_s": arm.optimizer * total,
            "bucket_evaluation_s": 0.2 * total, "bucket_checkpoint_s": 0.01 * total, "bucket_compile_s": 0.0,
            "stall": arm.stall, "peak_host_bytes": arm.peak, "optimizer_state_bytes": arm.state, **arm.extra,
            "curve_steps": [float(s) for s in steps], "curve_samples": [float(s * self.batch) for s in steps],
            "curve_s": [float(s * step_s) for s in steps], f"curve_{self.metric}": [float(v) for v in values],
            "curve_train_loss": [float(2.3 * math.exp(-k / 4)) for k in range(len(values))],
        }  # fmt: skip


def _measurements(found: Mapping[str, float | list[float]]) -> list[Measurement]:
    measured = []
    for metric, value in found.items():
        samples = value if isinstance(value, list) else [value]
        unit = "s" if metric.endswith("_s") or metric == "device_s_to_target" else "1"
        clock = None if unit == "1" else "train_total" if metric.startswith("total") else "train"
        measured.append(Measurement(metric=metric, unit=unit, samples=samples, clock=clock))
    return measured


SGD = Arm(method="training.sgd", tau=3.2, step_s=0.0036, optimizer=0.03, final=0.99)
ADAMW = Arm(method="training.adamw", tau=2.6, step_s=0.004, optimizer=0.06, final=0.992, state=3e6, peak=5.6e8)
MUON = Arm(method="training.muon", tau=1.4, step_s=0.0052, optimizer=0.3, final=0.995, state=2e6, peak=6.1e8)


@pytest.fixture(scope="session")
def trainer() -> Callable[..., Trainer]:
    """Makes a writer of training records."""
    return Trainer


@pytest.fixture(scope="session")
def training_arm() -> Callable[..., Arm]:
    """Makes the description of an arm."""
    return Arm


@pytest.fixture(scope="session")
def usual_arms() -> tuple[Arm, Arm, Arm]:
    """SGD, AdamW and Muon as they usually compare."""
    return SGD, ADAMW, MUON


@pytest.fixture(scope="session")
def warm() -> Iterator[Any]:
    """``warm.run([sys.executable, …], env=…, cwd=…)`` and ``warm.Popen``: children that need not import torch first."""
    file = Path(__file__).with_name("warm.py")
    spec = importlib.util.spec_from_file_location("warm", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if sys.platform != "linux" or importlib.util.find_spec("torch") is None:
        yield module.Warm("", {"no": "server"})
        return
    own = {name: value for name, value in os.environ.items() if name not in module.FREE}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        server = subprocess.Popen(
            [sys.executable, str(file), path], env=own, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        with server:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield module.Warm(path, module.early(own))
            server.kill()
