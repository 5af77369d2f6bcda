"""FOP as one optimizer on the K-FAC module (Lu and Armour, arXiv 2508.13898); see the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import UserError
from methods.fop import projection
from methods.fop.halves import Halves
from methods.kfac.layers import Layer
from methods.kfac.timing import Parts

#: Running sums of a layer for the record: beta, steps with beta < 0, eta, c.
_KEPT = ("beta", "beta_negative", "eta", "c")


class FOP(Halves):
    """v <- mu v + clip(eta (F^-1 g + beta F^-1 g_perp));  w <- w - lr v, with beta and eta of each layer.

    The change from K-FAC is one line: ``FOP(model, lr=...)`` for ``KFAC(model, lr=...)``; the loop stays
    ``loss.backward(); optimizer.step()`` with the default ``split="batch"``.

    Args:
        model: as for :class:`methods.kfac.kfac.KFAC`.
        lr: learning rate of the preconditioned layers.
        options: those of :class:`methods.fop.projection.Projection`, and everything that K-FAC takes.

    Raises:
        UserError: a hyper-parameter out of range.
        Unsupported: no layer with factors.
    """

    label = "fop"

    def __init__(self, model: nn.Module, lr: float = 1e-3, **options: Any) -> None:
        self.rule, others = projection.split_options(options)
        super().__init__(model, lr, split=self.rule.split, **others)
        self._parts = Parts(("factor", "halves", "refresh", "apply"))
        self._sums = {layer: torch.zeros(len(_KEPT), dtype=torch.float64) for layer in self.layers}
        #: The newest coefficients, (L,) tensors on the device in the order of ``chosen_layers``.
        self.chosen: projection.Chosen | None = None
        self.chosen_layers: list[Layer] = []

    # -- the step ------------------------------------------------------------------------------------------------------

    def _combine(self, active: Sequence[Layer], gradients: Sequence[Tensor]) -> list[Tensor]:
        if self.rule.beta == "zero":
            return self._scaled(active, gradients)
        differences = []
        for layer, gradient in zip(active, gradients, strict=True):
            one = self._difference.get(layer)
            if one is None:
                raise UserError(f"layer {layer.name} has a gradient, but not one of each half.")
            differences.append(one.to(gradient))
        self._difference = {}
        images = self.multiply(active, gradients, damped=self.rule.damped)
        images = [g if self._bare(layer) else image for layer, g, image in zip(active, gradients, images, strict=True)]
        solved = self.solve_pairs(active, gradients, differences)
        found = self._products(gradients, differences, images, solved)
        chosen = projection.choose(found, self.rule, torch.finfo(gradients[0].dtype).eps, self._signs(active, found.gp))
        self._keep(active, chosen)
        return [
            torch.addcmul(p * of_p.to(p), r, of_r.to(p))
            for (p, r), of_p, of_r in zip(solved, chosen.of_p.unbind(), chosen.of_r.unbind(), strict=True)
        ]

    def _scaled(self, active: Sequence[Layer], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Beta = 0: eta* is exactly the factor of the reference, and d is not needed."""
        self._difference = {}
        eta = projection.REFERENCES[self.rule.eta_ref] if self.rule.eta == "optimal" else 1.0
        eta = max(eta, self.rule.eta_min or eta)
        eta = min(eta, self.rule.eta_max or eta)
        found = self.directions(active, gradients)
        return found if eta == 1.0 else [eta * one for one in found]

    def _bare(self, layer: Layer) -> bool:
        """A layer without an inverse yet takes its plain gradient, so its F is the identity."""
        return any(slot.state is None for slot in self.slots[layer])

    def solve_pairs(
        self, layers: Sequence[Layer], first: Sequence[Tensor], second: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """F^-1 of two right-hand sides of each layer in one application: they share the read of the inverse."""
        stacked = [torch.stack(pair) for pair in zip(first, second, strict=True)]
        solved = [self.direction(layer, pair) for layer, pair in zip(layers, stacked, strict=True)]
        return [(pair[0], pair[1]) for pair in solved]

    @staticmethod
    def _products(
        gradients: Sequence[Tensor],
        differences: Sequence[Tensor],
        images: Sequence[Tensor],
        solved: Sequence[tuple[Tensor, Tensor]],
    ) -> projection.Products:
        home = gradients[0].device
        rows = [
            torch.stack([_dot(g, p), _dot(g, r), _dot(d, r), _dot(g, f), _dot(d, f)]).to(home)
            for g, d, f, (p, r) in zip(gradients, differences, images, solved, strict=True)
        ]
        return projection.Products(*torch.stack(rows).double().unbind(1))

    def _signs(self, active: Sequence[Layer], like: Tensor) -> Tensor | None:
        if self.rule.beta != "random":
            return None
        places = {layer: place for place, layer in enumerate(self.layers)}
        found = [projection.sign(self.rule.seed, self.steps, places[layer]) for layer in active]
        return torch.tensor(found, dtype=like.dtype).to(like.device, non_blocking=True)

    # -- the record ----------------------------------------------------------------------------------------------------

    def _keep(self, active: Sequence[Layer], chosen: projection.Chosen) -> None:
        self.chosen, self.chosen_layers = chosen, list(active)
        rows = torch.stack([chosen.beta, (chosen.beta < 0).double(), chosen.eta, chosen.c], 1).nan_to_num(0.0, 0.0, 0.0)
        held = []
        for layer in active:
            if self._sums[layer].device != rows.device:
                self._sums[layer] = self._sums[layer].to(rows.device)
            held.append(self._sums[layer])
        torch._foreach_add_(held, list(rows.unbind()))

    def coefficients(self) -> dict[str, float]:
        """Means of beta, of beta < 0, of eta and of c over layers and steps so far; reading waits for the device."""
        steps = max(1, self.steps)
        total = torch.stack([one.cpu() for one in self._sums.values()]).sum(0) / (steps * len(self.layers))
        return dict(zip(_KEPT, total.tolist(), strict=True))

    def describe(self) -> dict[str, Any]:
        """As K-FAC's, with the components in use and the coefficients so far."""
        rule = {"split": self.split, "eta_ref": self.rule.eta_ref, "beta": self.rule.beta, "eta": self.rule.eta}
        return {**super().describe(), "projection": rule, "coefficients": self.coefficients()}

    def memory_usage(self) -> dict[str, int]:
        """As K-FAC's; ``halves`` is the gradient of a first half that waits for the second."""
        waiting = [*(self._first or {}).values(), *self._half.values(), *self._difference.values()]
        return {**super().memory_usage(), "halves": sum(t.numel() * t.element_size() for t in waiting)}

    def extra_state(self, layer: Layer) -> dict[str, Any]:
        """Running sums of the coefficients, for the record alone."""
        return {**super().extra_state(layer), "coefficients": self._sums[layer]}

    def load_extra_state(self, layer: Layer, stored: Mapping[str, Any]) -> None:
        """Restore it."""
        super().load_extra_state(layer, stored)
        if "coefficients" in stored:
            self._sums[layer] = stored["coefficients"].detach().to(layer.weight.device, copy=True)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return torch.dot(one.reshape(-1), other.reshape(-1))
