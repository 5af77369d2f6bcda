"""Time and memory of a training step with SINGD in every structure: VGG16 with batch norm, batch 256, random images.

    python -m methods.singd._bench [--quick] [--precision torch-default|ieee|tf32|bf16] [--arms PATTERN,...]
                                   [--channels-last] [--profile ARM] [--device cpu --width small] [--out FOLDER]

First every structure's products and projections, then three steps of every method on a small net, are compared with
float64 on the CPU, and a period of steps is run with synchronisations forbidden. Then each arm, after a warm-up of a
period: mean time of a step by events around all of them, the longest step by events around each, the host's time, the
parts (in a run of their own), peak memory, and the state's bytes beside the formula's. ``torch-default``: convolutions
in TF32, products in IEEE float32; ``bf16``: the net under autocast and factors in bfloat16. The arms ``dense-tf32`` and
``dense-bf16`` lower the precision of the optimizer's products alone. The arms ``upstream-*`` are the package singd, if
it can be imported. An arm that fails is printed and the rest goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import gc
import importlib
import importlib.util
import itertools
import json
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.singd import factories
from methods.singd.structures import STRUCTURES, Sizes, structure

PERIOD, MIB = 10, 2**20
#: lr is small, so that random labels move no net anywhere.
COMMON: dict[str, Any] = {"lr": 1e-4, "damping": 1e-3, "update_period": PERIOD, "lr_cov": 1e-2}
#: arm -> (factory, options).
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "dense-tf32": ("dense", {"products": "tf32"}),
    "dense-bf16": ("dense", {"products": "bf16"}),
    "dense-reduce": ("dense", {"sharing": "reduce"}),
    "ikfac-tf32": ("ikfac", {"products": "tf32"}),
    "diagonal": ("diagonal", {}),
    "block30": ("block30", {}),
    "hierarchical15": ("hierarchical15", {}),
    "tril-toeplitz": ("tril_toeplitz", {}),
    "triu-toeplitz": ("triu_toeplitz", {}),
    "tril-tf32": ("tril", {"products": "tf32"}),
    "triu-tf32": ("triu", {"products": "tf32"}),
    "rank1-arrow": ("rank1_arrow", {}),
    "rankk-arrow": ("rankk_arrow", {}),
}
#: The package's names of its structures.
UPSTREAM = {
    "dense": "dense",
    "diagonal": "diagonal",
    "block30": "block30diagonal",
    "hierarchical15": "hierarchical15_15",
    "tril-toeplitz": "triltoeplitz",
}
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
#: Allowed relative errors against float64.
ALLOWED = {torch.float32: 3e-3, torch.bfloat16: 0.1, torch.float16: 0.03}


def net(width: str) -> nn.Module:
    """``full`` (VGG16_bn) or ``small``."""
    torch.manual_seed(0)
    if width == "full":
        return importlib.import_module("suites.training.nets.vgg").VGG16()  # type: ignore[no-any-return]
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
    head = (nn.Linear(16 * 16, 50), nn.ReLU(), nn.Linear(50, 10))
    pools = (nn.MaxPool2d(2), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.ReLU(), *pools, *head)


def batches(count: int, batch: int, device: str, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    """Random images and labels."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        x = torch.randn(batch, 3, 32, 32, generator=generator)
        y = torch.randint(0, 10, (batch,), generator=generator)
        found.append((x.to(device, dtype), y.to(device)))
    return found


def made(arm: str, model: nn.Module, **options: Any) -> Any:
    """The optimizer of an arm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if arm == "sgd":
            return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)
        if arm == "adamw":
            return torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        if arm.startswith("upstream-"):
            return upstream(arm.removeprefix("upstream-"), model)
        factory, own = ARMS[arm]
        return getattr(factories, factory)(model, **{**COMMON, **own, **options})


class Both:
    """The package's optimizer beside AdamW for what it leaves."""

    def __init__(self, first: Any, second: Any) -> None:
        self.parts_ = (first, second)

    def zero_grad(self) -> None:
        """Of both."""
        for one in self.parts_:
            one.zero_grad()

    def step(self) -> None:
        """Of both."""
        for one in self.parts_:
            one.step()


def upstream(arm: str, model: nn.Module) -> Both:
    """The package singd with the same hyper-parameters."""
    package: Any = importlib.import_module("singd.optim.optimizer")
    kind = UPSTREAM[arm.removesuffix("-reduce")]
    sharing = "reduce" if arm.endswith("-reduce") else "expand"
    options = {"lr": 1e-4, "damping": 1e-3, "T": PERIOD, "lr_cov": 1e-2, "structures": (kind, kind)}
    chosen = package.SINGD(model, kfac_approx=sharing, **options)
    mine = {p for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) for p in m.parameters()}
    rest = [p for p in model.parameters() if p not in mine]
    return Both(chosen, torch.optim.AdamW(rest, lr=1e-3, fused=True))


def step(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor, half: bool) -> None:
    """One training step."""
    (model if optimizer is None else optimizer).zero_grad()
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=half):
        loss = functional.cross_entropy(model(x), y)
    loss.backward()  # type: ignore[no-untyped-call]
    if optimizer is not None:
        optimizer.step()


def relative(one: Tensor, other: Tensor) -> float:
    """Relative error in the Frobenius norm."""
    return float((one.double().cpu() - other).norm() / other.norm().clamp_min(1e-30))


@contextlib.contextmanager
def ieee() -> Iterator[None]:
    """Neither convolutions nor products in TF32: what is compared with float64 is the method, not the format."""
    held = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = held


def structures_error(name: str, dtype: torch.dtype, device: str, d: int = 95) -> float:
    """Worst relative error of a structure's products and projections against float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    kind = structure(name, d, Sizes(block=30, ranks=(15, 15), rank=3))
    spread = 0.3 / d**0.5 * torch.randn(2, 2, kind.count, generator=generator, dtype=torch.float64)
    one, two = (kind.identity(2, torch.float64, "cpu") + spread).unbind()
    m, x = (torch.randn(2, d, n, generator=generator, dtype=torch.float64) / d**0.5 for n in (7, 300))

    def results(*tensors: Tensor) -> list[Tensor]:
        k, other, rows, columns = tensors
        found = [kind.matmul(k, columns), kind.t_matmul(k, columns), kind.apply(k, columns), kind.compose(k, other)]
        return [*found, kind.from_inner(k, rows), kind.gram(k), kind.trace(k)]

    right = results(one, two, x, m)
    return max(map(relative, results(*(t.to(device, dtype) for t in (one, two, x, m))), right))


def steps_error(arm: str, device: str) -> float:
    """Relative error of the weights' movement after three steps against float64 on the CPU."""
    moved = []
    with ieee():
        for place, dtype in ((device, torch.float32), ("cpu", torch.float64)):
            model = net("small").to(place, dtype)
            start = [p.detach().double().cpu().clone() for p in model.parameters()]
            optimizer = made(arm, model, update_period=2, lr=1e-2, damping=0.1, products="default")
            for x, y in batches(3, 32, place, dtype):
                step(model, optimizer, x, y, False)
            ends = [p.detach().double().cpu() for p in model.parameters()]
            moved.append(torch.cat([(e - s).flatten() for e, s in zip(ends, start, strict=True) if e.ndim > 1]))
    return relative(moved[0], moved[1])


def waits(arm: str, device: str, options: dict[str, Any], half: bool) -> str:
    """``none``, or where a period of steps waits for the device."""
    if device == "cpu":
        return "-"
    model = net("small").to(device)
    optimizer = made(arm, model, **options)
    data = batches(2, 32, device)
    for k in range(PERIOD + 1):
        step(model, optimizer, *data[k % 2], half)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for k in range(PERIOD + 1):
            step(model, optimizer, *data[k % 2], half)
    except RuntimeError:
        return "WAITS: " + " | ".join(traceback.format_exc().strip().splitlines()[-7:-1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


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

    for _ in run(PERIOD + 5):
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


@contextlib.contextmanager
def fenced(name: str, problems: list[str]) -> Iterator[None]:
    """Print a failure and go on."""
    try:
        yield
    except Exception:
        problems.append(name)
        print(f"{name}: FAILED\n{traceback.format_exc(limit=-6)}", flush=True)
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def check(chosen: Callable[[str], bool], device: str, options: dict[str, Any], half: bool) -> dict[str, Any]:
    """Print and return the errors and the waits."""
    problems: list[str] = []
    found: dict[str, Any] = {"structures": {}, "steps": {}, "waits": {}}
    for name in STRUCTURES:
        for dtype, allowed in ALLOWED.items():
            with fenced(f"check {name} {dtype}", problems):
                with ieee():
                    error = structures_error(name, dtype, device)
                found["structures"][f"{name} {dtype}"] = error
                if not error < allowed:
                    problems.append(f"{name} {dtype}")
                    print(f"{name} {dtype}: error {error:.1e} ABOVE {allowed:g}", flush=True)
    for arm in filter(chosen, ARMS):
        with fenced(f"check {arm}", problems):
            error, waiting = steps_error(arm, device), waits(arm, device, options, half)
            found["steps"][arm], found["waits"][arm] = error, waiting
            mark = "" if error < ALLOWED[torch.float32] else f" ABOVE {ALLOWED[torch.float32]:g}"
            print(f"{arm:16} three steps {error:.1e}{mark}; waits {waiting}", flush=True)
            if mark:
                problems.append(arm)
    print(f"correctness: {'ok' if not problems else 'PROBLEMS: ' + ', '.join(problems)}", flush=True)
    return {**found, "problems": problems}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """One line for each arm."""
    adamw = rows.get("adamw", {}).get("peak")
    lines = [
        f"{'arm':22}{'mean':>8}{'median':>8}{'longest':>9}{'host':>8}{'goal':>7}{'peak MiB':>10}{'/adamw':>8}"
        f"{'state MiB':>11}{'formula':>9}  statistics/update/apply"
    ]
    for name, row in rows.items():
        peak, state = row.get("peak", 0.0), sum(row.get("state", {}).values())
        formula = "" if "formula" not in row else "equal" if row["formula"] == row["state"] else "DIFFERS"
        parts = "/".join(f"{ms:.2f}" for ms in row.get("parts", {}).values())
        ratio = f"{peak / adamw:.2f}" if adamw else ""
        goal = f"{GOALS[name]:.1f}" if name in GOALS else ""
        lines.append(
            f"{name:22}{row['mean']:8.2f}{row['median']:8.2f}{row['longest']:9.2f}{row['host']:8.2f}{goal:>7}{peak:10.0f}"
            f"{ratio:>8}{state / MIB:11.1f}{formula:>9}  {parts}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
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
    patterns = args.arms.split(",")

    def chosen(arm: str) -> bool:
        return any(fnmatch.fnmatchcase(arm, pattern) for pattern in patterns)

    checks = {} if args.no_check else check(chosen, args.device, options, args.precision == "bf16")
    steps = args.steps or (3 * PERIOD if args.quick else 12 * PERIOD)
    rows: dict[str, dict[str, Any]] = {}
    peers = [f"upstream-{name}" for name in UPSTREAM] if importlib.util.find_spec("singd") else []
    if not peers:
        print("the package singd is not here: no upstream arms", flush=True)
    baselines = ["forward+backward", "sgd", "adamw"]
    for arm in [*baselines, *filter(chosen, [*ARMS, *peers])]:
        with fenced(arm, problems):
            rows[arm] = measure(arm, args, options, steps)
            print(f"{arm}: {rows[arm]['mean']:.2f} ms a step, longest {rows[arm]['longest']:.2f}", flush=True)
    name = torch.cuda.get_device_name() if args.device != "cpu" else "cpu"
    head = f"{name}, torch {torch.__version__}, {args.precision}, batch {args.batch}, T = {PERIOD}, {steps} steps, ms"
    print(f"\n{head}{', channels last' if args.channels_last else ''}\n{table(rows)}", flush=True)
    if args.out:
        folder = Path(args.out)
        folder.mkdir(parents=True, exist_ok=True)
        content = {"head": head, "arguments": vars(args), "checks": checks, "arms": rows, "failed": problems}
        layout = "-channels-last" if args.channels_last else ""
        (folder / f"singd-{args.precision}{layout}.json").write_text(json.dumps(content, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
