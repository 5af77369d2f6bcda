"""NVIDIA facts through NVML, without torch: names, drivers, clocks, power, temperature, throttling, energy."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Name of the throttle reason that is part of a kernel's performance.
POWER_CAP = "software power cap"
#: NVML clock-event bits that discard a block: hardware thermal, power brake, software thermal.
_BRAKES = {0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown", 0x80: "hardware power brake"}
_NOTED = {0x4: POWER_CAP, 0x8: "hardware slowdown"}


@functools.cache
def _nvml() -> Any:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return None
    return pynvml


def device_file() -> bool:
    """Whether the kernel shows an NVIDIA device (cheap, no library loaded)."""
    return Path("/dev/nvidia0").exists() or Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def present() -> bool:
    """Whether an NVIDIA device is visible: the device file or NVML, and not hidden by CUDA_VISIBLE_DEVICES."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "unset").strip() in ("", "-1"):
        return False
    return device_file() or (os.name == "nt" and count() > 0)


def count() -> int:
    """Number of NVIDIA devices that NVML sees."""
    nvml = _nvml()
    return int(nvml.nvmlDeviceGetCount()) if nvml else 0


def _index(place: int | None = None) -> int:
    """The NVML index of a visible CUDA device, by default of this process' (LOCAL_RANK, else the first).

    Numbers only; UUIDs are looked up.
    """
    local = os.environ.get("LOCAL_RANK", "0")
    wanted = place if place is not None else int(local) if local.isdigit() else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return min(wanted, max(0, count() - 1))
    listed = visible.split(",")
    first = listed[wanted if wanted < len(listed) else 0].strip()
    if first.isdigit():
        return int(first)
    nvml = _nvml()
    for index in range(count()):
        if nvml and first.startswith("GPU-"):
            uuid = nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(index))
            if str(uuid).startswith(first):
                return index
    return 0


def _handle(place: int | None = None) -> tuple[Any, Any] | None:
    nvml = _nvml()
    if nvml is None or count() == 0:
        return None
    return nvml, nvml.nvmlDeviceGetHandleByIndex(_index(place))


def visible() -> int:
    """Number of CUDA devices that this process may use."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return len([one for one in listed.split(",") if one.strip() not in ("", "-1")])
    return count() or len(list(Path("/dev").glob("nvidia[0-9]*")))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def describe(place: int | None = None) -> dict[str, Any] | None:
    """Name, uuid, driver, memory, capability, clocks of the first visible device or a later one; None without NVML."""
    found = _handle(place)
    if found is None:
        return None
    nvml, handle = found
    facts: dict[str, Any] = {
        "name": _text(nvml.nvmlDeviceGetName(handle)),
        "uuid": _text(nvml.nvmlDeviceGetUUID(handle)),
        "driver": _text(nvml.nvmlSystemGetDriverVersion()),
        "memory_bytes": int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        "count": count(),
    }
    for key, read in (
        ("capability", lambda: list(nvml.nvmlDeviceGetCudaComputeCapability(handle))),
        ("max_sm_mhz", lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        ("max_memory_mhz", lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        ("memory_bus_bits", lambda: nvml.nvmlDeviceGetMemoryBusWidth(handle)),
        ("power_limit_w", lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000),
        ("other_processes", lambda: others(nvml, handle)),
    ):
        with contextlib.suppress(Exception):
            facts[key] = read()
    return facts


def others(nvml: Any, handle: Any) -> int:
    """Compute processes on the device that are not this process or its children."""
    import psutil

    mine = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    return sum(1 for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle) if process.pid not in mine)


def state() -> dict[str, Any]:
    """SM clock (MHz), power (W), temperature (C), throttle reasons and brakes now; empty without NVML."""
    found = _handle()
    if found is None:
        return {}
    nvml, handle = found
    facts: dict[str, Any] = {}
    readers: dict[str, Callable[[], Any]] = {
        "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    }
    for key, read in readers.items():
        with contextlib.suppress(Exception):
            facts[key] = read()
    with contextlib.suppress(Exception):
        bits = int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        facts["throttle"] = [name for bit, name in {**_NOTED, **_BRAKES}.items() if bits & bit]
        brakes = [name for bit, name in _BRAKES.items() if bits & bit]
        if brakes:
            facts["discarded"] = " and ".join(brakes)
    return facts


def energy_j() -> float | None:
    """Total energy counter of the device in joules; None where it cannot be read."""
    found = _handle()
    if found is None:
        return None
    nvml, handle = found
    try:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except Exception:
        return None
