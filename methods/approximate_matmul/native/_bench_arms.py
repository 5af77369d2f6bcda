"""What ``bench`` times: our kernels and the exact products that they are compared with."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from methods.approximate_matmul.linear import int8
from methods.approximate_matmul.native import binding
from methods.approximate_matmul.native._bench_checks import parameters

#: A product this many times slower than float32 has no fast kernel on this processor and leaves the rounds.
HOPELESS = 4.0
#: What only a measurement can judge: a name, asking for outputs, fetching of inputs.
HABITS = (("neither", False, False), ("asking", True, False), ("fetching", False, True), ("both", True, True))
#: Rows, columns and trees of the encoding whose input is near.
NEAR = (16384, 32, 16)
Arms = dict[str, Callable[[], Any]]


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """As many threads for torch, NumPy's BLAS and our kernels."""
    before, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(count)
    os.environ["OMP_NUM_THREADS"] = str(count)  # what the binding reads at every call
    try:
        pools = importlib.import_module("threadpoolctl").threadpool_limits(limits=count, user_api="blas")
    except ImportError:
        pools = contextlib.nullcontext()
    try:
        with pools:
            yield
    finally:
        torch.set_num_threads(before)
        if variable is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = variable


def keep_memory() -> bool:
    """Let freed memory stay with the process, so that no arm pays for fresh pages; false where libc has no such switch.

    mallopt of glibc: M_MMAP_THRESHOLD (-3) at its largest, 32 MiB, and M_TRIM_THRESHOLD (-1) out of reach.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(set_option(-3, 32 << 20)) and bool(set_option(-1, 2**31 - 1))


def exact_arms(a: torch.Tensor, b: torch.Tensor) -> Arms:
    """Exact products: float32 by three libraries' doors, given int8, and dynamic int8 with float32 output twice."""
    weight, an, bn = b.t().contiguous(), a.numpy(), b.numpy()
    a8 = torch.randint(-127, 128, a.shape, dtype=torch.int8)
    b8 = torch.randint(-127, 128, b.shape, dtype=torch.int8)
    half, half_weight = a.bfloat16(), weight.bfloat16()
    arms: Arms = {
        "fp32 mm": lambda: torch.mm(a, b),
        "fp32 linear": lambda: torch.nn.functional.linear(a, weight),
        "fp32 numpy": lambda: an @ bn,
        "bf16": lambda: torch.nn.functional.linear(half, half_weight),
        "_int_mm": lambda: torch._int_mm(a8, b8),
    }
    if not _limited():
        del arms["fp32 numpy"]
    ours = int8.make().fit(a[: min(len(a), 2000)], b)
    arms["int8 ours"] = lambda: ours(a)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantise: Any = torch.ao.quantization.quantize_dynamic
            linear = torch.nn.Linear(b.shape[0], b.shape[1], bias=False)
            quantised = quantise(torch.nn.Sequential(linear), {torch.nn.Linear})
            quantised(a[:2])
    except (RuntimeError, AttributeError, ImportError, NotImplementedError) as error:
        print(f"  torch's dynamic int8 left out: {' '.join(str(error).split())[:120]}", flush=True)
    else:
        arms["dynamic int8"] = lambda: quantised(a)
    return arms


def _limited() -> bool:
    """Whether the threads of NumPy's BLAS are under control."""
    try:
        importlib.import_module("threadpoolctl")
    except ImportError:
        return False
    return True


def native_arms(a: torch.Tensor, m: int, codebooks: int, level: str | None = None) -> Arms:
    """The kernels on column-major and row-major A; look-ups alone with three outputs."""
    columns, thresholds, q = parameters(a.shape[1], m, codebooks)
    tables = binding.prepare(q, np.ones(m), np.zeros(m))
    average = binding.prepare(q, np.ones(m), np.zeros(m), aggregation="average", upcast=16)
    by_column = a.t().contiguous().t()
    trees = binding.forest(columns, thresholds)
    packed = binding.encode(a, trees, level=level)
    return {
        "encode columns": lambda: binding.encode(by_column, trees, level=level),
        "encode rows": lambda: binding.encode(a, trees, level=level),
        "scan u8": lambda: binding.scan(packed, tables, "uint8", level=level),
        "scan u16 rows": lambda: binding.scan(packed, tables, "uint16", level=level),
        "scan u16": lambda: binding.scan(packed, tables, "uint16", order="column", level=level),
        "scan u16 avg": lambda: binding.scan(packed, average, "uint16", order="column", level=level),
        "scan f32": lambda: binding.scan(packed, tables, level=level),
        "product columns": lambda: binding.matmul(by_column, trees, None, tables, level=level),
        "product rows": lambda: binding.matmul(a, trees, None, tables, level=level),
    }


def level_rates(level: str, n: int, d: int, m: int, codebooks: int, seconds: float) -> dict[str, Any]:
    """Rates of one level, every arm on its own with its data as warm as the caches allow.

    Encoding is also timed on 2 MiB of columns ("encode near"), which the caches nearest to a core hold or nearly so.
    """
    generator = torch.Generator().manual_seed(0)
    arms = native_arms(torch.randn(n, d, generator=generator), m, codebooks, level)
    arms["encode near"] = _near(level, generator)
    found = {name: alone(call, seconds / len(arms)) for name, call in arms.items()}
    rates = _rates(found, n, m, codebooks)
    habits = {}
    for name, asking, fetching in HABITS if level != "scalar" else ():
        binding.habits(asking, fetching)
        kinds = ("product columns", "product rows")
        habits[name] = {kind: 1e6 * alone(arms[kind], seconds / len(arms)) for kind in kinds}
    binding.habits()
    rates["codes_per_s"]["encode near"] = NEAR[0] * NEAR[2] / found["encode near"]
    return {
        "level": level,
        "codebooks": codebooks,
        "us": {k: 1e6 * v for k, v in found.items()},
        "habits": habits,
        **rates,
    }


def _near(level: str, generator: torch.Generator) -> Callable[[], Any]:
    """The C function itself on few columns, 2 MiB: some cores' second-level cache holds them, others' the third."""
    n, d, codebooks = NEAR
    columns, thresholds, _ = parameters(d, 1, codebooks)
    a = torch.randn(d, n, generator=generator)
    codes = np.empty(n * codebooks // 2, np.uint8)
    kept = (a, columns, thresholds, codes)
    encode, chosen = binding.library().amm_encode, binding.LEVELS.index(level)
    pointers = (a.data_ptr(), columns.ctypes.data, thresholds.ctypes.data, codes.ctypes.data)

    def call() -> Any:
        assert kept
        return encode(chosen, pointers[0], n, d, 1, n, *pointers[1:3], codebooks, pointers[3], codes.nbytes, 1)

    return call


def _rates(found: dict[str, float], n: int, m: int, codebooks: int) -> dict[str, Any]:
    codes, looks = n * codebooks, n * codebooks * m
    return {
        "codes_per_s": {name: codes / found[name] for name in ("encode columns", "encode rows") if name in found},
        "lookups_per_s": {name: looks / found[name] for name in found if name.startswith("scan")},
    }


def alone(call: Callable[[], Any], seconds: float) -> float:
    """Least time of calls that follow each other: at least three unless one takes very long."""
    best, start, rounds = float("inf"), time.perf_counter(), 0
    while (rounds < 3 and best < 10 * seconds) or rounds == 0 or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - before)
        rounds += 1
    return best


def memory_arms(n: int, m: int, codebooks: int) -> Arms:
    """Writing the outputs once, and reading as much as the touched columns are, with nothing else to do."""
    outputs, columns = torch.empty(n, m), torch.ones(4 * codebooks * n)
    return {"memory write": lambda: outputs.fill_(1.0), "memory read": lambda: torch.dot(columns, columns)}


def scaling_arms(n: int, d: int, m: int, codebooks: int, count: int) -> Arms:
    """Few arms, each with ``count`` threads."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(n, d, generator=generator), torch.randn(d, m, generator=generator)
    columns, thresholds, q = parameters(d, m, codebooks)
    tables = binding.prepare(q, np.ones(m), np.zeros(m))
    trees = binding.forest(columns, thresholds)
    packed = binding.encode(a, trees)
    by_column, weight = a.t().contiguous().t(), b.t().contiguous()
    a8 = torch.randint(-127, 128, a.shape, dtype=torch.int8)
    b8 = torch.randint(-127, 128, b.shape, dtype=torch.int8)
    return {
        "product columns": lambda: binding.matmul(by_column, trees, None, tables, threads=count),
        "product rows": lambda: binding.matmul(a, trees, None, tables, threads=count),
        "encode columns": lambda: binding.encode(by_column, trees, threads=count),
        "scan u16": lambda: binding.scan(packed, tables, "uint16", order="column", threads=count),
        "fp32 mm": lambda: torch.mm(a, b),
        "fp32 linear": lambda: torch.nn.functional.linear(a, weight),
        "_int_mm": lambda: torch._int_mm(a8, b8),
    }


def minima(arms: Arms, seconds: float) -> dict[str, float]:
    """Least time of every arm, called in turn until the time is spent (at least five rounds); failures are told."""
    best = dict.fromkeys(arms, float("inf"))
    start, rounds = time.perf_counter(), 0
    while rounds < 5 or time.perf_counter() - start < seconds:
        for name, call in list(arms.items()):
            if name not in best or (rounds > 1 and best[name] > HOPELESS * best.get("fp32 mm", float("inf"))):
                continue
            before = time.perf_counter()
            try:
                call()
            except Exception as error:  # one library's refusal is no reason to time nothing
                print(f"  {name} left out: {type(error).__name__}: {' '.join(str(error).split())[:120]}", flush=True)
                del best[name]
                continue
            best[name] = min(best[name], time.perf_counter() - before)
        rounds += 1
    return best


def measure(n: int, d: int, m: int, codebooks: int, seconds: float) -> dict[str, Any]:
    """One shape: microseconds of all arms, rates and ratios, ready for JSON."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(n, d, generator=generator), torch.randn(d, m, generator=generator)
    found = minima({**exact_arms(a, b), **native_arms(a, m, codebooks), **memory_arms(n, m, codebooks)}, seconds)
    base = {"fp32": min(found[k] for k in found if k.startswith("fp32"))}
    base |= {k: found[k] for k in ("_int_mm", "bf16") if k in found}
    dynamic = [found[k] for k in ("int8 ours", "dynamic int8") if k in found]
    base |= {"int8 dynamic": min(dynamic)} if dynamic else {}
    return {
        "shape": [n, d, m],
        "codebooks": codebooks,
        "us": {name: 1e6 * value for name, value in found.items()},
        **_rates(found, n, m, codebooks),
        "speedup": {
            name: {kind: value / found[name] for kind, value in base.items()}
            for name in ("product columns", "product rows")
            if name in found
        },
    }


def lines(shape: dict[str, Any]) -> list[str]:
    """Rates and ratios of one shape."""
    label = " x ".join(map(str, shape["shape"]))
    codes = ", ".join(f"{name} {rate / 1e6:.0f} M codes/s" for name, rate in shape["codes_per_s"].items())
    looks = ", ".join(f"{name} {rate / 1e9:.0f} G look-ups/s" for name, rate in shape["lookups_per_s"].items())
    told = [f"{label} C={shape['codebooks']}: {codes}; {looks}"]
    for name, ratios in shape["speedup"].items():
        texts = ", ".join(f"{kind} {ratio:.1f}x" for kind, ratio in ratios.items())
        told.append(f"  {name} {shape['us'][name]:.0f} us: over {texts}")
    return told
