"""A stack: all weights of one shape, their momentum in one tensor, updated together."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import Unsupported, UserError
from harness.record import environment
from methods.first_order.muon_rules import ADJUST

#: Shape, dtype, device and strides: weights that agree in all of them share a stack.
Key = tuple[torch.Size, torch.dtype, torch.device, tuple[int, ...]]


def key_of(parameter: Tensor) -> Key:
    """What must agree within a stack."""
    return parameter.shape, parameter.dtype, parameter.device, parameter.stride()


def memory_order(parameter: Tensor) -> tuple[int, ...]:
    """Dimensions in the order in which the flattened matrix has them, the output dimension first.

    For a convolution in channels-last format this is (0, 2, 3, 1): the columns of the flattened matrix are permuted,
    the matrix is a view, and orthogonalization commutes with a permutation of columns.
    """
    strides = parameter.stride()
    rest = sorted(range(1, parameter.ndim), key=lambda d: (-strides[d], d))
    return (0, *rest)


class Stack:
    """Weights of one shape (m, n) after flattening.

    Attributes:
        members: the parameters.
        momentum: (k, m, n) in the parameters' dtype; row i belongs to member i.
    """

    def __init__(
        self, members: Sequence[nn.Parameter], orthogonalize: Callable[[Tensor], Tensor], dtype: torch.dtype
    ) -> None:
        first = members[0]
        if first.ndim > 2 and not first.permute(memory_order(first)).is_contiguous():
            raise Unsupported(f"a weight of shape {tuple(first.shape)} and strides {first.stride()} is no flat matrix.")
        self.members, self.orthogonalize, self.dtype = list(members), orthogonalize, dtype
        self._key, self._order = key_of(first), memory_order(first)
        self.m, self.n = first.shape[0], first.numel() // first.shape[0]
        self.momentum = torch.zeros(len(members), self.m, self.n, dtype=first.dtype, device=first.device)
        self._rows = list(self.momentum.unbind(0))
        self._fused = _fused_passes(first)
        self._tables = [self._fused.Addresses(), self._fused.Addresses()] if self._fused else []

    def momentum_like_parameters(self) -> list[Tensor]:
        """Each member's momentum as a view of the parameter's shape."""
        first = self.members[0]
        sizes = [first.shape[d] for d in self._order]
        back = [self._order.index(d) for d in range(first.ndim)]
        return [row.view(sizes).permute(back) for row in self._rows]

    def step(self, hyper: dict[str, Any]) -> None:
        """One update of the members that have a gradient."""
        chosen = [i for i, parameter in enumerate(self.members) if parameter.grad is not None]
        if not chosen:
            return
        weights = [self._checked(self.members[i]) for i in chosen]
        if hyper["renormalize"]:
            self._renormalize(weights)
        gradients = [self._gradient(self.members[i]) for i in chosen]
        lr = float(hyper["lr"])
        keep, rate = 1.0 - lr * hyper["weight_decay"], lr * ADJUST[hyper["adjust"]](self.m, self.n)
        whole = len(chosen) == len(self.members)
        if self._fused is not None and whole and self._fused.applies(weights, gradients, self.dtype):
            self._step_fused(weights, gradients, hyper, keep, rate)
            return
        gathered = torch.stack([self._matrix(gradient) for gradient in gradients])
        update = self.orthogonalize(self._advance(gathered, chosen, hyper).to(self.dtype))
        matrices = [self._matrix(weight) for weight in weights]
        if matrices[0].is_cuda:
            if keep != 1.0:
                torch._foreach_mul_(matrices, keep)
            torch._foreach_add_(matrices, list(update.unbind(0)), alpha=-rate)
            return
        for matrix, change in zip(matrices, update.unbind(0), strict=True):  # foreach rounds the scalar on a CPU
            if keep != 1.0:
                matrix.mul_(keep)
            matrix.add_(change, alpha=-rate)

    def _renormalize(self, weights: list[Tensor]) -> None:
        """Set w <- w sqrt(m) / |w|: rows of mean square 1, as airbench94_muon does before each update."""
        wide = torch.float64 if weights[0].dtype == torch.float64 else torch.float32
        matrices = [self._matrix(weight) for weight in weights]
        sizes = torch.stack(torch._foreach_norm(matrices, dtype=wide))
        scales = torch.where(sizes > 0, math.sqrt(self.m) / sizes, 1.0)
        for matrix, scale in zip(matrices, scales.unbind(0), strict=True):
            matrix.mul_(scale)

    def _advance(self, gathered: Tensor, chosen: list[int], hyper: dict[str, Any]) -> Tensor:
        """Update the momentum; what is to be orthogonalized, in the parameters' dtype."""
        mu = hyper["momentum"]
        whole = len(chosen) == len(self.members)
        momentum = self.momentum if whole else self.momentum[chosen]
        momentum.lerp_(gathered, 1.0 - mu)
        if not whole:
            self.momentum[chosen] = momentum
        return gathered.lerp_(momentum, mu) if hyper["nesterov"] else momentum

    def _step_fused(
        self, weights: list[Tensor], gradients: list[Tensor], hyper: dict[str, Any], keep: float, rate: float
    ) -> None:
        assert self._fused is not None
        table = self._tables[0].of(gradients)
        matrices = self._fused.advance(table, self.momentum, float(hyper["momentum"]), hyper["nesterov"], self.dtype)
        update = self.orthogonalize(matrices).contiguous()
        self._fused.apply(self._tables[1].of(weights), self.momentum, update, keep, rate)

    def _matrix(self, tensor: Tensor) -> Tensor:
        if tensor.ndim == 2:
            return tensor
        return tensor.permute(self._order).reshape(self.m, self.n)

    def _checked(self, parameter: nn.Parameter) -> Tensor:
        if key_of(parameter) != self._key:
            raise UserError(
                f"a parameter was cast, moved or laid out anew after the optimizer's first step (it was "
                f"{_plain(self._key)}, it is {_plain(key_of(parameter))}); build the optimizer after that."
            )
        return parameter.detach()

    def _gradient(self, parameter: nn.Parameter) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        if gradient.layout != torch.strided:
            raise Unsupported("Muon takes no sparse gradient; exclude the parameter by name.")
        return gradient.to(self.momentum.dtype)


def _fused_passes(parameter: Tensor) -> ModuleType | None:
    """The module of fused passes where Triton drives a GPU, else None."""
    if not parameter.is_cuda or not environment.importable("triton"):
        return None
    return importlib.import_module("methods.first_order.muon_fused")


def _plain(key: Key) -> str:
    shape, dtype, device, strides = key
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')} on {device} with strides {strides}"
