"""One layer's preconditioner outside an optimizer: factors, a way to invert them, the product with a gradient.

    A <- rho A + (1 - rho) / n sum a a^T,   G likewise;   V -> (G + lam I)^-1 V (A + lam I)^-1

Martens and Grosse, arXiv 1503.05671, with the same absolute damping on both factors. The back-ends are those of the
optimizer (``methods.kfac.inverse``), for one layer at a time: nothing is batched over layers here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.errors import UserError
from methods.kfac.inverse.base import Inverse, State

SIDES = ("a", "g")


class Preconditioner:
    """Factors of one layer and their inverses; a side without a factor is the identity.

    Args:
        d_out: rows of the gradient.
        d_in: columns of the gradient, the bias' one counted.
        inverse: the back-end.
        damping: lam, absolute, on both factors.
        decay: rho. The first batch is taken whole.
    """

    def __init__(self, d_out: int, d_in: int, inverse: Inverse, damping: float = 1e-2, decay: float = 0.95) -> None:
        if d_out < 1 or d_in < 1:
            raise UserError(f"expected a layer of at least one input and output, got ({d_out}, {d_in}).")
        self.widths = {"a": int(d_in), "g": int(d_out)}
        self.inverse, self.damping, self.decay = inverse, float(damping), float(decay)
        self.factors: dict[str, Tensor] = {}
        self.states: dict[str, State] = {}

    def place(self, side: str, factor: Tensor) -> None:
        """Use a factor (d, d) from now on, by reference until the next update."""
        if factor.shape != (self.widths[side],) * 2:
            raise UserError(f"side {side}: expected a factor of width {self.widths[side]}, got {tuple(factor.shape)}.")
        self.factors[side] = factor

    def factor(self, side: str) -> Tensor:
        """The running factor (d, d)."""
        return self.factors[side]

    @torch.no_grad()
    def update(self, a: Tensor | None = None, g: Tensor | None = None) -> None:
        """Fold the rows (n, d) of one batch in."""
        for side, rows in zip(SIDES, (a, g), strict=True):
            if rows is None:
                continue
            old = self.factors.get(side)
            if old is None:
                self.factors[side] = rows.mT @ rows / len(rows)
            else:
                self.factors[side] = torch.addmm(
                    old, rows.mT, rows, beta=self.decay, alpha=(1 - self.decay) / len(rows)
                )

    @torch.no_grad()
    def refresh(self) -> None:
        """New inverses of the factors that are there."""
        for side, factor in self.factors.items():
            damping = torch.full_like(factor[:1, 0], self.damping)
            state, good = self.inverse.refresh(factor[None], damping, self.states.get(side))
            self._keep(side, state, good)

    def _keep(self, side: str, new: State, good: Tensor) -> None:
        """The new inverse where it is good, else the old one, decided on the device."""
        old = self.states.get(side)
        self.states[side] = (
            new if old is None else {key: torch.where(_like(good, new[key]), new[key], old[key]) for key in new}
        )

    @torch.no_grad()
    def precondition(self, gradient: Tensor) -> Tensor:
        """(G + lam I)^-1 V (A + lam I)^-1, new."""
        found = gradient[None]
        if "g" in self.states:
            found = self.inverse.apply(self.states["g"], found)
        if "a" in self.states:
            found = self.inverse.apply(self.states["a"], found.mT).mT
        return found[0].clone() if not self.states else found[0]


def _like(good: Tensor, tensor: Tensor) -> Tensor:
    return good.reshape(-1, *[1] * (tensor.ndim - 1))


def over(inverse: Inverse, d_out: int, d_in: int, damping: float = 1e-2, decay: float = 0.95) -> Preconditioner:
    """A preconditioner with a back-end."""
    return Preconditioner(d_out, d_in, inverse, damping, decay)
