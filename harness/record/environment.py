"""The environment of a run: machine, versions, commit. Read without importing torch."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_SIMD = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vbmi", "avx512_vnni", "avx512_bf16")
_SIMD_MORE = ("amx_tile", "amx_bf16", "amx_int8", "neon", "asimd", "sve")
#: What a record of several processes, or of runs side by side, writes around the name of its hardware.
_SHARED = re.compile(r"^(?:\d+ x )?(?P<name>.+?)(?:, \d+ (?:processes|runs at once))?$")


@functools.cache
def cpu() -> dict[str, Any]:
    """Model name, SIMD levels, core counts and cache sizes in bytes."""
    import psutil

    model, flags = _cpu_model_and_flags()
    frequency = _max_mhz()
    return {
        "cpu": model,
        "simd": [flag for flag in (*_SIMD, *_SIMD_MORE) if flag in flags],
        "cores_physical": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        "cores_logical": psutil.cpu_count(logical=True) or 1,
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "max_mhz": frequency,
        "caches_bytes": _caches(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def _cpu_model_and_flags() -> tuple[str, set[str]]:
    """From ``/proc/cpuinfo`` where it exists (py-cpuinfo takes a second), else from py-cpuinfo."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        fields = {
            key.strip(): value.strip()
            for key, _, value in (line.partition(":") for line in path.read_text().split("\n\n")[0].splitlines())
        }
        model = fields.get("model name") or fields.get("Model") or platform.processor() or platform.machine()
        return model, set((fields.get("flags") or fields.get("Features") or "").split())
    import cpuinfo

    info = cpuinfo.get_cpu_info()
    return info.get("brand_raw", platform.machine()), set(info.get("flags", ()))


def _max_mhz() -> float | None:
    import psutil

    try:
        frequency = psutil.cpu_freq()
    except (NotImplementedError, OSError, RuntimeError):
        return None
    if frequency is None:
        return None
    return float(frequency.max or frequency.current) or None


def _caches() -> dict[str, int]:
    """Total bytes of each cache level as the kernel lists them (shared caches counted once per sharing group)."""
    seen: dict[tuple[str, str], int] = {}
    for index in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        try:
            kind = (index / "type").read_text().strip()
            if kind == "Instruction":
                continue
            level = "L" + (index / "level").read_text().strip()
            text = (index / "size").read_text().strip()
            group = (index / "shared_cpu_list").read_text().strip()
        except OSError:
            continue
        scale = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
        seen[level, group] = int(text.rstrip("KMG")) * scale
    totals: dict[str, int] = {}
    for (level, _), size in seen.items():
        totals[level] = totals.get(level, 0) + size
    return dict(sorted(totals.items()))


def threads() -> int:
    """OMP_NUM_THREADS when set, else the usable physical cores."""
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    if chosen.isdigit() and int(chosen) > 0:
        return int(chosen)
    facts = cpu()
    return int(max(1, min(facts["cores_physical"], facts["cores_usable"])))


def load_average() -> float | None:
    """The one-minute load average, None where the system has none."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def version(package: str) -> str | None:
    """Installed version of a distribution, None when absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def importable(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def compiler() -> str | None:
    """The C++ compiler that would be used, None when there is none."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    return None


#: What is measured, and how: folders and kinds of files.
_SOURCES, _KINDS = ("harness", "methods", "suites"), {".py", ".cpp", ".h", ".toml"}


def tree(root: Path = ROOT) -> str:
    """A digest of the sources that a number depends on, whatever commit they are called and where there is no git."""
    total = hashlib.sha256()
    found = (path for folder in _SOURCES for path in (root / folder).rglob("*") if path.suffix in _KINDS)
    for path in sorted(found):
        total.update(str(path.relative_to(root)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def git(root: Path = ROOT) -> dict[str, str]:
    """Commit and hash of the uncommitted difference.

    Outside a git checkout (an exported tree on a GPU box) the commit is ``$SPEEDCLAIM_COMMIT``, else empty.
    """

    def call(*arguments: str) -> bytes:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=True, timeout=20).stdout

    try:
        commit = call("rev-parse", "HEAD").decode().strip()
        difference = call("diff", "HEAD")
        untracked = call("ls-files", "--others", "--exclude-standard", "-z")
    except (OSError, subprocess.SubprocessError):
        return {"commit": os.environ.get("SPEEDCLAIM_COMMIT", ""), "diff": ""}
    for name in sorted(filter(None, untracked.split(b"\0"))):
        path = root / os.fsdecode(name)
        difference += name + (path.read_bytes() if path.is_file() and path.stat().st_size < 2**20 else b"")
    return {"commit": commit, "diff": hashlib.sha256(difference).hexdigest() if difference else ""}


def code(root: Path = ROOT) -> dict[str, str]:
    """What measured: commit, uncommitted difference, digest of the sources (not those of other packages' methods)."""
    return {**git(root), "tree": tree(root)}


def collect(device: str = "cpu") -> dict[str, Any]:
    """Everything about this machine that a number depends on; ``device`` is ``cpu`` or ``cuda``."""
    from harness.record import nvidia

    facts = cpu()
    gpu = nvidia.describe() if device == "cuda" else None
    load = load_average()
    used = threads()
    return {
        "device": device,
        "device_name": gpu["name"] if gpu else cpu_label(facts["cpu"], facts["simd"]),
        **facts,
        "threads": used,
        "load1": load,
        "gpu": gpu,
        "python": platform.python_version(),
        "os": platform.platform(),
        "torch": version("torch"),
        "triton": version("triton"),
        "numpy": version("numpy"),
        "compiler": compiler(),
        "host": socket.gethostname(),
        "warnings": _warnings(load, facts["cores_usable"], used, gpu),
    }


def _warnings(load: float | None, cores: int, used: int, gpu: dict[str, Any] | None) -> list[str]:
    found = []
    if load is not None and load > cores:
        found.append(f"load average {load} on {cores} cores at the start: times may be inflated")
    if used > cores:
        found.append(f"{used} threads on {cores} usable cores")
    if gpu and gpu.get("other_processes"):
        found.append(f"{gpu['other_processes']} other process(es) computed on {gpu['name']} at the start")
    return found


#: Wider than AVX2, the widest first: what a hypervisor's name for a CPU does not tell and speed depends on.
_WIDE = (
    ("amx_int8", "AMX"),
    ("avx512_vnni", "AVX-512 VNNI"),
    ("avx512bw", "AVX-512"),
    ("avx512f", "AVX-512"),
)


def cpu_label(name: str, simd: Sequence[str]) -> str:
    """A CPU as records call it: its name, and how wide it computes where the name has no model number.

    ``AMD EPYC`` stands for any of them in a virtual machine; two that differ twofold in speed must not be one device.
    """
    wide = next((label for flag, label in _WIDE if flag in simd), None)
    return name if wide is None or any(sign.isdigit() for sign in name) else f"{name} with {wide}"


def hardware(label: str) -> str:
    """The device itself: a record's ``device_name`` without the number of devices, processes or runs at once."""
    found = _SHARED.match(label)
    return found["name"] if found else label


def identity(environment: dict[str, Any]) -> dict[str, Any]:
    """The part of an environment that must match for a run to be resumed (load and warnings vary)."""
    volatile = {"load1", "warnings", "max_mhz", "probe"}
    stable = {key: value for key, value in environment.items() if key not in volatile}
    if stable.get("gpu"):
        stable["gpu"] = {k: v for k, v in stable["gpu"].items() if k != "other_processes"}
    return stable


#: What two invocations must share beside the code before their blocks count as those of one.
_SHARED_BY_BLOCKS = (
    "device_name",
    "cpu",
    "cores_physical",
    "cores_usable",
    "threads",
    "python",
    "torch",
    "triton",
    "numpy",
)
_SHARED_OF_GPU = ("driver", "memory_bytes", "power_limit_w", "max_sm_mhz", "max_memory_mhz")


def conditions(environment: dict[str, Any], project: dict[str, Any]) -> str | None:
    """A digest of code, machine model, limits and versions: equal where blocks of two invocations are blocks of one.

    Of records without a digest of the sources the commit stands for the code. None where it is unknown or the tree
    differed from it: such an invocation stands for itself alone.
    """
    clean = project.get("commit") if "diff" in project and not project["diff"] else None
    sources = project.get("tree") or clean
    if not sources:
        return None
    gpu = environment.get("gpu")
    shared = [environment.get(name) for name in _SHARED_BY_BLOCKS]
    shared += [gpu.get(name) if isinstance(gpu, dict) else None for name in _SHARED_OF_GPU]
    return hashlib.sha256(json.dumps([sources, shared], default=str).encode()).hexdigest()[:16]


def python_command() -> str:
    """How this interpreter is called, for commands that people copy."""
    return "python" if shutil.which("python") == sys.executable else sys.executable
