"""What Brand's updates keep of a layer, and how its running mean is read."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from methods.kfac.inverse.base import State
from methods.kfac.statistics import Terms


@dataclass
class Rows:
    """Rows of one layer since the last step, (n, d) each, and its loss terms."""

    a: list[Tensor] = field(default_factory=list)
    g: list[Tensor] = field(default_factory=list)
    terms: Terms = field(default_factory=Terms)


@dataclass
class Held:
    """What Brand's updates keep of one layer; the eigenpairs themselves are the slots' states.

    Attributes:
        sides: whether (A, G) are followed by Brand's update.
        count: batches that have entered, 0-d on the device.
        ranks: modes kept before the next update.
        decay: rho.
        initial: start of the running means.
        dense: running mean of the other side where no dense statistics are kept.
    """

    sides: tuple[bool, bool]
    count: Tensor
    ranks: list[int]
    decay: float
    initial: str
    dense: Tensor | None = None

    def start(self, size: int) -> Tensor:
        """Where a dense running mean begins."""
        scale = 0.0 if self.initial == "bias-corrected" else 1.0
        return scale * torch.eye(size, dtype=self.count.dtype, device=self.count.device)[None]

    def weight(self) -> Tensor:
        """What the sums are divided by when they are read: 1, or 1 - rho^k with ``bias-corrected``."""
        if self.initial != "bias-corrected":
            return torch.ones_like(self.count)
        return torch.where(self.count > 0, 1 - self.decay**self.count, 1.0)

    def remainder(self) -> Tensor:
        """The identity's share of the running mean, 0-d: rho^k from the identity, else 0; 1 before the first batch."""
        share = torch.zeros_like(self.count)
        if self.initial == "identity":
            share = torch.full_like(self.count, self.decay) ** self.count
        return torch.where(self.count > 0, share, 1.0)

    def read(self) -> Tensor | None:
        """The dense running mean; the identity before the first good batch."""
        if self.dense is None:
            return None
        eye = torch.eye(self.dense.shape[1], dtype=self.dense.dtype, device=self.dense.device)
        return torch.where(self.count > 0, self.dense / self.weight(), eye)


def empty(batch: Tensor) -> State:
    """No modes yet, for rows (1, n, d)."""
    return {"vectors": batch.new_zeros(1, batch.shape[2], 0), "values": batch.new_zeros(1, 0)}


def widened(tensor: Tensor, width: int) -> Tensor:
    """The last dimension cut, or filled up with zeros."""
    return nn.functional.pad(tensor, (0, width - tensor.shape[-1]))
