"""Time and memory of a training step with SINGD in every structure: VGG16 with batch norm, batch 256, random images.

    python -m methods.singd._bench [--quick] [--precision torch-default|ieee|tf32|bf16] [--arms PATTERN,...]
                                   [--channels-last] [--profile ARM] [--device cpu --width small] [--out FOLDER]

First every structure's products and projections, then three steps of every method on a small net, are compared with
float64 on the CPU, and a period of steps is run with synchronisations forbidden. Then each arm, after a warm-up of a
period: mean time of a step by events around all of them, the longest step by events around each, the host's time, the
parts (in a run of their own), peak memory, and the state's bytes beside the formula's. A row is printed and written as
soon as it is there. ``--quick`` takes few steps of the arms with a goal, checks those alone, and begins no arm after
SECONDS. ``-eager`` arms run without CUDA graphs. ``torch-default``: convolutions
in TF32, products in IEEE float32; ``bf16``: the net under autocast and factors in bfloat16. The arms ``dense-tf32`` and
``dense-bf16`` lower the precision of the optimizer's products alone. The arms ``upstream-*`` are the package singd, if
it can be imported. An arm that fails is printed and the rest goes on.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.singd._bench_arms import ARMS, MIB, PERIOD, UPSTREAM, WARM, batches, fenced, made, net, step
from methods.singd._bench_checks import check

#: What ``--quick`` takes at most, but for the arm in hand, and its arms in order.
SECONDS = 50.0
QUICK = ("diagonal", "diagonal-eager", "block30", "hierarchical15", "tril-toeplitz", "dense-tf32", "dense-bf16")
#: Goals in milliseconds a step (one H100, torch-default, batch 256, T = 10).
GOALS = {
    "dense-tf32": 13.0,
    "dense-bf16": 13.0,
    "diagonal": 9.0,
    "block30": 10.0,
    "hierarchical15": 10.5,
    "tril-toeplitz": 11.0,
    "triu-toeplitz": 11.0,
}


def measure(
    arm: str, args: argparse.Namespace, options: dict[str, Any], steps: int, profile: bool = False
) -> dict[str, Any]:
    """The figures of one arm: milliseconds and MiB."""
    device, half, cuda = args.device, args.precision == "bf16", args.device != "cpu"
    kind = torch.channels_last if args.channels_last else torch.contiguous_format
    model = net(args.width).to(device).to(memory_format=kind)  # type: ignore[call-overload]
    data = [(x.to(memory_format=kind), y) for x, y in batches(4, args.batch, device)]
    optimizer: Any = None if arm == "forward+backward" else made(arm, model, **(options if arm in ARMS else {}))

    def run(count: int) -> Iterator[None]:
        for k in range(count):
            step(model, optimizer, *data[k % 4], half)
            yield

    for _ in run(WARM):
        pass
    found: dict[str, Any] = {}
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    if profile:
        activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
        with torch.profiler.profile(activities=activities) as seen:
            for _ in run(PERIOD):
                pass
        key = "self_cuda_time_total" if cuda else "self_cpu_time_total"
        print(seen.key_averages().table(sort_by=key, row_limit=30, max_name_column_width=70), flush=True)
        return found
    marks, begin = [_mark(cuda)], time.perf_counter()
    marks.extend(_mark(cuda) for _ in run(steps))
    found["host"] = (time.perf_counter() - begin) / steps * 1e3
    if cuda:
        torch.cuda.synchronize()
        found["peak"] = torch.cuda.max_memory_allocated() / MIB
    each = [_between(a, b) for a, b in itertools.pairwise(marks)]
    found |= {"mean": _between(marks[0], marks[-1]) / steps, "longest": max(each), "median": sorted(each)[steps // 2]}
    if hasattr(optimizer, "memory_formula"):
        usage, formula = optimizer.memory_usage(), optimizer.memory_formula()
        found["state"] = {name: usage[name] for name in formula}
        found["formula"] = formula
        optimizer.parts()
        for _ in run(2 * PERIOD):
            pass
        found["graphs"] = optimizer.describe()["graphs"]
        found["parts"] = {name: seconds / (2 * PERIOD) * 1e3 for name, seconds in optimizer.parts().items()}
    elif isinstance(optimizer, torch.optim.Optimizer):
        held = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        found["state"] = {"state": sum(t.numel() * t.element_size() for t in held)}
    return found


def _mark(cuda: bool) -> Any:
    if not cuda:
        return time.perf_counter()
    event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(one: Any, other: Any) -> float:
    return (other - one) * 1e3 if isinstance(one, float) else float(one.elapsed_time(other))


HEAD = (
    f"{'arm':22}{'mean':>8}{'median':>8}{'longest':>9}{'host':>8}{'goal':>7}{'peak MiB':>10}{'/adamw':>8}"
    f"{'state MiB':>11}{'formula':>9}  statistics/update/apply, graphs captured/replayed/failed"
)


def line(name: str, row: dict[str, Any], adamw: float | None) -> str:
    """One arm."""
    peak, state = row.get("peak", 0.0), sum(row.get("state", {}).values())
    formula = "" if "formula" not in row else "equal" if row["formula"] == row["state"] else "DIFFERS"
    parts = "/".join(f"{ms:.2f}" for ms in row.get("parts", {}).values())
    seen = row.get("graphs", {})
    parts += ", " + "/".join(str(seen[key]) for key in ("captured", "replayed", "failed")) if seen else ""
    ratio = f"{peak / adamw:.2f}" if adamw else ""
    goal = f"{GOALS[name]:.1f}" if name in GOALS else ""
    return (
        f"{name:22}{row['mean']:8.2f}{row['median']:8.2f}{row['longest']:9.2f}{row['host']:8.2f}{goal:>7}{peak:10.0f}"
        f"{ratio:>8}{state / MIB:11.1f}{formula:>9}  {parts}"
    )


def table(rows: dict[str, dict[str, Any]]) -> str:
    """One line for each arm."""
    adamw = rows.get("adamw", {}).get("peak")
    return "\n".join([HEAD, *(line(name, row, adamw) for name, row in rows.items())])


def main(argv: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="about a minute: fewer arms, checks and steps")
    parser.add_argument("--precision", default="torch-default", choices=("torch-default", "ieee", "tf32", "bf16"))
    parser.add_argument("--arms", default="*", help="shell patterns, separated by commas")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--profile", default="", help="print the kernels of a period of one arm, and nothing else")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--width", default="full", choices=("full", "small"))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--out", default="")
    args = parser.parse_args(argv)
    torch.backends.cuda.matmul.allow_tf32 = args.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = args.precision != "ieee"
    options = {"preconditioner_dtype": "bfloat16"} if args.precision == "bf16" else {}
    problems: list[str] = []
    if args.profile:
        measure(args.profile, args, options, 0, profile=True)
        return 0
    patterns, begin = args.arms.split(","), time.perf_counter()
    known = QUICK if args.quick and args.arms == "*" else tuple(ARMS)
    mine = [arm for arm in known if any(fnmatch.fnmatchcase(arm, pattern) for pattern in patterns)]
    half, folder = args.precision == "bf16", Path(args.out) if args.out else None
    checks = {} if args.no_check else check(mine, not args.quick, args.device, options, half)
    steps = args.steps or (3 * PERIOD if args.quick else 12 * PERIOD)
    rows: dict[str, dict[str, Any]] = {}
    peers = [f"upstream-{name}" for name in UPSTREAM] if importlib.util.find_spec("singd") else []
    if not peers:
        print("the package singd is not here: no upstream arms", flush=True)
    peers = [arm for arm in peers if any(fnmatch.fnmatchcase(arm, pattern) for pattern in patterns)]
    print(HEAD, flush=True)
    for arm in ["forward+backward", *(["sgd"] if not args.quick else []), "adamw", *mine, *peers]:
        if args.quick and time.perf_counter() - begin > SECONDS:
            print(f"{arm}: left out, {SECONDS:g} seconds are over", flush=True)
            continue
        with fenced(arm, problems):
            rows[arm] = measure(arm, args, options, steps)
            print(line(arm, rows[arm], rows.get("adamw", {}).get("peak")), flush=True)
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                text = json.dumps({"arm": arm, "arguments": vars(args), "steps": steps, **rows[arm]}, indent=1)
                (folder / f"singd-{args.precision}-{arm}.json").write_text(text)
    name = torch.cuda.get_device_name() if args.device != "cpu" else "cpu"
    head = f"{name}, torch {torch.__version__}, {args.precision}, batch {args.batch}, T = {PERIOD}, {steps} steps, ms"
    print(f"\n{head}{', channels last' if args.channels_last else ''}\n{table(rows)}", flush=True)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        content = {"head": head, "arguments": vars(args), "checks": checks, "arms": rows, "failed": problems}
        layout = "-channels-last" if args.channels_last else ""
        (folder / f"singd-{args.precision}{layout}.json").write_text(json.dumps(content, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
