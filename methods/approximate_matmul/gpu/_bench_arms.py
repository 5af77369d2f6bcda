"""What ``_bench`` times: our kernels, torch's dense products, medians of device time, other configurations."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Collection, Mapping
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
#: Cycles a second that ``torch.cuda._sleep`` counts, about, on current GPUs; only its sufficiency matters.
CYCLES = 2e9
#: Bytes overwritten between calls: more than twice the 50 MiB of second-level cache of an H100.
FLUSH = 2**27
ROUNDS = 7
#: Side of the square products that measure a device's rates.
SIDE = 8192
#: Kind of dense product -> the calls that are one.
DENSE: dict[model.Dense, tuple[str, ...]] = {
    "bf16": ("torch.mm bf16",),
    "int8": ("torch._int_mm",),
    "fp8": ("torch._scaled_mm fp8", "torch._scaled_mm fp8 fast"),
}


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
        "torch._scaled_mm fp8 fast": lambda: library._scaled_mm(
            a_f8, b_f8, one, one, out_dtype=torch.bfloat16, use_fast_accum=True
        ),
    }


def kind_of(name: str) -> model.Dense | None:
    """Which dense product an arm is."""
    return next((kind for kind, names in DENSE.items() if name in names), None)


def best_dense(found: Mapping[str, float]) -> dict[model.Dense, float]:
    """Kind -> least seconds of its calls, where one ran."""
    best = {kind: min((found[n] for n in names if n in found), default=0.0) for kind, names in DENSE.items()}
    return {kind: seconds for kind, seconds in best.items() if seconds}


def embedding(learned: Learned, a: Tensor) -> Call:
    """Torch's sum of gathered rows, codes given."""
    flat = torch.from_numpy(learned.tables.dequantised()).flatten(0, 1).to(DEVICE, torch.bfloat16)
    codebooks = len(learned.columns)
    first = 16 * torch.arange(codebooks, device=DEVICE, dtype=torch.int32)
    places = launch.encode(a, learned.prepared()).to(torch.int32) + first
    return lambda: functional.embedding_bag(places, flat, mode="sum")


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


def medians(
    calls: Mapping[str, Call],
    rounds: int = ROUNDS,
    failures: dict[str, str] | None = None,
    each: Callable[[dict[str, float], int], None] | None = None,
) -> dict[str, float]:
    """Median seconds by name; rounds interleave the arms. One that cannot run is told, noted and left out.

    ``each`` is given the medians so far, and of how many rounds, after every round.
    """
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
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            print(f"  {name}: left out: {text}", flush=True)
            if failures is not None:
                failures[name] = text
    samples: dict[str, list[float]] = {name: [] for name in launches}
    found: dict[str, float] = {}
    for done in range(rounds):
        for name, launch_s in launches.items():
            samples[name].append(timed(calls[name], flush, launch_s))
        found = {name: statistics.median(values) for name, values in samples.items()}
        if each is not None:
            each(found, done + 1)
    return found


def shape_arms(
    n: int, d: int, m: int, codebooks: Collection[int], rate: model.Rates, broken: Collection[str] = ()
) -> dict[str, Arm]:
    """All arms of one shape, those in ``broken`` left out."""
    a = checks.rows(n, d, torch.bfloat16)
    by_feature = a.T.contiguous().T
    plain = model.Shape(n=n, d=d, m=m)
    arms = {}
    for name, call in dense(a, m).items():
        kind = kind_of(name)
        assert kind is not None
        arms[name] = Arm(call, model.dense_s(plain, rate, kind))
    for place, c in enumerate(codebooks):
        learned, shape = checks.learned(d, m, c), model.Shape(n=n, d=d, m=m, codebooks=c)
        calls = {name: call for name, call in ours(learned, a, by_feature).items() if f"C={c} {name}" not in broken}
        if place == 0:
            calls["scan embedding_bag"] = embedding(learned, a)
        arms |= {f"C={c} {name}": Arm(call, bound_of(name, shape, rate)) for name, call in calls.items()}
    return arms


def measure_shape(
    n: int,
    d: int,
    m: int,
    codebooks: Collection[int],
    rate: model.Rates,
    broken: Collection[str] = (),
    each: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Microseconds of every arm of one shape beside its lower bound, and what failed, ready for JSON.

    ``each`` is given the same after every round, with the rounds done so far.
    """
    failures: dict[str, str] = {}
    arms = shape_arms(n, d, m, codebooks, rate, broken)

    def told(found: dict[str, float], rounds: int) -> dict[str, Any]:
        return _shape_told([n, d, m], codebooks, rate, arms, found, failures) | {"rounds": rounds}

    calls = {name: arm.call for name, arm in arms.items()}
    note = None if each is None else lambda found, rounds: each(told(found, rounds))
    return told(medians(calls, failures=failures, each=note), ROUNDS)


def _shape_told(
    shape: list[int],
    codebooks: Collection[int],
    rate: model.Rates,
    arms: Mapping[str, Arm],
    found: Mapping[str, float],
    failures: Mapping[str, str],
) -> dict[str, Any]:
    n, d, m = shape
    return {
        "shape": shape,
        "codebooks": list(codebooks),
        "us": {name: 1e6 * seconds for name, seconds in found.items()},
        "bound_us": {name: 1e6 * arms[name].bound for name in found},
        "failures": dict(failures),
        "model": {
            str(c): model.verdict(model.Shape(n=n, d=d, m=m, codebooks=c), rate, "row", "int8") for c in codebooks
        },
    }


def rates() -> model.Rates:
    """This device's rates, measured, but for its clock: look-ups without tensor cores are bound with the H100's."""
    a = checks.rows(SIDE, SIDE, torch.bfloat16)
    source = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    found = medians({**dense(a, SIDE), "copy": lambda: target.copy_(source)}, 5)
    best, work = best_dense(found), 2.0 * SIDE**3
    bf16 = work / best["bf16"]
    return model.Rates(
        bf16_flops=bf16,
        int8_ops=work / best["int8"] if "int8" in best else bf16,
        fp8_flops=work / best["fp8"] if "fp8" in best else bf16,
        bytes_s=2.0 * source.numel() / found["copy"],
        multiprocessors=torch.cuda.get_device_properties(0).multi_processor_count,
        clock_hz=model.H100.clock_hz,
    )


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
