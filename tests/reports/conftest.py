"""A synthetic record of two devices: every status, reasons, discarded blocks, hostile names."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.record.store import read_headers, read_runs

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
HOSTILE = "polar.<script>alert(1)</script>"
HOSTILE_TEXT = "<img src=x onerror=alert(2)> \"quoted\" & 'single' $\\frac{1}{0}$ </script><script>alert(3)</script>"
BASELINE = "polar.ns-torch"
CPU_NAME = "AMD EPYC 7B13"
GPU_NAME = "NVIDIA H100 80GB HBM3"
ERRORS = {
    "polar_error": "distance to the float64 polar factor, relative to its norm",
    "orthogonality_error": "distance of X Xᵀ from the identity",
    "fidelity_error": "distance to the plain reference",
}
SIGMAS = {"sigma_min": 0.6, "sigma_p02": 0.72, "sigma_p50": 0.97, "sigma_p98": 1.1, "sigma_max": 1.18}
FACTORS = {
    "polar.svd": (14.0, 1e-7),
    BASELINE: (1.0, 0.21),
    "polar.ns-jordan": (1.0, 0.24),
    "polar.ns-compiled": (0.93, 0.21),
    "polar.aol-torch": (0.84, 0.09),
    "polar.turbo-torch": (0.71, 0.12),
    "polar.polar-express": (1.02, 0.05),
    "polar.gram": (0.62, 0.22),
    "polar.aol-triton": (0.41, 0.09),
    "polar.frobenius-only": (0.05, 0.83),
    "polar.torch-muon": (1.08, 0.21),
    HOSTILE: (0.5, 0.3),
}
SHAPES = (
    ("gaussian", (128, 128)),
    ("gaussian", (256, 256)),
    ("gaussian", (512, 512)),
    ("gaussian", (1024, 1024)),
    ("gaussian", (768, 3072)),
    ("levy1.5", (512, 512)),
    ("gradient.cnn", (64, 576)),
    ("gaussian", (12, 768, 3072)),
)


@dataclass
class Record:
    """What the store would return for some record files, plus judged claims."""

    runs: pd.DataFrame
    headers: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]


def _describe(kind: str, shape: tuple[int, ...], dtype: str, device: str) -> dict[str, Any]:
    return {
        "id": f"{kind}-{'x'.join(map(str, shape))}-{dtype}-{device}",
        "kind": kind,
        "shape": list(shape),
        "dtype": dtype,
        "device": device,
        "tiers": ["quick", "standard"],
        "params": {},
        "seed": 0,
    }


def _method(name: str) -> dict[str, Any]:
    triton = name.endswith("triton")
    return {
        "name": name,
        "task": "polar",
        "impl": "methods.orthogonalize.engine:run",
        "summary": HOSTILE_TEXT if name == HOSTILE else f"{name.split('.')[1]}: five matrix products an iteration",
        "source": HOSTILE_TEXT if name == HOSTILE else "arXiv 2512.04632 §3; https://example.org/paper",
        "formula": "X <- a X + (b A + c A²) X, A = X Xᵀ",
        "needs": ["torch", "cuda", "triton"] if triton else ["torch"],
        "reference": None if name == "polar.svd" else "methods.orthogonalize.reference:run",
        "hyper": {"steps": 5},
        "dtypes": ["float32", "bfloat16"],
        "devices": ["cuda"] if triton else ["cpu", "cuda"],
        "origin": "third party" if name == HOSTILE else "published design",
        "tags": [],
    }


def _environment(kind: str) -> dict[str, Any]:
    gpu = {
        "name": GPU_NAME,
        "driver": "575.51",
        "memory_bytes": 85_520_809_984,
        "sm_count": 132,
        "capability": [9, 0],
        "max_sm_mhz": 1980,
    }
    return {
        "device": kind,
        "device_name": GPU_NAME if kind == "cuda" else CPU_NAME,
        "cpu": CPU_NAME,
        "simd": ["avx2", "fma"],
        "cores_physical": 2,
        "cores_logical": 2,
        "threads": 2,
        "load1": 2.7 if kind == "cpu" else 0.2,
        "memory_bytes": 16_000_000_000,
        "gpu": gpu if kind == "cuda" else None,
        "python": "3.11.7",
        "os": "Linux 6.1",
        "torch": "2.14.1+cu130",
        "triton": "3.8.0",
        "numpy": "2.4.0",
        "host": "box",
        "warnings": ["load average 2.7 on 2 cores"] if kind == "cpu" else [],
    }


def header(kind: str, problems: list[dict[str, Any]], blocks: int, methods: list[str]) -> dict[str, Any]:
    """The first line of a record file, as the harness writes it."""
    left = [{"case": f"polar.svd/{problems[-1]['id']}", "reason": "left out by the time budget"}]
    protocol = {"version": 1, "blocks": blocks, "min_blocks": 6, "gate_seeds": 3, "inner_s": 0.1, "precision": "ieee"}
    suite = {
        "name": "polar",
        "task": "polar",
        "task_summary": "the orthogonal factor U Vᵀ of a matrix",
        "task_errors": ERRORS,
        "baseline": BASELINE,
        "protocol": protocol,
        "problems": problems,
        "methods": methods,
    }
    return {
        "record": "header",
        "schema": 1,
        "utc": "2026-11-22T10:00:00Z",
        "command": "speedclaim run --suite polar --tier standard",
        "project": {"version": "0.1.0", "commit": "0123456789abcdef0123456789abcdef01234567", "diff": ""},
        "environment": _environment(kind),
        "plan": {
            "hash": "ab" * 32,
            "tier": "standard",
            "budget_s": 540.0,
            "blocks": blocks,
            "estimate_s": 400.0,
            "suites": [suite],
            "left_out": left,
        },
        "methods": [_method(name) for name in methods],
    }


def _fate(name: str, index: int, kind: str) -> tuple[str, str | None]:
    """Status and reason of one case, so that every status occurs somewhere."""
    if name.endswith("triton") and kind == "cpu":
        return "unsupported", "needs CUDA: no NVIDIA device"
    if name == HOSTILE:
        return ("error", HOSTILE_TEXT) if index % 2 else ("passed", None)
    fates = {
        ("polar.frobenius-only", 0): ("inaccurate", "projected error 0.83 exceeds 0.30 on seed 0"),
        ("polar.frobenius-only", 1): ("inaccurate", "projected error 0.80 exceeds 0.30 on seed 1"),
        ("polar.torch-muon", 2): ("unfaithful", "fidelity 0.02 exceeds 0.001"),
        ("polar.torch-muon", 3): ("nonfinite", "output has 12 NaN"),
        ("polar.torch-muon", 4): ("impure", "the input was changed in place"),
        ("polar.gram", 5): ("error", "RuntimeError: linear algebra did not converge"),
        ("polar.gram", 6): ("timeout", "no answer within 120 s"),
        ("polar.gram", 7): ("out_of_memory", "MemoryError: 3.2 GiB asked"),
        ("polar.ns-jordan", 6): ("interrupted", "stopped by the user"),
        ("polar.ns-jordan", 7): ("unstable", "spread over blocks exceeds the protocol's limit"),
        ("polar.svd", 7): ("unsupported", "left out by the time budget"),
    }
    if name == "polar.frobenius-only":
        return "inaccurate", "projected error 0.83 exceeds 0.30 on seed 0"
    return fates.get((name, index), ("passed", None))


def _measure(metric: str, unit: str, samples: list[float], clock: str | None = None) -> dict[str, Any]:
    return {"metric": metric, "unit": unit, "samples": samples, "clock": clock}


def _errors(level: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    jitter = 1 + 0.03 * rng.standard_normal(3)
    found = [
        _measure("polar_error", "1", list(level * jitter)),
        _measure("orthogonality_error", "1", list(1.6 * level * jitter)),
        _measure("fidelity_error", "1", list(2e-5 * jitter)),
    ]
    for name, value in SIGMAS.items():
        found.append(_measure(name, "1", list(1 + (value - 1) * level * 2 * jitter)))
    return found


def _lines(kind: str, problems: list[dict[str, Any]], blocks: int, methods: list[str]) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for index, problem in enumerate(problems):
        flops = float(np.prod(problem["shape"])) * min(problem["shape"][-2:])
        base = 4e-5 + flops / (2e11 if kind == "cpu" else 4e13)
        for name in methods:
            rng = np.random.default_rng(zlib.crc32(f"{kind}{index}{name}".encode()))
            factor, level = FACTORS[name]
            case = {
                "case": f"{name}/{problem['id']}",
                "task": "polar",
                "method": name,
                "problem": problem["id"],
                "workload": None,
            }
            status, reason = _fate(name, index, kind)
            common = {**case, "record": "run", "seed": None, "block": None, "arm": name, "utc": "2026-11-22T10:00:05Z"}
            if status == "unsupported":
                lines.append({**common, "phase": "plan", "status": status, "reason": reason})
                continue
            late = status in ("unstable", "interrupted")
            gate = [] if status in ("error", "timeout", "out_of_memory") else _errors(level, rng)
            detail = {"floor_s": base * 0.3, "floor_basis": "executed flops ÷ peak"} if kind == "cuda" else {}
            ok = status == "passed" or late
            if ok:
                gate = [*gate, _measure("first_call_s", "s", [3.1 if "compiled" in name else 0.02], "host")]
            lines.append(
                {
                    **common,
                    "phase": "gate",
                    "status": "passed" if late else status,
                    "reason": None if late else reason,
                    "measurements": gate,
                    "detail": detail,
                }
            )
            if late:
                lines.append({**common, "phase": "block", "block": 0, "status": status, "reason": reason})
            if status != "passed":
                continue
            peak = "peak_device_bytes" if kind == "cuda" else "peak_host_bytes"
            memory = [_measure(peak, "bytes", [float(np.prod(problem["shape"])) * 4 * (2 + factor)])]
            energy = {"energy": "RAPL counters cannot be read by this user"} if kind == "cpu" else {}
            if kind == "cuda":
                memory.append(_measure("call_energy_j", "J", [base * factor * 500]))
            lines.append({**common, "phase": "memory", "status": "passed", "measurements": memory, "detail": energy})
            for block in range(blocks):
                shared = np.random.default_rng(1000 * index + block).normal(0, 0.05)
                for arm in (name, f"{name}#aa") if name == BASELINE else (name,):
                    value = base * factor * float(np.exp(shared + rng.normal(0, 0.006)))
                    samples = list(value * (1 + 0.01 * np.abs(rng.standard_normal(5))))
                    clock = "host" if kind == "cpu" else "op-cold"
                    timed = [_measure("op_s", "s", samples, clock)]
                    if kind == "cuda":
                        timed.append(_measure("op_hot_s", "s", [0.9 * s for s in samples], "op-hot"))
                    detail = {}
                    if kind == "cuda":
                        detail = {"sm_mhz": 1755, "power_w": 512.0, "temperature_c": 61, "throttle": []}
                        if block == 3 and index == 1:
                            detail["discarded"] = "thermal slowdown"
                    lines.append(
                        {
                            **common,
                            "phase": "block",
                            "block": block,
                            "arm": arm,
                            "status": "passed",
                            "measurements": timed,
                            "detail": detail,
                        }
                    )
    return lines


def _write(path: Path, head: dict[str, Any], lines: list[dict[str, Any]], finished: bool) -> None:
    records = [{k: v for k, v in head.items() if k != "file"}]
    for number, line in enumerate(lines):
        records.append({"run": f"{path.stem}-{number}", **{k: v for k, v in line.items() if v is not None}})
    if finished:
        records.append({"record": "end", "utc": "2026-11-22T10:09:00Z", "elapsed_s": 540.0})
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _verdict(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"polar-claim-{number}",
        "group": "aol",
        "title": f"Claim number {number}",
        "words": "AOL rescaling saves one iteration without loss of precision.",
        "source": "arXiv 2512.04632 §4.2",
        "kind": "speedup-about",
        "metric": "op_s",
        "candidate": "polar.aol-torch",
        "baseline": BASELINE,
        "level": 0.951,
        "n": 10,
        "floor": 0.012,
        "claimed": 1.6,
        "reason": None,
        "command": "speedclaim run --suite polar --tier standard --method polar.aol-torch",
        "authors": {"candidate": "re-implementation of the published design", "baseline": "library"},
        "counter": False,
        "hardware": "NVIDIA L40S",
        "note": "",
        "likeness": "own implementation",
        "device": CPU_NAME,
        "file": "a-cpu.jsonl",
        "problems": [],
        "phrase": "",
        **fields,
    }


def verdicts() -> list[dict[str, Any]]:
    """One claim per verdict word, a hostile one, and one without any number."""
    cell = {"problem": "gaussian-512x512-float32-cpu", "ratio": 1.19, "low": 1.17, "high": 1.21, "floor": 0.012}
    none = {"ratio": None, "low": None, "high": None, "floor": None, "n": None, "level": None}
    return [
        _verdict(1, verdict="reproduced", phrase="as claimed", ratio=1.9, low=1.82, high=1.97, problems=[cell]),
        _verdict(2, verdict="partly", phrase="holds in part", ratio=1.19, low=1.17, high=1.21),
        _verdict(3, verdict="not reproduced", phrase="reversed", ratio=0.82, low=0.8, high=0.85, claimed=3.0),
        _verdict(4, verdict="inconclusive", phrase="direction open", ratio=1.01, low=0.9, high=1.2, device=GPU_NAME),
        _verdict(5, verdict="not testable here", reason="needs CUDA: no NVIDIA device", device=CPU_NAME, **none),
        _verdict(6, verdict="invalid", reason="the baseline failed its gate", device=GPU_NAME, claimed=None, **none),
        _verdict(7, verdict="reproduced", phrase=HOSTILE_TEXT, title=HOSTILE_TEXT, words=HOSTILE_TEXT, ratio=1.65,
                 low=1.6, high=1.7, reason=HOSTILE_TEXT, candidate=HOSTILE, device=GPU_NAME, likeness="like for like"),
    ]  # fmt: skip


def make(folder: Path, blocks: int = 10, shapes: Any = SHAPES, methods: list[str] | None = None) -> Record:
    """A finished CPU file and a killed GPU file, written and read back through the store."""
    names = methods if methods is not None else list(FACTORS)
    folder.mkdir(parents=True, exist_ok=True)
    for kind, dtype in (("cpu", "float32"), ("cuda", "bfloat16")):
        problems = [_describe(k, s, dtype, kind) for k, s in shapes]
        head = header(kind, problems, blocks, names)
        path = folder / f"{'a' if kind == 'cpu' else 'b'}-{kind}.jsonl"
        _write(path, head, _lines(kind, problems, blocks, names), finished=kind == "cpu")
    return Record(read_runs(folder), read_headers(folder), verdicts())


@pytest.fixture(scope="session")
def record(tmp_path_factory: pytest.TempPathFactory, trainer: Any, training_arm: Any, usual_arms: Any) -> Record:
    """The full synthetic record: operations, and training with every ending."""
    folder = tmp_path_factory.mktemp("records")
    made = make(folder)
    train(folder, trainer, training_arm, usual_arms)
    return Record(read_runs(folder), read_headers(folder), made.verdicts)


def train(folder: Path, trainer: Any, training_arm: Any, usual_arms: Any) -> None:
    """Ten seeds on a CPU with a hostile arm and tuning trials, a language model on a GPU with broken runs."""
    sgd, adamw, muon = (replace(arm, final=arm.final + 0.005) for arm in usual_arms)
    hostile = training_arm(method=HOSTILE.replace("polar", "training"), fates={0: "error", 1: "budget_exhausted"})
    trainer(value=0.97).write(folder / "c-train.jsonl", [sgd, adamw, muon, hostile], seeds=10)
    for trial in range(8):
        arms = [replace(arm, extra={"final_val_accuracy": 0.9 + 0.01 * trial}) for arm in (adamw, muon)]
        path = folder / f"d-tune{trial}.jsonl"
        trainer(value=0.97, split="validation").write(path, arms, seeds=1, aa=False)
    text = trainer(
        workload="sotu-gpt", metric="val_loss", value=1.5, larger_is_better=False, start=4.0, evaluations=50,
        updates=5000, device="cuda", device_name=GPU_NAME,
    )  # fmt: skip
    arms = [
        replace(adamw, final=1.42, tau=9, fates={2: "diverged", 3: "out_of_memory"}, stall=0.12),
        replace(muon, final=1.38, tau=6, fates={1: "interrupted"}, resumed=(0,)),
        replace(sgd, final=1.9, tau=9),
    ]
    text.write(folder / "e-text.jsonl", arms, seeds=6)


@pytest.fixture(scope="session")
def make_record() -> Any:
    """The generator itself, for records of another size."""
    return make


@pytest.fixture(scope="session")
def empty_record(record: Record) -> Record:
    """No run, no header, no claim; the columns still stand."""
    return Record(record.runs.iloc[:0], [], [])


@pytest.fixture(scope="session")
def site(record: Record, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the rendered report."""
    from reports import html

    out = tmp_path_factory.mktemp("site")
    html.render(record.runs, record.headers, record.verdicts, out)
    return out


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; the test is skipped with the reason where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: dev)")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()
