"""Exact products by a known matrix: the library calls there are, and the choice among them by measuring at fit."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from harness.errors import UserError

BACKENDS = ("auto", "mm", "linear", "numpy")
Call = Callable[[Tensor], Tensor]

#: Rounds of a choice at fit: each candidate is timed once per round, the smallest time decides.
ROUNDS = 5


def call(name: str, b: Tensor) -> Call:
    """``a -> a @ b`` by one library call, B laid out as the call likes it."""
    if name == "linear" or (name == "numpy" and b.device.type != "cpu"):
        weight = b.t().contiguous()
        return lambda a: functional.linear(a, weight)
    if name == "mm":
        kept = b.contiguous()
        return lambda a: torch.mm(a, kept)
    if name != "numpy":
        raise ValueError(f"call must be one of {', '.join(BACKENDS[1:])}; got {name!r}")
    plain = b.contiguous().numpy()
    return lambda a: torch.from_numpy(np.matmul(a.detach().numpy(), plain))


def candidates(backend: str, sample: Tensor, method: str) -> tuple[tuple[str, ...], list[str]]:
    """Calls to try on inputs like ``sample``, and what was left out of them with the reason.

    Raises:
        UserError: NumPy is asked for where it cannot be called.
    """
    possible = sample.device.type == "cpu" and sample.dtype in (torch.float32, torch.float64)
    if backend == "numpy" and not possible:
        raise UserError(
            f"{method}: backend 'numpy' needs float32 or float64 on a CPU, got {sample.dtype} on {sample.device}."
        )
    if backend != "auto":
        return (backend,), []
    if not possible:
        return ("mm", "linear"), []
    if blas_threads() != torch.get_num_threads():
        return ("mm", "linear"), ["numpy: its BLAS is not known to use as many threads as torch"]
    return ("mm", "linear", "numpy"), []


def measure(calls: Mapping[str, Call], sample: Tensor) -> dict[str, float]:
    """Smallest seconds of a few interleaved rounds after one warm-up call each."""
    best = dict.fromkeys(calls, float("inf"))
    for number in range(ROUNDS + 1):
        for name, product in calls.items():
            _wait(sample)
            start = time.perf_counter()
            product(sample)
            _wait(sample)
            if number:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def fastest(calls: Mapping[str, Call], sample: Tensor) -> tuple[str, dict[str, float]]:
    """The quickest of ``calls`` and the seconds of each; nothing is measured when there is one."""
    if len(calls) == 1:
        return next(iter(calls)), {}
    seconds = measure(calls, sample)
    return min(seconds, key=lambda name: seconds[name]), seconds


def product(b: Tensor, sample: Tensor, method: str, backend: str = "auto") -> tuple[str, dict[str, float], list[str]]:
    """Choose how to multiply rows like ``sample`` by ``b``: name, seconds of each candidate, what was left out."""
    names, left_out = candidates(backend, sample, method)
    chosen, seconds = fastest({name: call(name, b) for name in names}, sample)
    return chosen, seconds, left_out


def title(name: str) -> str:
    """A call's name for people."""
    titles = {"mm": "torch.mm", "linear": "torch F.linear (transposed weight)"}
    return titles.get(name) or f"numpy ({blas()})"


def _wait(sample: Tensor) -> None:
    if sample.device.type == "cuda":
        torch.cuda.synchronize(sample.device)


def _pools() -> list[dict[str, Any]]:
    try:
        threadpoolctl = importlib.import_module("threadpoolctl")
    except ImportError:
        return []
    found: list[dict[str, Any]] = threadpoolctl.threadpool_info()
    return [pool for pool in found if pool.get("user_api") == "blas" and "numpy" in str(pool.get("filepath"))]


def blas_threads() -> int | None:
    """Threads of NumPy's BLAS: from threadpoolctl, else from the environment, else unknown."""
    pools = _pools()
    if pools:
        return int(pools[0]["num_threads"])
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(variable, "").isdigit():
            return int(os.environ[variable])
    return None


def blas() -> str:
    """Name, version and kernel of NumPy's BLAS."""
    pools = _pools()
    if not pools:
        return "BLAS unknown"
    return " ".join(str(pools[0].get(key) or "") for key in ("internal_api", "version", "architecture")).strip()
