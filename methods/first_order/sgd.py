"""``training.sgd``: stochastic gradient descent with momentum, torch's fused implementation."""

from __future__ import annotations

import torch
from torch import nn

from methods.first_order.groups import covered, decay_groups, scalars, trainable


def make(
    model: nn.Module,
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    decay: str = "all",
    fused: bool = True,
) -> torch.optim.Optimizer:
    """Momentum SGD over every trainable parameter.

    g <- g + wd w;  v <- mu v + g (v = g at the first step);  w <- w - lr (g + mu v) with Nesterov, w - lr v without.

    Args:
        model: the model; its parameters may have any shape.
        lr: learning rate.
        momentum: mu.
        nesterov: look-ahead form (Sutskever et al. 2013); ignored when ``momentum`` is 0.
        weight_decay: wd, added to the gradient (not decoupled).
        decay: ``all``, or ``matrices`` to spare biases and norms.
        fused: one kernel for many parameters.

    Returns:
        A ``torch.optim.SGD`` with a ``coverage``.
    """
    parameters = [parameter for _, parameter in trainable(model)]
    optimizer = torch.optim.SGD(
        decay_groups(parameters, weight_decay, decay),
        lr=lr,
        momentum=momentum,
        nesterov=nesterov and momentum > 0.0,
        weight_decay=weight_decay,
        fused=fused,
    )
    return covered(optimizer, {"sgd": scalars(parameters)})
