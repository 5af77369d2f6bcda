"""Streams of rows with prescribed second moments, the same for every method and bit-exact in the dtype asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Stream:
    """Rows a_n of inputs and b_n of output gradients of a mean loss, step by step.

    Both second moments have eigenvalues that fall from 1 to 10^-condition evenly in the logarithm, in random bases:
    E[a a^T] = 10^scale 10^(jump after half the steps) U diag U^T and N^2 E[b b^T] = 10^-scale V diag V^T, where N is
    the number of rows: a mean loss divides its gradients by N.

    Args:
        shape: outputs, inputs.
        rows: N.
        steps: length; only the jump depends on it.
        params: ``condition``, ``scale``, ``jump`` (powers of ten), ``rank`` (share of directions that are not zero).
        seed: of the bases and of every draw.
    """

    def __init__(self, shape: tuple[int, ...], rows: int, steps: int, params: Mapping[str, Any], seed: int) -> None:
        self.shape, self.rows, self.steps, self.seed = shape, rows, steps, seed
        self.scale, self.jump = float(params.get("scale", 0.0)), float(params.get("jump", 0.0))
        generator = torch.Generator().manual_seed(seed)
        share, power = float(params.get("rank", 1.0)), float(params["condition"])
        self._roots = [_root(width, power, share, generator) for width in shape]

    def batch(self, step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Rows (N, inputs) and (N, outputs) of one step, rounded to ``dtype``; every step is a draw of its own."""
        generator = torch.Generator().manual_seed(1_000_003 * (self.seed + 1) + step)
        scale = self.scale + (self.jump if 2 * step >= self.steps else 0.0)
        g, a = (
            torch.randn(self.rows, len(root), generator=generator, dtype=torch.float64) @ root for root in self._roots
        )
        return (a * 10.0 ** (scale / 2)).to(dtype), (g * 10.0 ** (-self.scale / 2) / self.rows).to(dtype)

    def gradient(self) -> Tensor:
        """The weight gradient of every step: (outputs, inputs), float32 on the grid of bfloat16.

        It has the stream's own spectrum and norm one, and no dtype changes it, so that only the preconditioner can.
        """
        a, b = self.batch(-1, torch.float64)
        whole: Tensor = b.mT @ a
        rounded: Tensor = (whole / whole.norm()).to(torch.bfloat16).to(torch.float32)
        return rounded

    def target(self, damping: float) -> Tensor:
        """(G + damping)^-1 gradient (A + damping)^-1 of the true second moments at the end, float64."""
        g, a = (root.mT @ root for root in self._roots)
        wide = [10.0**-self.scale * g, 10.0 ** (self.scale + self.jump) * a]
        left, right = (m + damping * torch.eye(len(m), dtype=torch.float64) for m in wide)
        found: Tensor = torch.linalg.solve(left, torch.linalg.solve(right, self.gradient().double(), left=False))
        return found


def _root(width: int, power: float, share: float, generator: torch.Generator) -> Tensor:
    """R with R^T R = U diag U^T; rows of noise times R have that second moment."""
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    values = torch.logspace(0.0, -power, width, dtype=torch.float64)
    values[max(1, round(share * width)) :] = 0.0
    root: Tensor = values.sqrt()[:, None] * basis.mT
    return root
