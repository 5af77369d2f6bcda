"""Inputs of the task: rows of A with the numbers of the test rows they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.catalogue.suite import Problem
from harness.errors import UserError
from suites.amm.sources import Source

DTYPES: dict[str, torch.dtype] = {n: getattr(torch, n) for n in ("float32", "float64", "bfloat16", "float16", "uint8")}
#: Rows are moved by multiples of this prime, so that successive variations share no block of rows.
STRIDE = 7919
#: Rows built at a time.
PIECE = 65_536


@dataclass(frozen=True, kw_only=True)
class Rows:
    """One A.

    Attributes:
        a: [N, D] on the problem's device.
        index: int64 [N], which row of the source's pool each row is (on the CPU).
        start: a variation begins at this row and wraps around; it is copied out when a buffer is filled.
    """

    a: Tensor
    index: np.ndarray
    start: int = 0

    def copy_into(self, target: Tensor) -> None:
        """Write the rows, from ``start`` on and around, into ``target``."""
        n = len(self.a)
        if self.start == 0:
            target.copy_(self.a)
            return
        target[: n - self.start].copy_(self.a[self.start :])
        target[n - self.start :].copy_(self.a[: self.start])

    def whole(self) -> Tensor:
        """The rows as one tensor."""
        if self.start == 0:
            return self.a
        out = torch.empty_like(self.a)
        self.copy_into(out)
        return out

    def numbers(self) -> np.ndarray:
        """Pool numbers in the order of :meth:`whole`."""
        return np.roll(self.index, -self.start)


def draw(problem: Problem, found: Source, seed: int) -> Rows:
    """N different rows of the pool in a random order: a function of (problem, seed) alone."""
    n = problem.shape[0]
    random = np.random.default_rng([problem.seed, seed, 77])
    if found.endless and n > len(found.pool):
        return _pairs(problem, found, random)
    index = random.permutation(len(found.pool))[:n]
    exact = torch.from_numpy(found.pool[index])
    rows = exact.to(DTYPES[problem.dtype])
    if not rows.is_floating_point() and not torch.equal(rows.to(exact.dtype), exact):
        raise UserError(f"{problem.id}: {problem.params['data']} has rows that are no bytes; give it a floating dtype.")
    return Rows(a=stored(rows.to(problem.device), problem), index=index)


def _pairs(problem: Problem, found: Source, random: np.random.Generator) -> Rows:
    """Sums of two rows of a centred gaussian pool over sqrt(2), which have its distribution."""
    pool = torch.from_numpy(found.pool).to(problem.device)
    picks = [torch.from_numpy(random.integers(0, len(pool), problem.shape[0])).to(problem.device) for _ in range(2)]
    dtype = DTYPES[problem.dtype]
    out = torch.empty(problem.shape[0], pool.shape[1], dtype=dtype, device=problem.device)
    for at in range(0, len(out), PIECE):
        one, two = (pool[pick[at : at + PIECE]] for pick in picks)
        out[at : at + PIECE] = ((one + two) / 2**0.5).to(dtype)
    return Rows(a=stored(out, problem), index=np.arange(len(out)))


def learned_in(problem: Problem) -> torch.dtype:
    """The dtype of B and of the training rows: the problem's, float32 where A has bytes."""
    dtype = DTYPES[problem.dtype]
    return dtype if dtype.is_floating_point else torch.float32


def stored(a: torch.Tensor, problem: Problem) -> torch.Tensor:
    """A in the problem's order of memory: row by row, or column by column where ``layout`` is ``columns``."""
    return a.T.contiguous().T if layout(problem) == "columns" else a


def layout(problem: Problem) -> str:
    """The problem's order of memory, ``rows`` or ``columns``."""
    return "columns" if problem.params.get("layout") == "columns" else "rows"


def vary(rows: Rows, step: int) -> Rows:
    """The same rows from another one on: every row's answer stays, every output differs."""
    n = len(rows.a)
    shift = (step * STRIDE) % n if n > 1 else 0
    return Rows(a=rows.a, index=rows.index, start=(rows.start + (shift or n // 2)) % n)
