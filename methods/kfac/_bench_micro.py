"""The kernels of a K-FAC step alone: inverses by every way, moments of patches, products with inverses."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from methods.kfac import moments
from methods.kfac.inverse import blocked
from methods.kfac.inverse.base import damped, eye_like
from methods.kfac.layers import find
from methods.kfac.products import scope

WIDTHS = ((512, 7), (577, 2), (1153, 2), (2305, 3), (4609, 1), (4609, 5))
#: Channels in, image, channels out of VGG16's convolutions that differ.
CONVS = (
    (3, 32, 64),
    (64, 32, 64),
    (64, 16, 128),
    (128, 16, 128),
    (128, 8, 256),
    (256, 8, 256),
    (256, 4, 512),
    (512, 4, 512),
    (512, 2, 512),
)
SHAPES = ((64, 584, 1), (256, 2312, 2), (512, 4616, 5))


def milliseconds(call: Callable[[], Any], cuda: bool, repeats: int) -> float:
    """Shortest of some repetitions."""
    call()
    times = []
    for _ in range(repeats):
        if cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times) * 1e3


def spd(size: int, count: int, device: str) -> Tensor:
    """Moments of rows with a spectrum that falls like 1 / i over three decades."""
    generator = torch.Generator(device=device).manual_seed(0)
    rows = torch.randn(count, 2 * size, size, generator=generator, device=device)
    rows *= torch.linspace(0, 3, size, device=device).mul(-0.5).pow(1).exp()
    return rows.mT @ rows / (2 * size)


def inverses(device: str, quick: bool) -> dict[str, float]:
    """Milliseconds and error of each way to invert."""
    cuda, found = device != "cpu", {}
    repeats = 3 if quick else 5
    for size, count in WIDTHS if cuda else ((65, 2), (130, 1)):
        matrices = spd(size, count, device)
        damping = torch.full((count,), 1e-2, device=device)
        whole = damped(matrices, damping)
        factor, _ = torch.linalg.cholesky_ex(whole)
        eye = eye_like(whole)
        right = torch.linalg.inv(whole[:1].double())
        ways: dict[str, Callable[[], Any]] = {
            "cholesky_ex": partial(torch.linalg.cholesky_ex, whole),
            "solve_triangular": partial(torch.linalg.solve_triangular, factor, eye, upper=False),
            "product": partial(torch.matmul, factor.mT, factor),
            "cholesky_inverse": partial(torch.cholesky_inverse, factor),
        }
        for leaf in (128, 256, 512, 1024) if cuda else (16, 64):
            if leaf < size:
                for library in (False, True):
                    label = f"blocked {leaf} {'library' if library else 'own'}"
                    ways[label] = partial(blocked.inverse, matrices, damping, leaf, library)
        for label, call in ways.items():
            for mode in ("float32", "tf32") if "blocked" in label or label == "product" else ("float32",):
                key = f"{size} x {count} {label} {mode}"
                try:
                    with scope(mode):
                        found[key] = milliseconds(call, cuda, repeats)
                        error = ""
                        if "blocked" in label:
                            got = call()[0][:1, :size, :size].double()
                            error = f"error {float((got - right).norm() / right.norm()):.1e}"
                    print(f"{key:48}{found[key]:9.3f} ms {error}", flush=True)
                except Exception as failure:
                    print(f"{key:48}FAILED {failure!r}", flush=True)
    return found


def statistics(device: str, quick: bool) -> dict[str, float]:
    """Milliseconds of both moments of VGG16's layers, batch 256."""
    cuda, found = device != "cpu", {}
    for channels, image, out in CONVS if cuda else ((4, 8, 6),):
        module = nn.Conv2d(channels, out, 3, padding=1).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        find(nn.Sequential(module))
        samples = 256 if cuda else 4
        x = torch.randn(samples, channels, image, image, device=device).to(memory_format=torch.channels_last)
        y = torch.randn(samples, out, image, image, device=device).to(memory_format=torch.channels_last)
        for mode, half in (("float32", None), ("tf32", None), ("bfloat16", torch.bfloat16)):
            with scope(mode):
                key = f"moments {channels:4} {image:3} {mode}"
                dtype = half or torch.float32
                first = milliseconds(partial(moments.input_moment, module, x, True, torch.float32, half), cuda, 3)
                second = milliseconds(partial(moments.output_moment, module, y, torch.float32, half), cuda, 3)
                with_patches = milliseconds(partial(_by_patches, module, x, half), cuda, 3)
                copy = milliseconds(partial(_drained, module, x, dtype), cuda, 3)
                found[key] = first + second
                print(
                    f"{key:48}{first:9.3f} (patches {with_patches:.3f}, copies {copy:.3f}) + {second:9.3f} ms",
                    flush=True,
                )
    return found


def _by_patches(module: nn.Conv2d, inputs: Tensor, half: torch.dtype | None) -> None:
    for rows, _ in moments._pieces(module, inputs, True, half or torch.float32):
        moments.gram(rows, half)


def _drained(module: nn.Conv2d, inputs: Tensor, dtype: torch.dtype) -> None:
    for _ in moments._pieces(module, inputs, True, dtype):
        pass


def products(device: str, quick: bool) -> dict[str, float]:
    """Milliseconds of gradients times inverses."""
    cuda, found = device != "cpu", {}
    for height, width, count in SHAPES if cuda else ((8, 24, 2),):
        x, a = torch.randn(count, height, width, device=device), torch.randn(count, width, width, device=device)
        b = a[:, : width - 7, : width - 7].contiguous()
        y = x[:, :, : width - 7].contiguous()
        for mode in ("float32", "tf32"):
            with scope(mode):
                for label, call in {"padded": partial(torch.bmm, x, a), "odd": partial(torch.bmm, y, b)}.items():
                    key = f"{count} x {height} x {width} {label} {mode}"
                    found[key] = milliseconds(call, cuda, 5)
                    print(f"{key:48}{found[key]:9.3f} ms", flush=True)
        key = f"{count} x {height} x {width} padded bfloat16"
        found[key] = milliseconds(partial(torch.bmm, x.bfloat16(), a.bfloat16()), cuda, 5)
        print(f"{key:48}{found[key]:9.3f} ms", flush=True)
    return found


def run(device: str, quick: bool) -> dict[str, Any]:
    """All of it; a failing part is printed and the rest goes on."""
    found: dict[str, Any] = {}
    for part in (inverses, statistics, products):
        try:
            found[part.__name__] = part(device, quick)
        except Exception as failure:
            print(f"{part.__name__} FAILED {failure!r}", flush=True)
        if device != "cpu":
            torch.cuda.empty_cache()
    return found
