"""Check the Triton kernels on a GPU and time candidate configurations: ``python -m methods.orthogonalize._tune``.

First every kernel and engine is compared with float64 (PASS / FAIL lines; exit code 1 when one fails), then
configurations and whole engines are timed with device events, L2 flushed, and a short table is printed last. A
configuration that does not compile or does not fit is reported and skipped. Compilation runs in worker processes, which
fill Triton's cache on disk. Nothing here writes into ``_triton_configs``; a person reads the table and edits it.

``--dry-run`` runs the same code on a CPU through Triton's interpreter, with tiny shapes and no times.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if "--dry-run" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

import torch

from harness.errors import Unsupported
from methods.orthogonalize import _triton_configs as configs
from methods.orthogonalize import _triton_direct as direct
from methods.orthogonalize import _tune_checks as checks
from methods.orthogonalize._triton_configs import Config

SHAPES: tuple[tuple[int, int, int], ...] = (
    (1, 4096, 4096),
    (1, 2048, 2048),
    (1, 4096, 11008),
    (1, 1024, 1024),
    (32, 1024, 1024),
    (1, 768, 3072),
    (12, 768, 3072),
)
UNFINISHED = "not finished within 60 % of the budget"
FLUSH_BYTES = 256 * 2**20  # several times the largest L2 cache
UNCOMPILED = ("polar.ns-torch", "polar.turbo-torch")
BASELINES = (*UNCOMPILED, "polar.ns-compiled", "polar.turbo-compiled")


class Clock:
    """Seconds left of the wall-clock budget."""

    def __init__(self, budget_s: float) -> None:
        self.end = time.monotonic() + budget_s
        self.begin = time.monotonic()

    def left(self) -> float:
        """Seconds left."""
        return self.end - time.monotonic()

    def note(self, text: str) -> None:
        """Print a line with the seconds gone."""
        print(f"[{time.monotonic() - self.begin:6.1f} s] {text}", flush=True)


def main() -> int:
    """Run the checks, then the timings; 1 when a check failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--budget-s", type=float, default=240.0)
    parser.add_argument("--out", type=Path, help="write everything measured to this JSON file")
    parser.add_argument("--workers", type=int, default=min(14, os.cpu_count() or 1))
    parser.add_argument("--dry-run", action="store_true", help="CPU, interpreter, tiny shapes, no times")
    parser.add_argument("--skip-checks", action="store_true")
    parser.add_argument("--skip-configs", action="store_true", help="checks, then Triton engines only: under a minute")
    options = parser.parse_args()
    clock = Clock(options.budget_s)
    if not options.dry_run and not torch.cuda.is_available():
        print("no CUDA device: use --dry-run", file=sys.stderr)
        return 2
    result: dict[str, Any] = {"torch": torch.__version__, "checks": [], "kernels": [], "engines": []}
    if not options.dry_run:
        result["device"] = torch.cuda.get_device_name()
    jobs = [] if options.skip_checks else checks.jobs(options.dry_run)
    lines = [] if options.skip_configs else candidates(options.dry_run)
    usable = run_jobs(jobs, lines, options, clock, result)
    failed = [check for check in result["checks"] if not check["passed"] and check["text"] != UNFINISHED]
    if not options.dry_run:
        time_engines("default configurations", clock, result, BASELINES if lines else UNCOMPILED)
        if lines:
            time_kernels(usable, clock, result)
            time_best(clock, result)
    result["launch"] = direct.state()
    report(result)
    print(f"launch: {result['launch']}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(f"{len(result['checks']) - len(failed)} checks passed, {len(failed)} failed", flush=True)
    return 1 if failed else 0


# --- checks and compilation in worker processes ----------------------------------------------------------------------


def run_jobs(
    jobs: list[checks.Job], lines: list[checks.Candidate], options: argparse.Namespace, clock: Clock, result: Any
) -> list[checks.Candidate]:
    """Run every check, and every candidate once on a small input; the candidates that compiled and were right."""
    usable: list[checks.Candidate] = []
    for work, outcome in _outcomes([*lines, *jobs], 0 if options.dry_run else options.workers, clock):
        passed, text = outcome
        if isinstance(work, checks.Candidate):
            if passed:
                usable.append(work)
            else:
                print(f"SKIP {work.label}: {text}", flush=True)
            wrong = not passed and text.startswith("wrong")
            if wrong:
                result["checks"].append({"name": work.label, "passed": False, "text": text})
        else:
            result["checks"].append({"name": work.label, "passed": passed, "text": text})
            word = "PASS" if passed else "SKIP" if text == UNFINISHED else "FAIL"
            print(f"{word} {work.label}: {text}", flush=True)
    clock.note(f"{len(jobs)} checks, {len(usable)} of {len(lines)} candidates usable")
    return usable


def _outcomes(work: list[Any], workers: int, clock: Clock) -> Iterator[tuple[Any, tuple[bool, str]]]:
    if not workers:
        for item in work:
            yield item, checks.perform(item)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    pending = {pool.submit(checks.perform, item): item for item in work}
    try:
        for future in as_completed(pending, timeout=max(clock.left() * 0.6, 1.0)):
            item = pending.pop(future)
            try:
                yield item, future.result()
            except Exception as error:
                yield item, (False, f"worker died: {type(error).__name__}: {error}")
    except TimeoutError:
        for item in pending.values():
            yield item, (False, UNFINISHED)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def candidates(dry: bool) -> list[checks.Candidate]:
    """The curated list: what the published search would visit near its usual optimum, and ours."""
    make = configs.make
    if dry:
        small = [make(32, 32, 32, 4, 2, tma=True), make(32, 64, 32, 4, 2)]
        return [checks.Candidate(d, line, c) for d in ("published", "fast") for line in configs.LINES for c in small]
    published = [
        make(128, 128, 64, 8, 3), make(128, 128, 64, 4, 3), make(128, 128, 64, 4, 4), make(128, 256, 64, 8, 3),
        make(64, 256, 64, 8, 3), make(64, 128, 64, 4, 3), make(64, 128, 128, 8, 3), make(64, 64, 64, 4, 4),
        make(64, 64, 128, 4, 3), make(128, 128, 32, 8, 4),
    ]  # fmt: skip
    symmetric = [
        make(128, 128, 64, 8, 3, tma=True), make(128, 128, 64, 8, 3, tma=True, registers=128),
        make(128, 128, 64, 8, 3, tma=True, registers=128, group=4), make(128, 128, 64, 4, 3, tma=True),
        make(128, 128, 64, 8, 4, tma=True), make(128, 128, 128, 8, 3, tma=True), make(128, 256, 64, 8, 3, tma=True),
        make(128, 256, 64, 8, 4, tma=True), make(128, 256, 64, 8, 4, tma=True, group=4),
        make(256, 128, 64, 8, 3, tma=True), make(64, 128, 64, 4, 4, tma=True), make(64, 256, 64, 4, 4, tma=True),
        make(64, 64, 64, 4, 4, tma=True), make(64, 64, 128, 4, 3, tma=True), make(128, 128, 64, 8, 3),
        make(128, 128, 64, 8, 4), make(128, 128, 64, 4, 3), make(64, 128, 64, 4, 4), make(64, 64, 64, 4, 4),
        make(64, 64, 128, 4, 3),
    ]  # fmt: skip
    apply = [
        make(128, 256, 64, 8, 3, tma=True), make(128, 256, 64, 8, 4, tma=True),
        make(128, 256, 64, 8, 4, tma=True, group=4), make(128, 256, 64, 8, 4, tma=True, group=16),
        make(256, 128, 64, 8, 3, tma=True), make(256, 128, 64, 8, 4, tma=True),
        make(128, 128, 64, 8, 3, tma=True), make(128, 128, 64, 8, 3, tma=True, registers=128),
        make(128, 128, 64, 4, 3, tma=True), make(128, 128, 128, 8, 3, tma=True), make(64, 256, 64, 4, 4, tma=True),
        make(64, 128, 64, 4, 4, tma=True), make(64, 64, 64, 4, 4, tma=True), make(128, 256, 64, 8, 3),
        make(128, 128, 64, 8, 3), make(128, 128, 64, 8, 4), make(64, 128, 64, 4, 4), make(64, 64, 64, 4, 4),
        make(64, 64, 128, 4, 3),
    ]  # fmt: skip
    found = [checks.Candidate("published", line, c) for line in configs.LINES for c in published]
    found += [checks.Candidate("fast", line, c) for line in ("gram", "square") for c in symmetric]
    return found + [checks.Candidate("fast", "apply", c) for c in apply]


# --- timing ----------------------------------------------------------------------------------------------------------


def cold_s(call: Callable[[], Any], flush: torch.Tensor, calls: int = 12) -> float:
    """Median seconds of one call by device events, the L2 cache flushed before each."""
    for _ in range(2):
        call()
    pairs = []
    for _ in range(calls):
        flush.zero_()
        begin: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(float(begin.elapsed_time(end)) for begin, end in pairs) * 1e-3


def graph_s(call: Callable[[], Any], flush: torch.Tensor) -> float:
    """Median seconds of a CUDA-graph replay of one call."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return cold_s(graph.replay, flush)


def time_kernels(usable: list[checks.Candidate], clock: Clock, result: Any) -> None:
    """Every usable candidate on every shape, most important shapes first, until the budget is nearly spent."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    for shape in SHAPES:
        operands = checks.operands(shape, torch.bfloat16, "cuda")
        for work in usable:
            if clock.left() < 30:
                clock.note(f"budget: kernels from {shape} on left out")
                return
            try:
                seconds = cold_s(work.call(operands), flush)
            except Exception as error:
                print(f"SKIP {work.label} {shape}: {type(error).__name__}: {str(error)[:120]}", flush=True)
                continue
            result["kernels"].append(
                {"shape": shape, "design": work.design, "line": work.line, "config": work.config.describe(),
                 "seconds": seconds, "tflops": checks.executed_flops(work.line, shape) / seconds / 1e12}
            )  # fmt: skip
        for line in configs.LINES:
            seconds = cold_s(checks.library_call(line, operands), flush)
            result["kernels"].append({"shape": shape, "design": "library", "line": line, "seconds": seconds})
        del operands
        clock.note(f"kernels at {shape}")


def time_engines(label: str, clock: Clock, result: Any, baselines: tuple[str, ...]) -> None:
    """Whole engines on gaussian bfloat16 inputs: cold events, and a graph replay."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    calls = dict(checks.engines())
    calls |= dict(_baselines(baselines))
    for shape in SHAPES:
        G = torch.randn(shape if shape[0] > 1 else shape[1:], device="cuda").bfloat16()
        for name, engine in calls.items():
            if clock.left() < 20 or ("compiled" in name and (clock.left() < 90 or shape[0] > 1)):
                continue
            row: dict[str, Any] = {"set": label, "engine": name, "shape": shape}
            try:
                row["seconds"] = cold_s(lambda e=engine, g=G: e(g), flush)  # type: ignore[misc]
                if "compiled" not in name and name not in checks.GRAPHS:
                    row["graph_seconds"] = graph_s(lambda e=engine, g=G: e(g), flush)  # type: ignore[misc]
            except Unsupported as error:
                row["error"] = f"Unsupported: {error}"
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {str(error)[:200]}"
                print(f"SKIP {name} {shape}: {row['error']}", flush=True)
            result["engines"].append(row)
        clock.note(f"engines at {shape}, {label}")


def _baselines(names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    from harness.catalogue import registry

    for name in names:
        try:
            yield name, registry.load(name)
        except Exception as error:
            print(f"SKIP {name}: {type(error).__name__}: {str(error)[:120]}", flush=True)


def time_best(clock: Clock, result: Any) -> None:
    """Put each size class's best configuration in place, shape by shape, and time our engine and the published one."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    known = dict(configs.HALF)
    for shape in SHAPES:
        if clock.left() < 5 or not best(result, shape, "fast", "gram"):
            break
        for design in ("published", "fast"):
            for line in configs.LINES:
                found = best(result, shape, design, line)
                if found:
                    cols, depth = (shape[2], shape[1]) if line == "apply" else (shape[1], shape[2])
                    size = configs.size_class(line, shape[1], cols, shape[0], depth)
                    configs.HALF[design, line, size] = Config(**found["config"])  # type: ignore[index]
        direct.forget()  # kept launches would go on with the table's configurations
        G = torch.randn(shape if shape[0] > 1 else shape[1:], device="cuda").bfloat16()
        for name, engine in checks.engines():
            if name in checks.GRAPHS:
                continue
            row: dict[str, Any] = {"set": "best configurations", "engine": name, "shape": shape}
            row["seconds"] = cold_s(lambda e=engine, g=G: e(g), flush)  # type: ignore[misc]
            row["graph_seconds"] = graph_s(lambda e=engine, g=G: e(g), flush)  # type: ignore[misc]
            result["engines"].append(row)
    configs.HALF.update(known)
    direct.forget()
    clock.note("engines with the best configurations")


def best(result: Any, shape: tuple[int, int, int], design: str, line: str) -> dict[str, Any] | None:
    """The fastest row of one design, product and shape."""
    rows = [r for r in result["kernels"] if (tuple(r["shape"]), r["design"], r["line"]) == (shape, design, line)]
    return min(rows, key=lambda row: row["seconds"]) if rows else None


# --- the table -------------------------------------------------------------------------------------------------------


def report(result: Any) -> None:
    """Fastest configurations by shape, then engines."""
    rows = result["kernels"]
    for shape in SHAPES:
        for line in configs.LINES:
            for design in ("library", "published", "fast"):
                mine = [r for r in rows if (tuple(r["shape"]), r["design"], r["line"]) == (shape, design, line)]
                for row in sorted(mine, key=lambda r: float(r["seconds"]))[: 3 if design == "fast" else 1]:
                    us = row["seconds"] * 1e6
                    print(f"{_name(shape):12s} {line:6s} {design:9s} {us:8.1f} us {_config_text(row)}")
    for row in result["engines"]:
        if "seconds" in row:
            replay = f"{row['graph_seconds'] * 1e3:8.3f}" if "graph_seconds" in row else "       -"
            ms = row["seconds"] * 1e3
            print(f"{_name(row['shape']):12s} {row['engine']:22s} {ms:8.3f} ms graph {replay} {row['set']}")


def _name(shape: Any) -> str:
    return "x".join(str(extent) for extent in (shape if shape[0] > 1 else shape[1:]))


def _config_text(row: Any) -> str:
    if "config" not in row:
        return ""
    c = row["config"]
    extra = (" tma" if c["tma"] else "") + (f" r{c['registers']}" if c["registers"] else "")
    tile = f"{c['bm']}x{c['bn']}x{c['bk']}"
    return f"{row['tflops']:5.0f} TF/s  {tile} w{c['warps']} s{c['stages']} g{c['group']}{extra}"


if __name__ == "__main__":
    sys.exit(main())
