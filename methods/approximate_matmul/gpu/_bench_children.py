"""Children of ``_bench``: jobs side by side, and one child that times shape after shape; what ends them is told."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from methods.approximate_matmul.gpu import model

Job = dict[str, Any]
Finding = tuple[Job, Any, str]
MODULE = "methods.approximate_matmul.gpu._bench"
#: Seconds without news after which the timing child is ended.
SILENCE_S = 60.0
LATE = "no time left; give --seconds"


def spawn(job: Job, folder: Path, number: int, show: bool) -> tuple[subprocess.Popen[bytes], Path]:
    """A child that writes its finding to a file; its own printing goes on (``show``) or is kept for its failure."""
    target = folder / f"{number}.json"
    log = None if show else (folder / f"{number}.log").open("wb")
    command = [sys.executable, "-u", "-m", MODULE, "--job", json.dumps(job), "--target", str(target)]
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


def together(
    wanted: list[Job], limit_s: float, folder: Path, note: Callable[[list[Finding]], None] | None = None
) -> list[Finding]:
    """Run jobs side by side, as many as there are cores; ``limit_s`` after the first began, all that run are ended.

    A job that crashes or takes too long is told; ``note`` is given all findings after each.
    """
    begun = time.perf_counter()
    width = max(2, min(16, os.cpu_count() or 2))
    waiting = list(enumerate(wanted))
    running: dict[int, tuple[Job, subprocess.Popen[bytes], Path, float]] = {}
    done: list[Finding] = []
    while waiting or running:
        if time.perf_counter() - begun > limit_s:
            done += [(job, None, LATE) for _, job in waiting]
            waiting = []
        while waiting and len(running) < width:
            number, job = waiting.pop(0)
            running[number] = (job, *spawn(job, folder, number, False), time.perf_counter())
        for number, (job, child, target, begin) in list(running.items()):
            late = time.perf_counter() - begun > limit_s
            if child.poll() is None and not late:
                continue
            if child.poll() is None:
                child.kill()
            child.wait()
            found, why = collect(child, target)
            done.append((job, found, f"took over {limit_s:.0f} s" if late and found is None else why))
            del running[number]
            _told(done[-1], time.perf_counter() - begin)
            if note is not None:
                note(done)
        time.sleep(0.1)
    return done


def _told(finding: Finding, seconds: float) -> None:
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


def timing(shapes: list[Job], until: float, folder: Path, note: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All shapes timed by a child, and by another one behind each shape that ends it: rates, shapes, what failed.

    Args:
        shapes: ``shape``, ``codebooks`` and ``broken`` arms of each.
        until: when to stop, on the clock of ``time.perf_counter``.
        folder: where children write.
        note: is given all that is found, whenever there is news.
    """
    whole: dict[str, Any] = {"rates": None, "shapes": [], "failed": {}}
    waiting, number = list(shapes), 1000
    while waiting and time.perf_counter() < until:
        number += 1
        child, target = spawn({"kind": "time", "rates": whole["rates"], "shapes": waiting}, folder, number, True)
        told, why = _follow(child, target, until, partial(_noted, note, whole))
        whole = _merged(whole, told)
        if not why:
            waiting = []
            break
        begun = told.get("begun")
        name = begun if isinstance(begun, str) else "start" if begun is None else label(begun)
        whole["failed"][name] = why
        print(f"{name}: {why}", flush=True)
        if begun == "rates":  # bounds are then those of an H100
            whole["rates"] = dataclasses.asdict(model.H100)
        elif begun is None:  # the next child would fare alike
            break
        else:
            waiting = waiting[1 + [one["shape"] for one in waiting].index(begun) :]
    whole["failed"] |= {label(one["shape"]): LATE for one in waiting}
    note(whole)
    return whole


def _noted(note: Callable[[dict[str, Any]], None], whole: dict[str, Any], told: dict[str, Any]) -> None:
    note(_merged(whole, told))


def _follow(
    child: subprocess.Popen[bytes], target: Path, until: float, note: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], str]:
    """What a timing child wrote last, and why it did not end well; ended at ``until`` or when it is silent for long."""
    told: dict[str, Any] = {}
    heard = time.perf_counter()
    while True:
        code = child.poll()
        news = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
        if news != told:
            told, heard = news, time.perf_counter()
            note(told)
        if code is not None:
            return told, f"exit status {code}" if code else ""
        now = time.perf_counter()
        if now > until or now - heard > SILENCE_S:
            child.kill()
            child.wait()
            return told, LATE if now > until else f"silent for {SILENCE_S:.0f} s"
        time.sleep(0.1)


def _merged(whole: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    return {
        "rates": told.get("rates") or whole["rates"],
        "shapes": [*whole["shapes"], *told.get("shapes", [])],
        "failed": {**whole["failed"], **told.get("failed", {})},
    }


def label(shape: list[int]) -> str:
    """``65536 x 1024 x 1024``."""
    return " x ".join(map(str, shape))
