"""Plain twins of the first-order methods: one parameter at a time, every operation written out, any real dtype.

They keep their state in a dictionary, use no fused, batched or in-place shortcut, and serve as the reference of the
gate and the oracle of the tests (in float64).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.catalogue import registry
from methods.first_order.groups import bias_factors, trainable
from methods.first_order.muon_rules import ADJUST, iteration_dtype_of, orthogonalizer_of
from methods.first_order.selection import split


class Plain(torch.optim.Optimizer):
    """A loop over the parameters; what one update does is the subclass's ``updated``."""

    def __init__(self, model: nn.Module, **hyper: Any) -> None:
        self.names = {parameter: name for name, parameter in trainable(model)}
        told = (hyper.get("norm_bias_lr_factor", 1.0), hyper.get("bias_lr_factor", 1.0))
        self.factors = bias_factors(model, *told)
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
        factor = self.factors.get(weight, 1.0)
        return sgd_update(weight, gradient, state, hyper, self.decay_of(weight, hyper) / factor, factor)


def sgd_update(
    weight: Tensor, gradient: Tensor, state: dict[str, Any], hyper: dict[str, Any], decay: float, factor: float
) -> Tensor:
    """One momentum SGD update of one parameter, at ``factor`` times the rate."""
    gradient = gradient + decay * weight
    mu, lr = float(hyper["momentum"]), float(hyper["lr"]) * factor
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


class _Lars(Plain):
    def updated(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], hyper: dict[str, Any]) -> Tensor:
        mu, lr = float(hyper["momentum"]), float(hyper["lr"])
        ratio = 1.0
        if weight.ndim >= 2:
            wd, size, slope = float(hyper["weight_decay"]), float(weight.norm()), float(gradient.norm())
            if size > 0 and slope > 0:
                ratio = hyper["eta"] * size / (slope + wd * size + hyper["eps"])
            gradient = gradient + wd * weight
        change: Tensor = lr * ratio * gradient
        state["v"] = mu * state.get("v", torch.zeros_like(weight)) + change
        step: Tensor = mu * state["v"] + change if hyper["nesterov"] else state["v"]
        return weight - step


class _Muon(Plain):
    def __init__(self, model: nn.Module, exclude: Sequence[str], orthogonalizer: Any, **hyper: Any) -> None:
        super().__init__(model, **hyper)
        self.hidden = set(split(model, exclude)[0])
        self.orthogonalizer = orthogonalizer

    def updated(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], hyper: dict[str, Any]) -> Tensor:
        lr, wd = float(hyper["lr"]), float(hyper["weight_decay"])
        if weight not in self.hidden:
            mine = {name.removeprefix("fallback_"): v for name, v in hyper.items() if name.startswith("fallback_")}
            ratio = lr / hyper["initial"] if hyper["initial"] else 1.0  # the schedule acts on both learning rates
            factor, wd = self.factors.get(weight, 1.0), float(mine["weight_decay"])
            mine["lr"] = mine["lr"] * ratio
            if hyper["fallback"] == "sgd":
                return sgd_update(weight, gradient, state, {**mine, "nesterov": True}, wd / factor, factor)
            mine["lr"] = mine["lr"] * factor
            return adamw_update(weight, gradient, state, mine, wd / factor if weight.ndim >= 2 else 0.0)
        if hyper["renormalize"] and (size := float(weight.norm())) > 0:
            weight = weight * (weight.shape[0] ** 0.5 / size)
        mu = float(hyper["momentum"])
        state["m"] = mu * state.get("m", torch.zeros_like(weight)) + (1.0 - mu) * gradient
        ahead: Tensor = mu * state["m"] + (1.0 - mu) * gradient if hyper["nesterov"] else state["m"]
        matrix = ahead.reshape(weight.shape[0], -1)
        direction = self._orthogonal(matrix, weight, hyper["iteration_dtype"]).to(weight.dtype).reshape(weight.shape)
        return (1.0 - lr * wd) * weight - lr * ADJUST[hyper["adjust"]](*matrix.shape) * direction

    def _orthogonal(self, matrix: Tensor, weight: Tensor, choice: str) -> Tensor:
        dtype = iteration_dtype_of(choice, weight)
        name, call = orthogonalizer_of(self.orthogonalizer, weight.device.type, dtype)
        plain: Callable[[Tensor], Tensor] = call
        if isinstance(self.orthogonalizer, str) and (twin := registry.method(name).reference):
            plain = registry.resolve(twin)
        return plain(matrix.to(dtype)[None])[0]


def sgd(
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
    """Plain twin of ``training.sgd``, which ``fused`` does not change."""
    return _Sgd(
        model,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        decay=decay,
        norm_bias_lr_factor=norm_bias_lr_factor,
        bias_lr_factor=bias_lr_factor,
    )


def adamw(
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
    """Plain twin of ``training.adamw``, which ``fused`` does not change."""
    return _AdamW(model, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, decay=decay)


def lars(
    model: nn.Module,
    *,
    lr: float = 2.0,
    momentum: float = 0.9,
    weight_decay: float = 5e-5,
    eta: float = 1e-3,
    eps: float = 0.0,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """Plain twin of ``training.lars``."""
    return _Lars(model, lr=lr, momentum=momentum, weight_decay=weight_decay, eta=eta, eps=eps, nesterov=nesterov)


def muon(
    model: nn.Module,
    *,
    lr: float = 0.02,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    orthogonalizer: str | Callable[[Tensor], Tensor] = "auto",
    adjust: str = "spectral",
    iteration_dtype: str = "auto",
    exclude: Sequence[str] = (),
    fallback_lr: float = 3e-4,
    fallback_beta1: float = 0.9,
    fallback_beta2: float = 0.95,
    fallback_eps: float = 1e-10,
    fallback_weight_decay: float = 0.0,
    renormalize: bool = False,
    fallback: str = "adamw",
    fallback_momentum: float = 0.85,
    norm_bias_lr_factor: float = 1.0,
    bias_lr_factor: float = 1.0,
) -> torch.optim.Optimizer:
    """Plain twin of ``training.muon``: matrix by matrix, the orthogonalizer's own plain twin in float64.

    The matrix is rounded to the iteration's dtype first, as the method does.
    """
    return _Muon(
        model,
        exclude,
        orthogonalizer,
        lr=lr,
        initial=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        adjust=adjust,
        iteration_dtype=iteration_dtype,
        fallback_lr=fallback_lr,
        fallback_beta1=fallback_beta1,
        fallback_beta2=fallback_beta2,
        fallback_eps=fallback_eps,
        fallback_weight_decay=fallback_weight_decay,
        renormalize=renormalize,
        fallback=fallback,
        fallback_momentum=fallback_momentum,
        norm_bias_lr_factor=norm_bias_lr_factor,
        bias_lr_factor=bias_lr_factor,
    )


def torch_muon(model: nn.Module, **hyper: Any) -> torch.optim.Optimizer:
    """Plain twin of ``training.torch-muon``: the same steps with Jordan's row, the matrix rounded to bfloat16."""
    return muon(model, orthogonalizer="polar.ns-jordan", iteration_dtype="bfloat16", **hyper)
