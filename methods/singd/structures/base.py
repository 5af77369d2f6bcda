"""What a structure is: a class of (d, d) matrices that is closed under products, in the fewest numbers.

A matrix is a vector of ``count`` numbers, so a stack of B matrices is one tensor (B, count), and sums, differences and
multiples of matrices are those of the tensors. Everything else that SINGD (Lin et al., arXiv 2312.05705) needs is here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
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
        count: stored numbers of one matrix.
        room: rows of M that a product with a kept K K^T wants; those behind ``d`` are zero.
    """

    name: ClassVar[str]
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

    @property
    def room(self) -> int:
        """See the class."""
        return self.d

    def keeps(self, dtype: torch.dtype) -> bool:
        """Whether K K^T has a form of its own that is kept between updates and applied in fewer products than K."""
        return False

    def keep(self, k: Tensor) -> Tensor:
        """K K^T (B, ...) in the form that :meth:`right` and :meth:`left` want, for a class that :meth:`keeps` it."""
        raise Unsupported(f"{self.name} has no form for K K^T.")

    def right(self, kept: Tensor, x: Tensor, out: torch.dtype) -> Tensor:
        """X K K^T from what was kept, for X (B, n, room): (B, n, room) in ``out``."""
        return self.left(kept, x.mT, out).mT

    def left(self, kept: Tensor, y: Tensor, out: torch.dtype) -> Tensor:
        """K K^T Y from what was kept, for Y (B, room, n): (B, room, n) in ``out``."""
        return self.right(kept, y.mT, out).mT

    def apply_kept(self, kept: Tensor, m: Tensor) -> Tensor:
        """K K^T M from what was kept, for M (B, d, n) of any d: (B, d, n) in M's dtype."""
        whole = torch.nn.functional.pad(m, (0, 0, 0, self.room - self.d))
        return self.left(kept, whole, m.dtype)[:, : self.d]

    def kept_numbers(self) -> int:
        """Real numbers of one kept K K^T."""
        return self.count

    def kept_bytes(self, dtype: torch.dtype, products: str) -> int:
        """Bytes of one kept K K^T under a precision of products; 0 for a class without one."""
        return self.kept_numbers() * dtype.itemsize if self.keeps(dtype) else 0

    # -- padded: a member of a larger class with zero rows and columns -------------------------------------------------

    @property
    def alike(self) -> Hashable:
        """Structures of equal ``alike`` may be padded to one size; None: never."""
        return None

    def covering(self, d: int, sizes: Tensor) -> Structure:
        """The structure that matrices of size up to ``d`` are padded to; ``sizes`` (B,) of each matrix of a stack."""
        return type(self)(d, self.sizes)

    def parts(self, k: Tensor) -> list[Tensor]:
        """The numbers as views."""
        return self.within(k, self)

    def within(self, big: Tensor, whole: Structure) -> list[Tensor]:
        """Where :meth:`parts` lie in the numbers of ``whole``."""
        return [big]

    def sum_parts(self, sums: Tensor) -> list[Tensor]:
        """What :meth:`gather` gives, as views."""
        return self.parts(sums)

    def sums_within(self, big: Tensor, whole: Structure) -> list[Tensor]:
        """Where :meth:`sum_parts` lie in the sums of ``whole``, of which there are as many as numbers."""
        return self.within(big, whole)

    def keeps_within(self, whole: Structure) -> bool:
        """Whether what is kept lies in what ``whole`` keeps."""
        return False

    def kept_within(self, big: Tensor, whole: Structure) -> list[Tensor]:
        """Where it lies there; ``whole`` may be this structure itself."""
        raise Unsupported(f"{self.name} is kept anew.")

    # ------------------------------------------------------------------------------------------------------------------

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
