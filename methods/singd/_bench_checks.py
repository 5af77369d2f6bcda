"""What the benchmark of SINGD checks first: structures and steps against float64, graphs against eager steps, waits."""

from __future__ import annotations

import contextlib
import itertools
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from methods.singd._bench_arms import PERIOD, WARM, batches, fenced, made, net, step
from methods.singd.structures import STRUCTURES, Sizes, structure

#: Allowed relative errors against float64.
ALLOWED = {torch.float32: 3e-3, torch.bfloat16: 0.1, torch.float16: 0.03}


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


def graphs_error(arm: str, device: str) -> float:
    """Relative difference of the weights' movement after some periods between graphs and eager steps."""
    moved = []
    with ieee():
        for mode in ("auto", "off"):
            model = net("small").to(device)
            start = torch.cat([p.detach().flatten() for p in model.parameters()])
            optimizer = made(arm, model, update_period=2, lr=1e-2, damping=0.1, products="default", graphs=mode)
            data = batches(3, 32, device)
            for k in range(14):
                step(model, optimizer, *data[k % 3], False)
            moved.append((torch.cat([p.detach().flatten() for p in model.parameters()]) - start).double().cpu())
            if mode == "auto" and device != "cpu":
                found = optimizer.describe()["graphs"]
                print(f"{arm:16} graphs {found}", flush=True)
    return relative(moved[0], moved[1])


def waits(arm: str, device: str, options: dict[str, Any], half: bool) -> str:
    """``none``, or where a period of steps waits for the device."""
    if device == "cpu":
        return "-"
    model = net("small").to(device)
    optimizer = made(arm, model, **options)
    data = batches(2, 32, device)
    for k in range(WARM):
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


def check(arms: list[str], structures: bool, device: str, options: dict[str, Any], half: bool) -> dict[str, Any]:
    """Print and return the errors and the waits."""
    problems: list[str] = []
    found: dict[str, Any] = {"structures": {}, "steps": {}, "graphs": {}, "waits": {}}
    for name, (dtype, allowed) in itertools.product(STRUCTURES if structures else (), ALLOWED.items()):
        with fenced(f"check {name} {dtype}", problems):
            with ieee():
                error = structures_error(name, dtype, device)
            found["structures"][f"{name} {dtype}"] = error
            if not error < allowed:
                problems.append(f"{name} {dtype}")
                print(f"{name} {dtype}: error {error:.1e} ABOVE {allowed:g}", flush=True)
    for arm in arms:
        with fenced(f"check {arm}", problems):
            error, replayed = steps_error(arm, device), graphs_error(arm, device)
            waiting = waits(arm, device, options, half)
            found["steps"][arm], found["graphs"][arm], found["waits"][arm] = error, replayed, waiting
            bad = not max(error, replayed) < ALLOWED[torch.float32]
            mark = f" ABOVE {ALLOWED[torch.float32]:g}" if bad else ""
            print(f"{arm:16} three steps {error:.1e}, graphs {replayed:.1e}{mark}; waits {waiting}", flush=True)
            if bad:
                problems.append(arm)
    print(f"correctness: {'ok' if not problems else 'PROBLEMS: ' + ', '.join(problems)}", flush=True)
    return {**found, "problems": problems}
