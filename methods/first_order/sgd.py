"""``training.sgd``: stochastic gradient descent with momentum, torch's fused implementation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from methods.first_order.groups import bias_factors, covered, decay_groups, scalars, trainable, with_factors


def make(
    model: nn.Module,
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    decay: str = "all",
    fused: bool = True,
    norm_bias_lr_factor: float = 1.0,
    bias_lr_factor: float = 1.0,
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
        norm_bias_lr_factor: factor on the rate of normalization layers' shifts (airbench: 64); lr wd stays as it is.
        bias_lr_factor: the same for all other biases.

    Returns:
        A ``torch.optim.SGD`` with a ``coverage``.
    """
    parameters = [parameter for _, parameter in trainable(model)]
    optimizer = over(
        parameters,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        decay=decay,
        fused=fused,
        factors=bias_factors(model, norm_bias_lr_factor, bias_lr_factor),
    )
    return covered(optimizer, {"sgd": scalars(parameters)})


def over(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decay: str,
    factors: Mapping[Tensor, float],
    fused: bool = True,
) -> torch.optim.SGD:
    """SGD over ``parameters`` alone: also a fallback of methods that cannot handle every parameter."""
    return torch.optim.SGD(
        with_factors(decay_groups(parameters, weight_decay, decay), lr, factors),
        lr=lr,
        momentum=momentum,
        nesterov=nesterov and momentum > 0.0,
        weight_decay=weight_decay,
        fused=fused,
    )
