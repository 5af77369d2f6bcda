"""``approximate_matmul.fd-amm``: frequent directions of A and B together, at run time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.errors import Unsupported
from methods.approximate_matmul.linear.base import Estimator, Fit, Op, State, choice, factorising, limited_rank

SHRINKS = ("theory", "published")
BUFFERS = ("double", "single")


class FdAmm(Op):
    """Y = S_Aᵀ S_B with [S_A, S_B] the frequent-directions sketch, d rows, of the D rows of [Aᵀ, B].

    Ye, Luo and Zhang, IJCAI 2016 (FD-AMM); the sketch: Ghashami, Liberty, Phillips and Woodruff, SIAM J. Comput. 45
    (2016). A full buffer is replaced by its singular directions with sigma_i <- sqrt(max(sigma_i² - sigma_d², 0)),
    hence |A B - Y|_2 <= (|A|_F² + |B|_F²) / d. Fit: nothing but keeping B. Run time: everything, by eigenvectors of
    the buffer's Gram matrix. ``shrink="published"`` subtracts the singular values, |sigma_i - sigma_d|, which loses
    the bound. ``buffer`` of 2 d rows ("double") shrinks once in d + 1 rows, one of d rows ("single") at every row.
    """

    method = "approximate_matmul.fd-amm"
    codeless = "its directions depend on all rows of A at once"

    @classmethod
    def learn(cls, a_train: Tensor, b: Tensor, hyper: Mapping[str, Any], fit: Fit) -> State:
        """Keep B.

        Raises:
            Unsupported: rank 1, where the shrink leaves nothing.
        """
        limited_rank(hyper["rank"], int(b.shape[0]), int(b.shape[1]), cls.method)
        if hyper["rank"] < 2:
            raise Unsupported(f"{cls.method} keeps rank - 1 directions: rank 1 approximates every product by zero")
        return {"b": b.contiguous().clone()}

    def prepare(self) -> None:
        """Cast B."""
        self._b = self.state["b"].to(self.work)

    def product(self, a: Tensor) -> Tensor:
        """What :meth:`_sketched` gives, or a clear error.

        Raises:
            UserError: a is not finite, so that no directions can be found.
        """
        with factorising(a, self.method):
            return self._sketched(a)

    def _sketched(self, a: Tensor) -> Tensor:
        """Sketch the rows of [Aᵀ, B], multiply the two parts."""
        rank, published = self.hyper["rank"], self.hyper["shrink"] == "published"
        room = rank * (2 if self.hyper["buffer"] == "double" else 1)
        stacked = torch.cat((a.t(), self._b), dim=1)
        sketch, start = stacked[:room], room
        while start < self.inner:
            sketch = shrunk(sketch, rank, published)
            stop = start + room - len(sketch)
            sketch = torch.cat((sketch, stacked[start:stop]))
            start = stop
        if len(sketch) > rank:
            sketch = shrunk(sketch, rank, published)
        return sketch[:, : len(a)].t() @ sketch[:, len(a) :]

    def multiplies(self, n: int) -> float:
        """Per shrink of r rows: r² w for the Gram matrix, r d w for the rotation, w = N + M; then N d M."""
        rank, width = self.hyper["rank"], n + self.outer
        room = rank * (2 if self.hyper["buffer"] == "double" else 1)
        shrinks = max(0, -(-(self.inner - room) // (room - rank + 1))) + (room > rank)
        return float(shrinks * (room * room + room * rank) * width + n * rank * self.outer)

    def describe(self) -> dict[str, Any]:
        """All work is at run time."""
        return super().describe() | {"backend": "torch, frequent directions at run time", "rank": self.hyper["rank"]}


def shrunk(rows: Tensor, rank: int, published: bool) -> Tensor:
    """The rank - 1 leading singular directions of at least ``rank`` rows, shrunk by the rank-th singular value."""
    values, vectors = torch.linalg.eigh((rows @ rows.t()).double())
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    cut = values[rank - 1]
    kept = values[: rank - 1]
    safe = torch.where(kept > 0, kept, torch.ones_like(kept))
    factors = (1 - (cut / safe).sqrt()).abs() if published else ((kept - cut).clamp(min=0) / safe).sqrt()
    factors = torch.where(kept > 0, factors, torch.zeros_like(factors))
    turn: Tensor = (vectors[:, : rank - 1] * factors).t().to(rows.dtype)
    return turn @ rows


KIND = FdAmm


def make(*, rank: int = 16, shrink: str = "theory", buffer: str = "double") -> Estimator:
    """A sketch of ``rank`` rows; ``shrink`` is theory or published, ``buffer`` double or single."""
    choice(shrink, SHRINKS, "shrink", FdAmm.method)
    choice(buffer, BUFFERS, "buffer", FdAmm.method)
    return Estimator(FdAmm, {"rank": rank, "shrink": shrink, "buffer": buffer})
