"""FOP on SINGD's factors: F^-1 is the preconditioner C C^T V K K^T itself, F its inverse.

As F^-1 is linear, FOP's update of a layer is the preconditioned mixture x = eta (1 - beta s) g + eta beta d of
g = (g1 + g2) / 2 and d = g1 - g2 (:mod:`methods.fop.projection`), so x takes the gradient's place and SINGD does the
rest. SINGD keeps no A and G, so the F of s is (K K^T)^-1, (C C^T)^-1: the damped one, in the structure's own class,
inverted once after each move of the factors (reciprocals for diagonals). That inversion is FOP's, not SINGD's, which
has none; it needs float32 or wider and d^2 numbers a side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import Unsupported, UserError
from methods.fop import projection
from methods.fop.projection import Products
from methods.kfac.layers import Layer
from methods.singd.apply import Apply
from methods.singd.singd import SINGD
from methods.singd.stacks import Side

#: Running sums for the record: beta, steps with beta < 0, eta, c.
_KEPT = ("beta", "beta_negative", "eta", "c")


class _Mixed(Apply):
    """SINGD's step on the mixtures; ``mix`` puts them where the gradients are."""

    mix: Callable[[], None]

    def step(self, lr: float, good: Tensor | None) -> None:
        """Mix, then move."""
        self.mix()
        super().step(lr, good)


class FOPSINGD(SINGD):
    """v <- mu v + eta C C^T (g + beta g_perp) K K^T + wd w;  w <- w - lr v, with beta and eta of each layer.

    ``step(closure)`` calls ``closure(part=0)`` and ``closure(part=1)``, each forward and backward on the mean loss of
    half the batch; or, without a closure, :meth:`first_half` is called between the two backward passes.

    Args:
        model: as for :class:`methods.singd.singd.SINGD`.
        lr: learning rate of the preconditioned layers.
        options: those of :class:`methods.fop.projection.Projection` but ``damped`` (F is damped) and everything that
            SINGD takes.

    Raises:
        UserError: a hyper-parameter out of range.
        Unsupported: no layer with factors; ``split="batch"``.
    """

    label = "fop-singd"
    sub_batches = 2
    step_needs = frozenset({"closure"})
    #: Groups of processes may work on the two halves at the same time: the weights do not move between them.
    parts_at_once = True

    def __init__(self, model: nn.Module, lr: float = 1e-3, **options: Any) -> None:
        self.rule, others = projection.split_options({"split": "passes", **options})
        if self.rule.split != "passes":
            raise Unsupported(f"{self.label} knows split='passes' alone: SINGD does not catch a half's gradient.")
        if "damped" in options:
            raise UserError(f"{self.label} has no option damped: SINGD's factors follow the damped Fisher.")
        self._first: dict[nn.Parameter, Tensor] | None = None
        self._apart: dict[nn.Parameter, Tensor] = {}
        self._fisher: dict[tuple[int, int], Tensor] = {}
        #: The newest coefficients, (L,) tensors on the device in the order of ``chosen_layers``.
        self.chosen: projection.Chosen | None = None
        self.chosen_layers: list[Layer] = []
        super().__init__(model, lr, **others)
        self._sums = torch.zeros(len(_KEPT) + 1, dtype=torch.float64, device=self._device())

    def build(self) -> None:
        """As SINGD's, with a step that mixes first."""
        super().build()
        mixed = _Mixed(self.stacks, self.options.momentum, self.options.weight_decay)
        mixed.mix = self._mix
        self._apply = mixed
        self._fisher = {}

    # -- two halves ----------------------------------------------------------------------------------------------------

    def _take(self, layer: Layer, module: Any, inputs: Tensor, gradients: Tensor, backward: int) -> None:
        # Backward divided by half the terms; the Fisher is that of the mean over all of them.
        half = gradients / 2 if self.options.reduction == "mean" else gradients
        super()._take(layer, module, inputs, half, backward)

    def first_half(self) -> None:
        """Call it between the backward passes of the two halves.

        Raises:
            UserError: without a gradient, or twice.
        """
        if self._first is not None:
            raise UserError("first_half() was called twice before the step.")
        found = {p: p.grad for group in self.param_groups for p in group["params"] if p.grad is not None}
        if not found:
            raise UserError("first_half(): no parameter has a gradient; call it after the first half's backward.")
        self._first = found
        for parameter in found:
            parameter.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[..., Any] | None = None) -> Any:  # type: ignore[override]
        """One update.

        Raises:
            UserError: no halves.
            Unsupported: loss scaling.
        """
        if hasattr(self, "found_inf"):
            raise Unsupported(f"{self.label}: no loss scaling; use bfloat16.")
        loss = None
        if closure is not None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
            self._first = None
            with torch.enable_grad():
                one = closure(part=0)
                self.first_half()
                two = closure(part=1)
            both = isinstance(one, Tensor) and isinstance(two, Tensor)
            loss = two if not both else one + two if self.options.reduction == "sum" else (one + two) / 2
        if self._first is None:
            raise UserError("FOP needs both halves: step(closure), or backward, first_half(), backward, step().")
        self._merge(self._first)
        self._first = None
        base: Any = SINGD.step
        # torch wraps the step of a class at its first instance; wrapped twice, a user's hooks would run twice.
        (base.__wrapped__ if getattr(base, "hooked", False) else base)(self)
        self._apart = {}
        return loss

    def _merge(self, first: Mapping[nn.Parameter, Tensor]) -> None:
        """``.grad`` becomes g (g1 + g2 for a sum), d is kept."""
        whole = 2.0 if self.options.reduction == "sum" else 1.0
        for group in self.param_groups:
            for p in group["params"]:
                if p not in first and p.grad is None:
                    continue
                one = first[p] if p in first else torch.zeros_like(p)
                two = p.grad if p.grad is not None else torch.zeros_like(p)
                self._apart[p] = whole * (one - two)
                p.grad = whole * (one + two) / 2

    # -- coefficients --------------------------------------------------------------------------------------------------

    def _update(self, good: Tensor | None, scale: Tensor | None) -> Tensor:
        self._fisher = {}
        return super()._update(good, scale)

    def _mix(self) -> None:
        """Put x where the gradients are."""
        active = [layer for layer in self.layers if any(p.grad is not None for p in layer.parameters)]
        if not active:
            return
        pairs = [(self._matrix(layer, False), self._matrix(layer, True)) for layer in active]
        home = self._device()
        found = torch.stack([self._inner(layer, g, d).to(home) for layer, (g, d) in zip(active, pairs, strict=True)])
        rounding = torch.finfo(pairs[0][0].dtype).eps
        chosen = projection.choose(Products(*found.double().unbind(1)), self.rule, rounding, self._signs(active, home))
        self._keep(active, chosen)
        # In terms of g and d, F^-1 g = P and F^-1 d = R: the coefficients are the same.
        for index, layer in enumerate(active):
            for p in layer.parameters:
                if p.grad is not None:
                    of_g, of_d = (c[index].to(p.device, p.dtype) for c in (chosen.of_p, chosen.of_r))
                    p.grad = of_g * p.grad + of_d * self._apart[p].to(p.dtype)

    def _matrix(self, layer: Layer, apart: bool) -> Tensor:
        """G or d (groups, d_out, d_in), float32 or wider."""
        parts = []
        for p in layer.parameters:
            one = self._apart.get(p) if apart else p.grad
            parts.append(torch.zeros_like(p) if one is None else one)
        found = layer.matrix(parts)
        return found if found.dtype == torch.float64 else found.float()

    def _inner(self, layer: Layer, g: Tensor, d: Tensor) -> Tensor:
        """(5,) inner products in the order of :class:`Products`."""
        k, c, place = self.sides(layer)
        p, r = (_solved(k, c, place, v) for v in (g, d))
        f = self._fisher_times(layer, g)
        pairs = ((g, p), (g, r), (d, r), (g, f), (d, f))
        return torch.stack([(one * two).sum() for one, two in pairs])

    def _fisher_times(self, layer: Layer, v: Tensor) -> Tensor:
        """(C C^T)^-1 V (K K^T)^-1."""
        k, c, place = self.sides(layer)
        right, left = (self._inverted(layer, number, side, place) for number, side in enumerate((k, c)))
        v = v * right[:, None, :].to(v) if right.ndim == 2 else v @ right.to(v)
        return v * left[:, :, None].to(v) if left.ndim == 2 else left.to(v) @ v

    def _inverted(self, layer: Layer, number: int, side: Side, place: slice) -> Tensor:
        """(K K^T)^-1 (groups, d, d), or its diagonal (groups, d); computed anew after the factors have moved."""
        key = (id(layer), number)
        if key not in self._fisher:
            value = side.value[place]
            value = value if value.dtype == torch.float64 else value.float()
            if side.kind.name == "diagonal":
                self._fisher[key] = value.square().reciprocal()
            else:
                inverse, _ = torch.linalg.inv_ex(side.kind.to_dense(value))
                self._fisher[key] = inverse.mT @ inverse
        return self._fisher[key]

    def _signs(self, active: Sequence[Layer], home: torch.device) -> Tensor | None:
        if self.rule.beta != "random":
            return None
        places = {layer: place for place, layer in enumerate(self.layers)}
        found = [projection.sign(self.rule.seed, self.steps, places[layer]) for layer in active]
        return torch.tensor(found, dtype=torch.float64).to(home, non_blocking=True)

    # -- the record ----------------------------------------------------------------------------------------------------

    def _keep(self, active: Sequence[Layer], chosen: projection.Chosen) -> None:
        self.chosen, self.chosen_layers = chosen, list(active)
        kept = (chosen.beta, (chosen.beta < 0).double(), chosen.eta, chosen.c, torch.ones_like(chosen.eta))
        self._sums = self._sums.to(chosen.beta.device) + torch.stack(kept).nan_to_num(0.0, 0.0, 0.0).sum(1)

    def coefficients(self) -> dict[str, float]:
        """Means of beta, of beta < 0, of eta and of c over steps and layers; reading waits for the device."""
        total = self._sums.cpu()
        return dict(zip(_KEPT, (total[:-1] / total[-1].clamp_min(1.0)).tolist(), strict=True))

    def describe(self) -> dict[str, Any]:
        """As SINGD's, with the components in use and the coefficients so far."""
        rule = {"split": "passes", "eta_ref": self.rule.eta_ref, "beta": self.rule.beta, "eta": self.rule.eta}
        return {**super().describe(), "projection": rule, "coefficients": self.coefficients()}

    def memory_usage(self) -> dict[str, int]:
        """As SINGD's; ``fisher`` are the inverted factors, ``halves`` what waits for the second half."""
        waiting = [*(self._first or {}).values(), *self._apart.values()]
        kept = {"fisher": self._fisher.values(), "halves": waiting}
        sizes = {name: sum(t.numel() * t.element_size() for t in tensors) for name, tensors in kept.items()}
        return {**super().memory_usage(), **sizes}

    def forget(self) -> None:
        """Drop what backward passes have brought since the last step."""
        self._first = None
        super().forget()

    def state_dict(self) -> dict[str, Any]:
        """As SINGD's, with the running sums of the coefficients."""
        return {**super().state_dict(), "coefficients": self._sums.clone()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Restore it."""
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "coefficients"})
        if "coefficients" in state_dict:
            self._sums = state_dict["coefficients"].detach().to(self._device(), copy=True)
        self._fisher = {}


def _solved(k: Side, c: Side, place: slice, v: Tensor) -> Tensor:
    """C C^T V K K^T."""
    right = k.kind.apply(k.value[place], v.to(k.value.dtype).mT).mT
    return c.kind.apply(c.value[place], right.to(c.value.dtype)).to(v.dtype)
