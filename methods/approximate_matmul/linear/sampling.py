"""``approximate_matmul.sampling``: columns of A and rows of B drawn by the product of their norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from methods.approximate_matmul.linear.base import Estimator, Fit, Op, State, choice, limited_rank
from methods.approximate_matmul.linear.draws import uniforms
from methods.approximate_matmul.linear.int8 import block_rows
from methods.approximate_matmul.linear.sketch import checked_seed

NORMS = ("run", "train")


class Sampling(Op):
    """Y = sum over d draws of A^(k) B_(k) / (d p_k), with replacement, p_k proportional to |A^(k)| |B_(k)|.

    Drineas, Kannan and Mahoney, SIAM J. Comput. 36 (2006), algorithm BasicMatrixMultiplication and lemma 4; unbiased,
    E|Y - A B|_F² = ((sum_k |A^(k)| |B_(k)|)² - |A B|_F²) / d, the least of all p. Fit: norms of B's rows and the
    uniform numbers (so a call repeats). Run time: norms of A's columns, the draw, a gather, a thin product.
    ``norms="train"`` takes |A^(k)| from the training rows: everything but the gather and the product moves to fit.
    """

    method = "approximate_matmul.sampling"
    codeless = "with norms='run' the columns that it draws depend on all rows of A at once (norms='train' has codes)"

    @classmethod
    def learn(cls, a_train: Tensor, b: Tensor, hyper: Mapping[str, Any], fit: Fit) -> State:
        """Norms of B's rows; with norms="train" the draw as well."""
        limited_rank(hyper["rank"], int(b.shape[0]), int(b.shape[1]), cls.method)
        with fit.clock("table_s"):
            numbers = torch.from_numpy(uniforms(hyper["rank"], hyper["seed"])).to(b.device)
            state = {"b": b.contiguous().clone(), "norms": b.double().norm(dim=1), "uniforms": numbers}
        if hyper["norms"] == "train":
            with fit.clock("train_s"):
                picked, weights = drawn(a_train.double().norm(dim=0) * state["norms"], numbers)
                state |= {"picked": picked, "rows": (b.double()[picked] * weights[:, None]).to(b.dtype)}
        return state

    def prepare(self) -> None:
        """Cast B."""
        self._b = self.state["b"].to(self.work)
        self._rows_of_b = self.state["rows"].to(self.work) if "rows" in self.state else None

    def product(self, a: Tensor) -> Tensor:
        """Draw, gather, multiply."""
        if self._rows_of_b is not None:
            return a.index_select(1, self.state["picked"]) @ self._rows_of_b
        sizes = column_norms(a) * self.state["norms"]
        picked, weights = drawn(sizes, self.state["uniforms"])
        rows = self._b.index_select(0, picked) * weights.to(self.work).unsqueeze(1)
        return a.index_select(1, picked) @ rows

    def narrow(self, a: Tensor) -> Tensor:
        """The columns that were drawn, (N, d), where fit drew them."""
        return super().narrow(a) if self._rows_of_b is None else a.index_select(1, self.state["picked"])

    @classmethod
    def arrays(cls, hyper: Mapping[str, Any]) -> dict[str, str]:
        """B, its norms, the uniform numbers, and what norms="train" drew."""
        drawn_at_fit = {"picked": "d int64<D", "rows": "d M"} if hyper["norms"] == "train" else {}
        return {"b": "D M", "norms": "D", "uniforms": "d", **drawn_at_fit}

    def multiplies(self, n: int) -> float:
        """N D for the norms where they are found at run time, N d M for the product."""
        norms = float(n) * self.inner if self._rows_of_b is None else 0.0
        return norms + float(n) * int(self.hyper["rank"]) * self.outer


def column_norms(a: Tensor) -> Tensor:
    """|A^(k)| [D] in float64, block by block: torch's own norm along the rows takes nine times as long on a CPU."""
    rows = block_rows(a)
    space = a.new_empty((min(rows, a.shape[0]), a.shape[1]))
    total = torch.zeros(a.shape[1], dtype=torch.float64, device=a.device)
    for start in range(0, a.shape[0], rows):
        block = a[start : start + rows]
        total += torch.mul(block, block, out=space[: block.shape[0]]).sum(dim=0)
    return total.sqrt()


def drawn(sizes: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Indices [d] by inverting the cumulative distribution, and their weights 1 / (d p). All-zero sizes: p uniform."""
    total = sizes.sum()
    sizes = torch.where(total > 0, sizes, torch.ones_like(sizes))
    cumulative = sizes.cumsum(0)
    picked = torch.searchsorted(cumulative, numbers * cumulative[-1], right=True).clamp_(max=len(sizes) - 1)
    return picked, cumulative[-1] / (len(numbers) * sizes[picked])


KIND = Sampling


def make(*, rank: int = 16, norms: str = "run", seed: int = 0) -> Estimator:
    """``rank`` draws; ``norms`` of A's columns from run (published) or train."""
    choice(norms, NORMS, "norms", Sampling.method)
    return Estimator(Sampling, {"rank": rank, "norms": norms, "seed": checked_seed(seed, Sampling.method)})
