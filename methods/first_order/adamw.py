"""``training.adamw``: Adam with decoupled weight decay, torch's fused implementation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from methods.first_order.groups import covered, decay_groups, scalars, trainable, with_factors


def make(
    model: nn.Module,
    *,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    decay: str = "matrices",
    fused: bool = True,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) over every trainable parameter.

    w <- (1 - lr wd) w;  m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;
    w <- w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).

    Args:
        model: the model; its parameters may have any shape.
        lr: learning rate.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root.
        weight_decay: wd.
        decay: ``matrices`` to spare biases and norms (usual practice for transformers), or ``all`` (torch's default).
        fused: one kernel for many parameters.

    Returns:
        A ``torch.optim.AdamW`` with a ``coverage``.
    """
    parameters = [parameter for _, parameter in trainable(model)]
    optimizer = over(
        parameters, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, decay=decay, fused=fused
    )
    return covered(optimizer, {"adamw": scalars(parameters)})


def over(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decay: str,
    fused: bool = True,
    factors: Mapping[Tensor, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW over ``parameters`` alone: the fallback of methods that cannot handle every parameter."""
    groups = with_factors(decay_groups(parameters, weight_decay, decay), lr, factors or {})
    return torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, fused=fused)
