"""``training.lars``: layer-wise adaptive rate scaling for large batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import UserError
from methods.first_order.groups import covered, scalars, trainable


class Lars(torch.optim.Optimizer):
    """LARS (Y. You, I. Gitman, B. Ginsburg, arXiv 1708.03888) in the form of MLPerf's ResNet-50 reference.

    t = eta |w| / (|g| + wd |w| + eps), 1 where |w| or |g| is 0;  g' = g + wd w;  v <- mu v + lr t g';
    w <- w - v, or w - (mu v + lr t g') with Nesterov. A group with ``trust=False`` has t = 1
    (biases and norms; their wd is 0).
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 5e-5,
        eta: float = 1e-3,
        eps: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if lr < 0 or weight_decay < 0 or eta <= 0 or eps < 0 or not 0 <= momentum < 1:
            raise UserError("lars: lr, weight_decay and eps are at least 0, eta is positive, momentum in [0, 1).")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "eta": eta,
            "eps": eps,
            "nesterov": nesterov,
            "trust": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every parameter that has a gradient; no value leaves the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._update(weights, group)
        return loss

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        velocity = [self.state[weight]["momentum_buffer"] for weight in weights]
        if group["trust"]:
            rates = _trust(weights, gradients, group)
            change = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
            for tensor, rate in zip(change, rates, strict=True):
                tensor.mul_((group["lr"] * rate).to(tensor.dtype))
        else:
            change = torch._foreach_mul(gradients, group["lr"])
        torch._foreach_mul_(velocity, group["momentum"])
        torch._foreach_add_(velocity, change)
        if group["nesterov"]:
            torch._foreach_add_(change, velocity, alpha=group["momentum"])
            torch._foreach_sub_(weights, list(change))
        else:
            torch._foreach_sub_(weights, velocity)


def _trust(weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> tuple[Tensor, ...]:
    """The trust ratio of each weight, on the device, in float32 or better."""
    wide = torch.float64 if weights[0].dtype == torch.float64 else torch.float32
    size = torch.stack(torch._foreach_norm(weights, dtype=wide))
    slope = torch.stack(torch._foreach_norm(gradients, dtype=wide))
    ratio = group["eta"] * size / (slope + group["weight_decay"] * size + group["eps"])
    return torch.where((size > 0) & (slope > 0), ratio, 1.0).unbind(0)


def make(
    model: nn.Module,
    *,
    lr: float = 2.0,
    momentum: float = 0.9,
    weight_decay: float = 5e-5,
    eta: float = 1e-3,
    eps: float = 0.0,
    nesterov: bool = False,
) -> Lars:
    """LARS on every trainable parameter; those under two dimensions (biases, norms) get plain momentum SGD.

    Both kinds have the same ``lr``, as in the published form.
    """
    parameters = [parameter for _, parameter in trainable(model)]
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    others = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [{"params": matrices, "trust": True}, {"params": others, "trust": False, "weight_decay": 0.0}]
    optimizer = Lars(
        [group for group in groups if group["params"]],
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        eta=eta,
        eps=eps,
        nesterov=nesterov,
    )
    counts = {"lars": scalars(matrices), "sgd": scalars(others)}
    return covered(optimizer, {name: count for name, count in counts.items() if count})
