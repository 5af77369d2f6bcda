"""The plain twin: loops, ``unfold``, dense Kronecker products and dense solves, in float64, for tiny nets.

Takes the options of the methods that compute the same thing in other ways (the empirical Fisher of the ordinary
backward; every damping, clipping, sharing and start of the running means).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import Unsupported
from methods.kfac.options import Options
from methods.kfac.policy import Schedule, value_at

_SKETCH = ("oversampling", "power", "warm", "dense", "seed", "iterations", "tolerance", "half")
_RULE = ("rank_target", "rank_floor", "rank_cap")


def kfac(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> Twin:
    """K-FAC by definition; with ``rank`` the factors' other modes are cut away first."""
    return Twin(model, lr, **options)


def eigh(model: nn.Module, *, lr: float = 1e-3, damping_mode: str = "exact", **options: Any) -> Twin:
    """K-FAC with the product damped."""
    return Twin(model, lr, damping_mode=damping_mode, **options)


def ekfac(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> Twin:
    """EKFAC by definition."""
    return Twin(model, lr, **{"scaling": "intra-batch", "scale_decay": None, "damping_mode": "exact", **options})


def low_rank(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> Twin:
    """K-FAC with both factors cut to their largest modes exactly."""
    return Twin(model, lr, **{"rank": 220, "damping_mode": "adaptive", **options})


class _Held:
    """One module: its calls since the last step and its state."""

    def __init__(self, name: str, module: Any) -> None:
        self.name, self.module = name, module
        self.calls: list[tuple[Tensor, Tensor]] = []
        self.factors: list[tuple[Tensor, Tensor]] = []
        self.inverse: list[Callable[[Tensor], Tensor]] = []
        self.bases: list[tuple[Tensor, Tensor]] = []
        self.scales: list[Tensor] = []
        self.count, self.terms = 0, 0
        self.velocity: Tensor | float = 0.0
        module.register_forward_hook(self._hook)

    def _hook(self, module: Any, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda g: self.calls.append((inputs[0].detach().double(), g.detach().double())))  # type: ignore[no-untyped-call]

    @property
    def groups(self) -> int:
        return int(getattr(self.module, "groups", 1))

    def matrices(self, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
        """One float64 matrix for each group."""
        parts = weight.double().flatten(1).chunk(self.groups)
        if bias is None:
            return list(parts)
        return [torch.cat([w, b[:, None]], 1) for w, b in zip(parts, bias.double().chunk(self.groups), strict=True)]

    def samples(self, group: int) -> list[tuple[Tensor, Tensor]]:
        """(S, d_in) inputs with the bias' 1 and (S, d_out) gradients of each sample of every call."""
        found = []
        for x, g in self.calls:
            if isinstance(self.module, nn.Conv2d):
                m = self.module
                columns = functional.unfold(x, m.kernel_size, m.dilation, m.padding, m.stride)  # type: ignore[arg-type]
                rows = columns.chunk(self.groups, 1)[group].mT
                grads = g.flatten(2).chunk(self.groups, 1)[group].mT
            else:
                rows, grads = x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1])
            if self.module.bias is not None:
                rows = torch.cat([rows, torch.ones_like(rows[..., :1])], -1)
            found += list(zip(rows, grads, strict=True))
        return found


class Twin(torch.optim.Optimizer):
    """See the module."""

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        *,
        scaling: str | None = None,
        scale_decay: float | None = None,
        rank: Schedule | None = None,
        continuation: bool = False,
        **options: Any,
    ) -> None:
        for name in (*_SKETCH, *_RULE):
            options.pop(name, None)
        if options.pop("adaptive_rank", False):
            raise Unsupported("the plain twin has no adaptive rank.")
        self.opt = Options(**options)
        if self.opt.fisher != "empirical" or self.opt.subsample != 1.0 or self.opt.stagger or self.opt.spread:
            raise Unsupported("the plain twin has the empirical Fisher, all rows and neither stagger nor spread.")
        self.scaling, self.rank, self.continuation = scaling, rank, continuation
        self.scale_decay = (0.75 if scaling == "running" else 0.0) if scale_decay is None else scale_decay
        found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        self.held = [_Held(name, module) for name, module in found if name not in self.opt.exclude]
        super().__init__([p for h in self.held for p in h.module.parameters()], {"lr": lr})
        mine = {id(p) for h in self.held for p in h.module.parameters()}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in mine]
        self.fallback = (
            torch.optim.AdamW(
                rest,
                self.opt.fallback_lr,
                (self.opt.fallback_beta1, self.opt.fallback_beta2),
                self.opt.fallback_eps,
                weight_decay=0.0,
            )
            if rest
            else None
        )
        self.param_groups += self.fallback.param_groups if self.fallback is not None else []
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update."""
        opt = self.opt
        for held in self.held:
            period = int(value_at(opt.update_period, self.steps))
            if self.steps % period == 0:
                self._statistics(held)
            if held.scales and self.scaling == "intra-batch" and (self.steps - 1) % period == 0:
                self._scales(held)
            if self.steps % int(value_at(opt.refresh_period, self.steps)) == 0:
                self._refresh(held)
            held.calls = []
        gradients = [h.matrices(h.module.weight.grad, _grad(h.module.bias)) for h in self.held]
        weights = [h.matrices(h.module.weight, h.module.bias) for h in self.held]
        decay = opt.weight_decay if self.steps >= opt.weight_decay_start else 0.0
        if opt.weight_decay_mode == "gradient":
            gradients = [
                [g + decay * w for g, w in zip(gs, ws, strict=True)] for gs, ws in zip(gradients, weights, strict=True)
            ]
        moves = [
            torch.stack([self._solve(h, i, g) for i, g in enumerate(gs)])
            for h, gs in zip(self.held, gradients, strict=True)
        ]
        lr = float(self.param_groups[0]["lr"])
        factors = self._clip(moves, [torch.stack(gs) for gs in gradients], lr)
        for h, v, factor, ws in zip(self.held, moves, factors, weights, strict=True):
            w = torch.stack(ws)
            move = factor * v + (decay * w if opt.weight_decay_mode == "coupled" else 0.0)
            h.velocity = opt.momentum * h.velocity + move
            shrink = 1 - lr * decay if opt.weight_decay_mode == "decoupled" else 1.0
            _write(h.module, shrink * w - lr * h.velocity)
        if self.fallback is not None:
            self.fallback.step()
        self.steps += 1

    # -- curvature -----------------------------------------------------------------------------------------------------

    def _statistics(self, held: _Held) -> None:
        opt, fresh = self.opt, []
        samples = [held.samples(group) for group in range(held.groups)]
        shared = len(samples[0][0][0])
        held.terms = len(samples[0]) * (shared if opt.loss_terms == "batch+sequence" else 1)
        scale = held.terms if opt.reduction == "mean" else 1 / held.terms
        for of_group in samples:
            a = g = torch.zeros((), dtype=torch.float64)
            for rows, grads in of_group:
                if opt.sharing == "reduce":
                    rows, grads = rows.mean(0, keepdim=True), grads.sum(0, keepdim=True)
                a = a + rows.mT @ rows / len(rows) / len(of_group)
                g = g + scale * grads.mT @ grads
            fresh.append((a, g))
        if not held.factors:
            start = {"identity": 1.0, "bias-corrected": 0.0, "first-batch": None}[opt.factor_init]
            held.factors = [
                (a, g) if start is None else (start * torch.eye(len(a)).double(), start * torch.eye(len(g)).double())
                for a, g in fresh
            ]
        held.factors = [
            tuple(opt.factor_decay * old + (1 - opt.factor_decay) * new for old, new in zip(olds, news, strict=True))  # type: ignore[misc]
            for olds, news in zip(held.factors, fresh, strict=True)
        ]
        held.count += 1

    def _scales(self, held: _Held) -> None:
        """EKFAC's s from single samples."""
        for group, (qa, qg) in enumerate(held.bases):
            samples, square = held.samples(group), torch.zeros((), dtype=torch.float64)
            terms = len(samples) * (len(samples[0][0]) if self.opt.loss_terms == "batch+sequence" else 1)
            for rows, grads in samples:
                if self.opt.sharing == "reduce":
                    rows, grads = rows.mean(0, keepdim=True), grads.sum(0, keepdim=True)
                square = square + (qg.mT @ grads.mT @ rows @ qa) ** 2
            new = square * (terms if self.opt.reduction == "mean" else 1 / terms)
            held.scales[group] = self.scale_decay * held.scales[group] + (1 - self.scale_decay) * new

    def _refresh(self, held: _Held) -> None:
        lam = value_at(self.opt.damping, self.steps)
        correct = 1 - self.opt.factor_decay**held.count if self.opt.factor_init == "bias-corrected" else 1.0
        held.inverse, held.bases, held.scales = [], [], []
        for a, g in held.factors:
            a, g = a / correct, g / correct
            if self.scaling is not None:
                (da, qa), (dg, qg) = torch.linalg.eigh(a), torch.linalg.eigh(g)
                held.bases.append((qa, qg))
                held.scales.append(dg.clamp_min(0)[:, None] * da.clamp_min(0)[None])
            system = self._system(a, g, lam)
            held.inverse.append(lambda v, m=system: torch.linalg.solve(m, v))  # type: ignore[misc]

    def _system(self, a: Tensor, g: Tensor, lam: float) -> Tensor:
        """The dense damped matrix over row-major vec(W): kron(G, A) vec(W) = vec(G W A)."""
        eye_a, eye_g = torch.eye(len(a)).double(), torch.eye(len(g)).double()
        mode, top_a, top_g = self.opt.damping_mode, torch.linalg.eigvalsh(a)[-1], torch.linalg.eigvalsh(g)[-1]
        if mode == "adaptive-exact":
            lam = lam * float(top_a * top_g)
            mode = "exact"
        if mode == "exact":
            whole: Tensor = torch.kron(g, a) + lam * torch.eye(len(a) * len(g)).double()
            return whole
        pi = ((a.trace() / len(a)) / (g.trace() / len(g))).sqrt()
        one, other = {
            "pi": (pi * lam**0.5, lam**0.5 / pi),
            "same": (lam, lam),
            "adaptive": (lam * top_a, lam * top_g),
        }[mode]
        system: Tensor = torch.kron(self._cut(g) + other * eye_g, self._cut(a) + one * eye_a)
        return system

    def _cut(self, m: Tensor) -> Tensor:
        rank = None if self.rank is None else int(value_at(self.rank, self.steps))
        if rank is None or rank >= len(m):
            return m
        values, vectors = torch.linalg.eigh(m)
        smallest = values[-rank] if self.continuation else 0.0
        values[:-rank] = smallest
        cut: Tensor = vectors @ torch.diag(values) @ vectors.mT
        return cut

    def _solve(self, held: _Held, group: int, gradient: Tensor) -> Tensor:
        if self.scaling is None:
            return held.inverse[group](gradient.flatten()).reshape(gradient.shape)
        (qa, qg), lam = held.bases[group], value_at(self.opt.damping, self.steps)
        if self.scaling == "running":
            weight = held.terms if self.opt.reduction == "mean" else 1 / held.terms
            new = weight * (qg.mT @ gradient @ qa) ** 2
            held.scales[group] = self.scale_decay * held.scales[group] + (1 - self.scale_decay) * new
        basis = torch.kron(qg, qa)
        system = basis @ torch.diag(held.scales[group].flatten() + lam) @ basis.mT
        solved: Tensor = torch.linalg.solve(system, gradient.flatten())
        return solved.reshape(gradient.shape)

    def _clip(self, moves: list[Tensor], gradients: list[Tensor], lr: float) -> list[float]:
        value = self.opt.clip_value
        if self.opt.clip == "rms":
            return [min(1.0, value / float(v.square().mean().sqrt())) for v in moves]
        if self.opt.clip == "none":
            return [1.0] * len(moves)
        total = sum(float((v * g).sum()) for v, g in zip(moves, gradients, strict=True))
        return [min(1.0, (value / (lr**2 * total)) ** 0.5)] * len(moves)


def _grad(bias: Any) -> Tensor | None:
    return None if bias is None else bias.grad


def _write(module: Any, matrix: Tensor) -> None:
    """Store a matrix (groups, d_out, d_in) as weight and bias."""
    flat = matrix.flatten(0, 1)
    if module.bias is not None:
        module.bias.copy_(flat[:, -1])
        flat = flat[:, :-1]
    module.weight.copy_(flat.reshape(module.weight.shape))
