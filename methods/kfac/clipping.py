"""Clipping of preconditioned directions, on the device without a synchronisation.

``kl``: all layers by nu = min(1, sqrt(clip / (lr^2 sum_l <v_l, g_l>))) (Ba, Grosse and Martens, ICLR 2017, 5; <v, g> =
v F v up to damping). ``rms``: each layer by min(1, clip / rms(v_l)) (Puiu, arXiv 2206.15397). ``none``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MODES = ("kl", "rms", "none")
#: Keeps the quotient finite for a zero gradient; the factor is 1 there.
_FLOOR = 1e-30


def factors(
    mode: str,
    clip: float,
    lr: float,
    directions: Sequence[Tensor],
    gradients: Sequence[Tensor],
    total: Callable[[Tensor], Tensor] = lambda own: own,
) -> list[Tensor]:
    """A 0-d factor for each direction (empty list: nothing to multiply); ``total`` adds what other ranks have."""
    if mode == "none" or not directions:
        return []
    if mode == "kl":
        products = [dot(v, g) for v, g in zip(directions, gradients, strict=True)]
        return [kl(total(torch.stack(products).sum()), clip, lr)] * len(directions)
    return [rms(v, clip) for v in directions]


def kl(whole: Tensor, clip: float, lr: float | Tensor) -> Tensor:
    """The factor of all layers from their sum of <v, g>, 0-d."""
    return (clip / (whole * lr**2).clamp_min(_FLOOR)).sqrt().clamp_max(1.0)


def rms(v: Tensor, clip: float) -> Tensor:
    """The factor of one layer, 0-d."""
    return (clip / v.square().mean().sqrt().clamp_min(_FLOOR)).clamp_max(1.0)


def dot(v: Tensor, g: Tensor) -> Tensor:
    """<v, g>, without the product in memory where both lie in one piece."""
    if v.is_contiguous() and g.is_contiguous():
        return torch.dot(v.view(-1), g.view(-1))
    return (v * g).sum()
