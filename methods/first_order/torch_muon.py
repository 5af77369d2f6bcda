"""``training.torch-muon``: ``torch.optim.Muon`` as installed, with the same choice of weights and the same fallback.

It takes matrices alone, so a convolution's weight is handed to it as a flattened view that shares its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import Unsupported, UserError
from methods.first_order import adamw
from methods.first_order.composite import Composite
from methods.first_order.muon_stack import memory_order
from methods.first_order.selection import split

#: Our names of the learning-rate factor, and torch's.
_ADJUST = {"spectral": "original", "rms": "match_rms_adamw"}


class FlatMuon(torch.optim.Muon):
    """``torch.optim.Muon`` on views: before a step each view gets the flattened gradient of its parameter."""

    def __init__(self, parameters: Sequence[nn.Parameter], **hyper: Any) -> None:
        self._owners = list(parameters)
        self._orders = [memory_order(parameter) for parameter in parameters]
        self._views = [self._view(p, order) for p, order in zip(self._owners, self._orders, strict=True)]
        super().__init__(self._views, **hyper)

    @staticmethod
    def _view(parameter: nn.Parameter, order: tuple[int, ...]) -> nn.Parameter:
        if parameter.ndim == 2:
            return parameter
        flat = parameter.detach().permute(order)
        if not flat.is_contiguous():
            raise Unsupported(f"a weight with strides {parameter.stride()} has no flattened view.")
        return nn.Parameter(flat.view(parameter.shape[0], -1))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Hand the gradients over, then torch's step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for owner, view, order in zip(self._owners, self._views, self._orders, strict=True):
            if owner is view:
                continue
            if owner.data_ptr() != view.data_ptr() or owner.dtype != view.dtype:
                raise UserError("a parameter was cast or moved after torch.optim.Muon was built; build it after that.")
            view.grad = None if owner.grad is None else owner.grad.permute(order).reshape(view.shape)
        super().step()  # type: ignore[no-untyped-call]
        return loss

    def describe(self) -> dict[str, Any]:
        """What torch's Muon always does."""
        return {"iteration_dtype": "bfloat16"}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the parameters themselves."""
        super().zero_grad(set_to_none)
        for owner in self._owners:
            gradient: Tensor | None = owner.grad
            if set_to_none:
                owner.grad = None
            elif gradient is not None:
                gradient.detach_().zero_()


def make(
    model: nn.Module,
    *,
    lr: float = 0.02,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    adjust: str = "spectral",
    exclude: Sequence[str] = (),
    fallback_lr: float = 3e-4,
    fallback_beta1: float = 0.9,
    fallback_beta2: float = 0.95,
    fallback_eps: float = 1e-10,
    fallback_weight_decay: float = 0.0,
) -> Composite:
    """Torch's Muon for the hidden matrices, AdamW for the rest; hyper-parameters as in :func:`muon.make`.

    Known fault up to torch 2.14: with bfloat16 parameters and ``nesterov=False`` the iteration overwrites the momentum.

    Raises:
        Unsupported: no hidden matrix.
        UserError: an ``adjust`` that torch does not have.
    """
    if adjust not in _ADJUST:
        raise UserError(f"adjust is one of {', '.join(_ADJUST)}; got {adjust!r}.")
    hidden, others = split(model, exclude)
    if not hidden:
        raise Unsupported("the model has no hidden matrix for Muon: only biases, norms, embeddings and its head.")
    flat = FlatMuon(
        hidden,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        adjust_lr_fn=_ADJUST[adjust],
    )
    parts: dict[str, torch.optim.Optimizer] = {"torch-muon": flat}
    if others:
        parts["adamw"] = adamw.over(
            others,
            lr=fallback_lr,
            beta1=fallback_beta1,
            beta2=fallback_beta2,
            eps=fallback_eps,
            weight_decay=fallback_weight_decay,
            decay="matrices",
        )
    return Composite(parts)
