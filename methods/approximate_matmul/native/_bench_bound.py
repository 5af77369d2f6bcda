"""What the processor is, and the most that the kernels could do on it: arithmetic of the README, for ``bench``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

#: Flags that decide the level, and what the exact products' libraries may use.
FLAGS = ("avx2", "avx512bw", "avx512vbmi", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
#: Look-ups of a 64-byte permute, one a cycle (port 5 on Intel's cores; two halves a cycle on Zen 4).
LOOKUPS_PER_CYCLE = 64.0
#: 4 compares, 2 permutes, 5 masked moves for 16 codes, then packing: 52 instructions on two ports for 64 codes.
CODES_PER_CYCLE = 64 / 26
#: What turns 16 sums into stored floats: 2.5 permutes on their one port, beside shift, or, convert and multiply-add.
CYCLES_OF_16_FLOATS = 2.5
#: Multiply-adds of bytes a cycle: AMX tiles of 16 x 64 x 16 in 16 cycles; two 64-byte VNNI instructions a cycle.
AMX_MACS, VNNI_MACS = 1024.0, 128.0
#: Levels to which these bounds apply.
WIDE = ("avx512vbmi", "avx512amx")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def processor() -> dict[str, Any]:
    """Model, deciding flags, caches of the first core and processors that share it."""
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in _lines("/proc/cpuinfo"))}
    flags = info.get("flags", info.get("Features", "")).split()
    caches = {}
    for index in range(5):
        folder = f"/sys/devices/system/cpu/cpu0/cache/index{index}"
        level, kind, size = (" ".join(_lines(f"{folder}/{name}")) for name in ("level", "type", "size"))
        if size and kind != "Instruction":
            caches[f"L{level}"] = size
    return {
        "model": info.get("model name", "unknown"),
        "flags": {flag: flag in flags for flag in FLAGS},
        "caches": caches,
        "siblings": " ".join(_lines("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list")) or "unknown",
        "hypervisor": "hypervisor" in flags,
    }


def apart() -> list[int]:
    """Processors of this process, one of each core, as far as the system tells."""
    affinity = getattr(os, "sched_getaffinity", None)
    mine = sorted(affinity(0)) if affinity is not None else list(range(os.cpu_count() or 1))
    taken: dict[str, int] = {}
    for cpu in mine:
        siblings = " ".join(_lines(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"))
        taken.setdefault(siblings or str(cpu), cpu)
    return sorted(taken.values())


def product_us(n: int, m: int, codebooks: int, ghz: float) -> float:
    """Least time of encode, look-ups and float32 stores on one core with all data in its first cache."""
    cycles = n * codebooks / CODES_PER_CYCLE + n * m * (codebooks / LOOKUPS_PER_CYCLE + CYCLES_OF_16_FLOATS / 16)
    return cycles / (1e3 * ghz)


def int8_us(n: int, d: int, m: int, ghz: float, flags: dict[str, bool]) -> float | None:
    """Least time of the exact product of bytes on one core; None without instructions for it."""
    macs = AMX_MACS if flags.get("amx_int8") else VNNI_MACS if flags.get("avx512_vnni") else None
    return None if macs is None else n * d * m / macs / (1e3 * ghz)
