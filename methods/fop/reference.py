"""The plain twin: two gradients, dense Kronecker systems, loops, float64, for tiny nets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import Unsupported
from methods.fop.projection import Projection, sign, split_options
from methods.kfac.policy import value_at
from methods.kfac.reference import Twin as KFACTwin


def fop(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> Twin:
    """FOP by definition."""
    return Twin(model, lr, **options)


def beta_zero(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> Twin:
    """With beta = 0."""
    return Twin(model, lr, beta="zero", **options)


def eta_one(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> Twin:
    """With eta = 1."""
    return Twin(model, lr, eta="one", **options)


def random_beta(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> Twin:
    """With a random sign."""
    return Twin(model, lr, beta="random", **options)


def kfac_halves(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> Twin:
    """With beta = 0 and eta = 1."""
    return Twin(model, lr, beta="zero", eta="one", **options)


class Twin(KFACTwin):
    """``step(closure)`` with ``closure(part=0|1)``, each the mean loss of half the batch."""

    step_needs = frozenset({"closure"})
    sub_batches = 2

    def __init__(self, model: nn.Module, lr: float, **options: Any) -> None:
        own, others = split_options({"split": "passes", **options})
        self.rule: Projection = own
        if own.split != "passes" or own.eps or own.beta_max is not None or own.eta_min is not None or own.eta_max:
            raise Unsupported("the plain twin has two passes, no eps and no clamps.")
        super().__init__(model, lr, **others)
        self.differences: dict[Any, list[Tensor]] = {}
        self.betas: dict[str, float] = {}

    @torch.no_grad()
    def step(self, closure: Callable[..., Any]) -> None:  # type: ignore[override]
        """One update."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        found = []
        for part in (0, 1):
            for p in parameters:
                p.grad = None
            with torch.enable_grad():
                closure(part=part)
            found.append([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        first = dict(zip(parameters, found[0], strict=True))
        for p, one, two in zip(parameters, *found, strict=True):
            p.grad = (one + two) / 2
        for held in self.held:
            # Backward divided by half the terms; the Fisher is that of the mean over all of them.
            held.calls = [(x, b / 2) for x, b in held.calls]
            m = held.module
            of_bias = None if m.bias is None else 2 * (first[m.bias] - m.bias.grad)
            self.differences[held] = held.matrices(2 * (first[m.weight] - m.weight.grad), of_bias)
        super().step()

    def _solve(self, held: Any, group: int, gradient: Tensor) -> Tensor:
        """One group's direction; the inner products run over all groups of the layer."""
        gs = self._gradients(held)
        ds = self.differences[held]
        fisher = [
            torch.kron(g, a) if not self.rule.damped else self._damped(held, a, g) for a, g in self._factors(held)
        ]
        solve = held.inverse
        v = torch.cat([x.flatten() for x in gs])
        d = torch.cat([x.flatten() for x in ds])
        f, inverse = _block(fisher), _inverse(solve, [x.numel() for x in gs])
        s = (d @ f @ v) / (v @ f @ v)
        perp = d - s * v
        beta = float((v @ inverse @ perp) / (perp @ inverse @ perp)) if float(perp.norm()) > 0 else 0.0
        if self.rule.beta == "zero":
            beta = 0.0
        if self.rule.beta == "random":
            beta = abs(beta) * sign(self.rule.seed, self.steps, self.held.index(held))
        both = v + beta * perp
        total = 2 * v if self.rule.eta_ref == "sum" else v
        eta = 1.0 if self.rule.eta == "one" else float((total @ inverse @ both) / (both @ inverse @ both))
        self.betas[held.name] = beta
        sizes = [x.numel() for x in gs]
        return (eta * inverse @ both).split(sizes)[group].reshape(gradient.shape)  # type: ignore[no-any-return, no-untyped-call]

    def _gradients(self, held: Any) -> list[Tensor]:
        m, opt = held.module, self.opt
        found = held.matrices(m.weight.grad, None if m.bias is None else m.bias.grad)
        if opt.weight_decay_mode == "gradient" and self.steps >= opt.weight_decay_start:
            weights = held.matrices(m.weight, m.bias)
            found = [g + opt.weight_decay * w for g, w in zip(found, weights, strict=True)]
        return list(found)

    def _factors(self, held: Any) -> list[tuple[Tensor, Tensor]]:
        correct = 1 - self.opt.factor_decay**held.count if self.opt.factor_init == "bias-corrected" else 1.0
        return [(a / correct, g / correct) for a, g in held.factors]

    def _damped(self, held: Any, a: Tensor, g: Tensor) -> Tensor:
        return self._system(a, g, value_at(self.opt.damping, self.steps))


def _block(parts: list[Tensor]) -> Tensor:
    whole: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
    return whole


def _inverse(solves: list[Callable[[Tensor], Tensor]], sizes: list[int]) -> Tensor:
    return _block([solve(torch.eye(n, dtype=torch.float64)) for solve, n in zip(solves, sizes, strict=True)])
