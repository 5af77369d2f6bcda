"""Check and time Muon's step on one GPU: ``python -m methods.first_order._bench_muon [--quick]``.

First the answers: the updates of ``torch.optim.Muon`` for the same coefficients; fused passes as plain ones; a captured
graph as eager steps. Then medians of one step in milliseconds: ``device`` between events with the launches hidden
behind a sleeping device, ``launch`` on the host until the call returns, ``wall`` from an idle device to an idle one.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from harness.errors import SpeedclaimError
from methods.first_order.muon import Muon
from methods.first_order.muon_stack import Stack
from methods.first_order.torch_muon import FlatMuon

Shapes = list[tuple[int, ...]]
#: Relative difference of two updates with bfloat16 iterations that round in another order: suite ``polar`` gates one
#: engine at 0.08 of the exact iteration, and two engines differ by the root of two times that.
LIMIT = 0.12
#: Learning rates: of the checks, so large that the rounding of bfloat16 weights does not hide the update; of the times.
CHECK_LR, LR = 0.1, 1e-3
DEVICE = "cuda"
#: Cycles a second that ``torch.cuda._sleep`` counts, about, on current GPUs; only its sufficiency matters.
CYCLES = 2e9


def gpt2_blocks() -> Shapes:
    """The hidden matrices of GPT-2 small's twelve blocks."""
    return [(2304, 768), (768, 768), (3072, 768), (768, 3072)] * 12


def vgg16_bn() -> Shapes:
    """The convolutions of VGG16 and its hidden layer of 512."""
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    return [(out, into, 3, 3) for into, out in itertools.pairwise(widths)] + [(512, 512)]


def resnet18() -> Shapes:
    """The convolutions of ResNet-18 with a 3x3 stem."""
    made: Shapes = [(64, 3, 3, 3)]
    into = 64
    for out in (64, 128, 256, 512):
        made += [(out, into, 3, 3), (out, out, 3, 3)] + ([(out, into, 1, 1)] if into != out else [])
        made += [(out, out, 3, 3)] * 2
        into = out
    return made


NETWORKS: Mapping[str, Callable[[], Shapes]] = {"gpt2_blocks": gpt2_blocks, "vgg16_bn": vgg16_bn, "resnet18": resnet18}


def parameters(shapes: Shapes, dtype: torch.dtype, seed: int = 0) -> list[nn.Parameter]:
    """Gaussian weights of standard deviation 0.02 with gaussian gradients, on the GPU."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    made = []
    for shape in shapes:
        parameter = nn.Parameter((0.02 * torch.randn(shape, generator=generator, device=DEVICE)).to(dtype))
        parameter.grad = (1e-2 * torch.randn(shape, generator=generator, device=DEVICE)).to(dtype)
        made.append(parameter)
    return made


def ours(weights: Sequence[nn.Parameter], orthogonalizer: str, lr: float = LR) -> Muon:
    """Our Muon with torch's hyper-parameters."""
    return Muon(weights, lr, 0.95, True, 0.1, orthogonalizer, iteration_dtype="bfloat16")


def theirs(weights: Sequence[nn.Parameter], lr: float = LR) -> FlatMuon:
    """Torch's."""
    return FlatMuon(weights, lr=lr, momentum=0.95, nesterov=True, weight_decay=0.1)


def apart(left: Sequence[nn.Parameter], right: Sequence[nn.Parameter], start: Sequence[nn.Parameter]) -> float:
    """Largest ||left - right|| / (||right - start|| + eps ||start||) over the weights."""
    worst = 0.0
    for one, two, first in zip(left, right, start, strict=True):
        a, b, c = one.detach().double(), two.detach().double(), first.detach().double()
        size = float((b - c).norm()) + torch.finfo(one.dtype).eps * float(c.norm())
        worst = max(worst, float((a - b).norm()) / size)
    return worst


def advance(optimizer: torch.optim.Optimizer, weights: Sequence[nn.Parameter], steps: int = 3) -> None:
    """Some steps with new gradients, the same for every caller."""
    for step in range(steps):
        generator = torch.Generator(DEVICE).manual_seed(100 + step)
        for weight in weights:
            drawn = torch.randn(weight.shape, generator=generator, device=DEVICE)
            weight.grad = drawn.to(weight.dtype)
        optimizer.step()


def check(shapes: Shapes, dtype: torch.dtype) -> dict[str, float]:
    """Distances that must be small, by name."""
    start, torchs, plain, fused = (parameters(shapes, dtype) for _ in range(4))
    advance(theirs(torchs, CHECK_LR), torchs)
    jordan = ours(fused, "polar.ns-jordan", CHECK_LR)
    advance(jordan, fused)
    unfused = ours(plain, "polar.ns-jordan", CHECK_LR)
    unfused._lay_out()
    for stack in _stacks(unfused):
        stack._fused = None
    advance(unfused, plain)
    if any(stack._fused is None for stack in _stacks(jordan)):
        print("  note: no fused passes here")
    return {
        "ours against torch.optim.Muon": apart(fused, torchs, start),
        "fused against plain": apart(fused, plain, start),
    }


def check_graph(shapes: Shapes, dtype: torch.dtype) -> float:
    """Distance of three replayed steps from three eager ones, gradients fixed."""
    start, eager, captured = (parameters(shapes, dtype) for _ in range(3))
    one, two = ours(eager, "polar.turbo-fast-triton"), ours(captured, "polar.turbo-fast-triton")
    replay = graph_of(two)
    for _ in range(WARM):
        one.step()
    for _ in range(3):
        one.step()
        replay()
    torch.cuda.synchronize()
    return apart(captured, eager, start)


#: Steps before a capture: the first lays out and compiles, the second takes direct launches.
WARM = 3


def graph_of(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """The whole step as one CUDA graph; gradients keep their addresses, hyper-parameters their values."""
    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            optimizer.step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph.replay


def _stacks(optimizer: Muon) -> list[Stack]:
    return [stack for group in optimizer._stacks or () for stack in group]


def contestants(shapes: Shapes, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Steps by name, each on weights of its own; one that cannot run is told and left out."""
    makers: dict[str, Callable[[], Callable[[], object]]] = {
        "torch.optim.Muon": lambda: theirs(parameters(shapes, dtype)).step
    }
    for name in ("ns-jordan", "ns-symmetric-triton", "turbo-torch", "turbo-fast-triton", "turbo-graph-triton"):
        makers[f"ours, {name}"] = lambda name=name: ours(parameters(shapes, dtype), f"polar.{name}").step  # type: ignore[misc]
    makers["ours, turbo-fast-triton, whole step in a graph"] = lambda: graph_of(
        ours(parameters(shapes, dtype), "polar.turbo-fast-triton")
    )
    makers["AdamW, torch, fused (for scale)"] = lambda: (
        torch.optim.AdamW(parameters(shapes, dtype), lr=1e-3, fused=True).step
    )
    found = {}
    for name, make in makers.items():
        try:
            step = make()
            for _ in range(WARM):
                step()
            torch.cuda.synchronize()
            found[name] = step
        except (SpeedclaimError, RuntimeError) as error:
            print(f"  {name}: left out: {' '.join(str(error).split())[:110]}")
    return found


def timed(step: Callable[[], object]) -> tuple[float, float, float]:
    """Device, launch and wall milliseconds of one call."""
    events: Any = torch.cuda
    torch.cuda.synchronize()
    begin = time.perf_counter()
    step()
    launch = time.perf_counter() - begin
    torch.cuda.synchronize()
    wall = time.perf_counter() - begin
    start, end = events.Event(enable_timing=True), events.Event(enable_timing=True)
    events._sleep(int(CYCLES * (1.5 * launch + 1e-3)))
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)), 1e3 * launch, 1e3 * wall


def table(shapes: Shapes, dtype: torch.dtype, rounds: int) -> None:
    """Interleaved rounds, medians, and speed-ups over torch's."""
    steps = contestants(shapes, dtype)
    samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            samples[name].append(timed(step))
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in samples.items()
    }
    base = medians["torch.optim.Muon"]
    print(f"  {'':48}{'device':>9}{'launch':>9}{'wall':>9}   speed-up (device, wall)")
    for name, (device, launch, wall) in medians.items():
        gain = f"{base[0] / device:8.2f}x {base[2] / wall:7.2f}x"
        print(f"  {name:48}{device:9.3f}{launch:9.3f}{wall:9.3f}   {gain}")


def main() -> int:
    """Run all; the exit code tells whether the answers are right."""
    if not torch.cuda.is_available():
        print("needs an NVIDIA GPU: none is visible to torch")
        return 2
    quick = "--quick" in sys.argv[1:]
    right = True
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; milliseconds a step, medians")
    for dtype in (torch.float32, torch.bfloat16):
        for shapes in (gpt2_blocks()[:8], resnet18()[:8]):
            found = check(shapes, dtype)
            for name, distance in found.items():
                right = right and distance <= LIMIT
                print(f"check {dtype}, {len(shapes)} weights: {name}: {distance:.2g} (at most {LIMIT})")
    distance = check_graph(gpt2_blocks()[:8], torch.float32)
    right = right and distance <= 1e-3
    print(f"check graph against eager: {distance:.2g} (at most 0.001)")
    for name, network in NETWORKS.items():
        for dtype in (torch.float32, torch.bfloat16):
            if quick and (name, dtype) != ("gpt2_blocks", torch.float32):
                continue
            print(f"{name}, {dtype} weights")
            table(network(), dtype, 5 if quick else 20)
            torch.cuda.empty_cache()
    print("answers: right" if right else "answers: WRONG")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
