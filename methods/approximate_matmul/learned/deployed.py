"""Trained look-up layers as fixed operators: what is timed and shipped."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from methods.approximate_matmul.encoders import TreeEncoder
from methods.approximate_matmul.learned.layers import MaddnessConv2d, MaddnessLayer
from methods.approximate_matmul.learned.overlap import Overlapping
from methods.approximate_matmul.operator import LookupProduct
from methods.approximate_matmul.tree import Trees


class Deployed(nn.Module):
    """A trained layer's operator, its bias and its geometry; no gradients, nothing to train.

    On a CPU a convolution reads its windows where they lie (:mod:`.overlap`); on a GPU it gathers the windows' split
    columns, column after column. Either way at most 4 C of D entries are ever read.

    Attributes:
        op: the look-up product; ``op.describe()`` says what runs.
    """

    bias: Tensor | None
    taps: Tensor

    def __init__(self, layer: MaddnessLayer, backend: str) -> None:
        super().__init__()
        self.op, self.shape = layer.to_operator(backend), None
        if isinstance(layer, MaddnessConv2d):
            self._overlapping = Overlapping(self.op, layer.shape)
            self.op, columns = compact(self.op)
            self.shape = layer.shape
            self.register_buffer("taps", torch.from_numpy(columns.astype(np.int64)).to(self.op.device))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """As the layer's."""
        if self.shape is None:
            return self._summed(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], self.op.outer)
        if x.device.type == "cpu":
            y = self._overlapping(x)
            return y if self.bias is None else y.add_(self.bias[:, None, None].to(y.dtype))
        return self.shape.image(self._summed(self.shape.taps(x, self.taps)), x)

    def _summed(self, rows: Tensor) -> Tensor:
        y = self.op(rows)
        return y if self.bias is None else y.add_(self.bias)

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"{self.op.inner} x {self.op.outer}, backend={self.op.describe()['backend']}"


def compact(op: LookupProduct) -> tuple[LookupProduct, NDArray[np.int32]]:
    """The same product over the columns alone that its trees read, and which columns those are.

    A codebook's subspace becomes its different split columns in ascending order.
    """
    assert isinstance(op.encoder, TreeEncoder)
    trees = op.encoder.trees
    own = [np.unique(columns) for columns in trees.columns]
    starts = np.concatenate([[0], np.cumsum([len(columns) for columns in own])]).astype(np.int32)
    places = [np.searchsorted(own[c], columns) + starts[c] for c, columns in enumerate(trees.columns)]
    fewer = Trees(columns=np.stack(places).astype(np.int32), thresholds=trees.thresholds, starts=starts)
    made = LookupProduct(op.name, op.hyper, TreeEncoder(trees=fewer), op.tables, op.upcast, op.device, op.times)
    return made, np.concatenate(own).astype(np.int32)


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
