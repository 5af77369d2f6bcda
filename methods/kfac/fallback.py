"""The optimizer of every parameter without Kronecker factors, and the one warning that names them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from methods.first_order import adamw
from methods.first_order.groups import decay_groups
from methods.kfac.options import Options


def optimizer(parameters: Sequence[nn.Parameter], opt: Options) -> torch.optim.Optimizer | None:
    """AdamW or SGD over the parameters; None without any."""
    if not parameters:
        return None
    if opt.fallback == "adamw":
        return adamw.over(
            parameters,
            lr=opt.fallback_lr,
            beta1=opt.fallback_beta1,
            beta2=opt.fallback_beta2,
            eps=opt.fallback_eps,
            weight_decay=opt.fallback_weight_decay,
            decay="matrices",
        )
    groups = decay_groups(parameters, opt.fallback_weight_decay, "matrices")
    return torch.optim.SGD(groups, lr=opt.fallback_lr, momentum=opt.fallback_momentum, fused=True)


def announce(label: str, name: str, left_over: Mapping[str, str]) -> None:
    """Name what ``label`` leaves to its fallback and why, in one warning.

    Args:
        label: the optimizer.
        name: the fallback's.
        left_over: parameter -> reason.
    """
    by_reason: dict[str, list[str]] = {}
    for parameter, why in left_over.items():
        by_reason.setdefault(why, []).append(parameter)
    listed = [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} ({why})"
        for why, names in by_reason.items()
    ]
    if listed:
        warnings.warn(f"{label} leaves to {name}: {'; '.join(listed)}.", stacklevel=4)
