"""The only door to torch's device state: synchronise, poison, precision, threads, memory, event clocks, probes.

A worker whose task does not need torch opens :class:`PlainDevice`, and torch is never imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from harness.errors import Unavailable
from harness.measure.clock import Clock, HostClock
from harness.record import environment, nvidia


class Device(Protocol):
    """What the measuring code asks of a device."""

    kind: str

    def synchronize(self) -> None:
        """Wait for everything the device was given."""

    def poison(self) -> None:
        """Fill free memory with NaN, so that reading uninitialised memory shows."""

    def strict(self) -> contextlib.AbstractContextManager[None]:
        """While the gate runs: fresh allocations hold NaN where the device can do that."""

    def late(self, read: Callable[[], Any], same: Callable[[Any, Any], bool]) -> str | None:
        """Why an output changed after the current stream was done with it (work left on another stream)."""

    def clocks(self) -> dict[str, Clock]:
        """Metric name -> clock, the primary ``op_s`` first."""

    def graph_clock(self, call: Callable[[], object]) -> Clock:
        """A clock that replays ``call`` as a captured graph."""

    def warm_up(self, call: Callable[[], object], seconds: float) -> None:
        """Bring the device to its working clocks."""

    def settings(self) -> dict[str, Any]:
        """Global state that arms share and no method may change."""

    def changed(self, before: dict[str, Any]) -> str | None:
        """Which setting differs from ``before``, which is restored; None when none does."""

    def allocated(self) -> float:
        """Device bytes allocated now, 0 without a device allocator."""

    def peak_start(self) -> None:
        """Begin a peak-memory measurement."""

    def peak(self) -> dict[str, float]:
        """Metric name -> bytes since :meth:`peak_start`."""

    def energy_j(self) -> float | None:
        """Energy counter in joules, None where it cannot be read."""

    def state(self) -> dict[str, Any]:
        """Clocks, power, temperature and throttling now."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an exception means that memory ran out."""


class HostMemory:
    """Peak resident memory of this process above a starting level, reset through ``clear_refs`` on Linux."""

    def __init__(self) -> None:
        self._base = 0

    def start(self) -> None:
        """Reset the peak; without ``clear_refs`` the peak since process start is used.

        Free heap is given back first: otherwise a call that fits into it would seem to need no memory.
        """
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")
        self._base = self._read("VmRSS")

    def peak(self) -> int:
        """Bytes above the starting level."""
        return max(0, self._read("VmHWM") - self._base)

    @staticmethod
    def _read(field: str) -> int:
        try:
            with open("/proc/self/status") as stream:
                for line in stream:
                    if line.startswith(field + ":"):
                        return int(line.split()[1]) * 1024
        except OSError:
            pass
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _rapl() -> float | None:
    """Joules of all RAPL packages; None where the counters are absent or unreadable."""
    from pathlib import Path

    total, found = 0.0, False
    for path in Path("/sys/class/powercap").glob("intel-rapl:[0-9]*/energy_uj"):
        if path.parent.name.count(":") != 1:
            continue
        try:
            total += int(path.read_text()) / 1e6
            found = True
        except (OSError, ValueError):
            return None
    return total if found else None


class PlainDevice:
    """The CPU without torch."""

    kind = "cpu"

    def __init__(self) -> None:
        self._memory = HostMemory()

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def poison(self) -> None:
        """Nothing to poison without an allocator of its own."""

    def strict(self) -> contextlib.AbstractContextManager[None]:
        """No strict mode."""
        return contextlib.nullcontext()

    def late(self, read: Callable[[], Any], same: Callable[[Any, Any], bool]) -> str | None:
        """No streams."""
        return None

    def clocks(self) -> dict[str, Clock]:
        """The host clock."""
        return {"op_s": HostClock(self.synchronize)}

    def graph_clock(self, call: Callable[[], object]) -> Clock:
        """No graphs on a CPU."""
        raise Unavailable("CUDA graphs need CUDA")

    def warm_up(self, call: Callable[[], object], seconds: float) -> None:
        """A CPU needs no half second at its clocks; the caller's one warm-up call is enough."""

    def settings(self) -> dict[str, Any]:
        """Nothing global without torch."""
        return {}

    def changed(self, before: dict[str, Any]) -> str | None:
        """Nothing to compare."""
        return None

    def allocated(self) -> float:
        """No device allocator."""
        return 0.0

    def peak_start(self) -> None:
        """Reset the resident peak."""
        self._memory.start()

    def peak(self) -> dict[str, float]:
        """Resident bytes above the start."""
        return {"peak_host_bytes": float(self._memory.peak())}

    def energy_j(self) -> float | None:
        """RAPL packages."""
        return _rapl()

    def state(self) -> dict[str, Any]:
        """Load average."""
        return {"load1": environment.load_average()}

    def is_out_of_memory(self, error: BaseException) -> bool:
        """MemoryError."""
        return isinstance(error, MemoryError)


class TorchCPU(PlainDevice):
    """The CPU through torch."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        import torch

        self._torch = torch
        torch.set_num_threads(environment.threads())
        set_precision(precision)

    def settings(self) -> dict[str, Any]:
        """Threads, default dtype, gradient mode, determinism and TF32 switches."""
        torch = self._torch
        return {
            "thread count": torch.get_num_threads(),
            "default dtype": torch.get_default_dtype(),
            "gradient mode": torch.is_grad_enabled(),
            "deterministic mode": torch.are_deterministic_algorithms_enabled(),
            "TF32 of products": torch.backends.cuda.matmul.allow_tf32,
            "TF32 of convolutions": torch.backends.cudnn.allow_tf32,
        }

    def changed(self, before: dict[str, Any]) -> str | None:
        """Compare, and restore what the next arm needs."""
        torch = self._torch
        now = self.settings()
        differing = [name for name, value in before.items() if now[name] != value]
        if not differing:
            return None
        torch.set_num_threads(before["thread count"])
        torch.set_default_dtype(before["default dtype"])
        torch.set_grad_enabled(before["gradient mode"])
        _deterministic(torch, before["deterministic mode"])
        torch.backends.cuda.matmul.allow_tf32 = before["TF32 of products"]
        torch.backends.cudnn.allow_tf32 = before["TF32 of convolutions"]
        return f"it changed torch's {' and '.join(differing)}"

    @contextlib.contextmanager
    def strict(self) -> Iterator[None]:
        """Deterministic mode: ``torch.empty`` comes filled with NaN."""
        torch = self._torch
        before = torch.are_deterministic_algorithms_enabled()
        _deterministic(torch, True)
        try:
            yield
        finally:
            _deterministic(torch, before)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """MemoryError, or the CPU allocator's RuntimeError."""
        return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _deterministic(torch: Any, on: bool) -> None:
    """Deterministic mode without the public function's import of the whole compiler (two seconds a process)."""
    direct = getattr(torch._C, "_set_deterministic_algorithms", None)
    if direct is None:
        torch.use_deterministic_algorithms(on, warn_only=True)
    else:
        direct(on, warn_only=True)


class TorchCUDA(TorchCPU):
    """The first visible CUDA device through torch."""

    kind = "cuda"

    def __init__(self, precision: str) -> None:
        super().__init__(precision)
        torch = self._torch
        if not torch.cuda.is_available():
            raise Unavailable("torch sees no CUDA device; install a CUDA build of torch or measure with --device cpu.")
        self._flush = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
        self._base = 0

    def synchronize(self) -> None:
        """Wait for every stream."""
        self._torch.cuda.synchronize()

    def poison(self) -> None:
        """Fill up to a gibibyte of the caching allocator's free blocks with NaN, in several sizes."""
        torch = self._torch
        held: list[Any] = []
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            for size in (2**9, 2**12, 2**16, 2**20, 2**22, 2**24, 2**26, 2**28):
                copies = 4 if size < 2**26 else 1
                held.extend(torch.full((size // 4,), float("nan"), device="cuda") for _ in range(copies))
        del held

    def late(self, read: Callable[[], Any], same: Callable[[Any, Any], bool]) -> str | None:
        """Copy on the current stream, then wait for all streams and copy again: both must agree."""
        torch = self._torch
        early = read()
        torch.cuda.current_stream().synchronize()
        torch.cuda.synchronize()
        if same(early, read()):
            return None
        return "the output changed after the current stream was done: work was left on another stream"

    def clocks(self) -> dict[str, Clock]:
        """Device events with a cold and with a hot L2 cache, and the host's time to issue the call."""
        return {
            "op_s": EventClock(self._torch, self._flush),
            "op_hot_s": EventClock(self._torch, None),
            "launch_s": LaunchClock(self._torch),
        }

    def graph_clock(self, call: Callable[[], object]) -> Clock:
        """Capture ``call`` once; each timed call is one replay."""
        return GraphClock(self._torch, call)

    def warm_up(self, call: Callable[[], object], seconds: float) -> None:
        """Call until the device was busy for ``seconds``, at least once."""
        end = time.perf_counter() + seconds
        while True:
            call()
            self._torch.cuda.synchronize()
            if time.perf_counter() >= end:
                return

    def allocated(self) -> float:
        """Bytes held in the caching allocator."""
        gc.collect()
        self._torch.cuda.synchronize()
        return float(self._torch.cuda.memory_allocated())

    def peak_start(self) -> None:
        """Reset allocator statistics and the resident peak."""
        super().peak_start()
        torch = self._torch
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self._base = torch.cuda.memory_allocated()

    def peak(self) -> dict[str, float]:
        """Allocated bytes over the baseline, reserved bytes, resident host bytes."""
        torch = self._torch
        torch.cuda.synchronize()
        return {
            "peak_device_bytes": float(torch.cuda.max_memory_allocated() - self._base),
            "peak_device_reserved_bytes": float(torch.cuda.max_memory_reserved()),
            **super().peak(),
        }

    def energy_j(self) -> float | None:
        """NVML's energy counter."""
        return nvidia.energy_j()

    def state(self) -> dict[str, Any]:
        """NVML's clocks, power, temperature and throttle reasons."""
        return {**nvidia.state(), "load1": environment.load_average()}

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Torch's out-of-memory error, or the host's."""
        return isinstance(error, self._torch.cuda.OutOfMemoryError) or super().is_out_of_memory(error)


#: About two milliseconds at 2 GHz: more than any engine of this suite needs to issue its launches.
SLEEP_CYCLES = 4_000_000


class LaunchClock:
    """Host seconds to issue one call, the device idle before it: what a launch-bound loop would pay."""

    name = "launch"

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def time(self, call: Callable[[], object]) -> float:
        """Host seconds from the call to its return, without waiting for the device."""
        torch = self._torch
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = call()
        elapsed = time.perf_counter() - start
        torch.cuda.synchronize()
        del result
        return elapsed


class EventClock:
    """Device events around one call; with ``flush``, the L2 cache is overwritten before each one.

    The device first sleeps while the host issues the call, so that the time of launching kernels from Python stays
    out of the device time as long as it is under ``SLEEP_CYCLES``; what the host needs is recorded as ``launch_s``.
    """

    def __init__(self, torch: Any, flush: Any | None) -> None:
        self.name = "op-hot" if flush is None else "op-cold"
        self._torch = torch
        self._flush = flush

    def time(self, call: Callable[[], object]) -> float:
        """Device seconds between two events around ``call``."""
        torch = self._torch
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        torch.cuda._sleep(SLEEP_CYCLES)
        if self._flush is not None:
            self._flush.zero_()
        start.record()
        result = call()
        end.record()
        torch.cuda.synchronize()
        del result
        return float(start.elapsed_time(end)) / 1e3


class GraphClock:
    """Replays one captured call between device events, so that launch time is left out."""

    name = "graph"

    def __init__(self, torch: Any, call: Callable[[], object]) -> None:
        self._torch = torch
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.output = call()

    def time(self, call: Callable[[], object]) -> float:
        """Device seconds of one replay; ``call`` itself is not run."""
        torch = self._torch
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        self._graph.replay()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3


def set_precision(mode: str) -> None:
    """Set TF32 for products and convolutions by the precision mode's name, in every arm alike."""
    import torch

    if mode in ("bf16", "fp16"):
        raise Unavailable(
            f"precision {mode!r} is for training under autocast; a micro suite names a dtype per problem."
        )
    product = mode == "tf32"
    convolution = mode in ("tf32", "torch-default")
    torch.backends.cuda.matmul.allow_tf32 = product
    torch.backends.cudnn.allow_tf32 = convolution


def open_device(kind: str, needs_torch: bool, precision: str) -> Device:
    """The device of a worker; torch is imported only when the task needs it."""
    os.environ.setdefault("OMP_NUM_THREADS", str(environment.threads()))
    if not needs_torch:
        return PlainDevice()
    return TorchCUDA(precision) if kind == "cuda" else TorchCPU(precision)


#: Side of the squares whose product is timed, and for how long: for the plan's other dtypes a CPU may emulate them.
_PROBE = {"cuda": (8192, 0.7), "float32": (1024, 0.7), "other": (256, 0.2)}


def probe(kind: str, dtypes: Iterable[str] = ()) -> dict[str, Any]:
    """Product rates in FLOP/s for the plan's estimate, and facts that only torch knows.

    Returns:
        ``flops_per_s`` of float32 (on a GPU: bfloat16), ``rates`` by dtype for the others that a CPU is asked about.
    """
    import torch

    if kind == "cpu":
        torch.set_num_threads(environment.threads())

    def rate(dtype: torch.dtype, size: int, seconds: float) -> float:
        left, right = (torch.randn(size, size, device=kind).to(dtype) for _ in range(2))
        clock = HostClock(torch.cuda.synchronize if kind == "cuda" else (lambda: None))
        clock.time(lambda: left @ right)
        samples: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(samples) < 3:
            samples.append(clock.time(lambda: left @ right))
        return 2.0 * size**3 / sorted(samples)[len(samples) // 2]

    if kind == "cpu":
        rates = {name: rate(getattr(torch, name), *_PROBE["other"]) for name in dtypes if name != "float32"}
        facts: dict[str, Any] = {"flops_per_s": rate(torch.float32, *_PROBE["float32"]), "rates": rates}
    else:
        facts = {"flops_per_s": rate(torch.bfloat16, *_PROBE["cuda"]), "rates": {}}
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {"sm_count": properties.multi_processor_count, "l2_bytes": getattr(properties, "L2_cache_size", None)}
    return facts
