"""K-FAC as it is commonly published: one layer after another, patches copied out, a decomposition for each factor.

The comparison arm of our timings, written from the equations (Martens and Grosse, arXiv 1503.05671; Grosse and Martens,
arXiv 1602.01407) with the structure of widely used code: factors by ``unfold`` and one product for each layer in
hooks, running means from the identity, ``torch.linalg.inv`` or ``eigh`` for each factor, lam on both factors (inverse)
or on their product (eigen), a clipping sum that is read on the host, and SGD with momentum for all parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import UserError

METHODS = ("inverse", "eigen")


class PlainKFAC(torch.optim.SGD):
    """W <- W - lr v,  v <- mu v + nu (G + lam I)^-1 dW (A + lam I)^-1 (``inverse``), or in the eigenbases (``eigen``).

    Args:
        model: its nn.Linear and nn.Conv2d (groups 1) are preconditioned.
        lr: learning rate.
        momentum: mu.
        damping: lam.
        factor_decay: rho of the running means.
        update_period: steps between statistics.
        refresh_period: steps between decompositions.
        kl_clip: kappa of nu = min(1, sqrt(kappa / (lr^2 sum <v, dW>))).
        method: ``inverse`` or ``eigen``.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.1,
        momentum: float = 0.9,
        damping: float = 1e-3,
        factor_decay: float = 0.95,
        update_period: int = 10,
        refresh_period: int = 100,
        kl_clip: float = 1e-3,
        method: str = "inverse",
    ) -> None:
        if method not in METHODS:
            raise UserError(f"method is one of {', '.join(METHODS)}; got {method!r}.")
        super().__init__(model.parameters(), lr=lr, momentum=momentum)
        self.lam, self.decay, self.kl_clip, self.method = damping, factor_decay, kl_clip, method
        self.update_period, self.refresh_period, self.steps = update_period, refresh_period, 0
        self.layers: list[Any] = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        self.factors: dict[Any, list[Tensor]] = {layer: [] for layer in self.layers}
        self.inverses: dict[Any, list[Any]] = {}
        for layer in self.layers:
            layer.register_forward_pre_hook(self._input)
            layer.register_full_backward_hook(self._output)

    @torch.no_grad()
    def _input(self, layer: Any, inputs: Any) -> None:
        if layer.training and self.steps % self.update_period == 0:
            rows = inputs[0]
            if isinstance(layer, nn.Conv2d):
                columns = functional.unfold(rows, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
                rows = columns.transpose(1, 2).reshape(-1, columns.shape[1])
            if layer.bias is not None:
                rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
            self._enter(layer, 0, rows.T @ (rows / len(rows)))

    @torch.no_grad()
    def _output(self, layer: Any, _: Any, gradients: Any) -> None:
        if self.steps % self.update_period == 0:
            rows = gradients[0]
            batch = len(rows)
            if isinstance(layer, nn.Conv2d):
                rows = rows.permute(0, 2, 3, 1).reshape(-1, rows.shape[1])
            self._enter(layer, 1, rows.T @ (rows * batch))

    def _enter(self, layer: Any, side: int, new: Tensor) -> None:
        held = self.factors[layer]
        if len(held) == side:
            held.append(torch.eye(len(new), dtype=new.dtype, device=new.device))
        held[side] = self.decay * held[side] + (1 - self.decay) * (new + new.T) / 2

    def _refresh(self, layer: Any) -> None:
        if self.method == "eigen":
            self.inverses[layer] = [torch.linalg.eigh(factor) for factor in self.factors[layer]]
            return
        eyes = [self.lam * torch.eye(len(f), dtype=f.dtype, device=f.device) for f in self.factors[layer]]
        self.inverses[layer] = [torch.linalg.inv(f + e) for f, e in zip(self.factors[layer], eyes, strict=True)]

    def _direction(self, layer: Any, gradient: Tensor) -> Tensor:
        a, g = self.inverses[layer]
        if self.method == "inverse":
            return g @ gradient @ a  # type: ignore[no-any-return]
        (da, qa), (dg, qg) = a, g
        inner = (qg.T @ gradient @ qa) / (dg.clamp_min(0)[:, None] * da.clamp_min(0)[None, :] + self.lam)
        return qg @ inner @ qa.T  # type: ignore[no-any-return]

    @torch.no_grad()
    def step(self, closure: Callable[..., Any] | None = None) -> Any:  # type: ignore[override]
        """One update; gradients are replaced by the clipped directions."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found: list[tuple[Any, Tensor]] = []
        total, lr = 0.0, float(self.param_groups[0]["lr"])
        for layer in self.layers:
            if self.steps % self.refresh_period == 0:
                self._refresh(layer)
            gradient = layer.weight.grad.reshape(len(layer.weight), -1)
            if layer.bias is not None:
                gradient = torch.cat([gradient, layer.bias.grad[:, None]], 1)
            v = self._direction(layer, gradient)
            total += float((v * gradient).sum()) * lr**2
            found.append((layer, v))
        factor = min(1.0, (self.kl_clip / max(total, 1e-30)) ** 0.5)
        for layer, v in found:
            if layer.bias is not None:
                layer.bias.grad.copy_(v[:, -1] * factor)
                v = v[:, :-1]
            layer.weight.grad.copy_(v.reshape(layer.weight.shape) * factor)
        super().step()
        self.steps += 1
        return loss

    def memory_usage(self) -> dict[str, int]:
        """Bytes of state by category."""
        kinds = {
            "factors": [t for held in self.factors.values() for t in held],
            "inverses": [
                t
                for pair in self.inverses.values()
                for one in pair
                for t in ([one] if self.method == "inverse" else one)
            ],
            "momentum": [t for held in self.state.values() for t in held.values() if isinstance(t, Tensor)],
        }
        return {kind: sum(t.numel() * t.element_size() for t in tensors) for kind, tensors in kinds.items()}
