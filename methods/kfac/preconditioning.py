"""Factories of the task ``preconditioning``: one layer's preconditioner by the name of its back-end, and twins."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from methods.kfac.inverse.cholesky import Cholesky
from methods.kfac.inverse.eigh import Eigh
from methods.kfac.inverse.low_rank import LowRank
from methods.kfac.inverse.newton_schulz import NewtonSchulz
from methods.kfac.inverse.subspace import Subspace
from methods.kfac.inverse_plain import CholeskySolve, ExactLowRank, TorchInverse
from methods.kfac.options import in_range
from methods.kfac.preconditioner import Preconditioner
from methods.kfac.preconditioner_rows import Brand, BrandTwin, EmpiricalFisher, FisherTwin


def cholesky(d_out: int, d_in: int, *, damping: float = 1e-2, decay: float = 0.95) -> Preconditioner:
    """Explicit inverses by Cholesky."""
    return Preconditioner(d_out, d_in, Cholesky(), damping, decay)


def cholesky_solve(d_out: int, d_in: int, *, damping: float = 1e-2, decay: float = 0.95) -> Preconditioner:
    """The Cholesky root is kept; two triangular solves at every application."""
    return Preconditioner(d_out, d_in, CholeskySolve(), damping, decay)


def torch_inv(d_out: int, d_in: int, *, damping: float = 1e-2, decay: float = 0.95) -> Preconditioner:
    """``torch.linalg.inv``."""
    return Preconditioner(d_out, d_in, TorchInverse(), damping, decay)


def eigh(d_out: int, d_in: int, *, damping: float = 1e-2, decay: float = 0.95) -> Preconditioner:
    """Eigendecompositions."""
    return Preconditioner(d_out, d_in, Eigh(), damping, decay)


def newton_schulz(
    d_out: int,
    d_in: int,
    *,
    damping: float = 1e-2,
    decay: float = 0.95,
    iterations: int = 6,
    tolerance: float = 1e-2,
    half: bool = False,
) -> Preconditioner:
    """Inverses iterated from the ones before."""
    in_range("iterations", iterations, 1, whole=True)
    return Preconditioner(d_out, d_in, NewtonSchulz(int(iterations), tolerance, half), damping, decay)


def rsvd(d_out: int, d_in: int, *, damping: float = 1e-2, decay: float = 0.95, **sketch: Any) -> Preconditioner:
    """Randomized singular value decompositions; ``sketch``: options of :class:`LowRank`."""
    return Preconditioner(d_out, d_in, _sketch("rsvd", **sketch), damping, decay)


def sre(d_out: int, d_in: int, *, damping: float = 1e-2, decay: float = 0.95, **sketch: Any) -> Preconditioner:
    """Symmetric randomized eigendecompositions; ``sketch``: options of :class:`LowRank`."""
    return Preconditioner(d_out, d_in, _sketch("sre", **sketch), damping, decay)


def _sketch(method: str, **options: Any) -> LowRank:
    for name, low in (("rank", 1), ("oversampling", 0), ("power", 0)):
        if name in options:
            in_range(name, options[name], low, whole=True)
    return LowRank(method=method, **options)


def subspace(
    d_out: int,
    d_in: int,
    *,
    damping: float = 1e-2,
    decay: float = 0.95,
    rank: int = 220,
    oversampling: int = 12,
    power: int = 1,
    continuation: bool = False,
    seed: int = 0,
) -> Preconditioner:
    """A subspace carried along, orthonormalised and inverted by Cholesky; narrow factors too, for its growth."""
    for name, value, low in (("rank", rank, 1), ("oversampling", oversampling, 0), ("power", power, 0)):
        in_range(name, value, low, whole=True)
    inverse = Subspace(
        rank=int(rank),
        oversampling=int(oversampling),
        power=int(power),
        dense=False,
        continuation=continuation,
        seed=int(seed),
    )
    return Preconditioner(d_out, d_in, inverse, damping, decay)


def brand(
    d_out: int,
    d_in: int,
    *,
    damping: float = 1e-2,
    decay: float = 0.95,
    rank: int = 220,
    oversampling: int = 10,
    power: int = 3,
) -> Brand:
    """Brand's online update on the sides that are wide enough."""
    in_range("rank", rank, 1, whole=True)
    return Brand(d_out, d_in, damping, decay, int(rank), int(oversampling), int(power))


def seng(d_out: int, d_in: int, *, damping: float = 1e-2) -> EmpiricalFisher:
    """The empirical Fisher of the newest rows, inverted through its Gram matrix."""
    return EmpiricalFisher(damping)


# -- plain twins: float64 throughout -----------------------------------------------------------------------------------


class InFloat64(Preconditioner):
    """Takes and keeps everything in float64, and answers so."""

    def place(self, side: str, factor: Tensor) -> None:
        """As there."""
        super().place(side, factor.double())

    def update(self, a: Tensor | None = None, g: Tensor | None = None) -> None:
        """As there."""
        super().update(*(rows if rows is None else rows.double() for rows in (a, g)))

    def precondition(self, gradient: Tensor) -> Tensor:
        """As there."""
        return super().precondition(gradient.double())


def best_low_rank(
    d_out: int,
    d_in: int,
    *,
    damping: float = 1e-2,
    decay: float = 0.95,
    rank: int = 220,
    continuation: bool = False,
    **sketch: object,
) -> InFloat64:
    """The leading eigenpairs exactly, in float64; options of the sketch are taken and not used."""
    return InFloat64(d_out, d_in, ExactLowRank(rank, continuation), damping, decay)


def best_subspace(
    d_out: int,
    d_in: int,
    *,
    damping: float = 1e-2,
    decay: float = 0.95,
    rank: int = 220,
    oversampling: int = 12,
    continuation: bool = False,
    **sketch: object,
) -> InFloat64:
    """As :func:`best_low_rank` with all the modes that a subspace keeps."""
    return InFloat64(d_out, d_in, ExactLowRank(rank + oversampling, continuation), damping, decay)


def brand_twin(
    d_out: int,
    d_in: int,
    *,
    damping: float = 1e-2,
    decay: float = 0.95,
    rank: int = 220,
    oversampling: int = 10,
    power: int = 3,
) -> BrandTwin:
    """Brand's recursion from exact decompositions."""
    return BrandTwin(d_out, d_in, damping, decay, rank, oversampling, power)


def seng_twin(d_out: int, d_in: int, *, damping: float = 1e-2) -> FisherTwin:
    """The empirical Fisher with its rows written out."""
    return FisherTwin(damping)
