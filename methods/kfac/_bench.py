"""Time of a training step with every K-FAC method: VGG16 with batch norm, batch 256, random images, one device.

    python -m methods.kfac._bench [--quick] [--precision ieee|tf32|bf16] [--methods PATTERN,...] [--micro]
                                  [--device cpu --width small] [--out FOLDER]

First each method's weights after six steps on a small net are compared with its float64 run on the CPU. Then, for
each arm after a warm-up of a refresh period: mean time of a step by events around all of them, the longest step by
events around each, the host's own time, the parts (in a run of their own), peak and state memory. An arm that fails is
printed and the rest goes on. ``--precision``: products of convolutions and of the optimizer in IEEE float32, TF32, or
the net in TF32 and the optimizer's products in bfloat16.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import importlib
import itertools
import json
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.catalogue.method import Method
from harness.errors import UserError
from methods.kfac._bench_table import summary, table
from methods.kfac.options import Options
from methods.kfac.plain import PlainKFAC

UPDATE, REFRESH = 10, 30
CATALOGUES = ("kfac", "singd", "fop")
#: What every method is given that knows it. lr is small, so that random labels move no net anywhere.
COMMON: dict[str, Any] = {"lr": 1e-3, "damping": 0.03, "update_period": UPDATE, "refresh_period": REFRESH}
#: The fast configuration by precision, for methods that know the options. Graphs are taken where they can be.
FAST: dict[str, dict[str, Any]] = {
    "ieee": {},
    "tf32": {"product_dtype": "tf32"},
    "bf16": {"product_dtype": "bfloat16", "inverse_dtype": "bfloat16"},
}
#: The arm of the speed claim: no step much longer than the others.
EVEN: dict[str, Any] = {"stagger": True, "spread": True}
#: The least memory.
LEAN: dict[str, Any] = {"packed": True, "inverse_dtype": "bfloat16"}
#: Arms of ``--quick`` in their order, when none are named.
QUICK = [
    "forward and backward",
    "plain inverse",
    "kfac-cholesky (stagger spread)",
    "kfac-cholesky (stagger spread, no graphs)",
    "kfac-cholesky",
    "kfac-cholesky (no graphs)",
    "rs-kfac-warm",
    "rs-kfac-warm (no graphs)",
    "rs-kfac-warm (stagger spread)",
    "kfac-cholesky (packed half stagger spread)",
    "kfac-cholesky (packed half stagger spread, no graphs)",
]
#: Seconds after which ``--quick`` begins no other arm; the longest needs about five.
QUICK_SECONDS = 50.0
#: Steps of the comparison with float64: with graphs the fourth is captured and replayed.
CHECKED = 6
#: Arms of their own: name -> (method, options besides COMMON and FAST).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "kfac-cholesky (no graphs)": ("training.kfac-cholesky", {"graphs": "off"}),
    "kfac-cholesky (stagger)": ("training.kfac-cholesky", {"stagger": True}),
    "kfac-cholesky (stagger spread)": ("training.kfac-cholesky", EVEN),
    "kfac-cholesky (stagger spread, no graphs)": ("training.kfac-cholesky", {**EVEN, "graphs": "off"}),
    "kfac-cholesky (2 late)": ("training.kfac-cholesky", {"refresh_lag": 2}),
    "kfac-cholesky (stagger spread, 2 late)": ("training.kfac-cholesky", {**EVEN, "refresh_lag": 2}),
    "kfac-cholesky (half)": ("training.kfac-cholesky", {"inverse_dtype": "bfloat16"}),
    "kfac-cholesky (packed)": ("training.kfac-cholesky", {"packed": True}),
    "kfac-cholesky (packed half)": ("training.kfac-cholesky", LEAN),
    "kfac-cholesky (packed half stagger spread)": ("training.kfac-cholesky", {**EVEN, **LEAN}),
    "kfac-cholesky (packed half stagger spread, no graphs)": (
        "training.kfac-cholesky",
        {**EVEN, **LEAN, "graphs": "off"},
    ),
    "rs-kfac-warm (no graphs)": ("training.rs-kfac-warm", {"graphs": "off"}),
    "rs-kfac-warm (stagger spread)": ("training.rs-kfac-warm", EVEN),
    "rs-kfac-warm (5 groups)": ("training.rs-kfac-warm", {**EVEN, "groups": 5}),
    "rs-kfac-warm (3 groups)": ("training.rs-kfac-warm", {**EVEN, "groups": 3}),
    "kfac-cholesky (5 groups)": ("training.kfac-cholesky", {**EVEN, "groups": 5}),
    "rs-kfac-warm (stagger spread, 2 late)": ("training.rs-kfac-warm", {**EVEN, "refresh_lag": 2}),
}


def registered() -> dict[str, Method]:
    """Methods of the family by name, from the catalogues that can be imported."""
    found: dict[str, Method] = {}
    for package in CATALOGUES:
        try:
            module = importlib.import_module(f"methods.{package}.catalogue")
        except ImportError:
            continue
        found |= {one.name: one for one in vars(module).values() if isinstance(one, Method)}
    return found


def load(target: str) -> Any:
    """The object of ``module:attribute``."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def made(method: Method, model: nn.Module, options: Mapping[str, Any]) -> Any:
    """The method's optimizer; it is given those options that it knows."""
    own = set(method.hyper)
    more = {one.name for one in fields(Options)} if method.impl.startswith("methods.kfac.") else set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return load(method.impl)(model, **{k: v for k, v in options.items() if k in own | more})
        except UserError:  # a relative without some of K-FAC's options
            return load(method.impl)(model, **{k: v for k, v in options.items() if k in own})


# -- nets --------------------------------------------------------------------------------------------------------------


def small() -> nn.Module:
    """Six layers of VGG16's kinds."""
    parts: list[nn.Module] = []
    inputs = 3
    for width in (8, 0, 16, 16, 0, 32, 32, 0):
        if width:
            parts += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        else:
            parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(512, 24), nn.ReLU(), nn.Linear(24, 10))


def net(width: str) -> nn.Module:
    """``full`` (VGG16_bn) or ``small``."""
    torch.manual_seed(0)
    return small() if width == "small" else importlib.import_module("suites.training.nets.vgg").VGG16()  # type: ignore[no-any-return]


def batches(count: int, batch: int, device: str, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    """Random images and labels."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        x = torch.randn(batch, 3, 32, 32, generator=generator)
        y = torch.randint(0, 10, (batch,), generator=generator)
        found.append((x.to(device, dtype, memory_format=torch.channels_last), y.to(device)))  # type: ignore[call-overload]
    return found


def passes(model: nn.Module, x: Tensor, y: Tensor) -> Callable[..., Any]:
    """Closure ``(part, targets)`` of forward and backward."""

    def closure(part: Any = None, targets: str = "data") -> Tensor:
        z = model(x)
        labels = torch.multinomial(torch.softmax(z.detach(), -1), 1)[:, 0] if targets == "model" else y
        loss = nn.functional.cross_entropy(z, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return closure


def step(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor) -> None:
    """One training step."""
    if optimizer is None:
        model.zero_grad()
        passes(model, x, y)()
        return
    optimizer.zero_grad()
    if getattr(optimizer, "step_needs", None):
        optimizer.step(passes(model, x, y))
    else:
        passes(model, x, y)()
        optimizer.step()


# -- correctness -------------------------------------------------------------------------------------------------------


def weights_error(build: Callable[[nn.Module], Any], device: str) -> float:
    """Relative error of the matrices' movement after a few steps against the same method in float64 on the CPU."""
    moved: list[Tensor] = []
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        for place, dtype in ((device, torch.float32), ("cpu", torch.float64)):
            model = net("small").to(place, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            start = torch.cat([p.detach().flatten() for p in model.parameters() if p.ndim > 1]).double().cpu()
            optimizer = build(model)
            for x, y in batches(CHECKED, 32, place, dtype):
                step(model, optimizer, x, y)
            end = torch.cat([p.detach().flatten() for p in model.parameters() if p.ndim > 1]).double().cpu()
            moved.append(end - start)
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    return float((moved[0] - moved[1]).norm() / moved[1].norm())


# -- timing ------------------------------------------------------------------------------------------------------------


def measure(build: Callable[[nn.Module], Any], device: str, width: str, batch: int, steps: int) -> dict[str, Any]:
    """The figures of one arm: milliseconds and MiB."""
    cuda = device != "cpu"
    model = net(width).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build(model)
    data = batches(4, batch, device)
    warm = REFRESH + 5
    for k in range(warm):
        step(model, optimizer, *data[k % 4])
    found: dict[str, Any] = {}
    if cuda:
        torch.cuda.synchronize()
        found["first_peak"] = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
    marks: list[Any] = []
    begin = time.perf_counter()
    for k in range(steps):
        marks.append(_mark(cuda))
        step(model, optimizer, *data[k % 4])
    marks.append(_mark(cuda))
    found["host"] = (time.perf_counter() - begin) / steps * 1e3
    if cuda:
        torch.cuda.synchronize()
    found["wall"] = (time.perf_counter() - begin) / steps * 1e3
    each = [_between(a, b) for a, b in itertools.pairwise(marks)]
    found |= {"mean": _between(marks[0], marks[-1]) / steps, "longest": max(each), "median": sorted(each)[steps // 2]}
    found["each"] = each
    if cuda:
        # A graph's own pool is in no statistic of allocated memory.
        found["peak"] = torch.cuda.max_memory_allocated() / 2**20 + _pool(optimizer)
    if hasattr(optimizer, "memory_usage"):
        found["state"] = sum(optimizer.memory_usage().values()) / 2**20
        found["state_by_category"] = {k: v / 2**20 for k, v in optimizer.memory_usage().items()}
    if hasattr(optimizer, "parts"):
        optimizer.parts()
        for k in range(REFRESH):
            step(model, optimizer, *data[k % 4])
        found["parts"] = {name: seconds / REFRESH * 1e3 for name, seconds in optimizer.parts().items()}
    if hasattr(optimizer, "counters"):
        found["counters"] = {k: int(v) for k, v in dict(optimizer.counters).items() if v}
    if hasattr(optimizer, "static"):
        found["graphs"] = {**optimizer.static.graphs.describe(), "pool": _pool(optimizer)}
    if cuda:
        found["launch"] = _launching(model, optimizer, data[0])
    if hasattr(optimizer, "close"):
        optimizer.close()
    found["finite"] = bool(all(p.isfinite().all() for p in model.parameters()))
    return found


def _pool(optimizer: Any) -> float:
    """MiB of the graphs' pool."""
    static = getattr(optimizer, "static", None)
    return float(static.graphs.nbytes()) / 2**20 if static is not None else 0.0


def _launching(model: nn.Module, optimizer: Any, data: tuple[Tensor, Tensor]) -> float:
    """Milliseconds of the host for one step that nothing holds up: the median of 12, each begun on an idle device."""
    times = []
    for _ in range(12):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        step(model, optimizer, *data)
        times.append(time.perf_counter() - begin)
    return sorted(times)[6] * 1e3


def _mark(cuda: bool) -> Any:
    if not cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()  # type: ignore[no-untyped-call]
    return event


def _between(first: Any, second: Any) -> float:
    """Milliseconds."""
    return (second - first) * 1e3 if isinstance(first, float) else float(first.elapsed_time(second))


# -- arms --------------------------------------------------------------------------------------------------------------


def arms(precision: str, fused: bool) -> Iterator[tuple[str, Callable[[nn.Module], Any] | None]]:
    """Name and maker of every arm; None: no optimizer."""
    yield "forward and backward", None
    yield "adamw", lambda model: torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)
    plain = {"lr": 1e-3, "damping": 0.03, "update_period": UPDATE, "refresh_period": REFRESH}
    yield "plain inverse", lambda model: PlainKFAC(model, **plain, method="inverse")  # type: ignore[arg-type]
    yield "plain eigen", lambda model: PlainKFAC(model, **plain, method="eigen")  # type: ignore[arg-type]
    known = registered()
    chosen: dict[str, tuple[str, dict[str, Any]]] = {name.removeprefix("training."): (name, {}) for name in known}
    for label, (name, extra) in {**chosen, **VARIANTS}.items():
        if name in known:
            options = {**COMMON, **FAST[precision], **extra}
            yield label, lambda model, method=known[name], given=options: made(method, model, given)  # type: ignore[misc]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All arms; returns what is written to the file."""
    device = options.device
    precision(options.precision)
    patterns = options.methods.split(",") if options.methods else QUICK if options.quick else ["*"]
    batch = options.batch or (256 if options.width == "full" else 16)
    steps = options.steps or 2 * REFRESH
    results: dict[str, Any] = {}
    makers = dict(arms(options.precision, device != "cpu"))
    begin = time.perf_counter()
    for name in named(makers, patterns):
        build = makers[name]
        if options.quick and time.perf_counter() - begin > QUICK_SECONDS:
            print(f"{name}: left out after {QUICK_SECONDS:.0f} s", flush=True)
            continue
        entry: dict[str, Any] = {}
        results[name] = entry
        gc.collect()  # hooks make cycles: the arm before would count into this one's peak
        if device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            entry["held_before"] = torch.cuda.memory_allocated() / 2**20
        try:
            if build is not None and not options.no_check:
                entry["error"] = weights_error(build, device)
            if not options.check_only:
                entry |= measure(build or (lambda model: None), device, options.width, batch, steps)
            print(f"{name}: {summary(entry)}", flush=True)
        except Exception as error:
            entry["failed"] = repr(error)
            print(f"{name}: FAILED {error!r}\n{traceback.format_exc(limit=-4)}", flush=True)
    return {"device": _device(device), "torch": torch.__version__, "precision": options.precision, "arms": results}


def named(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Names that match a pattern, in the patterns' order."""
    found = [name for pattern in patterns for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern)]
    return list(dict.fromkeys(found))


def _device(device: str) -> str:
    return torch.cuda.get_device_name() if device != "cpu" else "cpu"


def precision(name: str) -> None:
    """Set torch's products."""
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    torch.backends.cudnn.allow_tf32 = name != "ieee"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--width", choices=["full", "small"], default="full")
    parser.add_argument("--precision", choices=list(FAST), default="tf32")
    parser.add_argument("--methods", help="shell patterns of arms, comma separated")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int, help="steps that are timed (default: two refresh periods)")
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--no-check", action="store_true", help="no comparison with float64 first")
    parser.add_argument("--quick", action="store_true", help="one refresh period")
    parser.add_argument("--micro", action="store_true", help="the parts' kernels alone")
    parser.add_argument("--out", help="folder for a JSON file")
    options = parser.parse_args()
    if options.quick:
        options.steps = options.steps or REFRESH
    found = run(options)
    print(f"\n{found['device']}, torch {found['torch']}, {options.precision}: ms a step, MiB")
    print(table(found["arms"]), flush=True)
    if options.micro:
        found["micro"] = importlib.import_module("methods.kfac._bench_micro").run(options.device, options.quick)
    if options.out:
        folder = Path(options.out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"kfac_{options.precision}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
