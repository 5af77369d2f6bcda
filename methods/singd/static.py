"""The weights' step as one CUDA graph: on copies of the gradients, which are what moves from step to step.

The arithmetic is that of :mod:`methods.singd.apply` up to rounding. Numbers that change are on the device, as tensors
of one number and one dimension, so that those of half-precision weights keep float32; a batch that is not good makes
them 0 and its gradients too. Two diagonals need no memory besides the copies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from methods.kfac.fallback import Plan, Stepper, fused
from methods.kfac.graphs import Graphs, Scalars, places
from methods.singd.apply import Active, Apply, Entry, matrix_view
from methods.singd.rows import wide

#: A group of the fallback and copies of its gradients.
_Plans = list[tuple[Plan, list[Tensor]]]


class StaticStep:
    """Takes the steps of an :class:`Apply` by graphs, and the fallback's with them, where nothing stands against it.

    Not where a parameter has no gradient, or where parameters differ in device or dtype.

    Args:
        graphs: the optimizer's.
        stepper: of the fallback.

    Attributes:
        took_fallback: the last step moved the fallback's parameters too.
    """

    def __init__(self, graphs: Graphs, stepper: Stepper | None) -> None:
        self.graphs, self.stepper = graphs, stepper
        self.took_fallback = False
        self._copies: list[Tensor] = []
        self._generation = 0
        self._scalars: Scalars | None = None
        self._bad: Tensor | None = None

    def nbytes(self) -> int:
        """Bytes of the copies."""
        return sum(copy.numel() * copy.element_size() for copy in self._copies)

    def step(self, apply: Apply, active: Active, lr: float, good: Tensor | None) -> bool:
        """Move momenta and weights; False: nothing has been done."""
        self.took_fallback = False
        entries = active.entries
        homes = {(entry.parameter.device, entry.parameter.dtype) for entry in entries}
        device, dtype = next(iter(homes))
        whole = len(entries) == apply.parameters and all(stack.a.value.device == device for stack, _ in active.stacks)
        if not whole or len(homes) != 1 or not self.graphs.usable(device):
            return False
        grads = [entry.parameter.grad for entry in entries if entry.parameter.grad is not None]
        plans = self._plans(device)
        every = self._copy(grads + [p.grad for plan in plans for p in plan.params if p.grad is not None])
        copies, rest = every[: len(grads)], every[len(grads) :]
        if active.copied:
            apply.hold()
        self._fill(lr, good, plans, wide(dtype), device)
        key = self._key(apply, active, plans)
        pairs: _Plans = []
        for plan in plans:
            pairs.append((plan, rest[: len(plan.params)]))
            rest = rest[len(plan.params) :]
        name = "step" if good is None else "masked"
        done = self.graphs.run(name, key, device, lambda: self._work(apply, active, copies, pairs, good is not None))
        self.took_fallback = done and bool(plans)
        if not done:
            self.forget()
        return done

    def forget(self) -> None:
        """Drop the copies: the parameters are others, or graphs are not used."""
        self._copies, self._generation = [], self._generation + 1

    # -- on what -------------------------------------------------------------------------------------------------------

    def _copy(self, grads: list[Tensor]) -> list[Tensor]:
        """The gradients in places that stay, laid out as they are: one kernel or two copy them all."""
        if len(self._copies) != len(grads):
            self.forget()
            self._copies = [torch.empty_like(grad) for grad in grads]
        torch._foreach_copy_(self._copies, grads)
        return self._copies

    def _plans(self, device: torch.device) -> list[Plan]:
        """The fallback's lists; empty: it takes its own step."""
        plans = [] if self.stepper is None else self.stepper.plans()
        whole = all(p.grad is not None and p.device == device for plan in plans for p in plan.params)
        return plans if whole else []

    def _fill(
        self, lr: float, good: Tensor | None, plans: list[Plan], dtype: torch.dtype, device: torch.device
    ) -> None:
        """Bring this step's numbers to the device."""
        values = {"lr": lr, **{f"fallback {i}": float(plan.group["lr"]) for i, plan in enumerate(plans)}}
        known = self._scalars
        if known is None or known.names != list(values) or known["lr"].device != device or known["lr"].dtype != dtype:
            self._scalars = known = Scalars(list(values), dtype, device)
        known.set(values)
        if self._bad is None or self._bad.device != device:
            self._bad = torch.zeros((), device=device)
        if good is not None:
            torch.logical_not(good.to(device), out=self._bad)

    def _key(self, apply: Apply, active: Active, plans: list[Plan]) -> tuple[Any, ...]:
        """Whatever a capture bakes in; stacks and their tensors are new only where graphs are forgotten."""
        assert self._scalars is not None
        assert self._bad is not None
        tensors = [*self._scalars.tensors(), self._bad, *(entry.parameter for entry in active.entries)]
        fixed = []
        for plan in plans:
            tensors += plan.params
            # A plan's other tensors are its own as long as it lives.
            fixed.append((plan, *(plan.group[name] for name in ("betas", "eps", "weight_decay"))))
        rooms = tuple(buffer.untyped_storage().data_ptr() for buffer in apply.buffers)
        return places(tensors), self._generation, rooms, tuple(fixed), torch.backends.cuda.matmul.allow_tf32

    # -- the work ------------------------------------------------------------------------------------------------------

    def _work(self, apply: Apply, active: Active, copies: list[Tensor], plans: _Plans, masked: bool) -> None:
        """What a graph records: no number of the host changes from step to step in it."""
        scalars, bad = self._scalars, self._bad
        assert scalars is not None
        assert bad is not None
        lr = scalars["lr"].view(1)
        decay, keep = torch.full_like(lr, apply.decay), torch.full_like(lr, apply.mu)
        if masked:
            wrong = bad > 0
            for copy in copies:
                copy.masked_fill_(wrong, 0)
            lr, decay = lr.masked_fill(wrong, 0), decay.masked_fill_(wrong, 0)
            keep = keep.masked_fill_(wrong, 1)
        _spread(active, copies)
        for part in active.parts:
            part.mul_(keep)
        gains = self._gains(apply, active, copies)
        for place, entry in enumerate(active.entries):
            v = gains[place] if not apply.mu else active.views[place]
            weight: Tensor = entry.parameter
            if apply.decay:
                v.addcmul_(weight, decay)
            weight.addcmul_(v, lr, value=-1)
        for index, (plan, grads) in enumerate(plans):
            rate = scalars[f"fallback {index}"]
            fused(plan, grads, bad, rate.float() if rate.is_cuda else rate)

    def _gains(self, apply: Apply, active: Active, copies: list[Tensor]) -> list[Tensor]:
        """Add the directions to the momenta; without momenta, what moves the entries."""
        found: dict[Entry, Tensor] = {}
        for stack, _ in active.stacks:
            if stack.scales:
                continue
            v = apply.direction(stack)
            if stack.momentum is not None and apply.mu:
                stack.momentum.add_(v)
                continue
            mine = set(stack.layers)
            found |= {e: matrix_view(v[stack.places[e.layer]], e) for e in active.entries if e.layer in mine}
        start = len(active.copied)
        for place, entry in enumerate(active.scaled, start):
            assert entry.scales is not None
            scaled = copies[place] * entry.scales[0]
            if apply.mu:
                active.views[place].addcmul_(scaled, entry.scales[1])
            else:
                found[entry] = scaled * entry.scales[1]
        return [] if apply.mu else [found[entry] for entry in active.entries]


def _spread(active: Active, copies: list[Tensor]) -> None:
    """The copies to where the products take them from."""
    targets, sources = [], []
    for entry, copy in zip(active.copied, copies[: len(active.copied)], strict=True):
        targets.append(entry.target)
        sources.append(copy if entry.shape is None else copy.contiguous().view(entry.shape))
    if targets:
        torch._foreach_copy_(targets, sources)
