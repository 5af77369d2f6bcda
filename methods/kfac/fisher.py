"""Which gradients the output factor sees besides those of the data's own targets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.errors import Unsupported

if TYPE_CHECKING:
    from methods.kfac.kfac import KFAC

Closure = Callable[..., Any]


class Columns:
    """Replaces the gradient at the model's output by one column of a root of every loss term's Hessian.

    With logits z, p = softmax(z) over the last dimension, cross-entropy has the columns sqrt(p_c) (e_c - p); the mean
    square error over C outputs has sqrt(2 / C) e_c. Their outer products sum to the Hessian exactly (the type-2
    Fisher, equal to the GGN; Kunstner, Hennig and Balles, NeurIPS 2019). The closure's own gradient only says where.
    """

    def __init__(self, model: nn.Module, loss: str) -> None:
        self.loss, self.column, self.count = loss, -1, 0
        self._handle = model.register_forward_hook(self._hook)

    def _hook(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if self.column < 0 or not torch.is_grad_enabled():
            return None
        if not isinstance(output, Tensor):
            raise Unsupported("fisher='type-2' needs a model whose output is one tensor.")
        self.count = output.shape[-1]
        column = self._column(output.detach(), self.column)
        # A tensor of its own: hooks on the last layer's output have to see the column.
        fresh = output.view_as(output)
        fresh.register_hook(lambda gradient: column)  # type: ignore[no-untyped-call]
        return fresh

    def _column(self, output: Tensor, index: int) -> Tensor:
        unit = torch.zeros_like(output)
        unit[..., index] = 1.0
        if self.loss == "mse":
            return unit * math.sqrt(2.0 / output.shape[-1])
        chances = torch.softmax(output, dim=-1)
        root: Tensor = chances[..., index : index + 1].sqrt()
        return root * (unit - chances)

    def run(self, closure: Closure) -> int:
        """Call the closure once for each column; returns how many there were."""
        self.column, self.count = 0, 1
        try:
            while self.column < self.count:
                closure(targets="model" if self.loss == "cross-entropy" else "data")
                self.column += 1
        finally:
            self.column = -1
        return self.count

    def close(self) -> None:
        """Remove the hook."""
        self._handle.remove()


def model_passes(optimizer: KFAC, closure: Closure) -> int:
    """Let an optimizer catch statistics from targets drawn from the model, or from columns; drops their gradients.

    Returns:
        How many passes there were.
    """
    optimizer.forget()
    optimizer.capture.enabled = True
    try:
        with torch.enable_grad():
            if optimizer.columns is not None:
                passes = optimizer.columns.run(closure)
            else:
                passes = optimizer.options.mc_samples
                for _ in range(passes):
                    closure(targets="model")
    finally:
        optimizer.capture.enabled = False
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    return passes
