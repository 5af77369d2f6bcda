"""Check and time the GPU kernels: ``python -m methods.approximate_matmul.gpu._bench [--quick] [--out FOLDER]``.

First the answers, in several processes that compile as they go: codes and integers must equal NumPy's. Then medians of
device time between events, launches hidden behind a sleeping device, caches flushed, arms interleaved, beside the dense
products of torch and the lower bound of :mod:`methods.approximate_matmul.gpu.model` with rates measured here. Every
shape is checked and timed in a process of its own, so that a fault of the device ends that shape alone; the table comes
last, and ``--out`` receives ``amm_gpu.json``, written anew after every step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

#: N, D, M and codebooks; the most telling first, since a budget may end the list.
SHAPES: list[tuple[int, int, int, tuple[int, ...]]] = [
    (65536, 1024, 1024, (16, 64, 128)),
    (65536, 4096, 128, (64, 256)),
    (4096, 4096, 4096, (64, 256)),
    (1_000_000, 512, 100, (16, 64)),
    (65536, 768, 3072, (12, 96)),
    (10_000, 512, 10, (16,)),
]
#: Shapes of ``--quick``, and odd shapes that it checks.
QUICK_SHAPES, QUICK_ODD = 2, 4
#: Seconds after which no new shape is begun, and of one checking process: quick, whole.
BUDGET_S, CHECK_S = (62.0, 480.0), (50.0, 240.0)
Job = dict[str, Any]
_MODULE = "methods.approximate_matmul.gpu._bench"


def jobs(shapes: list[tuple[int, int, int, tuple[int, ...]]], quick: bool) -> list[Job]:
    """What to check, the longest first: every shape that is timed, and odd ones in all dtypes and layouts."""
    dtypes, layouts = ("float32", "bfloat16", "float16"), ("row", "feature")
    odd: list[Job] = [
        {"kind": "odd", "place": i, "dtype": dtypes[i % 3], "layout": layouts[i % 2]}
        for i in range(QUICK_ODD if quick else 8)
    ]
    warm: list[Job] = [
        {"kind": "warm", "shape": [n, d, m], "codebooks": c} for n, d, m, codebooks in shapes for c in codebooks
    ]
    return [*odd, *warm]


def run_job(job: Job) -> Any:
    """Inside a child: what one job finds."""
    import torch

    from methods.approximate_matmul.gpu import _bench_arms as arms
    from methods.approximate_matmul.gpu import _bench_checks as checks
    from methods.approximate_matmul.gpu import model

    kind = job["kind"]
    if kind == "odd":
        return checks.odd(checks.ODD[job["place"] % len(checks.ODD)], getattr(torch, job["dtype"]), job["layout"])
    n, d, m = job.get("shape", (0, 0, 0))
    if kind == "warm":
        learned = checks.learned(d, m, job["codebooks"])
        a = checks.rows(n, d, torch.bfloat16)
        return checks.timed_shape(arms.ours(learned, a, a.T.contiguous().T), learned, a)
    if kind == "rates":
        return dataclasses.asdict(arms.rates())
    if kind == "time":
        return arms.measure_shape(n, d, m, job["codebooks"], model.Rates(**job["rates"]), job["broken"])
    arms.tune(n, d, m, job["codebooks"])
    return []


def spawn(job: Job, folder: Path, number: int, show: bool) -> tuple[subprocess.Popen[bytes], Path]:
    """A child that writes its finding to a file; its own printing goes on (``show``) or is kept for its failure."""
    target = folder / f"{number}.json"
    log = None if show else (folder / f"{number}.log").open("wb")
    command = [sys.executable, "-u", "-m", _MODULE, "--job", json.dumps(job), "--target", str(target)]
    environment = os.environ | ({} if show else {"OMP_NUM_THREADS": "1"})
    child = subprocess.Popen(command, stdout=log, stderr=None if show else subprocess.STDOUT, env=environment)
    if log is not None:
        log.close()
    return child, target


def collect(child: subprocess.Popen[bytes], target: Path) -> tuple[Any, str]:
    """A finished child's finding, or None and why there is none."""
    if target.exists():
        return json.loads(target.read_text(encoding="utf-8")), ""
    log = target.with_suffix(".log")
    told = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return None, f"exit status {child.returncode}" + (f": {told[-1][:200]}" if told else "")


def together(wanted: list[Job], limit_s: float, folder: Path) -> list[tuple[Job, Any, str]]:
    """Run jobs side by side, as many as there are cores; one that crashes or takes too long is told."""
    width = max(2, min(16, os.cpu_count() or 2))
    waiting = list(enumerate(wanted))
    running: dict[int, tuple[Job, subprocess.Popen[bytes], Path, float]] = {}
    done: list[tuple[Job, Any, str]] = []
    while waiting or running:
        while waiting and len(running) < width:
            number, job = waiting.pop(0)
            running[number] = (job, *spawn(job, folder, number, False), time.perf_counter())
        for number, (job, child, target, begin) in list(running.items()):
            late = time.perf_counter() - begin > limit_s
            if child.poll() is None and not late:
                continue
            if child.poll() is None:
                child.kill()
            child.wait()
            found, why = collect(child, target)
            done.append((job, found, f"took over {limit_s:.0f} s" if late and found is None else why))
            del running[number]
            _told(done[-1], time.perf_counter() - begin)
        time.sleep(0.1)
    return done


def _told(finding: tuple[Job, Any, str], seconds: float) -> None:
    job, found, why = finding
    lines = found if found is not None else [f"FAILED: {why}"]
    bad = [line for line in lines if not line.startswith("right")]
    print(f"checked {json.dumps(job)}: {len(lines) - len(bad)} of {len(lines)} right, {seconds:.0f} s", flush=True)
    for line in bad:
        print(f"  {line}", flush=True)


def alone(job: Job, limit_s: float, folder: Path, number: int) -> tuple[Any, str]:
    """One job with its printing shown."""
    child, target = spawn(job, folder, number, True)
    try:
        child.wait(timeout=limit_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        return None, f"took over {limit_s:.0f} s"
    return collect(child, target)


def broken_arms(findings: list[tuple[Job, Any, str]]) -> dict[str, list[str]]:
    """Shape -> arms that did not run at all in its check: they could take the device down with them."""
    broken: dict[str, list[str]] = {}
    for job, found, _ in findings:
        if job["kind"] != "warm" or found is None:
            continue
        mine = broken.setdefault(str(job["shape"]), [])
        names = [line.split(" | ")[1].split(":")[0] for line in found if line.startswith("FAILED")]
        mine += [f"C={job['codebooks']} {name}" for name in names]
    return broken


def table(measured: list[dict[str, Any]]) -> list[str]:
    """Microseconds, what is reached of the bound, and speed-ups over dense products; one line an arm."""
    from methods.approximate_matmul.gpu import _bench_arms as arms

    lines = [f"{'N x D x M':22}{'arm':28}{'D/C':>6}{'us':>10}{'reached':>9}{'/bf16':>8}{'/int8':>8}{'/fp8':>8}"]
    for shape in measured:
        best = arms.best_dense(shape["us"])
        label = " x ".join(map(str, shape["shape"]))
        for name, us in shape["us"].items():
            size = int(name[2:].split(" ")[0]) if name.startswith("C=") else 0
            inner = f"{shape['shape'][1] / size:.3g}" if size else ""
            gains = "".join(f"{best[k] / us:7.2f}x" if k in best else f"{'-':>8}" for k in arms.DENSE)
            lines.append(f"{label:22}{name:28}{inner:>6}{us:10.1f}{shape['bound_us'][name] / us:9.0%}{gains}")
    return lines


class Report:
    """What is found so far, in one JSON file when a folder is given."""

    def __init__(self, folder: str | None, chosen: argparse.Namespace) -> None:
        self.path = Path(folder) / "amm_gpu.json" if folder else None
        self.found: dict[str, Any] = {"quick": chosen.quick, "python": platform.python_version(), "shapes": []}
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def note(self, **facts: Any) -> None:
        """Add and write."""
        self.found |= facts
        if self.path is not None:
            self.path.write_text(json.dumps(self.found, indent=1), encoding="utf-8")


def options() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two shapes only, about a minute")
    parser.add_argument("--tune", action="store_true", help="time other configurations too (minutes)")
    parser.add_argument("--seconds", type=float, default=None, help="no new shape is begun after this long")
    parser.add_argument("--out", default=None, help="folder for amm_gpu.json")
    parser.add_argument("--job", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--target", default=None, help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Run all; the exit code tells whether the answers are right."""
    chosen = options().parse_args()
    if chosen.job is not None:
        found = run_job(json.loads(chosen.job))
        Path(chosen.target).write_text(json.dumps(found), encoding="utf-8")
        return 0
    begin = time.perf_counter()
    if not (os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg")):
        print("needs an NVIDIA GPU: no driver device is visible")
        return 2
    report = Report(chosen.out, chosen)
    shapes = SHAPES[:QUICK_SHAPES] if chosen.quick else SHAPES
    budget = chosen.seconds or BUDGET_S[0 if chosen.quick else 1]
    with tempfile.TemporaryDirectory() as name:
        return _all(chosen, report, shapes, budget, begin, Path(name))


def _all(
    chosen: argparse.Namespace,
    report: Report,
    shapes: list[tuple[int, int, int, tuple[int, ...]]],
    budget: float,
    begin: float,
    folder: Path,
) -> int:
    findings = together(jobs(shapes, chosen.quick), CHECK_S[0 if chosen.quick else 1], folder)
    lines = [line for job, found, why in findings for line in (found or [f"FAILED {json.dumps(job)}: {why}"])]
    bad = [line for line in lines if not line.startswith("right")]
    answers = f"answers: {len(lines) - len(bad)} of {len(lines)} right"
    print(f"{answers}, {time.perf_counter() - begin:.0f} s", flush=True)
    report.note(answers=lines, wrong=bad)
    rates, why = alone({"kind": "rates"}, 120.0, folder, 1000)
    if rates is None:
        print(f"no rates: {why}; bounds are those of an H100", flush=True)
        from methods.approximate_matmul.gpu import model

        rates = dataclasses.asdict(model.H100)
    report.note(**_device(), rates=rates, rates_measured=not why)
    broken, measured = broken_arms(findings), report.found["shapes"]
    for place, (n, d, m, codebooks) in enumerate(shapes):
        if time.perf_counter() - begin > budget:
            print(f"left out for want of time: {n} x {d} x {m}; give --seconds", flush=True)
            continue
        job = {"kind": "time", "shape": [n, d, m], "codebooks": codebooks, "rates": rates}
        found, why = alone(job | {"broken": broken.get(str([n, d, m]), [])}, 180.0, folder, 2000 + place)
        print(f"{n} x {d} x {m}: {why or 'timed'}, {time.perf_counter() - begin:.0f} s", flush=True)
        measured += [found] if found else []
        report.note(**({f"failed_{n}x{d}x{m}": why} if why else {}))
    if chosen.tune:
        for place, (n, d, m, codebooks) in enumerate(shapes[:3]):
            alone({"kind": "tune", "shape": [n, d, m], "codebooks": codebooks[0]}, 150.0, folder, 3000 + place)
    _last(report, measured, rates, bad, answers, time.perf_counter() - begin)
    return 1 if bad else 0


def _device() -> dict[str, Any]:
    """Names and versions; the parent asks the driver's tool, since it must not hold a context."""
    import torch
    import triton

    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        told = f"unknown: {error}"
    device = told.splitlines()[0] if told else "unknown"
    return {"device": device, "torch": torch.__version__, "triton": triton.__version__}


def _last(
    report: Report, measured: list[dict[str, Any]], rates: dict[str, Any], bad: list[str], answers: str, seconds: float
) -> None:
    from methods.approximate_matmul.gpu import model

    rate, facts = model.Rates(**rates), report.found
    print(f"\n{facts['device']}, torch {facts['torch']}, triton {facts['triton']}; medians of device time, bfloat16")
    print(
        f"rates: bf16 {rate.bf16_flops / 1e12:.0f}, int8 {rate.int8_ops / 1e12:.0f}, fp8 {rate.fp8_flops / 1e12:.0f} "
        f"T/s, copy {rate.bytes_s / 1e12:.2f} TB/s; break-even D/C of one-hot: "
        + ", ".join(f"{kind} {model.break_even(rate, 'onehot', kind):.1f}" for kind in model.DENSE)
    )
    for shape in measured:
        for c, text in shape["model"].items():
            print(f"model {' x '.join(map(str, shape['shape']))} C={c}: {text}")
        for name, text in shape["failures"].items():
            print(f"left out {' x '.join(map(str, shape['shape']))} {name}: {text}")
    print("\n".join(table(measured)))
    for line in bad[:12]:
        print(line)
    print(f"{answers}; {'all right' if not bad else 'WRONG'}; {seconds:.0f} s", flush=True)
    report.note(seconds=seconds)


if __name__ == "__main__":
    sys.exit(main())
