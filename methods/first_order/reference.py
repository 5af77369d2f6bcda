"""Plain twins of the first-order methods: one parameter at a time, every operation written out, any real dtype.

They keep their state in a dictionary, use no fused, batched or in-place shortcut, and serve as the reference of the
gate and the oracle of the tests (in float64).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from methods.first_order.groups import trainable


class Plain(torch.optim.Optimizer):
    """A loop over the parameters; what one update does is the subclass's ``updated``."""

    def __init__(self, model: nn.Module, **hyper: Any) -> None:
        self.names = {parameter: name for name, parameter in trainable(model)}
        super().__init__(list(self.names), hyper)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.copy_(self.updated(parameter, parameter.grad, self.state[parameter], group))

    @abstractmethod
    def updated(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], hyper: dict[str, Any]) -> Tensor:
        """The new value of one parameter."""

    def decay_of(self, weight: Tensor, hyper: dict[str, Any]) -> float:
        """The weight decay of one parameter."""
        spared = hyper["decay"] == "matrices" and weight.ndim < 2
        return 0.0 if spared else float(hyper["weight_decay"])


class _Sgd(Plain):
    def updated(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], hyper: dict[str, Any]) -> Tensor:
        gradient = gradient + self.decay_of(weight, hyper) * weight
        mu: float = hyper["momentum"]
        lr: float = hyper["lr"]
        if mu == 0.0:
            return weight - lr * gradient
        state["v"] = mu * state["v"] + gradient if "v" in state else gradient
        direction: Tensor = gradient + mu * state["v"] if hyper["nesterov"] else state["v"]
        return weight - lr * direction


class _AdamW(Plain):
    def updated(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], hyper: dict[str, Any]) -> Tensor:
        return adamw_update(weight, gradient, state, hyper, self.decay_of(weight, hyper))


def adamw_update(
    weight: Tensor, gradient: Tensor, state: dict[str, Any], hyper: dict[str, Any], weight_decay: float
) -> Tensor:
    """One AdamW update of one parameter."""
    b1, b2 = float(hyper["beta1"]), float(hyper["beta2"])
    lr, eps = float(hyper["lr"]), float(hyper["eps"])
    zero = torch.zeros_like(weight)
    state["t"] = state.get("t", 0) + 1
    state["m"] = b1 * state.get("m", zero) + (1.0 - b1) * gradient
    state["v"] = b2 * state.get("v", zero) + (1.0 - b2) * gradient**2
    mean: Tensor = state["m"] / (1.0 - b1 ** state["t"])
    square: Tensor = state["v"] / (1.0 - b2 ** state["t"])
    return weight - lr * weight_decay * weight - lr * mean / (square.sqrt() + eps)


def sgd(
    model: nn.Module,
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    decay: str = "all",
) -> torch.optim.Optimizer:
    """Plain twin of ``training.sgd``."""
    return _Sgd(model, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, decay=decay)


def adamw(
    model: nn.Module,
    *,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    decay: str = "matrices",
) -> torch.optim.Optimizer:
    """Plain twin of ``training.adamw``."""
    return _AdamW(model, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, decay=decay)
