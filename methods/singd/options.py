"""The hyper-parameters of SINGD, INGD and IKFAC, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.errors import UserError
from methods.kfac.options import Shared, in_range, names_known, values
from methods.kfac.policy import Schedule
from methods.kfac.statistics import LOSS_TERMS, REDUCTIONS, SHARING
from methods.singd.products import PRODUCTS
from methods.singd.structures import STRUCTURES, Sizes

#: ``weight``: that of the layer's weight.
DTYPES = ("weight", "float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, kw_only=True)
class Options(Shared):
    """Defaults are those of the singd 0.0.5 package (Lin et al., arXiv 2312.05705) where it has the option.

    Attributes:
        momentum: alpha_2 of m_W <- alpha_2 m_W + C C^T dW K K^T + weight_decay W.
        damping: lam, a number or pieces [[step, value], ...].
        alpha1: Riemannian momentum of the factors.
        weight_decay: coupled, behind the preconditioner.
        update_period: T, steps between updates of the factors.
        lr_cov: beta_1, step of the factors: a number, pieces, or a function of the step.
        normalize_lr_cov: beta_1 / max(1, max |m|) for each matrix, and (1 - alpha_1) / 2 in place of 1 / 2.
        kfac_like: both traces replaced by 1 (IKFAC); needs ``alpha1`` 0.
        structures: of K (inputs) and C (outputs).
        block: block size of ``block``.
        ranks: k1, k2 of ``hierarchical``.
        rank: dense columns of the arrows.
        sharing: ``expand`` or ``reduce``.
        loss_average: what the mean of the loss is taken over.
        reduction: the loss is the ``mean`` or the ``sum`` of its terms.
        preconditioner_dtype: of K, C and their products; one name or a pair.
        products: precision of float32 products: ``default``, ``tf32``, ``bf16``.
        cache: keep K K^T and C C^T where they are in the structure (dense, diagonal, block).
        init_grad_scale: loss scale assumed before the first step.
    """

    momentum: float = 0.9
    damping: Schedule = 1e-3
    alpha1: float = 0.5
    weight_decay: float = 0.0
    update_period: Schedule = 10
    lr_cov: Schedule = 1e-2
    normalize_lr_cov: bool = False
    kfac_like: bool = False
    structures: Sequence[str] = ("dense", "dense")
    block: int = 30
    ranks: Sequence[int] = (15, 15)
    rank: int = 1
    sharing: str = "expand"
    loss_average: str = "batch"
    reduction: str = "mean"
    preconditioner_dtype: str | Sequence[str] = "weight"
    products: str = "default"
    cache: bool = True
    init_grad_scale: float = 1.0

    def __post_init__(self) -> None:
        names = {
            "sharing": SHARING,
            "loss_average": LOSS_TERMS,
            "reduction": REDUCTIONS,
            "products": PRODUCTS,
        }
        self.check(names)
        pairs: dict[str, tuple[str, ...]] = {"structures": tuple(STRUCTURES), "preconditioner_dtype": DTYPES}
        for name, known in pairs.items():
            given = getattr(self, name)
            both = pair(given) if isinstance(given, Sequence) else ()
            if len(both) != 2 or any(one not in known for one in both):
                raise UserError(f"{name} is a pair of {', '.join(known)}; got {given!r}.")
        for name in ("momentum", "alpha1"):
            in_range(name, getattr(self, name), 0.0, 1.0, right=False)
        in_range("weight_decay", self.weight_decay, 0.0)
        in_range("init_grad_scale", self.init_grad_scale, 0.0, left=False)
        for name in ("block", "rank"):
            in_range(name, getattr(self, name), 1, whole=True)
        if not isinstance(self.ranks, Sequence) or len(self.ranks) != 2:
            raise UserError(f"ranks is a pair of whole numbers; got {self.ranks!r}.")
        for value in self.ranks:
            in_range("ranks", value, 0, whole=True)
        if sum(self.ranks) == 0:
            raise UserError("ranks is [0, 0]: hierarchical without a dense block; use structure diagonal.")
        for number in values(self.damping, "damping"):
            in_range("damping", number, 0.0)
        for number in values(self.lr_cov, "lr_cov"):
            in_range("lr_cov", number, 0.0)
        for number in values(self.update_period, "update_period"):
            in_range("update_period", number, 1, whole=True)
        if self.kfac_like and self.alpha1:
            raise UserError(f"kfac_like has no Riemannian momentum: alpha1 must be 0; got {self.alpha1!r}.")

    @property
    def sizes(self) -> Sizes:
        """Parameters of the structures."""
        first, second = self.ranks
        return Sizes(block=int(self.block), ranks=(int(first), int(second)), rank=int(self.rank))

    def dtypes(self, weight: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
        """Of K and C for a layer whose weight has the dtype ``weight``."""
        first, second = (weight if n == "weight" else getattr(torch, n) for n in pair(self.preconditioner_dtype))
        return first, second


def pair(value: str | Sequence[str]) -> tuple[str, ...]:
    """One name for both factors, or one for each."""
    return (value, value) if isinstance(value, str) else tuple(value)


def parse(given: dict[str, Any]) -> Options:
    """Options from keywords.

    Raises:
        UserError: an unknown name or a value out of range.
    """
    names_known(Options, given)
    return Options(**given)
