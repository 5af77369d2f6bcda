"""The plain twin: dense float64 factors, ``unfold``, loops, for tiny nets.

Pi is applied to dense matrices from its definition (the class' basis), so nothing of the structures' own products or
projections is used, only ``to_dense``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.kfac.policy import value_at
from methods.singd.options import Options, pair
from methods.singd.structures import Structure, structure


def projection(kind: Structure) -> Callable[[Tensor], Tensor]:
    """Pi as a map of dense symmetric matrices (d, d), from the basis: inner products are gradients of ``to_dense``."""

    @torch.enable_grad()
    def along(matrix: Tensor) -> Tensor:
        k = torch.zeros(1, kind.count, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad((kind.to_dense(k)[0] * matrix).sum(), k)[0]

    ones = kind.to_dense(torch.ones(1, kind.count, dtype=torch.float64))[0]
    doubled = along(ones * (ones.mT == 0)) != 0
    weights = (1.0 + doubled) / along(ones)

    def project(s: Tensor) -> Tensor:
        return kind.to_dense(weights * along(s))[0]

    return project


class _Held:
    """One module: its calls since the last step and its state, one entry for each group."""

    def __init__(self, module: Any, options: Options) -> None:
        self.module, self.calls = module, []  # type: ignore[var-annotated]
        self.groups = int(getattr(module, "groups", 1))
        d_in = module.weight[0].numel() + (module.bias is not None)
        d_out = module.weight.shape[0] // self.groups
        names = pair(options.structures)
        self.sizes = (d_in, d_out)
        self.pi = [projection(structure(n, d, options.sizes)) for n, d in zip(names, self.sizes, strict=True)]
        self.k = [[torch.eye(d).double() for d in self.sizes] for _ in range(self.groups)]
        self.m = [[torch.zeros(d, d).double() for d in self.sizes] for _ in range(self.groups)]
        self.velocity: list[Tensor] = []
        module.register_forward_hook(self._hook)

    def _hook(self, module: Any, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda g: self.calls.append((inputs[0].detach().double(), g.detach().double())))  # type: ignore[no-untyped-call]

    def matrices(self, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
        """One matrix for each group."""
        parts = weight.double().flatten(1).chunk(self.groups)
        if bias is None:
            return list(parts)
        return [torch.cat([w, b[:, None]], 1) for w, b in zip(parts, bias.double().chunk(self.groups), strict=True)]

    def moments(self, group: int, options: Options) -> tuple[Tensor, Tensor]:
        """A and G of the calls."""
        a_sum, g_sum = (torch.zeros(d, d).double() for d in self.sizes)
        rows = terms = 0
        for x, g in self.calls:
            if isinstance(self.module, nn.Conv2d):
                m = self.module
                columns = functional.unfold(x, m.kernel_size, m.dilation, m.padding, m.stride)  # type: ignore[arg-type]
                a = columns.chunk(self.groups, 1)[group].mT
                b = g.flatten(2).chunk(self.groups, 1)[group].mT
            else:
                a, b = x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1])
            if self.module.bias is not None:
                a = torch.cat([a, torch.ones_like(a[..., :1])], 2)
            terms += len(b) * (b.shape[1] if options.loss_average == "batch+sequence" else 1)
            if options.sharing == "reduce":
                a, b = a.mean(1, keepdim=True), b.sum(1, keepdim=True)
            for one, other in zip(a, b, strict=True):
                a_sum += one.mT @ one
                g_sum += other.mT @ other
                rows += len(one)
        return a_sum / rows, g_sum * (terms if options.reduction == "mean" else 1 / terms)


class Twin:
    """SINGD by definition."""

    def __init__(self, model: nn.Module, lr: float, **options: Any) -> None:
        self.options, self.lr, self.steps = Options(**options), lr, 0
        opt = self.options
        modules = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        self.held = [_Held(module, opt) for module in modules]
        mine = {p for m in modules for p in m.parameters()}
        self.rest = [p for p in model.parameters() if p not in mine]
        betas = (opt.fallback_beta1, opt.fallback_beta2)
        self.fallback = torch.optim.AdamW(self.rest, opt.fallback_lr, betas, weight_decay=0.0) if self.rest else None

    def zero_grad(self) -> None:
        """Clear gradients and calls."""
        for held in self.held:
            held.calls.clear()
            held.module.zero_grad()
        if self.fallback is not None:
            self.fallback.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        """One update."""
        opt = self.options
        for held in self.held:
            if self.steps % int(value_at(opt.update_period, self.steps)) == 0:
                for group in range(held.groups):
                    self._factors(held, group)
            self._weights(held)
        if self.fallback is not None:
            self.fallback.step()
        self.steps += 1

    def _factors(self, held: _Held, group: int) -> None:
        opt, lam = self.options, value_at(self.options.damping, self.steps)
        half = 0.5 * (1 - opt.alpha1 if opt.normalize_lr_cov else 1)
        k = held.k[group]
        inner = [pi(f.mT @ s @ f) for pi, f, s in zip(held.pi, k, held.moments(group, opt), strict=True)]
        gram = [pi(f.mT @ f) for pi, f in zip(held.pi, k, strict=True)]
        new = []
        for i in (0, 1):
            d = held.sizes[1 - i]
            h, g = (1.0, 1.0) if opt.kfac_like else (inner[1 - i].trace() / d, gram[1 - i].trace() / d)
            eye = torch.eye(held.sizes[i]).double()
            new.append(opt.alpha1 * held.m[group][i] + half * (h * inner[i] + lam * g * gram[i] - eye))
        for i in (0, 1):
            beta = value_at(opt.lr_cov, self.steps)
            if opt.normalize_lr_cov:
                beta /= max(1.0, float(new[i].abs().max()))
            k[i] = k[i] - beta * k[i] @ new[i]
        held.m[group] = new

    def _weights(self, held: _Held) -> None:
        opt, module = self.options, held.module
        grads = held.matrices(module.weight.grad, None if module.bias is None else module.bias.grad)
        weights = held.matrices(module.weight, module.bias)
        moved = []
        for i, (grad, weight) in enumerate(zip(grads, weights, strict=True)):
            k, c = held.k[i]
            v = c @ c.mT @ grad @ k @ k.mT + opt.weight_decay * weight
            if held.velocity:
                v = v + opt.momentum * held.velocity[i]
            moved.append((v, weight - self.lr * v))
        held.velocity = [v for v, _ in moved]
        whole = torch.cat([w for _, w in moved])
        if module.bias is not None:
            module.bias.copy_(whole[:, -1])
            whole = whole[:, :-1]
        module.weight.copy_(whole.reshape(module.weight.shape))


def ingd(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> Twin:
    """INGD by definition."""
    return Twin(model, lr, **options)


def ikfac(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> Twin:
    """IKFAC by definition."""
    return Twin(model, lr, **{"alpha1": 0.0, "kfac_like": True, **options})


def _of(name: str, **sizes: Any) -> Callable[..., Twin]:
    def make(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> Twin:
        return Twin(model, lr, **{"structures": (name, name), **sizes, **options})

    return make


dense = _of("dense")
diagonal = _of("diagonal")
block30 = _of("block", block=30)
hierarchical15 = _of("hierarchical", ranks=(15, 15))
tril_toeplitz = _of("tril-toeplitz")
triu_toeplitz = _of("triu-toeplitz")
tril = _of("tril")
triu = _of("triu")
rank1_arrow = _of("tril-arrow", rank=1)
rankk_arrow = _of("tril-arrow", rank=8)
