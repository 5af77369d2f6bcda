"""Check and time the C++ kernels: ``python -m methods.approximate_matmul.native.bench [--quick] [--out FOLDER]``.

First the answers of every level, each in a process of its own, so that a fault ends that level alone. Then every
level's rates, each arm on its own. Then interleaved times against exact products: every arm is called once per round,
so that all meet the same machine; minima are told, and ratios within one run are what to read. Trees and tables are
random: time does not depend on them. Then threads, on processors of different cores, and (not ``--quick``) the training
of trees. The table comes last; ``--out`` receives ``amm_native.json``, written anew after every step. Memory stays with
the process, so that no arm, ours or a library's, pays for fresh pages. The recorded figures come from the suite.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from methods.approximate_matmul.native import _bench_arms as arms
from methods.approximate_matmul.native import _bench_bound as bound
from methods.approximate_matmul.native import _bench_checks as checks
from methods.approximate_matmul.native import _bench_lines as lines
from methods.approximate_matmul.native import binding

#: N, D, M and codebooks: CIFAR-100 and CIFAR-10 classifiers, a UCR kernel classifier, a cube, a wide layer.
SHAPES = (
    (10000, 512, 100, (16, 64)),
    (10000, 512, 10, (16, 64)),
    (1000, 320, 128, (16, 64)),
    (1024, 1024, 1024, (64, 128)),
    (4096, 1024, 256, (64,)),
)
QUICK_SHAPES = 1
#: The scalar level is timed on a part of the rows only.
SCALAR_SHARE = 10
#: The shape of the levels' rates and of the quick run.
RATED = SHAPES[0]
#: The most threads of a quick run.
QUICK_THREADS = 2
#: Turns of the thread counts.
ROUNDS = 8
#: Shapes and codebooks whose scaling with threads is measured.
SCALED = ((10000, 512, 100, 64), (1024, 1024, 1024, 64))
#: Rows, columns and codebooks of the training goal, and the seconds that it allows on one core.
TRAINING, TRAINING_S = (50_000, 512, 64), 10.0
#: Seconds of a checking process.
CHECK_S = 120.0
_MODULE = "methods.approximate_matmul.native.bench"


class Report:
    """What is found so far, in one JSON file when a folder is given."""

    def __init__(self, folder: str | None) -> None:
        self.path = Path(folder) / "amm_native.json" if folder else None
        self.found: dict[str, Any] = {"levels": [], "shapes": [], "threads": [], "failures": {}}
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def note(self, **facts: Any) -> None:
        """Add and write."""
        self.found |= facts
        if self.path is not None:
            self.path.write_text(json.dumps(self.found, indent=1, default=str), encoding="utf-8")

    def attempt(self, label: str, step: Callable[[], None]) -> None:
        """Run a step; its failure is told and noted, and the rest goes on."""
        begin = time.perf_counter()
        try:
            step()
        except Exception as error:  # whatever one step may say, the others still have something to tell
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            self.found["failures"][label] = text
            print(f"{label}: FAILED: {text}", flush=True)
        else:
            print(f"{label}: {time.perf_counter() - begin:.1f} s", flush=True)
        self.note()


def check_levels() -> dict[str, list[str]]:
    """Level -> lines of its check, in processes side by side."""
    highest = binding.LEVELS.index(binding.highest_level())
    children = {}
    for level in binding.LEVELS[: highest + 1]:
        command = [sys.executable, "-m", checks.__name__, level]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        children[level] = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
    found = {}
    for level, child in children.items():
        try:
            text, _ = child.communicate(timeout=CHECK_S)
        except subprocess.TimeoutExpired:
            child.kill()
            text = child.communicate()[0]
        told = [line for line in text.splitlines() if line.startswith(("right", "WRONG", "FAILED"))]
        if child.returncode:
            rest = text.strip().splitlines()
            told.append(f"FAILED level {level}: exit status {child.returncode}: {rest[-1][:200] if rest else ''}")
        found[level] = told
        bad = [line for line in told if not line.startswith("right")]
        print(f"level {level}: {len(told) - len(bad)} of {len(told)} right", flush=True)
        print("".join(f"  {line}\n" for line in bad[:8]), end="", flush=True)
    return found


def usable(answers: dict[str, list[str]]) -> str | None:
    """The best level of which every answer is right; None when there is none."""
    return next(
        (
            level
            for level in reversed(binding.LEVELS)
            if answers.get(level) and all(line.startswith("right") for line in answers[level])
        ),
        None,
    )


def fastest(rated: list[dict[str, Any]], level: str) -> str:
    """The level whose fused product was fastest with the fewest codebooks; ``level`` when none was timed."""
    few = [one for one in rated if one["codebooks"] == RATED[3][0] and one["level"] != "scalar"]
    return str(min(few, key=lambda one: one["us"]["product columns"])["level"]) if few else level


def train(report: Report) -> None:
    """Seconds of learning trees on the stated size, one thread."""
    n, d, codebooks = TRAINING
    seconds = checks.training_seconds(n, d, codebooks)
    verdict = "within" if seconds < TRAINING_S else "over"
    report.note(training={"rows": n, "columns": d, "codebooks": codebooks, "seconds": seconds, "goal_s": TRAINING_S})
    print(f"  trees of {codebooks} codebooks on {n} x {d}: {seconds:.1f} s, {verdict} {TRAINING_S:.0f} s", flush=True)


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4, … up to the cores, and the cores themselves."""
    counts = [2**i for i in range(cores.bit_length()) if 2**i <= cores]
    return sorted({*counts, cores})


def scaling(report: Report, n: int, d: int, m: int, codebooks: int, quick: bool) -> None:
    """Times of our product and of the exact ones by threads, in a process kept on processors of different cores."""
    cpus = bound.apart()
    counts = [count for count in thread_counts(len(cpus)) if not quick or count <= QUICK_THREADS]
    chosen = {"cpus": cpus[: counts[-1]], "counts": counts, "shape": [n, d, m], "codebooks": codebooks}
    command = [sys.executable, "-m", _MODULE, "--scaling", json.dumps(chosen)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_S, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no word"])[-1])
    rows = json.loads(done.stdout.splitlines()[-1])
    first = rows[0]["us"]
    for row in rows:
        row["speedup"] = {name: first[name] / value for name, value in row["us"].items() if name in first}
    report.found["threads"].append({**chosen, "rows": rows})


def scaling_rows(chosen: dict[str, Any], seconds: float = 3.0) -> list[dict[str, Any]]:
    """Microseconds by threads, each arm alone: what a process started by ``scaling`` prints."""
    place = getattr(os, "sched_setaffinity", None)
    if place is not None:
        place(0, chosen["cpus"])
    arms.keep_memory()
    (n, d, m), counts = chosen["shape"], chosen["counts"]
    made = {count: arms.scaling_arms(n, d, m, chosen["codebooks"], count) for count in counts}
    best: dict[int, dict[str, float]] = {count: dict.fromkeys(made[count], float("inf")) for count in counts}
    for _ in range(ROUNDS):  # the counts in turn, so that all meet the same machine
        for count in counts:
            with arms.threads(count), torch.inference_mode():
                for name, call in made[count].items():
                    found = arms.alone(call, seconds / (len(made[count]) * ROUNDS))
                    best[count][name] = min(best[count][name], found)
    return [{"threads": k, "us": {name: 1e6 * value for name, value in best[k].items()}} for k in counts]


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def last(report: Report, answers: dict[str, list[str]], seconds: float) -> None:
    """The tables."""
    print("\n".join(lines.everything(report.found, TRAINING_S)))
    told = [line for found in answers.values() for line in found]
    bad = sum(not line.startswith("right") for line in told)
    print(f"answers: {len(told) - bad} of {len(told)} right on {', '.join(answers)}")
    for label, text in report.found["failures"].items():
        print(f"FAILED {label}: {text}")
    print(f"{seconds:.0f} s", flush=True)


def options() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one shape, one and two threads: under a minute")
    parser.add_argument("--seconds", type=float, default=None, help="time for each shape and number of codebooks")
    parser.add_argument("--threads", type=int, default=1, help="threads of all arms but those of the scaling")
    parser.add_argument("--out", default=None, help="folder for amm_native.json")
    parser.add_argument("--scaling", default=None, help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Check, time, print; the exit code tells whether the answers are right."""
    chosen = options().parse_args()
    if chosen.scaling:
        print(json.dumps(scaling_rows(json.loads(chosen.scaling))))
        return 0
    begin = time.perf_counter()
    reason = binding.available()
    if reason is not None:
        print(reason)
        return 2
    print(f"kernels ready after {time.perf_counter() - begin:.0f} s", flush=True)
    answers = check_levels()
    level = usable(answers)
    report = Report(chosen.out)
    if level is None:
        report.note(answers=answers)
        print("no level gives right answers: nothing is timed")
        return 1
    kept = arms.keep_memory()
    seconds = chosen.seconds or (1.0 if chosen.quick else 2.0)
    with torch.inference_mode():
        _rates(report, [found for found in answers if usable({found: answers[found]})], seconds)
    level = fastest(report.found["levels"], level)
    os.environ[binding.VARIABLE] = level
    about = {
        **binding.describe(chosen.threads),
        **bound.processor(),
        "cores": _cores(),
        "cores_apart": len(bound.apart()),
        "gigahertz": binding.gigahertz(),
        "memory_kept": kept,
        "torch": torch.__version__,
    }
    report.note(answers=answers, about=about, python=platform.python_version())
    print("\n".join(lines.about(about)), flush=True)
    with torch.inference_mode():
        _timings(report, SHAPES[:QUICK_SHAPES] if chosen.quick else SHAPES, seconds, chosen.threads)
        for n, d, m, codebooks in SCALED[:1] if chosen.quick else SCALED:
            label = f"threads {n} x {d} x {m} C={codebooks}"
            report.attempt(label, lambda n=n, d=d, m=m, c=codebooks: scaling(report, n, d, m, c, chosen.quick))  # type: ignore[misc]
        if not chosen.quick:
            with arms.threads(1):
                report.attempt("training", lambda: train(report))
    took = time.perf_counter() - begin
    report.note(seconds=took)
    last(report, answers, took)
    right = all(line.startswith("right") for found in answers.values() for line in found)
    return 0 if right and not report.found["failures"] else 1


def _rates(report: Report, levels: list[str], seconds: float) -> None:
    n, d, m, counts = RATED

    def one(level: str, codebooks: int) -> None:
        with arms.threads(1):
            rows = n // SCALAR_SHARE if level == "scalar" else n
            report.found["levels"].append(arms.level_rates(level, rows, d, m, codebooks, seconds))

    for level in levels:
        for codebooks in counts[:1] if level == "scalar" else counts:
            report.attempt(f"{level} C={codebooks}", lambda v=level, c=codebooks: one(v, c))  # type: ignore[misc]


def _timings(report: Report, shapes: tuple[Any, ...], seconds: float, threads: int) -> None:
    def one(n: int, d: int, m: int, codebooks: int) -> None:
        with arms.threads(threads):
            report.found["shapes"].append(arms.measure(n, d, m, codebooks, seconds))

    for n, d, m, counts in shapes:
        for codebooks in counts:
            label = f"{n} x {d} x {m} C={codebooks}"
            report.attempt(label, lambda n=n, d=d, m=m, c=codebooks: one(n, d, m, c))  # type: ignore[misc]


if __name__ == "__main__":
    sys.exit(main())
