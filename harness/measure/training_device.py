"""A device as training needs it beyond a micro suite: events, autocast, loss scaling, random state, compiling."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import time
from collections.abc import Callable
from typing import Any

from harness.errors import Unsupported
from harness.measure.device import TorchCPU, TorchCUDA
from harness.record import environment

#: Precision modes under autocast and the name of their dtype; outside it products and convolutions are torch's default.
AUTOCAST = {"bf16": "bfloat16", "fp16": "float16"}


class TrainingCPU(TorchCPU):
    """The CPU as a training device."""

    def __init__(self, precision: str) -> None:
        super().__init__("torch-default" if precision in AUTOCAST else precision)
        self._autocast = AUTOCAST.get(precision)
        self._free: list[Any] = []

    def clear(self) -> None:
        """Give free memory back between runs."""

    def name(self) -> str:
        """What a person calls it."""
        return "CPU"

    # -- marks -----------------------------------------------------------------------------------------------------

    def mark(self) -> Any:
        """A point in time, without waiting for the device."""
        return time.perf_counter()

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two marks, after a synchronisation."""
        return float(end - start)

    def release(self) -> None:
        """All marks given out so far may be used again."""

    # -- arithmetic ------------------------------------------------------------------------------------------------

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast of the run's precision mode; nothing in the other modes."""
        if self._autocast is None:
            return contextlib.nullcontext()
        dtype = getattr(self._torch, self._autocast)
        context: contextlib.AbstractContextManager[Any] = self._torch.autocast(self.kind, dtype=dtype)
        return context

    def scaler(self) -> Any | None:
        """A gradient scaler in fp16, else None."""
        return self._torch.amp.GradScaler(self.kind) if self._autocast == "float16" else None

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` through ``torch.compile``, static shapes.

        Raises:
            Unsupported: no compiler for the generated code.
        """
        if self.kind == "cpu" and environment.compiler() is None:
            raise Unsupported("torch.compile on a CPU needs a C++ compiler: none on PATH (set CXX).")
        wrapped: Callable[..., Any] = self._torch.compile(function, dynamic=False)
        return wrapped

    def forget_graphs(self) -> None:
        """Drop every compiled graph of this process."""
        self._torch.compiler.reset()

    # -- random state ----------------------------------------------------------------------------------------------

    def seed(self, seed: int) -> None:
        """Seed torch's generators, and those that a method may draw from."""
        import numpy as np

        self._torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)

    def random_state(self) -> dict[str, Any]:
        """State of torch's generators."""
        return {"cpu": self._torch.get_rng_state()}

    def set_random_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`random_state`."""
        self._torch.set_rng_state(state["cpu"])

    # -- memory ----------------------------------------------------------------------------------------------------

    def reset_peak(self) -> None:
        """Forget the device's peak so far; the baseline of :meth:`peak_start` stays."""

    def device_peak(self) -> float:
        """Device bytes over the baseline since the last reset, 0 without a device allocator."""
        return 0.0


class TrainingCUDA(TrainingCPU, TorchCUDA):
    """The first visible CUDA device as a training device."""

    kind = "cuda"

    def __init__(self, precision: str) -> None:
        super().__init__(precision)
        self._flush = None
        self._used: list[Any] = []
        # Every arm alike: the fastest convolution is searched during the warm-up.
        self._torch.backends.cudnn.benchmark = True

    def clear(self) -> None:
        """Give free device memory back between runs."""
        gc.collect()
        self._torch.cuda.empty_cache()

    def name(self) -> str:
        """Its model and number."""
        number = self._torch.cuda.current_device()
        return f"{self._torch.cuda.get_device_name(number)} (cuda:{number})"

    def mark(self) -> Any:
        """An event recorded on the current stream."""
        event = self._free.pop() if self._free else self._torch.cuda.Event(enable_timing=True)
        event.record()
        self._used.append(event)
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two events."""
        return float(start.elapsed_time(end)) / 1e3

    def release(self) -> None:
        """All events given out so far may be recorded again."""
        self._free.extend(self._used)
        self._used.clear()

    def random_state(self) -> dict[str, Any]:
        """State of torch's generators on the CPU and on the device."""
        return {**super().random_state(), "cuda": self._torch.cuda.get_rng_state()}

    def set_random_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`random_state`."""
        super().set_random_state(state)
        self._torch.cuda.set_rng_state(state["cuda"])

    def reset_peak(self) -> None:
        """Forget the peak so far."""
        self._torch.cuda.reset_peak_memory_stats()

    def device_peak(self) -> float:
        """Allocated bytes over the baseline since the last reset."""
        return max(0.0, float(self._torch.cuda.max_memory_allocated() - self._base))


def open_training(kind: str, precision: str) -> TrainingCPU:
    """The training device of this process; torch's threads and precision flags are set."""
    os.environ.setdefault("OMP_NUM_THREADS", str(environment.threads()))
    return TrainingCUDA(precision) if kind == "cuda" else TrainingCPU(precision)
