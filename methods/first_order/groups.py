"""Which parameters a method gets: weight-decay groups, coverage counts and name patterns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from harness.errors import Unsupported, UserError

#: Which parameters weight decay applies to: all of them, or those with at least two dimensions (no bias, no norm).
Decay = Literal["all", "matrices"]
Named = Sequence[tuple[str, nn.Parameter]]
_Optimizer = TypeVar("_Optimizer", bound=torch.optim.Optimizer)


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Name and parameter of all that is trained, in the model's order, a shared parameter once.

    Raises:
        UserError: nothing requires a gradient.
        Unsupported: a parameter is complex or has no values yet (lazy modules).
    """
    found = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not found:
        raise UserError("the model has no parameter that requires a gradient; nothing can be trained.")
    for name, parameter in found:
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise Unsupported(f"parameter {name} of a lazy module has no shape yet; run the model once first.")
        if not parameter.is_floating_point():
            raise Unsupported(
                f"parameter {name} has dtype {parameter.dtype}; only real floating-point ones are trained."
            )
    return found


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float, decay: str) -> list[dict[str, Any]]:
    """Parameter groups with their ``weight_decay``; a group that would be empty is left out.

    Raises:
        UserError: ``decay`` is neither ``all`` nor ``matrices``.
    """
    if decay not in get_args(Decay):
        raise UserError(f"decay is one of {', '.join(get_args(Decay))}; got {decay!r}.")
    chosen = list(parameters)
    if decay == "all" or weight_decay == 0.0:
        return [{"params": chosen, "weight_decay": weight_decay}]
    matrices = [parameter for parameter in chosen if parameter.ndim >= 2]
    others = [parameter for parameter in chosen if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def scalars(parameters: Iterable[torch.Tensor]) -> int:
    """Number of scalars in all of ``parameters``."""
    return sum(parameter.numel() for parameter in parameters)


def covered(optimizer: _Optimizer, coverage: Mapping[str, int]) -> _Optimizer:
    """``optimizer`` itself, with ``coverage`` (component -> number of scalars that it updates) on it."""
    optimizer.coverage = dict(coverage)  # type: ignore[attr-defined]
    return optimizer
