"""A stack: all weights of one shape, their momentum in one tensor, updated together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import Unsupported, UserError
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
        weights = [self._matrix(self._checked(self.members[i])) for i in chosen]
        gradients = [self._matrix(self._gradient(self.members[i])) for i in chosen]
        whole = len(chosen) == len(self.members)
        rows = self._rows if whole else [self._rows[i] for i in chosen]
        momentum, lr = hyper["momentum"], hyper["lr"]
        torch._foreach_lerp_(rows, gradients, 1.0 - momentum)
        if hyper["nesterov"]:
            stacked = torch.stack(gradients)
            stacked.lerp_(self.momentum if whole else torch.stack(rows), momentum)
        else:
            stacked = self.momentum if whole else torch.stack(rows)
        update = self.orthogonalize(stacked.to(self.dtype))
        if hyper["weight_decay"]:
            torch._foreach_mul_(weights, 1.0 - lr * hyper["weight_decay"])
        factor = ADJUST[hyper["adjust"]](self.m, self.n)
        torch._foreach_add_(weights, list(update.unbind(0)), alpha=-lr * factor)

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


def _plain(key: Key) -> str:
    shape, dtype, device, strides = key
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')} on {device} with strides {strides}"
