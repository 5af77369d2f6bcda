"""Trained look-up layers as fixed operators: what is timed and shipped."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from methods.approximate_matmul.learned.layers import MaddnessConv2d, MaddnessLayer


class Deployed(nn.Module):
    """A trained layer's operator, its bias and its geometry; no gradients, nothing to train.

    Attributes:
        op: the look-up product; ``op.describe()`` says what runs.
    """

    bias: Tensor | None

    def __init__(self, layer: MaddnessLayer, backend: str) -> None:
        super().__init__()
        self.op = layer.to_operator(backend)
        self.shape = layer.shape if isinstance(layer, MaddnessConv2d) else None
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """As the layer's."""
        rows = x.reshape(-1, x.shape[-1]) if self.shape is None else self.shape.rows(x)
        y = self.op(rows)
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], self.op.outer) if self.shape is None else self.shape.image(y, x)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"{self.op.inner} x {self.op.outer}, backend={self.op.describe()['backend']}"


def deploy(model: nn.Module, backend: str = "auto") -> nn.Module:
    """A copy of ``model`` in evaluation mode whose look-up layers are operators of one back-end.

    Args:
        model: a network with trained look-up layers; it stays as it is.
        backend: ``auto``, ``native``, ``torch`` or ``numpy``.
    """
    if isinstance(model, MaddnessLayer):
        return Deployed(model, backend)
    made = copy.deepcopy(model).eval()
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, MaddnessLayer):
                setattr(parent, name, Deployed(child, backend))
    return made
