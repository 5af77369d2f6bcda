"""One factory for each method of the task ``training`` in this family: defaults by name, the class behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from methods.singd.singd import SINGD


def ingd(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> SINGD:
    """INGD: dense factors."""
    return SINGD(model, lr, **{"structures": ("dense", "dense"), **options})


def ikfac(model: nn.Module, *, lr: float = 1e-3, alpha1: float = 0.0, kfac_like: bool = True, **options: Any) -> SINGD:
    """IKFAC: dense factors, no traces, no Riemannian momentum."""
    return SINGD(model, lr, alpha1=alpha1, kfac_like=kfac_like, **{"structures": ("dense", "dense"), **options})


def _of(name: str, **sizes: Any) -> Callable[..., SINGD]:
    def make(model: nn.Module, *, lr: float = 1e-3, structures: Sequence[str] = (name, name), **options: Any) -> SINGD:
        return SINGD(model, lr, structures=structures, **{**sizes, **options})

    make.__doc__ = f"SINGD with both factors of the structure {name}."
    return make


dense = _of("dense")
diagonal = _of("diagonal")
block30 = _of("block", block=30)
hierarchical15 = _of("hierarchical", ranks=(15, 15))
tril_toeplitz = _of("tril-toeplitz")
triu_toeplitz = _of("triu-toeplitz")
tril = _of("tril")
triu = _of("triu")
rank1_arrow = _of("tril-arrow", rank=1)
rankk_arrow = _of("tril-arrow", rank=8)
