"""``approximate_matmul.cooccur``: co-occurring directions of A and B, at run time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.errors import Unsupported
from methods.approximate_matmul.linear.base import Estimator, Fit, Op, State, choice, factorising, limited_rank

BUFFERS = ("double", "single")


class Cooccur(Op):
    """Y = X Zᵀ, X [N, d] and Z [M, d] sketches of A's columns and B's rows that keep the directions they share.

    Mroueh, Marcheret and Goel, Co-Occurring Directions Sketching (AISTATS 2017), algorithm 2: full buffers are
    orthonormalised, X = Q R and Z = P T, R Tᵀ = U diag(sigma) Vᵀ, and become Q U s^(1/2) and P V s^(1/2) with
    s = max(sigma - delta, 0). ``buffer="single"`` (published): d columns, delta = sigma_(d/2), and
    |A B - Y|_2 <= 2 |A|_F |B|_F / d. ``"double"``: 2 d columns, delta = sigma_d, cut to d columns at the end; every
    shrink takes delta from d values, so the bound halves. Fit: keeping B. Run time: everything.
    """

    method = "approximate_matmul.cooccur"
    codeless = "its directions depend on all rows of A at once"

    @classmethod
    def learn(cls, a_train: Tensor, b: Tensor, hyper: Mapping[str, Any], fit: Fit) -> State:
        """Keep B by rows.

        Raises:
            Unsupported: a cut at the first singular value, where the shrink leaves nothing.
        """
        limited_rank(hyper["rank"], int(b.shape[0]), int(b.shape[1]), cls.method)
        least = 2 if hyper["buffer"] == "double" else 4
        if hyper["rank"] < least:
            raise Unsupported(f"{cls.method} needs rank {least} or more: below, every shrink leaves zero")
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
        """Sketch, multiply."""
        rank = self.hyper["rank"]
        double = self.hyper["buffer"] == "double"
        room, cut = (2 * rank, rank) if double else (rank, max(rank // 2, 1))
        left, right, start = a[:, :room], self._b[:room].t(), room
        while start < self.inner:
            left, right = shrunk(left, right, cut)
            stop = start + room - left.shape[1]
            left = torch.cat((left, a[:, start:stop]), dim=1)
            right = torch.cat((right, self._b[start:stop].t()), dim=1)
            start = stop
        if left.shape[1] > rank:
            left, right = shrunk(left, right, cut)
        return left @ right.t()

    def multiplies(self, n: int) -> float:
        """Per shrink of r columns: 2 r² (N + M) for the orthonormalisations and as much to form and rotate Q and P."""
        rank = self.hyper["rank"]
        room, cut = (2 * rank, rank) if self.hyper["buffer"] == "double" else (rank, max(rank // 2, 1))
        shrinks = max(0, -(-(self.inner - room) // (room - cut + 1))) + (room > rank)
        return float(shrinks * 2 * room * (room + cut) * (n + self.outer) + n * rank * self.outer)

    def describe(self) -> dict[str, Any]:
        """All work is at run time."""
        return super().describe() | {"backend": "torch.linalg.qr and svd at run time", "rank": self.hyper["rank"]}


def shrunk(left: Tensor, right: Tensor, cut: int) -> tuple[Tensor, Tensor]:
    """Both buffers in their shared directions, shrunk by the cut-th singular value: at most cut - 1 columns."""
    basis, inside = torch.linalg.qr(left)
    other, beside = torch.linalg.qr(right)
    u, values, vt = torch.linalg.svd(inside @ beside.t(), full_matrices=False)
    # Fewer directions than the cut: nothing has to be given up.
    if len(values) >= cut:
        values, u, vt = (values - values[cut - 1])[: cut - 1], u[:, : cut - 1], vt[: cut - 1]
    weight = values.clamp(min=0).sqrt()
    return basis @ (u * weight), other @ (vt.t() * weight)


KIND = Cooccur


def make(*, rank: int = 16, buffer: str = "double") -> Estimator:
    """Sketches of ``rank`` columns; ``buffer`` is double, or single as published."""
    choice(buffer, BUFFERS, "buffer", Cooccur.method)
    return Estimator(Cooccur, {"rank": rank, "buffer": buffer})
