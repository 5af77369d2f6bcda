"""Hardware counters of one call, where the system lets an ordinary user read them: cache misses and instructions.

Linux's ``perf_event_open`` through ctypes, user mode only, on every thread that this process has when counting begins.
Nothing here needs privileges: without them, in a container or on a virtual machine without counters, the answer is why
not.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

#: Event -> (type, config) of linux/perf_event.h: PERF_TYPE_HARDWARE is 0, PERF_TYPE_HW_CACHE 3, whose config is
#: cache | operation << 8 | result << 16 (first-level data cache 0, read 0, miss 1).
EVENTS: Mapping[str, tuple[int, int]] = {
    "cache_misses": (0, 3),
    "l1d_misses": (3, 1 << 16),
    "instructions": (0, 1),
}
#: What the counts are of; a cache counts lines, of 64 bytes on today's processors.
UNITS: Mapping[str, str] = {"cache_misses": "lines", "l1d_misses": "lines", "instructions": "instructions"}
#: Number of the system call by ``platform.machine()`` (the kernel's tables).
_CALL: Mapping[str, int] = {"x86_64": 298, "aarch64": 241}
#: _IO('$', 0) and _IO('$', 1).
_ENABLE, _DISABLE = 0x2400, 0x2401
#: perf_event_attr of its second version: type, size, config, period, sample_type, read_format, flags, three more.
_ATTRIBUTES, _SIZE = "=IIQQQQQIIQQ", 72
#: read_format: with the times enabled and running, since counters are shared out by turns.
_TIMES = 1 | 2
#: disabled, exclude_kernel, exclude_hv.
_FLAGS = 1 << 0 | 1 << 5 | 1 << 6
#: PERF_FLAG_FD_CLOEXEC.
_CLOSE = 8


class Refused(OSError):
    """The kernel opens no counter; the text says why."""


def per_call(calls: Sequence[Callable[[], Any]]) -> tuple[dict[str, list[float]], str]:
    """Event -> one count a call, and why events are missing (empty when none is). The calls run only if any opens."""
    opened: dict[str, list[int]] = {}
    reasons: dict[str, str] = {}
    try:
        for event, (kind, config) in EVENTS.items():
            try:
                opened[event] = _everywhere(kind, config)
            except OSError as error:
                reasons[event] = str(error)
        found: dict[str, list[float]] = {event: [] for event in opened}
        for call in calls if opened else ():
            before = {event: _total(handles) for event, handles in opened.items()}
            _switch(opened, _ENABLE)
            call()
            _switch(opened, _DISABLE)
            for event, handles in opened.items():
                found[event].append(_total(handles) - before[event])
    finally:
        for handles in opened.values():
            for handle in handles:
                os.close(handle)
    # A counter that never moves while code runs is none.
    dead = [event for event, counts in found.items() if counts and not any(counts)]
    reasons |= dict.fromkeys(dead, "the counter stands still")
    return {event: counts for event, counts in found.items() if event not in dead}, _told(reasons)


def _told(reasons: Mapping[str, str]) -> str:
    """The reasons, each once with its events."""
    by_text: dict[str, list[str]] = {}
    for event, text in reasons.items():
        by_text.setdefault(text, []).append(event)
    return "; ".join(f"{', '.join(events)}: {text}" for text, events in by_text.items())


def _everywhere(kind: int, config: int) -> list[int]:
    """One counter for each thread of this process."""
    handles: list[int] = []
    try:
        for thread in _threads():
            handles.append(_open(kind, config, thread))  # noqa: PERF401 - those opened must be closed if one fails
    except OSError:
        for handle in handles:
            os.close(handle)
        raise
    return handles


def _threads() -> list[int]:
    try:
        return sorted(int(path.name) for path in Path("/proc/self/task").iterdir())
    except OSError:
        return [0]


def _open(kind: int, config: int, thread: int) -> int:
    number = _CALL.get(platform.machine())
    if sys.platform != "linux" or number is None:
        raise Refused(f"no hardware counters are read on {sys.platform} {platform.machine()}")
    attributes = struct.pack(_ATTRIBUTES, kind, _SIZE, config, 0, 0, _TIMES, _FLAGS, 0, 0, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    handle = int(
        libc.syscall(
            ctypes.c_long(number), ctypes.c_char_p(attributes), ctypes.c_int(thread), ctypes.c_int(-1),
            ctypes.c_int(-1), ctypes.c_ulong(_CLOSE),
        )
    )  # fmt: skip
    if handle < 0:
        error = ctypes.get_errno()
        raise Refused(_why(error))
    return handle


def _why(error: int) -> str:
    import errno

    texts = {
        errno.EPERM: "the system forbids counters to this user (/proc/sys/kernel/perf_event_paranoid, or a container)",
        errno.EACCES: "the system forbids counters to this user (/proc/sys/kernel/perf_event_paranoid)",
        errno.ENOENT: "this machine has no such counter (virtual machines often have none)",
        errno.EOPNOTSUPP: "this machine has no such counter",
        errno.ENOSYS: "this kernel has no perf_event_open",
    }
    return texts.get(error, f"perf_event_open failed: {os.strerror(error)}")


def _switch(opened: Mapping[str, list[int]], request: int) -> None:
    import fcntl

    for handles in opened.values():
        for handle in handles:
            with contextlib.suppress(OSError):
                fcntl.ioctl(handle, request, 0)


def _total(handles: Sequence[int]) -> float:
    """Sum over threads, each scaled up for the time in which it had no counter of its own."""
    total = 0.0
    for handle in handles:
        value, enabled, running = struct.unpack("=QQQ", os.read(handle, 24))
        total += value * enabled / running if running else 0.0
    return total
