"""The physical floor of one call: no honest time lies under it.

floor = max(executed flops / peak at the maximum clock, declared bytes / bandwidth of the smallest cache that holds
them). Peaks are upper bounds on purpose: a floor that is too high would call an honest time an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.catalogue.method import Cost

#: Dense FLOP per clock and multiprocessor, tensor cores with 16-bit inputs, by compute capability
#: (NVIDIA architecture white papers: A100, GA102, AD102, H100, B200).
_TENSOR_16 = {(7, 0): 1024, (7, 5): 1024, (8, 0): 2048, (8, 6): 1024, (8, 9): 1024, (9, 0): 4096, (10, 0): 8192}
_TENSOR_16_DEFAULT = 8192
#: float64 FLOP per clock and multiprocessor with tensor cores (H100: 67 TFLOP/s at 1.98 GHz on 132).
_FLOAT64 = 256
#: Bytes per clock and multiprocessor that an L2 can deliver at most (64 B a clock is the SM's port).
_L2_PORT = 64
#: Upper bounds for CPU caches in bytes per cycle and core: two 64-byte loads and one store (L1), 64 (L2), 32 (L3).
_CPU_CACHE = {"L1": 192, "L2": 64, "L3": 32}
#: No socket of 2026 moves more than this from DRAM or HBM.
_CPU_DRAM_BYTES_PER_S = 1.2e12
_CPU_MHZ_IF_UNKNOWN = 6200.0


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Seconds below which a time cannot be true, and why."""

    seconds: float
    basis: str


def floor(cost: Cost, dtype: str, environment: Mapping[str, Any]) -> Floor:
    """The floor of a call with this cost on this machine."""
    peak, bandwidth, where = _rates(cost.bytes, dtype, environment)
    compute, traffic = cost.flops / peak, cost.bytes / bandwidth
    if compute >= traffic:
        return Floor(seconds=compute, basis=f"{cost.flops:.3g} FLOP at {peak:.3g} FLOP/s")
    return Floor(seconds=traffic, basis=f"{cost.bytes:.3g} B from {where} at {bandwidth:.3g} B/s")


def _rates(size: float, dtype: str, environment: Mapping[str, Any]) -> tuple[float, float, str]:
    gpu = environment.get("gpu")
    if environment.get("device") == "cuda" and gpu:
        return _gpu_rates(size, dtype, gpu)
    return _cpu_rates(size, dtype, environment)


def _gpu_rates(size: float, dtype: str, gpu: Mapping[str, Any]) -> tuple[float, float, str]:
    capability = tuple(gpu.get("capability") or (0, 0))
    multiprocessors = int(gpu.get("sm_count") or 256)
    hertz = float(gpu.get("max_sm_mhz") or 3000) * 1e6
    tensor = _TENSOR_16.get((capability[0], capability[-1]), _TENSOR_16_DEFAULT)
    # float32 products may run as TF32 on tensor cores at half the 16-bit rate, whatever the precision mode says.
    per_clock = {"float32": tensor // 2, "float64": _FLOAT64}.get(dtype, tensor)
    cache = float(gpu.get("l2_bytes") or 2**28)
    if size <= cache:
        return per_clock * multiprocessors * hertz, _L2_PORT * multiprocessors * hertz, "L2"
    clock, bits = gpu.get("max_memory_mhz"), gpu.get("memory_bus_bits")
    # Two transfers per memory clock; the counter that NVML reports is half the data rate on HBM and GDDR.
    memory = 2 * float(clock) * 1e6 * float(bits) / 8 if clock and bits else 1e13
    return per_clock * multiprocessors * hertz, memory, "device memory"


def _cpu_rates(size: float, dtype: str, environment: Mapping[str, Any]) -> tuple[float, float, str]:
    simd = environment.get("simd") or []
    if not {"avx2", "avx512f"} & set(simd):
        # Matrix units of other CPUs are not listed by the kernel: no bound is better than a wrong one.
        return float("inf"), float("inf"), "memory"
    cores = max(int(environment.get("threads") or 1), 1)
    # A boosting clock may exceed what the kernel lists, so the unknown case uses the fastest part ever sold.
    hertz = max(float(environment.get("max_mhz") or 0), _CPU_MHZ_IF_UNKNOWN) * 1e6
    lanes = 16 if "avx512f" in simd else 8 if "avx2" in simd else 4
    width = {"float64": 0.5, "float32": 1.0}.get(dtype, 2.0)
    amx = dtype in ("bfloat16", "float16") and "amx_tile" in simd
    flops_per_cycle = 2048.0 if amx else 2 * 2 * lanes * width
    peak = flops_per_cycle * cores * hertz
    for level, capacity in sorted((environment.get("caches_bytes") or {}).items()):
        if size <= capacity and level in _CPU_CACHE:
            return peak, _CPU_CACHE[level] * cores * hertz, level
    return peak, _CPU_DRAM_BYTES_PER_S, "memory"
