"""Interleaved timing of the C++ kernels against exact products: ``python -m methods.approximate_matmul.native.bench``.

Every arm is called once per round, so that all meet the same machine; minima are printed, and ratios within one run are
what to read. Trees and tables are random: time does not depend on them. The recorded figures come from the suite.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from methods.approximate_matmul.native import binding

#: N, D, M and codebooks: CIFAR-100 and CIFAR-10 classifiers, a UCR kernel classifier, a cube, a wide layer.
SHAPES = (
    (10000, 512, 100, (16, 64)),
    (10000, 512, 10, (16, 64)),
    (1000, 320, 128, (16, 64)),
    (1024, 1024, 1024, (64, 128)),
    (4096, 1024, 256, (64,)),
)
#: A product this many times slower than float32 has no fast kernel on this processor and leaves the rounds.
HOPELESS = 4.0
Arms = dict[str, Callable[[], Any]]


def exact_arms(a: torch.Tensor, b: torch.Tensor) -> Arms:
    """Exact products: float32 by three libraries' doors, given int8, and dynamic int8 with float32 output."""
    weight, an, bn = b.t().contiguous(), a.numpy(), b.numpy()
    a8 = torch.randint(-127, 128, a.shape, dtype=torch.int8)
    b8 = torch.randint(-127, 128, b.shape, dtype=torch.int8)
    arms: Arms = {
        "fp32 mm": lambda: torch.mm(a, b),
        "fp32 linear": lambda: torch.nn.functional.linear(a, weight),
        "fp32 numpy": lambda: an @ bn,
        "_int_mm": lambda: torch._int_mm(a8, b8),
    }
    linear = torch.nn.Linear(b.shape[0], b.shape[1], bias=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantise: Any = torch.ao.quantization.quantize_dynamic
            quantised = quantise(torch.nn.Sequential(linear), {torch.nn.Linear})
        quantised(a[:2])
    except (RuntimeError, AttributeError) as error:
        print(f"dynamic int8 left out: {error}")
    else:
        arms["dynamic int8"] = lambda: quantised(a)
    return arms


def native_arms(a: torch.Tensor, m: int, codebooks: int) -> Arms:
    """The kernels on column-major and row-major A; look-ups alone with three outputs."""
    rng = np.random.default_rng(0)
    width = a.shape[1] // codebooks
    columns = np.stack([width * c + rng.choice(width, 4, replace=width < 4) for c in range(codebooks)]).astype(np.int32)
    thresholds = rng.standard_normal((codebooks, 15)).astype(np.float32)
    q = rng.integers(0, 256, (codebooks, 16, m)).astype(np.uint8)
    tables = binding.prepare(q, np.ones(m), np.zeros(m))
    average = binding.prepare(q, np.ones(m), np.zeros(m), aggregation="average", upcast=16)
    by_column = a.t().contiguous().t()
    packed = binding.encode(a, columns, thresholds)
    return {
        "encode columns": lambda: binding.encode(by_column, columns, thresholds),
        "encode rows": lambda: binding.encode(a, columns, thresholds),
        "scan u16": lambda: binding.scan(packed, tables, "uint16", order="column"),
        "scan u16 avg": lambda: binding.scan(packed, average, "uint16", order="column"),
        "scan f32": lambda: binding.scan(packed, tables),
        "product columns": lambda: binding.matmul(by_column, columns, thresholds, tables),
        "product rows": lambda: binding.matmul(a, columns, thresholds, tables),
    }


def minima(arms: Arms, seconds: float) -> dict[str, float]:
    """Least time of every arm, called in turn until the time is spent (at least five rounds)."""
    best = dict.fromkeys(arms, float("inf"))
    start, rounds, dropped = time.perf_counter(), 0, set()
    while rounds < 5 or time.perf_counter() - start < seconds:
        for name, call in arms.items():
            if name in dropped:
                continue
            before = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - before)
            if best[name] > HOPELESS * best["fp32 mm"] and rounds == 1:
                dropped.add(name)
        rounds += 1
    return best


def report(n: int, m: int, codebooks: int, t: dict[str, float]) -> None:
    """Three lines: rates, ratios, exact products."""
    fp32 = min(v for k, v in t.items() if k.startswith("fp32"))
    codes, looks = n * codebooks / 1e6, n * codebooks * m / 1e9
    print(
        f"  C={codebooks}: encode {codes / t['encode columns']:.0f} M codes/s"
        f" (row-major {codes / t['encode rows']:.0f});"
        f" scan u16 {looks / t['scan u16']:.0f} G look-ups/s, averaging {looks / t['scan u16 avg']:.0f},"
        f" f32 {looks / t['scan f32']:.0f}"
    )
    for name in ("product columns", "product rows"):
        ratios = [f"fp32 {fp32 / t[name]:.1f}x"]
        ratios += [f"{k} {t[k] / t[name]:.1f}x" for k in ("_int_mm", "dynamic int8") if k in t]
        print(f"    {name} {t[name] * 1e6:.0f} us: {', '.join(ratios)}")


def main() -> None:
    """Time all shapes and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each shape and number of codebooks")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    reason = binding.available()
    if reason is not None:
        raise SystemExit(reason)
    torch.set_num_threads(arguments.threads)
    print(binding.describe(binding.default_threads()))
    with torch.inference_mode():
        for n, d, m, counts in SHAPES:
            a, b = torch.randn(n, d), torch.randn(d, m)
            print(f"{n} x {d} x {m}")
            for codebooks in counts:
                report(n, m, codebooks, minima({**exact_arms(a, b), **native_arms(a, m, codebooks)}, arguments.seconds))


if __name__ == "__main__":
    main()
