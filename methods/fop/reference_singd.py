"""The plain twin of FOP on SINGD's factors: dense Kronecker systems, loops, float64, for tiny nets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from methods.fop.projection import sign, split_options
from methods.singd.reference import Twin as SINGDTwin


def singd(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> Twin:
    """FOP with F = (C C^T x K K^T)^-1."""
    return Twin(model, lr, **options)


class Twin(SINGDTwin):
    """``step(closure)`` with ``closure(part=0|1)``, each the mean loss of half the batch."""

    step_needs = frozenset({"closure"})
    sub_batches = 2

    def __init__(self, model: nn.Module, lr: float, **options: Any) -> None:
        self.rule, others = split_options({"split": "passes", **options})
        super().__init__(model, lr, **others)
        self.parameters = list(model.parameters())
        self.differences: dict[nn.Parameter, Tensor] = {}
        self.betas: list[float] = []

    @torch.no_grad()
    def step(self, closure: Callable[..., Any]) -> None:  # type: ignore[override]
        """One update."""
        for held in self.held:
            held.calls.clear()
        found = []
        for part in (0, 1):
            for p in self.parameters:
                p.grad = None
            with torch.enable_grad():
                closure(part=part)
            found.append([torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters])
        for p, one, two in zip(self.parameters, *found, strict=True):
            p.grad, self.differences[p] = (one + two) / 2, one - two
        for held in self.held:
            # Backward divided by half the terms; the Fisher is that of the mean over all of them.
            held.calls = [(x, b / 2) for x, b in held.calls]
        super().step()

    def _weights(self, held: Any) -> None:
        """FOP's mixture in place of the gradient, then SINGD's step."""
        module = held.module
        bias = None if module.bias is None else module.bias.grad
        of_bias = None if module.bias is None else self.differences[module.bias]
        gs, ds = held.matrices(module.weight.grad, bias), held.matrices(self.differences[module.weight], of_bias)
        inverse = torch.block_diag(*[torch.kron(c @ c.mT, k @ k.mT) for k, c in held.k])  # type: ignore[no-untyped-call]
        v, d = (torch.cat([x.flatten() for x in part]) for part in (gs, ds))
        f = torch.linalg.inv(inverse)
        perp = d - (d @ f @ v) / (v @ f @ v) * v
        beta = float((v @ inverse @ perp) / (perp @ inverse @ perp)) if float(perp.norm()) > 0 else 0.0
        if self.rule.beta == "zero":
            beta = 0.0
        if self.rule.beta == "random":
            beta = abs(beta) * sign(self.rule.seed, self.steps, self.held.index(held))
        both = v + beta * perp
        total = 2 * v if self.rule.eta_ref == "sum" else v
        eta = 1.0 if self.rule.eta == "one" else float((total @ inverse @ both) / (both @ inverse @ both))
        self.betas.append(beta)
        shaped = zip((eta * both).split([g.numel() for g in gs]), gs, strict=True)  # type: ignore[no-untyped-call]
        parts = torch.cat([x.reshape(g.shape) for x, g in shaped])
        if module.bias is not None:
            module.bias.grad = parts[:, -1].clone()
            parts = parts[:, :-1]
        module.weight.grad = parts.reshape(module.weight.shape).clone()
        super()._weights(held)
