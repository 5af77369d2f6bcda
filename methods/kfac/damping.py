"""Damping of a pair of factors A (inputs) and G (output gradients), in the conventions in use.

| mode | system that is solved | source |
|---|---|---|
| ``exact`` | (G x A + lam I) v = g | Martens and Grosse, arXiv 1503.05671, before eq. 24; needs both spectra |
| ``pi`` | (G + sqrt(lam) / pi I) x (A + pi sqrt(lam) I), pi^2 = (tr A / d_in) / (tr G / d_out) | 1503.05671, 6.3 |
| ``same`` | (G + lam I) x (A + lam I) | common in code |
| ``adaptive`` | (G + lam max(G) I) x (A + lam max(A) I), max the largest eigenvalue | Puiu, arXiv 2206.15397 |
| ``adaptive-exact`` | (G x A + lam max(G) max(A) I) v = g; needs both spectra | the same, for its K-FAC baseline |
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MODES = ("exact", "pi", "same", "adaptive", "adaptive-exact")
#: Modes that damp the product and so need both factors' eigenvectors.
JOINT = ("exact", "adaptive-exact")
#: Traces are kept this far from 0 in pi, relative to 1: a dead layer must not divide by zero.
_FLOOR = 1e-30
#: Products with the factor that estimate its largest eigenvalue. Input factors have one that stands out.
POWER_STEPS = 20


def separate(mode: str, damping: float, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Damping of A and of G, one for each group: (groups,) each.

    Args:
        mode: ``pi``, ``same`` or ``adaptive``.
        damping: lam.
        a: input factor (groups, d_in, d_in).
        g: output factor (groups, d_out, d_out).
    """
    if mode == "same":
        return torch.full_like(a[:, 0, 0], damping), torch.full_like(g[:, 0, 0], damping)
    if mode == "adaptive":
        return damping * largest(a), damping * largest(g)
    ratio = (mean_diagonal(a).clamp_min(_FLOOR) / mean_diagonal(g).clamp_min(_FLOOR)).sqrt()
    return ratio * damping**0.5, damping**0.5 / ratio


def separate_all(mode: str, damping: float, factors: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """:func:`separate` of many layers; few operations where they share dtype and device."""
    tensors = [one for pair in factors for one in pair]
    if mode == "adaptive" or len({(one.device, one.dtype) for one in tensors}) != 1:
        return [separate(mode, damping, a, g) for a, g in factors]
    counts = [len(one) for one in tensors]
    if mode == "same":
        amounts = list(tensors[0].new_full((sum(counts),), damping).split(counts))  # type: ignore[no-untyped-call]
        return list(zip(amounts[::2], amounts[1::2], strict=True))
    # (groups,) means of all diagonals: A's in one tensor, G's in another.
    means = [torch.cat([_mean(one) for one in tensors[side::2]]).clamp_min_(_FLOOR) for side in (0, 1)]
    ratio = (means[0] / means[1]).sqrt_()
    pairs = (ratio * damping**0.5).split(counts[::2]), (damping**0.5 / ratio).split(counts[::2])  # type: ignore[no-untyped-call]
    return list(zip(*pairs, strict=True))


def _mean(stack: Tensor) -> Tensor:
    """As :func:`mean_diagonal`, from one view."""
    count, size = stack.shape[:2]
    strides = stack.stride()
    return stack.as_strided((count, size), (strides[0], strides[1] + strides[2])).mean(1)


def multiply(mode: str, damping: float | None, a: Tensor, g: Tensor, vector: Tensor) -> Tensor:
    """G V A for V (groups, d_out, d_in), or with a damping the product with the damped matrix of ``mode``."""
    if damping is None:
        return torch.bmm(torch.bmm(g, vector), a)
    if mode in JOINT:
        top = largest(a) * largest(g) if mode == "adaptive-exact" else torch.ones_like(a[:, 0, 0])
        return g @ vector @ a + (damping * top)[:, None, None] * vector
    for_a, for_g = (amount[:, None, None] for amount in separate(mode, damping, a, g))
    half = g @ vector + for_g * vector
    return half @ a + for_a * half


def joint(mode: str, damping: float | Tensor, values_a: Tensor, values_g: Tensor) -> Tensor:
    """Damping of the product, (groups, 1, 1), from both spectra (groups, d)."""
    one = torch.ones_like(values_a[:, :1, None])
    if mode == "exact":
        return damping * one
    return damping * one * values_a.amax(1)[:, None, None] * values_g.amax(1)[:, None, None]


def mean_diagonal(stack: Tensor) -> Tensor:
    """Mean of the diagonal, tr M / d, of (k, d, d)."""
    return stack.diagonal(dim1=1, dim2=2).mean(1)


def largest(stack: Tensor, steps: int = POWER_STEPS) -> Tensor:
    """Largest eigenvalue of symmetric positive semidefinite (k, d, d): a Rayleigh quotient, from below.

    ``steps`` products, begun at the column with the largest diagonal entry, without a synchronisation.
    """
    index = stack.diagonal(dim1=1, dim2=2).argmax(1)
    vector = stack.gather(2, index[:, None, None].expand(-1, stack.shape[1], 1))
    for _ in range(steps):
        vector = torch.bmm(stack, _unit(vector))
    unit = _unit(vector)
    found: Tensor = (unit * torch.bmm(stack, unit)).sum((1, 2))
    return found


def _unit(vector: Tensor) -> Tensor:
    """Columns (k, d, 1) of length 1, zero stays zero."""
    found: Tensor = vector / vector.norm(dim=1, keepdim=True).add_(_FLOOR)
    return found
