"""Ways to invert Kronecker factors, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from methods.kfac.inverse.base import Inverse
from methods.kfac.inverse.cholesky import Cholesky
from methods.kfac.inverse.eigh import Eigh
from methods.kfac.inverse.low_rank import LowRank
from methods.kfac.inverse.newton_schulz import NewtonSchulz
from methods.kfac.inverse.subspace import Subspace

INVERSES: dict[str, Callable[..., Inverse]] = {
    "cholesky": Cholesky,
    "eigh": Eigh,
    "newton-schulz": NewtonSchulz,
    "rsvd": lambda **options: LowRank(method="rsvd", **options),
    "subspace": Subspace,
    "sre": lambda **options: LowRank(method="sre", **options),
}


def inverse(name: str, **options: Any) -> Inverse:
    """The back-end of that name."""
    return INVERSES[name](**options)
