"""``training.muon``: momentum whose matrices are orthogonalized, many at a time.

K. Jordan et al., Muon (2024). Weights of one shape form one stack: their momentum buffers are the rows of one tensor
(k, m, n), so the orthogonalization is one batched call and nothing has to be gathered for it but the gradients.
Matrices keep their orientation: the ``polar.*`` methods take tall ones without a copy, and gradients stay contiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import Unsupported, UserError
from methods.first_order import adamw, sgd
from methods.first_order.composite import Composite
from methods.first_order.groups import bias_factors
from methods.first_order.muon_rules import ADJUST, iteration_dtype_of, orthogonalizer_of
from methods.first_order.muon_stack import Stack, key_of
from methods.first_order.selection import split
from methods.first_order.stopwatch import Stopwatch

Orthogonalizer = str | Callable[[Tensor], Tensor]


class Muon(torch.optim.Optimizer):
    """Muon over matrices and convolution weights (flattened to (out, in k k)).

    m <- m + (1 - mu)(g - m);  u = g + mu (m - g) with Nesterov, m without;  o = orthogonalize(u);
    w <- (1 - lr wd) w - lr f(m, n) o; before that w <- w sqrt(m) / |w| with ``renormalize``.

    Also works on a plain list of parameters. Momentum has the parameter's dtype; the iteration has its own.

    Args:
        params: parameters or groups, each parameter of at least two dimensions and not empty.
        lr: learning rate.
        momentum: mu, as an exponential mean.
        nesterov: look one step ahead.
        weight_decay: wd, decoupled.
        orthogonalizer: name of a ``polar.*`` method, a function from a stack (k, m, n) to a new one, or ``auto``:
            see :func:`methods.first_order.muon_rules.orthogonalizer_of`.
        adjust: factor f by the matrix's shape: ``spectral``, ``rms`` or ``none``; see ``ADJUST``.
        iteration_dtype: dtype of the iteration, ``parameter``, or ``auto``: bfloat16 on a GPU as published, on a CPU
            (which emulates bfloat16) the parameter's, at least float32.
        renormalize: set every weight's Frobenius norm to sqrt(m) before its update (airbench94_muon, K. Jordan 2024):
            for weights that a norm follows, whose scale does nothing but shrink the step.

    Raises:
        UserError: a hyper-parameter out of range; a parameter cast, moved or re-laid out after the first step.
        Unsupported: a parameter that is no matrix, or a sparse gradient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        orthogonalizer: Orthogonalizer = "auto",
        adjust: str = "spectral",
        iteration_dtype: str = "auto",
        renormalize: bool = False,
    ) -> None:
        if adjust not in ADJUST:
            raise UserError(f"adjust is one of {', '.join(ADJUST)}; got {adjust!r}.")
        if lr < 0 or weight_decay < 0 or not 0 <= momentum < 1:
            raise UserError(
                f"lr and weight_decay are at least 0, momentum in [0, 1); got {lr}, {weight_decay}, {momentum}."
            )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "adjust": adjust,
            "renormalize": renormalize,
        }
        self.orthogonalizer, self.iteration_dtype = orthogonalizer, iteration_dtype
        self._stacks: list[list[Stack]] | None = None
        self._stopwatch = Stopwatch()
        super().__init__(params, defaults)
        parameter = self.param_groups[0]["params"][0]
        # Names are checked now, for a clear error early.
        orthogonalizer_of(orthogonalizer, parameter.device.type, iteration_dtype_of(iteration_dtype, parameter))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; stacks are laid out anew at the next step, with their momentum."""
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.ndim < 2 or parameter.numel() == 0:
                self.param_groups.pop()
                raise Unsupported(f"Muon takes matrices and convolutions, not shape {tuple(parameter.shape)}.")
        if self._stacks is not None:
            self._lay_out()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._stacks is None:
            self._lay_out()
        for group, stacks in zip(self.param_groups, self._stacks or (), strict=True):
            for stack in stacks:
                stack.step(group)
        return loss

    def _lay_out(self) -> None:
        """Allocate the stacks, with the momentum that ``state`` holds already."""
        self._stacks = []
        for group in self.param_groups:
            shapes: dict[Any, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                shapes.setdefault(key_of(parameter), []).append(parameter)
            self._stacks.append([self._stack(members) for members in shapes.values()])

    def _stack(self, members: Sequence[nn.Parameter]) -> Stack:
        dtype = iteration_dtype_of(self.iteration_dtype, members[0])
        _, call = orthogonalizer_of(self.orthogonalizer, members[0].device.type, dtype)
        stack = Stack(members, self._stopwatch.around(call), dtype)
        for parameter, buffer in zip(members, stack.momentum_like_parameters(), strict=True):
            held = self.state[parameter].get("momentum_buffer")
            if held is not None:
                buffer.copy_(held)
            self.state[parameter]["momentum_buffer"] = buffer
        return stack

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the momentum bit by bit; a state from before the first step resets it."""
        super().load_state_dict(state_dict)
        self._stacks = None
        if self.state:
            self._lay_out()

    def parts(self) -> dict[str, float]:
        """Seconds of the orthogonalization since the last call; the first call starts the measuring."""
        return {"orthogonalize": self._stopwatch.read()}

    def describe(self) -> dict[str, Any]:
        """The orthogonalizer and the iteration's dtype that ``auto`` stands for here, by device and dtype."""
        found = {}
        for parameter in (p for group in self.param_groups for p in group["params"]):
            dtype = iteration_dtype_of(self.iteration_dtype, parameter)
            name, _ = orthogonalizer_of(self.orthogonalizer, parameter.device.type, dtype)
            found[f"{parameter.device.type}, {str(parameter.dtype).removeprefix('torch.')}"] = {
                "orthogonalizer": name,
                "iteration_dtype": str(dtype).removeprefix("torch."),
            }
        return found


def make(
    model: nn.Module,
    *,
    lr: float = 0.02,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    orthogonalizer: Orthogonalizer = "auto",
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
) -> Composite:
    """Muon for the hidden matrices, another method for the rest; see :func:`selection.split` and :class:`Muon`.

    The defaults are those of KellerJordan/Muon (class ``MuonWithAuxAdam``).

    ``fallback`` is ``adamw``, or ``sgd`` with Nesterov momentum ``fallback_momentum`` (0.85 in airbench94_muon) and
    ``fallback_weight_decay`` on every parameter. ``norm_bias_lr_factor`` multiplies ``fallback_lr`` for the shifts of
    normalization layers, ``bias_lr_factor`` for all other biases; lr wd stays as it is.

    Raises:
        Unsupported: the model has no hidden matrix.
        UserError: a ``fallback`` that does not exist.
    """
    if fallback not in ("adamw", "sgd"):
        raise UserError(f"fallback is adamw or sgd; got {fallback!r}.")
    hidden, others = split(model, exclude)
    if not hidden:
        raise Unsupported("the model has no hidden matrix for Muon: only biases, norms, embeddings and its head.")
    parts: dict[str, torch.optim.Optimizer] = {
        "muon": Muon(hidden, lr, momentum, nesterov, weight_decay, orthogonalizer, adjust, iteration_dtype, renormalize)
    }
    factors = bias_factors(model, norm_bias_lr_factor, bias_lr_factor)
    if others and fallback == "sgd":
        parts["sgd"] = sgd.over(
            others,
            lr=fallback_lr,
            momentum=fallback_momentum,
            nesterov=True,
            weight_decay=fallback_weight_decay,
            decay="all",
            factors=factors,
        )
    elif others:
        parts["adamw"] = adamw.over(
            others,
            lr=fallback_lr,
            beta1=fallback_beta1,
            beta2=fallback_beta2,
            eps=fallback_eps,
            weight_decay=fallback_weight_decay,
            decay="matrices",
            factors=factors,
        )
    return Composite(parts)
