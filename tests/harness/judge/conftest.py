"""Frames of stored runs, built by hand, and a claim with sensible defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.judge.claim import Claim

COLUMNS = (
    *("run", "phase", "case", "task", "method", "problem", "workload", "seed", "block", "arm", "status", "reason"),
    *("metric", "unit", "clock", "value", "samples", "device", "device_kind", "threads", "commit", "protocol"),
    *("precision", "conditions", "discarded", "utc", "file", "detail"),
)
CANDIDATE, BASELINE, SUITE_BASELINE = "toy.new", "toy.old", "toy.plain"
WORKLOAD = "toy-train"
PROBLEM = "gaussian-64x64-float32-cpu"


class Store:
    """Collects rows as ``read_runs`` would give them; every method returns the store."""

    def __init__(self, file: str = "a.jsonl", device: str = "Toy CPU", utc: str = "2026-01-01T00:00:00Z") -> None:
        self.rows: list[dict[str, Any]] = []
        self.shared = {"file": file, "device": device, "utc": utc, "device_kind": "cpu", "threads": 1.0}
        self.shared |= {"commit": "c0", "protocol": 1.0, "precision": "ieee", "task": "toy"}

    def row(self, **fields: Any) -> Store:
        fields = {**dict.fromkeys(COLUMNS), **self.shared, **fields}
        fields["run"] = fields["run"] or f"r{len(self.rows)}"
        fields["arm"] = fields["arm"] or fields["method"]
        fields["case"] = fields["case"] or f"{fields['method']}/{fields['problem'] or fields['workload']}"
        fields["samples"] = fields["samples"] or ([fields["value"]] if fields["value"] is not None else None)
        fields["detail"] = fields["detail"] or {}
        self.rows.append(fields)
        return self

    def times(
        self, method: str, ratio: float = 1.0, *, arm: str | None = None, problem: str = PROBLEM, blocks: int = 10,
        spread: float = 0.002, metric: str = "op_s", clock: str = "host", seed: int = 0, **more: Any,
    ) -> Store:  # fmt: skip
        """``blocks`` timings whose log scatters about ln(1/ratio) by ``spread``; ratio = how much faster than 1 s."""
        noise = np.random.default_rng([seed, len(self.rows)]).normal(0, spread, blocks)
        for block, wobble in enumerate(noise):
            value = float(np.exp(wobble) / ratio)
            self.row(method=method, arm=arm, problem=problem, phase="block", block=float(block), status="passed",
                     metric=metric, unit="s", clock=clock, value=value, **more)  # fmt: skip
        return self

    def errors(
        self, method: str, value: float, *, problem: str = PROBLEM, metric: str = "error", status: str = "passed",
        seeds: int = 3, blocks: int = 0, spread: float = 0.001,
    ) -> Store:  # fmt: skip
        noise = np.random.default_rng([7, len(self.rows)]).normal(0, spread, seeds + blocks)
        values = [float(value * np.exp(wobble)) for wobble in noise]
        reason = None if status == "passed" else "the error is over the gate"
        self.row(method=method, problem=problem, phase="gate", status=status, reason=reason, metric=metric, unit="1",
                 value=float(np.median(values[:seeds])), samples=values[:seeds])  # fmt: skip
        for block, one in enumerate(values[seeds:]):
            self.row(method=method, problem=problem, phase="block", block=float(block), status=status, reason=reason,
                     metric=metric, unit="1", value=one)  # fmt: skip
        return self

    def status(self, method: str, status: str, reason: str, *, problem: str = PROBLEM, phase: str = "gate") -> Store:
        return self.row(method=method, problem=problem, phase=phase, status=status, reason=reason)

    def aa(self, spread: float = 0.002, problem: str = PROBLEM, blocks: int = 10, **more: Any) -> Store:
        self.times(SUITE_BASELINE, 0.5, problem=problem, spread=spread, blocks=blocks, **more)
        return self.times(
            SUITE_BASELINE, 0.5, arm=f"{SUITE_BASELINE}#aa", problem=problem, spread=spread, blocks=blocks, **more
        )

    def pair(
        self, ratio: float, *, problem: str = PROBLEM, error: float = 1.0, aa: float = 0.002, **more: Any
    ) -> Store:
        """Both arms, the A/A pair and equal errors (the candidate's times ``error``) on one problem."""
        self.errors(BASELINE, 0.1, problem=problem).errors(CANDIDATE, 0.1 * error, problem=problem)
        self.times(BASELINE, 1.0, problem=problem, **more).times(CANDIDATE, ratio, problem=problem, **more)
        return self.aa(aa, problem=problem, blocks=more.get("blocks", 10))

    def trained(
        self, method: str, times: list[float | None], *, arm: str | None = None, workload: str = WORKLOAD,
        budget: float = 100.0, **more: Any,
    ) -> Store:  # fmt: skip
        for seed, time in enumerate(times):
            shared = {"method": method, "arm": arm, "workload": workload, "phase": "training", "seed": float(seed)}
            run = f"{arm or method}-{seed}"
            if time is None:
                self.row(**shared, run=run, status="budget_exhausted", reason="budget", metric="censored_at_s",
                         unit="s", value=budget, **more)  # fmt: skip
            else:
                self.row(**shared, run=run, status="target_reached", metric="time_to_target_s", unit="s", value=time,
                         **more)  # fmt: skip
        return self

    def frame(self, *others: Store) -> pd.DataFrame:
        rows = [*self.rows, *(row for other in others for row in other.rows)]
        return pd.DataFrame(rows, columns=list(COLUMNS))


@pytest.fixture
def store() -> Callable[..., Store]:
    return Store


@pytest.fixture
def claim() -> Callable[..., Claim]:
    def make(**fields: Any) -> Claim:
        defaults: dict[str, Any] = {
            "id": "toy.faster",
            "group": "toy",
            "title": "new against old",
            "kind": "speedup-about",
            "words": "new is 1.6 times as fast as old",
            "source": "a paper",
            "task": "toy",
            "candidate": CANDIDATE,
            "baseline": BASELINE,
            "problems": ["gaussian-*-float32-cpu"],
            "ratio": 1.6,
            "error_metric": "error",
            "hardware": "Toy CPU",
        }
        return Claim.model_validate({**defaults, **fields})

    return make


class Book:
    """Training rows of one file, each run complete."""

    #: Seconds of ten seeds in units of their centre.
    wobble = tuple(1 + 0.004 * k for k in range(-5, 5))

    def __init__(self, store: Callable[..., Any], file: str = "a.jsonl", utc: str = "2026-01-01T00:00:00Z") -> None:
        self.store, self.file, self.utc = store(file=file, utc=utc), file, utc

    def run(
        self, method: str, seed: int, metrics: dict[str, float], *, arm: str | None = None,
        status: str = "target_reached", reason: str | None = None, **detail: Any,
    ) -> Book:  # fmt: skip
        shared = {
            "method": method,
            "arm": arm or method,
            "workload": WORKLOAD,
            "phase": "training",
            "seed": float(seed),
        }
        run = f"{self.file}-{arm or method}-{seed}-{len(self.store.rows)}"
        for metric, value in (metrics or {None: None}).items():
            self.store.row(**shared, run=run, status=status, reason=reason, metric=metric, value=value, detail=detail)
        return self

    def arm(self, method: str, centre: float, *, metric: str = "time_to_target_s", n: int = 10, **more: Any) -> Book:
        extra = more.pop("extra", {})
        for seed in range(n):
            self.run(method, seed, {metric: centre * self.wobble[seed], **extra}, **more)
        return self

    def usual(self, ratio: float = 2.0, metric: str = "time_to_target_s", n: int = 10, **more: Any) -> Book:
        """The baseline, its alias and a candidate ``ratio`` times as fast."""
        self.arm("toy.old", 80.0, metric=metric, n=n, **more).arm("toy.new", 80.0 / ratio, metric=metric, n=n, **more)
        return self.arm("toy.old", 80.2, metric=metric, n=n, arm="toy.old#aa", **more)


@pytest.fixture
def book(store: Any) -> Callable[..., Book]:
    return lambda **fields: Book(store, **fields)


@pytest.fixture
def training(claim: Any) -> Callable[..., Claim]:
    def make(**fields: Any) -> Claim:
        defaults = {
            "workload": WORKLOAD,
            "problems": [],
            "metric": "time_to_target_s",
            "error_metric": None,
            "ratio": 1.6,
        }
        return claim(**{**defaults, **fields})  # type: ignore[no-any-return]

    return make
