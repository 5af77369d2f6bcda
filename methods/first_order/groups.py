"""Which parameters a method gets: weight-decay groups, coverage counts and name patterns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from harness.errors import Unsupported, UserError

#: Which parameters weight decay applies to: all of them, or those with at least two dimensions (no bias, no norm).
Decay = Literal["all", "matrices"]
Named = Sequence[tuple[str, nn.Parameter]]
_Optimizer = TypeVar("_Optimizer", bound=torch.optim.Optimizer)
NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LayerNorm, nn.GroupNorm),
)


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Name and parameter of all that is trained, in the model's order, a shared parameter once.

    Raises:
        UserError: not a model, or nothing requires a gradient.
        Unsupported: a parameter is complex or has no values yet (lazy modules).
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            f"expected the model itself (a torch.nn.Module), got {type(model).__name__}; not its parameters."
        )
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


def bias_factors(model: nn.Module, norm_bias: float = 1.0, bias: float = 1.0) -> dict[Tensor, float]:
    """Learning-rate factors of biases: those of normalization layers, and those of all other modules.

    airbench (K. Jordan, 2024) trains the shifts of its batch norms at 64 times the rate of the rest.

    Raises:
        UserError: a factor that is not positive.
    """
    if norm_bias <= 0 or bias <= 0:
        raise UserError(f"norm_bias_lr_factor and bias_lr_factor are positive; got {norm_bias} and {bias}.")
    found: dict[Tensor, float] = {}
    for module in model.modules():
        own = getattr(module, "bias", None)
        if isinstance(own, nn.Parameter):
            found[own] = norm_bias if isinstance(module, NORMS) else bias
    return {parameter: factor for parameter, factor in found.items() if factor != 1.0}


def with_factors(groups: Iterable[dict[str, Any]], lr: float, factors: Mapping[Tensor, float]) -> list[dict[str, Any]]:
    """``groups`` split by the factor of each parameter: rate times factor, decay divided by it.

    So what a step takes off a weight, lr wd w, does not depend on the factor (as in airbench).
    """
    found: list[dict[str, Any]] = []
    for group in groups:
        by_factor: dict[float, list[Tensor]] = {}
        for parameter in group["params"]:
            by_factor.setdefault(factors.get(parameter, 1.0), []).append(parameter)
        for factor, members in by_factor.items():
            decay = group["weight_decay"] / factor
            found.append({**group, "params": members, "lr": lr * factor, "weight_decay": decay})
    return found


def scalars(parameters: Iterable[Tensor]) -> int:
    """Number of scalars in all of ``parameters``."""
    return sum(parameter.numel() for parameter in parameters)


def covered(optimizer: _Optimizer, coverage: Mapping[str, int]) -> _Optimizer:
    """``optimizer`` itself, with ``coverage`` (component -> number of scalars that it updates) on it."""
    optimizer.coverage = dict(coverage)  # type: ignore[attr-defined]
    return optimizer
