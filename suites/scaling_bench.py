"""``python -m suites.scaling_bench [--quick]``: ResNet-18 at 2,048 images a GPU on 1, 2, 4 GPUs; table and records.

SGD, K-FAC and FOP, the last two with every layer's state on each GPU and with each layer on one GPU alone; weak scaling
first. Checks at the start that several ranks and one train to the same weights; one method's failure is printed and the
rest goes on. Records and ``scaling.json`` are written into --out as each point ends, for ``speedclaim report --from``;
no point begins that would not end within --seconds (quick: 120).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness.catalogue import registry
from harness.cli_scale import lines
from harness.judge import scaling as judged
from harness.measure.training import scaling
from harness.measure.training.listener import Plain
from harness.measure.training.scaling import Asked
from harness.record import nvidia, store

METHODS = ("training.sgd", "training.kfac-cholesky", "training.fop")
#: Methods that know ``sharding``.
SHARDED = ("training.kfac-cholesky", "training.fop")
#: Seconds of --quick, of its comparison with one process, and of its longest silence.
QUICK_S, CHECK_S, SILENCE_S = 120.0, 45.0, 60.0


def asked(
    quick: bool, device: str, worlds: tuple[int, ...], methods: tuple[str, ...], seconds: float = math.inf
) -> Asked:
    """What is measured: blocks of whole refresh periods; quick ones refresh every 20 updates instead of 100."""
    period = 20 if quick else 100
    small = device == "cpu"
    periods = [f"{name.partition('.')[2]}.{what}={value}" for name in methods if name in SHARDED
               for what, value in (("update_period", 10), ("refresh_period", period))]  # fmt: skip
    return Asked(
        workload="digits-cnn" if small else "cifar10-resnet18",
        methods=methods,
        sharded=tuple(name for name in methods if name in SHARDED),
        worlds=worlds,
        modes=("weak", "strong"),
        per_rank=64 if small else 2048,
        rounds=1 if quick else 3,
        blocks=3,
        period=period,
        hyper=tuple(periods),
        device=device,
        compile=False,
        brief=quick,
        deadline_s=SILENCE_S if quick else 600.0,
        seconds=seconds,
    )


def alike(device: str, world: int, timeout_s: float = 300.0) -> dict[str, Any]:
    """Whether several ranks and one reach the same weights after a few steps, in float32 without batch norm."""
    import subprocess

    code = f"from suites.scaling_bench import _alike; _alike({device!r}, {world})"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {timeout_s:.0f} s"}
    if done.returncode:
        return {"error": done.stderr.strip()[-1500:]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _alike(device: str, world: int) -> None:
    """In a process of its own: the single-process run is forked too, so that no parent holds a CUDA context."""
    from harness.measure.training.together import together

    variants = {"sgd": {}, "kfac": {"sharding": "none"}, "kfac owned": {"sharding": "owner"}}
    alone = together(1, lambda ranks: [_steps(device, ranks, name, own) for name, own in variants.items()], device)[0]
    many = together(world, lambda ranks: [_steps(device, ranks, name, own) for name, own in variants.items()], device)
    found = {}
    for place, name in enumerate(variants):
        apart = max(
            float((one - other).norm() / (one - start).norm())
            for rank in many
            for one, other, start in zip(alone[place][1], rank[place][1], alone[place][0], strict=True)
        )
        found[name] = apart
    print(json.dumps(found))


def _steps(device: str, ranks: Any, name: str, own: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    import warnings

    import torch
    from torch import nn

    warnings.simplefilter("ignore")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16 * 36, 32), nn.Tanh(), nn.Linear(32, 10)
    )
    x, y = torch.randn(64, 3, 8, 8), torch.randint(0, 10, (64,))
    model, x, y = model.to(device), x.to(device), y.to(device)
    start = [p.detach().cpu().clone() for p in model.parameters()]
    made: Any
    if name == "sgd":
        made = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    else:
        factory = registry.load("training.kfac-cholesky")
        made = factory(model, lr=0.2, damping=0.1, clip="none", update_period=1, refresh_period=2, **own)
    begin, count = ranks.slice(0, len(x))
    for _ in range(8):
        made.zero_grad()
        nn.functional.cross_entropy(model(x[begin : begin + count]), y[begin : begin + count]).backward()  # type: ignore[no-untyped-call]
        ranks.average(list(model.parameters()))
        made.step()
    return start, [p.detach().cpu().clone() for p in model.parameters()]


def summary(files: list[Path], failed: dict[str, str], checked: dict[str, Any], elapsed_s: float) -> dict[str, Any]:
    """What the records say so far: rows, verdicts, what is missing."""
    rows = judged.rows(judged.cells(store.read_runs(files))) if files else []
    return {"checked": checked, "files": [path.name for path in files], "left_out": failed,
            "rows": [asdict(row) for row in rows], "findings": [asdict(one) for one in judged.findings(rows)],
            "elapsed_s": elapsed_s}  # fmt: skip


def main() -> None:
    """Correctness, then the runs, then the table."""
    parser = argparse.ArgumentParser(prog="python -m suites.scaling_bench")
    parser.add_argument("--quick", action="store_true", help="one round, refresh period 20, 120 s, 1 and all GPUs")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for records and a JSON summary")
    parser.add_argument("--worlds", default="", help="numbers of processes, e.g. 1,2,4; default: 1 and up to all GPUs")
    parser.add_argument("--methods", default="", help="comma-separated; default: sgd, kfac-cholesky and fop")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if nvidia.visible() else "cpu")
    parser.add_argument("--seconds", type=float, help="no point begins that would not end by then; quick: 120")
    parser.add_argument("--rounds", type=int, help="repeats, 3 or more for a verdict on time; default 3, quick 1")
    parser.add_argument("--modes", default="weak,strong", help="weak, strong or both")
    parser.add_argument("--skip-check", action="store_true", help="no comparison with one process first")
    given = parser.parse_args()
    begin = time.monotonic()

    def elapsed() -> float:
        return time.monotonic() - begin

    def say(text: str) -> None:
        print(f"[{elapsed():4.0f} s] {text}", flush=True)

    gpus = nvidia.visible() if given.device == "cuda" else 2
    if not gpus:
        parser.error("no CUDA device is visible here; try it with --device cpu")
    every = tuple(n for n in (1, 2, 4, 8) if n <= gpus)
    worlds = tuple(int(n) for n in given.worlds.split(",") if n) or tuple(
        sorted({1, max(every)} if given.quick else every)
    )
    known = registry.methods("training")
    wanted = [f"training.{one.removeprefix('training.')}" for one in given.methods.split(",") if one] or list(METHODS)
    for name in [name for name in wanted if name not in known]:
        say(f"left out: {name} is not registered here")
    say(f"{gpus} of {given.device}; processes: {', '.join(map(str, worlds))}")
    checked: dict[str, Any] = {}
    seconds = given.seconds or (QUICK_S if given.quick else math.inf)
    if not given.skip_check and max(worlds) > 1:
        checked = alike(given.device, max(worlds), min(CHECK_S, seconds) if given.quick else 300.0)
        say(f"weights against one process, distance over movement: {checked}")
    methods = tuple(name for name in wanted if name in known)
    asked_ = asked(given.quick, given.device, worlds, methods, seconds - elapsed())
    asked_ = replace(asked_, rounds=given.rounds or asked_.rounds, modes=tuple(given.modes.split(",")))
    if set(asked_.modes) - set(scaling.MODES):
        parser.error(f"--modes {given.modes}: expected {' or '.join(scaling.MODES)} or both")
    given.out.mkdir(parents=True, exist_ok=True)

    def write(files: list[Path], failed: dict[str, str]) -> None:
        content = json.dumps(summary(files, failed, checked, elapsed()), indent=1)
        (given.out / "scaling.json").write_text(content, encoding="utf-8")

    command = "python -m suites.scaling_bench " + " ".join(sys.argv[1:])
    files, failed = scaling.measure(asked_, given.out, command, Plain(), say, write)
    write(files, failed)
    for label, why in failed.items():
        print(f"left out: {label}: {why}", flush=True)
    rows = judged.rows(judged.cells(store.read_runs(files))) if files else []
    print("\n".join(lines(rows, judged.findings(rows))), flush=True)
    print(f"{elapsed():.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
