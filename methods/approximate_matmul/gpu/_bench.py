"""Check and time the GPU kernels: ``python -m methods.approximate_matmul.gpu._bench [--quick] [--tune] [--seconds S]``.

First the answers, in several processes that compile as they go: codes and integers must equal NumPy's. Then medians of
device time between events, launches hidden behind a sleeping device, caches flushed, arms interleaved, beside the dense
products of torch and the lower bound of :mod:`methods.approximate_matmul.gpu.model` with rates measured here.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from methods.approximate_matmul.gpu import _bench_checks as checks
from methods.approximate_matmul.gpu import _configs as configs
from methods.approximate_matmul.gpu import _launch as launch
from methods.approximate_matmul.gpu import model
from methods.approximate_matmul.gpu._bench_checks import DEVICE, Learned
from methods.approximate_matmul.gpu._configs import Config

Call = Callable[[], Tensor]

#: N, D, M and codebooks; the most telling first, since a budget may end the list.
SHAPES: list[tuple[int, int, int, tuple[int, ...]]] = [
    (65536, 1024, 1024, (16, 64, 128)),
    (65536, 4096, 128, (64, 256)),
    (4096, 4096, 4096, (64, 256)),
    (1_000_000, 512, 100, (16, 64)),
    (65536, 768, 3072, (12, 96)),
    (10_000, 512, 10, (16,)),
]
#: Cycles a second that ``torch.cuda._sleep`` counts, about, on current GPUs; only its sufficiency matters.
CYCLES = 2e9
#: Bytes overwritten between calls: more than twice the 50 MiB of second-level cache of an H100.
FLUSH = 2**27
ROUNDS = 7
PROCESSES = 14
#: Side of the square products that measure a device's rates.
SIDE = 8192


@dataclass(frozen=True)
class Arm:
    """A call to time, and the lower bound of its time in seconds."""

    call: Call
    bound: float


def ours(learned: Learned, a: Tensor, by_feature: Tensor) -> dict[str, Call]:
    """Our kernels on one shape, bfloat16 in and out, by name."""
    prepared = learned.prepared()
    codes = launch.encode(a, prepared)
    out = torch.bfloat16
    return {
        "encode row": lambda: launch.encode(a, prepared),
        "encode feature": lambda: launch.encode(by_feature, prepared),
        "scan lut": lambda: launch.lookup(codes, prepared, out),
        "scan onehot int8": lambda: launch.onehot(codes, prepared, out),
        "scan onehot bf16": lambda: launch.onehot(codes, prepared, out, kind="bfloat16"),
        "fused row int8": lambda: launch.fused(a, prepared, out),
        "fused feature int8": lambda: launch.fused(by_feature, prepared, out),
    }


def dense(a: Tensor, m: int) -> dict[str, Call]:
    """Torch's products of the same shape; one-byte operands are given, outputs padded to what the library accepts."""
    d = a.shape[1]
    b = torch.randn(d, m, device=DEVICE, dtype=torch.bfloat16)
    wide = -(-m // 16) * 16
    a8 = (20 * a).clamp(-127, 127).to(torch.int8)
    b8 = torch.randint(-127, 128, (wide, d), device=DEVICE, dtype=torch.int8).T
    a_f8 = a.to(torch.float8_e4m3fn)
    b_f8 = torch.randn(wide, d, device=DEVICE).to(torch.float8_e4m3fn).T
    one = torch.ones((), device=DEVICE)
    library: Any = torch
    return {
        "torch.mm bf16": lambda: torch.mm(a, b),
        "torch._int_mm": lambda: library._int_mm(a8, b8),
        "torch._scaled_mm fp8": lambda: library._scaled_mm(a_f8, b_f8, one, one, out_dtype=torch.bfloat16),
    }


def embedding(learned: Learned, a: Tensor) -> Call:
    """Torch's sum of gathered rows, codes given."""
    flat = torch.from_numpy(learned.tables.dequantised()).flatten(0, 1).to(DEVICE, torch.bfloat16)
    codebooks = len(learned.columns)
    first = 16 * torch.arange(codebooks, device=DEVICE, dtype=torch.int32)
    places = launch.encode(a, learned.prepared()).to(torch.int32) + first
    return lambda: functional.embedding_bag(places, flat, mode="sum")


def warm(n: int, d: int, m: int, codebooks: int) -> list[str]:
    """Compile and check what :func:`table` times on one shape."""
    learned = checks.learned(d, m, codebooks)
    a = checks.rows(n, d, torch.bfloat16)
    return checks.timed_shape(ours(learned, a, a.T.contiguous().T), learned, a)


def _job(job: tuple[str, tuple[Any, ...]]) -> list[str]:
    kind, arguments = job
    try:
        return checks.odd(*arguments) if kind == "odd" else warm(*arguments)
    except Exception as error:  # the other jobs' answers must still be told
        return [f"FAILED {kind} {arguments}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"]


def check(shapes: Iterable[tuple[int, int, int, tuple[int, ...]]]) -> bool:
    """All answers; prints those that are not right. Must run before this process touches CUDA, for it forks."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    jobs: list[tuple[str, tuple[Any, ...]]] = [
        ("warm", (n, d, m, c)) for n, d, m, codebooks in shapes for c in codebooks
    ]
    jobs += [
        ("odd", (shape, dtypes[i % 3], "feature" if i % 2 else "row")) for i, shape in enumerate([*checks.ODD] * 2)
    ]
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("fork")) as pool:
        lines = [line for found in pool.map(_job, jobs) for line in found]
    bad = [line for line in lines if not line.startswith("right")]
    print("\n".join(bad))
    print(f"answers: {len(lines) - len(bad)} of {len(lines)} right")
    return not bad


def timed(call: Call, flush: Tensor, launch_s: float) -> float:
    """Device seconds of one call."""
    events: Any = torch.cuda
    start, end = events.Event(enable_timing=True), events.Event(enable_timing=True)
    events._sleep(int(CYCLES * (1.5 * launch_s + 2e-4)))
    flush.zero_()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def medians(calls: dict[str, Call], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds by name; rounds interleave the arms. One that cannot run is told and left out."""
    flush = torch.empty(FLUSH, dtype=torch.uint8, device=DEVICE)
    launches: dict[str, float] = {}
    for name, call in calls.items():
        try:
            call()
            torch.cuda.synchronize()
            begin = time.perf_counter()
            call()
            launches[name] = time.perf_counter() - begin
            torch.cuda.synchronize()
        except Exception as error:  # a library that refuses a shape is no reason to time nothing
            print(f"  {name}: left out: {type(error).__name__}: {' '.join(str(error).split())[:120]}")
    samples: dict[str, list[float]] = {name: [] for name in launches}
    for _ in range(rounds):
        for name, launch_s in launches.items():
            samples[name].append(timed(calls[name], flush, launch_s))
    return {name: statistics.median(values) for name, values in samples.items()}


def rates() -> model.Rates:
    """This device's rates, measured, but for its clock: look-ups without tensor cores are bound with the H100's."""
    a = checks.rows(SIDE, SIDE, torch.bfloat16)
    source = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    found = medians({**dense(a, SIDE), "copy": lambda: target.copy_(source)}, 5)
    work = 2.0 * SIDE**3
    bf16 = work / found["torch.mm bf16"]
    rate = model.Rates(
        bf16_flops=bf16,
        int8_ops=work / found["torch._int_mm"] if "torch._int_mm" in found else bf16,
        fp8_flops=work / found["torch._scaled_mm fp8"] if "torch._scaled_mm fp8" in found else bf16,
        bytes_s=2.0 * source.numel() / found["copy"],
        multiprocessors=torch.cuda.get_device_properties(0).multi_processor_count,
        clock_hz=model.H100.clock_hz,
    )
    print(
        f"rates measured: bf16 {rate.bf16_flops / 1e12:.0f}, int8 {rate.int8_ops / 1e12:.0f}, fp8 "
        f"{rate.fp8_flops / 1e12:.0f} T/s, copy {rate.bytes_s / 1e12:.2f} TB/s; break-even D/C of one-hot: "
        + ", ".join(f"{kind} {model.break_even(rate, 'onehot', kind):.1f}" for kind in model.DENSE)
    )
    return rate


def table(n: int, d: int, m: int, codebooks: tuple[int, ...], rate: model.Rates) -> None:
    """All arms of one shape: microseconds, lower bound, what is reached of it, speed-ups over dense products."""
    a = checks.rows(n, d, torch.bfloat16)
    by_feature = a.T.contiguous().T
    plain = model.Shape(n=n, d=d, m=m)
    bounds = [model.dense_s(plain, rate, "bf16"), *(model.dense_s(plain, rate, kind) for kind in ("int8", "fp8"))]  # type: ignore[arg-type]
    arms = {name: Arm(call, bound) for (name, call), bound in zip(dense(a, m).items(), bounds, strict=True)}
    for c in codebooks:
        learned, shape = checks.learned(d, m, c), model.Shape(n=n, d=d, m=m, codebooks=c)
        calls = ours(learned, a, by_feature)
        if c == codebooks[0]:
            calls["scan embedding_bag"] = embedding(learned, a)
        arms |= {f"C={c:<4}{name}": Arm(call, bound_of(name, shape, rate)) for name, call in calls.items()}
    found = medians({name: arm.call for name, arm in arms.items()})
    print(f"\n{n} x {d} x {m}   D/C: {', '.join(f'C={c}: {d / c:.3g}' for c in codebooks)}")
    print(f"  {'arm':32}{'us':>9}{'bound':>9}{'reached':>9}{'/bf16':>8}{'/int8':>8}{'/fp8':>8}")
    base = [found.get(name) for name in ("torch.mm bf16", "torch._int_mm", "torch._scaled_mm fp8")]
    for name, seconds in found.items():
        gains = "".join(f"{other / seconds:7.2f}x" if other else f"{'-':>8}" for other in base)
        bound = arms[name].bound
        print(f"  {name:32}{1e6 * seconds:9.1f}{1e6 * bound:9.1f}{bound / seconds:9.0%}{gains}")
    for c in codebooks:
        print(f"  C={c} model: {model.verdict(model.Shape(n=n, d=d, m=m, codebooks=c), rate, 'row', 'int8')}")


def bound_of(name: str, shape: model.Shape, rate: model.Rates) -> float:
    """The model's seconds for one of :func:`ours`."""
    layout: model.Layout = "feature" if "feature" in name else "row"
    if name.startswith("encode"):
        return model.encode_s(shape, rate, layout)
    if name.startswith("fused"):
        return model.fused_s(shape, rate, "onehot", layout)
    if "bf16" in name:
        halved = dataclasses.replace(rate, int8_ops=rate.bf16_flops, fp8_flops=rate.bf16_flops)
        return model.scan_s(shape, halved, "onehot")
    return model.scan_s(shape, rate, "onehot" if "onehot" in name else "alu")


def tune(n: int, d: int, m: int, c: int) -> None:
    """The fastest three of some configurations of each kernel."""
    prepared = checks.learned(d, m, c).prepared()
    a = checks.rows(n, d, torch.bfloat16)
    codes = launch.encode(a, prepared)
    out = torch.bfloat16
    bases: dict[str, tuple[Config, Callable[[Config], Tensor]]] = {
        "encode": (configs.encode(c, False), lambda t: launch.encode(a, prepared, config=t)),
        "lut": (configs.lookup(n, m), lambda t: launch.lookup(codes, prepared, out, config=t)),
        "onehot": (configs.onehot(n, m, "int8", False), lambda t: launch.onehot(codes, prepared, out, config=t)),
        "fused": (configs.fused(m, "int8"), lambda t: launch.fused(a, prepared, out, config=t)),
    }
    for name, (base, run) in bases.items():
        tried = list(dict.fromkeys([base, *alternatives(base)]))
        found = medians({str(t.describe()): (lambda t=t, run=run: run(t)) for t in tried}, 5)  # type: ignore[misc]
        print(f"tune {n} x {d} x {m}, C={c}: {name}; default {1e6 * found.get(str(base.describe()), 0):.1f} us")
        for text, seconds in sorted(found.items(), key=lambda item: item[1])[:3]:
            print(f"  {1e6 * seconds:8.1f} us {text}")


def alternatives(base: Config) -> list[Config]:
    """One step away in each direction."""
    change = dataclasses.replace
    near = [change(base, warps=base.warps * 2), change(base, stages=base.stages + 1), change(base, bm=base.bm * 2)]
    near += [change(base, warps=base.warps // 2)]
    near += [change(base, stages=base.stages - 1)] if base.stages > 1 else []
    near += [change(base, bm=base.bm * 2, warps=base.warps * 2, stages=base.stages + 1)]
    near += [change(base, bm=base.bm // 2)] if base.bm > 16 else []
    near += [change(base, bn=base.bn // 2)] if base.bn > 16 else []
    near += [change(base, bn=base.bn * 2)] if base.bn < 256 else []
    near += [change(base, bc=base.bc // 2, stages=base.stages + 1)] if base.bc > 2 else []
    return near


def main() -> int:
    """Run all; the exit code tells whether the answers are right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two shapes only")
    parser.add_argument("--tune", action="store_true", help="time other configurations too (minutes)")
    parser.add_argument("--seconds", type=float, default=60.0, help="no new shape is begun after this long")
    chosen = parser.parse_args()
    begin = time.perf_counter()
    if not (os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg")):
        print("needs an NVIDIA GPU: no driver device is visible")
        return 2
    shapes = SHAPES[:2] if chosen.quick else SHAPES
    right = check(shapes)
    print(f"checked after {time.perf_counter() - begin:.0f} s")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; medians of device time, bfloat16 in and out")
    rate = rates()
    for n, d, m, codebooks in shapes:
        if time.perf_counter() - begin > chosen.seconds:
            print(f"left out for want of time: {n} x {d} x {m}; give --seconds")
            continue
        table(n, d, m, codebooks, rate)
        torch.cuda.empty_cache()
    if chosen.tune:
        for n, d, m, codebooks in shapes[:3]:
            tune(n, d, m, codebooks[0])
    print(f"\nanswers: {'right' if right else 'WRONG'}; {time.perf_counter() - begin:.0f} s")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
