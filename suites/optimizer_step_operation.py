"""The bare step as an operation that can be put back: weights, state, and what a step returns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import Unsupported

Build = Callable[[torch.dtype], tuple[torch.optim.Optimizer, list[nn.Parameter]]]


class Operation:
    """``op(gradients)``: hand the gradients over, step, return the parameters. Built when first needed."""

    def __init__(self, build: Build, dtype: torch.dtype) -> None:
        self._build, self._dtype = build, dtype
        self.optimizer: torch.optim.Optimizer | None = None
        self.parameters: list[nn.Parameter] = []
        self.steps = 0
        self._weights: list[Tensor] = []
        self._state: dict[tuple[int, str], Any] = {}
        self._twin: Operation | None = None

    def __call__(self, gradients: list[Tensor]) -> Stepped:
        """One step. The gradients are handed over by reference, as backward does."""
        optimizer = self.optimizer or self._ready()
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        self.steps += 1
        return Stepped(self.parameters, self)

    def _ready(self) -> torch.optim.Optimizer:
        optimizer, self.parameters = self._build(self._dtype)
        self._weights = [parameter.detach().clone() for parameter in self.parameters]
        self._state = {
            (id(owner), key): (value, value.detach().clone())
            if isinstance(value, Tensor)
            else (None, copy.deepcopy(value))
            for owner, key, value in _entries(optimizer)
        }
        if not self._state and _has_tensors(optimizer.state_dict()):
            raise Unsupported(
                "the optimizer's state is in its state_dict but not in optimizer.state: it cannot be put back."
            )
        self.optimizer = optimizer
        return optimizer

    @torch.no_grad()
    def rewind(self) -> None:
        """Put weights and state back, in place where the optimizer kept its tensors (a captured graph reads them)."""
        optimizer = self.optimizer or self._ready()
        torch._foreach_copy_([parameter.detach() for parameter in self.parameters], self._weights)
        state = optimizer.state
        for owner, key, value in list(_entries(optimizer)):
            known = self._state.get((id(owner), key))
            if known is None:
                del state[owner][key]
                continue
            original, saved = known
            if original is not None and value is original:
                original.copy_(saved)
            else:
                state[owner][key] = copy.deepcopy(saved)

    def state_bytes(self) -> int:
        """Bytes of every tensor of the state, after at least one step."""
        optimizer = self.optimizer or self._ready()
        return sum(v.numel() * v.element_size() for _, _, v in _entries(optimizer) if isinstance(v, Tensor))

    def in_float64(self) -> Operation:
        """The same operation on float64 parameters (kept): for plain twins."""
        if self._twin is None:
            self._twin = Operation(self._build, torch.float64)
        return self._twin


class Stepped:
    """The parameters after a step: live until the next one, or a copy.

    Attributes:
        weights: the parameters, or copies.
        iteration_dtypes: dtypes of inner iterations that the optimizer describes.
    """

    def __init__(self, weights: list[Any], operation: Operation | None, iteration_dtypes: frozenset[str] = frozenset()):
        self.weights, self._operation = weights, operation
        self._step = operation.steps if operation else 0
        self._iteration_dtypes = iteration_dtypes

    @property
    def gone(self) -> bool:
        """Whether a later step has changed the weights in place."""
        return self._operation is not None and self._operation.steps != self._step

    @property
    def iteration_dtypes(self) -> frozenset[str]:
        """Names of the dtypes, from the optimizer's ``describe()`` when it has one."""
        if self._operation is None:
            return self._iteration_dtypes
        describe = getattr(self._operation.optimizer, "describe", None)
        return frozenset(_found(describe(), "iteration_dtype")) if describe is not None else frozenset()

    def copy(self) -> Stepped:
        """A copy that no step changes."""
        return Stepped([weight.detach().clone() for weight in self.weights], None, self.iteration_dtypes)


def _entries(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, str, Any]]:
    for owner, values in optimizer.state.items():
        for key, value in values.items():
            yield owner, key, value


def _found(description: Any, key: str) -> Iterator[str]:
    if isinstance(description, dict):
        for name, value in description.items():
            if name == key:
                yield str(value)
            else:
                yield from _found(value, key)


def _has_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_tensors(inner) for inner in value.values())
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(_has_tensors(v) for v in value))
