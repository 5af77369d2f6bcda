"""Check and time the GPU kernels: ``python -m methods.approximate_matmul.gpu._bench [--quick] [--out FOLDER]``.

First the answers, in several processes that compile as they go: codes and integers must equal NumPy's. Then medians of
device time between events, launches hidden behind a sleeping device, caches flushed, arms interleaved, beside the dense
products of torch and the lower bound of :mod:`methods.approximate_matmul.gpu.model` with rates measured here. One child
times shape after shape; where it dies, a new one goes on behind the shape that killed it. The table comes last, and
``--out`` receives ``amm_gpu.json``, written anew after every answer and every round: a cut loses nothing.
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

from methods.approximate_matmul.gpu import _bench_children as children
from methods.approximate_matmul.gpu._bench_children import Finding, Job

#: N, D, M and codebooks; the most telling first, since a budget may end the list.
SHAPES: list[tuple[int, int, int, tuple[int, ...]]] = [
    (65536, 1024, 1024, (16, 64, 128)),
    (65536, 4096, 128, (64, 256)),
    (4096, 4096, 4096, (64, 256)),
    (1_000_000, 512, 100, (16, 64)),
    (65536, 768, 3072, (12, 96)),
    (10_000, 512, 10, (16,)),
]
#: Odd shapes that ``--quick`` and a whole run check.
ODD_JOBS = (4, 8)
#: Seconds of a whole run, and of all checks in it: quick, whole. What has no answer or time by then is left out.
BUDGET_S, CHECK_S = (95.0, 480.0), (45.0, 240.0)


def jobs(shapes: list[tuple[int, int, int, tuple[int, ...]]], quick: bool) -> list[Job]:
    """What to check, the longest first: every shape that is timed, and odd ones in all dtypes and layouts."""
    dtypes, layouts = ("float32", "bfloat16", "float16"), ("row", "feature")
    odd: list[Job] = [
        {"kind": "odd", "place": i, "dtype": dtypes[i % 3], "layout": layouts[i % 2]}
        for i in range(ODD_JOBS[0 if quick else 1])
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

    kind = job["kind"]
    if kind == "odd":
        return checks.odd(checks.ODD[job["place"] % len(checks.ODD)], getattr(torch, job["dtype"]), job["layout"])
    n, d, m = job.get("shape", (0, 0, 0))
    if kind == "warm":
        learned = checks.learned(d, m, job["codebooks"])
        a = checks.rows(n, d, torch.bfloat16)
        return checks.timed_shape(arms.ours(learned, a, a.T.contiguous().T), learned, a)
    arms.tune(n, d, m, job["codebooks"])
    return []


def time_shapes(job: Job, target: Path) -> None:
    """Inside the timing child: rates, then shape after shape; ``target`` is written whenever there is news."""
    import torch

    from methods.approximate_matmul.gpu import _bench_arms as arms
    from methods.approximate_matmul.gpu import model

    found: dict[str, Any] = {"rates": job["rates"], "begun": None, "shapes": [], "failed": {}}

    def save(**news: Any) -> None:
        found.update(news)
        partial = target.with_suffix(".part")
        partial.write_text(json.dumps(found), encoding="utf-8")
        os.replace(partial, target)

    if found["rates"] is None:
        save(begun="rates")
        save(rates=dataclasses.asdict(arms.rates()))
    for wanted in job["shapes"]:
        shape: list[int] = wanted["shape"]
        n, d, m = shape
        save(begun=shape)
        done = list(found["shapes"])
        try:
            made = arms.measure_shape(
                n, d, m, wanted["codebooks"], model.Rates(**found["rates"]), wanted["broken"],
                each=lambda told, done=done: save(shapes=[*done, told]),  # type: ignore[misc]
            )  # fmt: skip
        except Exception as error:  # a shape that cannot even be set up is no reason to time no other
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            save(shapes=done, failed={**found["failed"], children.label(shape): text})
            print(f"{children.label(shape)}: {text}", flush=True)
        else:
            save(shapes=[*done, made])
            print(f"{children.label(shape)}: {len(made['us'])} arms timed", flush=True)
        torch.cuda.synchronize()  # a broken device ends this process here: the next one gets a fresh context
        torch.cuda.empty_cache()
    save(begun=None)


def broken_arms(findings: list[Finding]) -> dict[str, list[str]]:
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
        label = children.label(shape["shape"])
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
            partial = self.path.with_suffix(".part")
            partial.write_text(json.dumps(self.found, indent=1), encoding="utf-8")
            os.replace(partial, self.path)


def options() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer odd shapes, all within 100 seconds")
    parser.add_argument("--tune", action="store_true", help="time other configurations too (minutes)")
    parser.add_argument("--seconds", type=float, default=None, help="nothing is timed after this long")
    parser.add_argument("--out", default=None, help="folder for amm_gpu.json")
    parser.add_argument("--job", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--target", default=None, help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Run all; the exit code tells whether the answers are right."""
    chosen = options().parse_args()
    if chosen.job is not None:
        job = json.loads(chosen.job)
        if job["kind"] == "time":
            time_shapes(job, Path(chosen.target))
            return 0
        found = run_job(job)
        Path(chosen.target).write_text(json.dumps(found), encoding="utf-8")
        return 0
    begin = time.perf_counter()
    if not (os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg")):
        print("needs an NVIDIA GPU: no driver device is visible")
        return 2
    report = Report(chosen.out, chosen)
    budget = chosen.seconds or BUDGET_S[0 if chosen.quick else 1]
    with tempfile.TemporaryDirectory() as name:
        return _all(chosen, report, budget, begin, Path(name))


def _all(chosen: argparse.Namespace, report: Report, budget: float, begin: float, folder: Path) -> int:
    report.note(**_device())
    limit = min(CHECK_S[0 if chosen.quick else 1], budget / 2)
    findings = children.together(
        jobs(SHAPES, chosen.quick), limit, folder, lambda done: report.note(answers=_answers(done))
    )
    lines = _answers(findings)
    bad = [line for line in lines if not line.startswith("right")]
    answers = f"answers: {len(lines) - len(bad)} of {len(lines)} right"
    print(f"{answers}, {time.perf_counter() - begin:.0f} s", flush=True)
    report.note(answers=lines, wrong=bad)
    broken = broken_arms(findings)
    wanted = [
        {"shape": [n, d, m], "codebooks": list(codebooks), "broken": broken.get(str([n, d, m]), [])}
        for n, d, m, codebooks in SHAPES
    ]
    told = children.timing(wanted, begin + budget, folder, lambda news: report.note(**news))
    if told["rates"] is None or "rates" in told["failed"]:
        print("no rates were measured; bounds are those of an H100", flush=True)
    if chosen.tune:
        for place, (n, d, m, codebooks) in enumerate(SHAPES[:3]):
            children.alone({"kind": "tune", "shape": [n, d, m], "codebooks": codebooks[0]}, 150.0, folder, 3000 + place)
    _last(report, told, bad, answers, time.perf_counter() - begin)
    return 1 if bad else 0


def _answers(findings: list[Finding]) -> list[str]:
    return [line for job, found, why in findings for line in (found or [f"FAILED {json.dumps(job)}: {why}"])]


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


def _last(report: Report, told: dict[str, Any], bad: list[str], answers: str, seconds: float) -> None:
    from methods.approximate_matmul.gpu import model

    rate = model.Rates(**told["rates"]) if told["rates"] else model.H100
    facts, measured = report.found, told["shapes"]
    print(f"\n{facts['device']}, torch {facts['torch']}, triton {facts['triton']}; medians of device time, bfloat16")
    print(
        f"rates: bf16 {rate.bf16_flops / 1e12:.0f}, int8 {rate.int8_ops / 1e12:.0f}, fp8 {rate.fp8_flops / 1e12:.0f} "
        f"T/s, copy {rate.bytes_s / 1e12:.2f} TB/s; break-even D/C of one-hot: "
        + ", ".join(f"{kind} {model.break_even(rate, 'onehot', kind):.1f}" for kind in model.DENSE)
    )
    for shape in measured:
        for c, text in shape["model"].items():
            print(f"model {children.label(shape['shape'])} C={c}: {text}")
        for name, text in shape["failures"].items():
            print(f"left out {children.label(shape['shape'])} {name}: {text}")
    for name, text in told["failed"].items():
        print(f"not timed {name}: {text}")
    print("\n".join(table(measured)))
    for line in bad[:12]:
        print(line)
    print(f"{answers}; {'all right' if not bad else 'WRONG'}; {seconds:.0f} s", flush=True)
    report.note(seconds=seconds)


if __name__ == "__main__":
    sys.exit(main())
