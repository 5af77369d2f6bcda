"""``approximate_matmul.exact``: the exact product by the fastest library call on this machine and shape."""

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
from methods.approximate_matmul.linear.base import Clock, Estimator, Op, State, choice

BACKENDS = ("auto", "mm", "linear", "numpy")
Call = Callable[[Tensor], Tensor]

#: Rounds of the choice at fit: each candidate is timed once per round, the smallest time decides.
ROUNDS = 5


class Exact(Op):
    """Y = A B by torch.mm, by F.linear on Bᵀ stored row by row, or by NumPy's BLAS, whichever fit found fastest.

    Fit: copies of B in the layout each call likes; the choice is timed on ``rows`` rows of the training data, outside
    any measurement. Run time: one library call in a's dtype. NumPy takes part only on a CPU, in float32 and float64,
    and only when its BLAS is known to use as many threads as torch.
    """

    method = "approximate_matmul.exact"
    native_half = True

    @classmethod
    def learn(cls, a_train: Tensor, b: Tensor, hyper: Mapping[str, Any], times: dict[str, float]) -> State:
        """Copy B, then choose."""
        with Clock(times, "table_s"):
            state = {"b": b.clone(memory_format=torch.contiguous_format)}
            rows = hyper["rows"] or a_train.shape[0]
            repeats = -(-rows // a_train.shape[0])
            sample = (a_train.repeat(repeats, 1) if repeats > 1 else a_train)[:rows].contiguous()
            names, skipped = _candidates(hyper["backend"], sample)
            measured = _measure({name: _call(name, state["b"]) for name in names}, sample)
            state["seconds"] = torch.tensor([measured.get(name, -1.0) for name in BACKENDS[1:]], dtype=torch.float64)
            state["skipped_numpy"] = torch.tensor(int(bool(skipped)))
        return state

    def prepare(self) -> None:
        """Take the fastest candidate's call."""
        seconds = dict(zip(BACKENDS[1:], self.state["seconds"].tolist(), strict=True))
        self.seconds = {name: value for name, value in seconds.items() if value >= 0}
        self.chosen = min(self.seconds, key=lambda name: self.seconds[name])
        self._call = _call(self.chosen, self.state["b"].to(self.work))

    @property
    def device(self) -> torch.device:
        """Where B is."""
        return self.state["b"].device

    def product(self, a: Tensor) -> Tensor:
        """One library call."""
        return self._call(a)

    def bytes_read(self, n: int) -> float:
        """A and B once."""
        return float(n * self.inner + self.inner * self.outer) * self.state["b"].element_size()

    def describe(self) -> dict[str, Any]:
        """Adds the call chosen at fit and the times it was chosen by."""
        names = {"mm": "torch.mm", "linear": "torch F.linear (transposed weight)", "numpy": f"numpy ({_blas()})"}
        return super().describe() | {
            "backend": names[self.chosen],
            "candidates_s": {names[name]: value for name, value in self.seconds.items()},
            "left_out": ["numpy: threads of its BLAS not known to equal torch's"]
            if int(self.state["skipped_numpy"])
            else [],
        }


def _call(name: str, b: Tensor) -> Call:
    if name == "mm":
        return lambda a: torch.mm(a, b)
    if name == "linear":
        weight = b.t().contiguous()
        return lambda a: functional.linear(a, weight)
    plain = b.numpy()
    return lambda a: torch.from_numpy(np.matmul(a.numpy(), plain))


def _candidates(backend: str, sample: Tensor) -> tuple[tuple[str, ...], str]:
    """Calls to try, and why NumPy is not among them when it might have been."""
    possible = sample.device.type == "cpu" and sample.dtype in (torch.float32, torch.float64)
    if backend == "numpy" and not possible:
        raise UserError(
            f"{Exact.method}: backend 'numpy' needs float32 or float64 on a CPU, got {sample.dtype} on {sample.device}."
        )
    if backend != "auto":
        return (backend,), ""
    if not possible:
        return ("mm", "linear"), ""
    if _blas_threads() != torch.get_num_threads():
        return ("mm", "linear"), "threads"
    return ("mm", "linear", "numpy"), ""


def _measure(calls: Mapping[str, Call], sample: Tensor) -> dict[str, float]:
    """Smallest seconds of a few interleaved rounds after one warm-up call each."""
    best = dict.fromkeys(calls, 0.0)
    if len(calls) == 1:
        return best
    best = dict.fromkeys(calls, float("inf"))
    for number in range(ROUNDS + 1):
        for name, call in calls.items():
            _wait(sample)
            start = time.perf_counter()
            call(sample)
            _wait(sample)
            if number:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


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


def _blas_threads() -> int | None:
    """Threads of NumPy's BLAS: from threadpoolctl, else from the environment, else unknown."""
    pools = _pools()
    if pools:
        return int(pools[0]["num_threads"])
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(variable, "").isdigit():
            return int(os.environ[variable])
    return None


def _blas() -> str:
    pools = _pools()
    if not pools:
        return "BLAS unknown"
    return " ".join(str(pools[0].get(key) or "") for key in ("internal_api", "version", "architecture")).strip()


KIND = Exact


def make(*, backend: str = "auto", rows: int | None = None) -> Estimator:
    """The exact product.

    Args:
        backend: one of auto (measured at fit), mm, linear, numpy.
        rows: rows of A at run time, for the choice at fit; by default as many as there are training rows.
    """
    choice(backend, BACKENDS, "backend", Exact.method)
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise UserError(f"{Exact.method}: rows must be a positive integer or None, got {rows!r}.")
    return Estimator(Exact, {"backend": backend, "rows": rows})
