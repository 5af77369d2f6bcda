"""The optimizer of every parameter without Kronecker factors, and the one warning that names them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.first_order import adamw
from methods.first_order.groups import decay_groups
from methods.kfac.options import Shared


def optimizer(parameters: Sequence[nn.Parameter], opt: Shared) -> torch.optim.Optimizer | None:
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


@dataclass(eq=False)
class Plan:
    """One group of AdamW as lists for its fused kernel."""

    group: dict[str, Any]
    params: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    counts: list[Tensor]


class Stepper:
    """Steps the fallback; AdamW by its own fused kernel on lists that are kept, which spares the host collecting them.

    Args:
        optimizer: the fallback.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer: Any = optimizer
        self._plans: list[Plan] = []

    def step(self, finite: Tensor | None) -> None:
        """One step; nothing changes unless ``finite`` (a 0-d bool on the device, None for yes)."""
        found_inf = None if finite is None else (~finite).float()
        if plans := self.plans():
            grads = [[p.grad for p in plan.params if p.grad is not None] for plan in plans]
            if all(len(found) == len(plan.params) for found, plan in zip(grads, plans, strict=True)):
                for plan, group in zip(plans, grads, strict=True):
                    fused(plan, group, found_inf)
                return
        if found_inf is not None:
            self.optimizer.found_inf = found_inf
        try:
            self.optimizer.step()
        finally:
            if found_inf is not None:
                del self.optimizer.found_inf

    def plans(self) -> list[Plan]:
        """The lists of every group; empty where the fallback has to step itself."""
        return self._plans if self._planned() else []

    def _planned(self) -> bool:
        """Whether the lists are there and still the optimizer's."""
        state = self.optimizer.state
        if self._plans and all(
            len(plan.group["params"]) == len(plan.params)
            and state[plan.params[0]].get("exp_avg") is plan.means[0]
            and plan.means[0].device == plan.params[0].device
            and plan.means[0].dtype == plan.params[0].dtype
            for plan in self._plans
        ):
            return True
        self._plans = []
        if type(self.optimizer) is not torch.optim.AdamW:
            return False
        for group in self.optimizer.param_groups:
            params = group["params"]
            same = len({(p.device, p.dtype) for p in params}) == 1
            plain = group["fused"] and not group["amsgrad"] and not group["maximize"] and isinstance(group["lr"], float)
            if not same or not plain or not all("exp_avg" in state.get(p, {}) for p in params):
                self._plans = []
                return False
            lists = [[state[p][key] for p in params] for key in ("exp_avg", "exp_avg_sq", "step")]
            self._plans.append(Plan(group, list(params), *lists))
        return True


def fused(plan: Plan, grads: list[Tensor], found_inf: Tensor | None, lr: Tensor | None = None) -> None:
    """One step of one group in one kernel, none where ``found_inf`` is 1; ``lr`` on the device instead of its own."""
    group = plan.group
    if found_inf is not None:
        found_inf = found_inf.to(plan.params[0].device)
    if lr is None or found_inf is None:
        torch._foreach_add_(plan.counts, 1)
    else:  # A list: a single tensor would be read by the host.
        torch._foreach_add_(plan.counts, [1 - found_inf] * len(plan.counts))
    torch._fused_adamw_(
        plan.params,
        grads,
        plan.means,
        plan.squares,
        [],
        plan.counts,
        amsgrad=False,
        lr=group["lr"] if lr is None else lr,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
        grad_scale=None,
        found_inf=found_inf,
    )
    if found_inf is not None and lr is None:
        torch._foreach_sub_(plan.counts, [found_inf] * len(plan.counts))


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
