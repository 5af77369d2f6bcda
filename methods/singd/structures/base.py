"""What a structure is: a class of (d, d) matrices that is closed under products, in the fewest numbers.

A matrix is a vector of ``count`` numbers, so a stack of B matrices is one tensor (B, count), and sums, differences and
multiples of matrices are those of the tensors. Everything else that SINGD (Lin et al., arXiv 2312.05705) needs is here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.errors import Unsupported
from methods.singd.rows import PlainRows, Rows


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The structures' parameters.

    Attributes:
        block: size of a diagonal block of ``block``.
        ranks: k1 and k2 of ``hierarchical``.
        rank: dense columns of the arrows.
    """

    block: int = 30
    ranks: tuple[int, int] = (15, 15)
    rank: int = 1


class Structure(ABC):
    """Matrices of one class and size.

    Pi maps a symmetric matrix S to the class: with a basis of the class whose elements E are orthogonal,
    Pi(S) = sum_E u_E <S, E> / <E, E> E, with u_E = 2 where the transpose of E is outside the class and else 1. So a
    triangle doubles what is off the diagonal, and Toeplitz matrices average along diagonals.

    Args:
        d: size.
        sizes: parameters.

    Attributes:
        name: in the registry.
        squares: K K^T is in the class too, so it can be kept and applied as one product instead of two.
        by_rows: products with M work on the rows of M^T, so the last one should have contiguous rows.
        count: stored numbers of one matrix.
    """

    name: ClassVar[str]
    squares: ClassVar[bool] = False
    by_rows: ClassVar[bool] = False
    count: int

    def __init__(self, d: int, sizes: Sizes | None = None) -> None:
        self.d, self.sizes = d, sizes or Sizes()

    @abstractmethod
    def identity(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """B times the identity: (B, count)."""

    @abstractmethod
    def matmul(self, k: Tensor, m: Tensor) -> Tensor:
        """K M for M (B, d, n)."""

    @abstractmethod
    def t_matmul(self, k: Tensor, m: Tensor) -> Tensor:
        """K^T M for M (B, d, n)."""

    @abstractmethod
    def compose(self, k: Tensor, other: Tensor) -> Tensor:
        """K L for two members: (B, count)."""

    @abstractmethod
    def gather(self, k: Tensor, rows: Rows) -> Tensor:
        """Sums over rows, linear in X X^T, that :meth:`inner` needs: (B, any) in the dtype of sums."""

    @abstractmethod
    def inner(self, k: Tensor, sums: Tensor) -> Tensor:
        """Pi(K^T X X^T K) from :meth:`gather`'s sums with the same K: (B, count) in K's dtype."""

    @abstractmethod
    def gram(self, k: Tensor) -> Tensor:
        """Pi(K^T K): (B, count)."""

    @abstractmethod
    def trace(self, k: Tensor) -> Tensor:
        """Traces (B,), in the dtype of sums."""

    @abstractmethod
    def to_dense(self, k: Tensor) -> Tensor:
        """(B, d, d)."""

    def keep(self, k: Tensor) -> Tensor:
        """K K^T in the form that :meth:`apply_kept` wants, for a class with ``squares``."""
        raise Unsupported(f"K K^T of {self.name} is not {self.name}.")

    def apply_kept(self, kept: Tensor, m: Tensor) -> Tensor:
        """K K^T M from what was kept: (B, d, n) in M's dtype."""
        return self.matmul(kept, m)

    def kept_bytes(self, dtype: torch.dtype, products: str) -> int:
        """Bytes of one kept K K^T under a precision of products; 0 for a class without ``squares``."""
        return self.nbytes(dtype) if self.squares else 0

    def add_identity(self, k: Tensor, amount: float) -> Tensor:
        """K + amount I in place."""
        return k.add_(self.identity(1, k.dtype, k.device), alpha=amount)

    def from_inner(self, k: Tensor, x: Tensor | Rows) -> Tensor:
        """Pi(K^T X X^T K) for X (B, d, n) or for rows: (B, count)."""
        rows = PlainRows(x.mT[:, None], False, 1.0, k.dtype) if isinstance(x, Tensor) else x
        return self.inner(k, self.gather(k, rows))

    def project(self, x: Tensor) -> Tensor:
        """Pi(X X^T) for X (B, d, n): (B, count)."""
        return self.from_inner(self.identity(x.shape[0], x.dtype, x.device), x)

    def apply(self, k: Tensor, m: Tensor) -> Tensor:
        """K K^T M for M (B, d, n)."""
        return self.matmul(k, self.t_matmul(k, m))

    def nbytes(self, dtype: torch.dtype) -> int:
        """Bytes of one matrix."""
        return self.count * dtype.itemsize
