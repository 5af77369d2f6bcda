"""FOP as one optimizer on the K-FAC module (Lu and Armour, arXiv 2508.13898); see the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.fop import projection
from methods.fop.halves import Halves
from methods.fop.static import Pairs
from methods.kfac import damping, products
from methods.kfac.inverse.base import State
from methods.kfac.kfac import KFAC
from methods.kfac.layers import Layer
from methods.kfac.stacks import Stack, gathered
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
        #: By layer: sums of what is kept, and of how many steps.
        self._sums = {layer: torch.zeros(len(_KEPT) + 1, dtype=torch.float64) for layer in self.layers}
        #: The newest coefficients, (L,) tensors on the device in the order of ``chosen_layers``.
        self.chosen: projection.Chosen | None = None
        self.chosen_layers: list[Layer] = []

    # -- the step ------------------------------------------------------------------------------------------------------

    def static_directions(self) -> Pairs:
        """How a graph makes directions."""
        return Pairs(self)

    @property
    def own_directions(self) -> bool:
        """Whether directions are FOP's, and no relative makes a part of them otherwise."""
        mine = all(getattr(type(self), n) is getattr(FOP, n) for n in ("_combine", "_blocks", "_image", "solve_pairs"))
        return mine and all(getattr(type(self), n) is getattr(KFAC, n) for n in ("directions", "direction"))

    def _update(self, finite: Tensor | None) -> None:
        super()._update(finite)
        self._apart, self._difference = {}, {}
        told = self.static.directions.told if isinstance(self.static.directions, Pairs) else None
        if self.static.holding and told is not None:
            # A replay runs no Python: a step without a graph in between has left its own here.
            self.chosen, self.chosen_layers = told[0], list(told[1])

    def _combine(self, active: Sequence[Layer], gradients: Sequence[Tensor]) -> list[Tensor]:
        if self.rule.beta == "zero":
            return self._scaled(active, gradients)
        with products.scope(self.options.product_dtype):
            blocks = self._blocks(active, gradients)
            found = projection.Products(*torch.cat([self._inner(block) for block in blocks]).double().unbind(1))
        layers = [layer for block in blocks for layer in block.layers]
        rounding = torch.finfo(gradients[0].dtype).eps
        chosen = projection.choose(found, self.rule, rounding, self._signs(layers, found.gp))
        self._keep(layers, chosen)
        directions: dict[Layer, Tensor] = {}
        start = 0
        for block in blocks:
            part = slice(start, start + len(block.layers))
            start = part.stop
            directions |= dict(zip(block.layers, block.mixed(chosen.of_p[part], chosen.of_r[part]), strict=True))
        return [directions[layer] for layer in active]

    def _scaled(self, active: Sequence[Layer], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Beta = 0: eta* is exactly the factor of the reference, and d is not needed."""
        eta, found = self._eta(), self.directions(active, gradients)
        return found if eta == 1.0 else [eta * one for one in found]

    def _eta(self) -> float:
        """Every layer's eta where beta = 0."""
        rule = self.rule
        eta = projection.REFERENCES[rule.eta_ref] if rule.eta == "optimal" else 1.0
        eta = eta if rule.eta_min is None else max(eta, rule.eta_min)
        return eta if rule.eta_max is None else min(eta, rule.eta_max)

    def _blocks(self, active: Sequence[Layer], gradients: Sequence[Tensor]) -> list[Block]:
        """Stacks of equal layers at once where all are active and have inverses; other layers one by one."""
        wanted, found = dict(zip(active, gradients, strict=True)), []
        for stack in self.update.stacks:
            slots = [self.slots[layer] for layer in stack.layers]
            whole = all(layer in wanted for layer in stack.layers)
            a, g = (stack.whole(side, [pair[side] for pair in slots]) if whole else None for side in (0, 1))
            if a is not None and g is not None:
                v = gathered(stack, [wanted[layer] for layer in stack.layers])
                d = stack.zeros()
                self._fill(stack.layers, [stack.view(d, index) for index in range(len(stack.layers))])
                p, r = self.solve_pairs(a, g, v, d)
                found.append(Block(stack.layers, v, d, p, r, stack))
                continue
            for layer in stack.layers:
                if layer in wanted:
                    v = wanted[layer]
                    d = torch.zeros_like(v, memory_format=torch.contiguous_format)
                    self._fill([layer], [d])
                    found.append(Block([layer], v, d, self.direction(layer, v), self.direction(layer, d), None))
        self._apart, self._difference = {}, {}
        return found

    def solve_pairs(self, a: State, g: State, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """F^-1 of two right-hand sides (k, d_out, d_in): they share one read of each inverse.

        Args:
            a: state of A's inverses, k matrices.
            g: state of G's inverses.
            first: one side.
            second: the other.
        """
        if self.options.damping_mode in damping.JOINT:
            return self.precondition(a, g, first), self.precondition(a, g, second)
        height, width = first.shape[1:]
        columns = self.backend.apply(g, torch.cat([first, second], dim=2))
        rows = torch.cat([columns[:, :, :width], columns[:, :, width:]], dim=1)
        solved = self.backend.apply_right(a, rows)
        return solved[:, :height], solved[:, height:]

    def _inner(self, block: Block) -> Tensor:
        """(layers, 5) inner products of a block, in the order of :class:`projection.Products`."""
        images = []
        for layer, v in zip(block.layers, block.views(block.v), strict=True):
            images.append(v if self._bare(layer) else self._image(layer, v))
        count = len(block.layers)
        f = images[0]
        if block.stack is not None:
            f = torch.zeros_like(block.v)
            torch._foreach_copy_(block.views(f), images)
        pairs = ((block.v, block.p), (block.v, block.r), (block.d, block.r), (block.v, f), (block.d, f))
        home = self.layers[0].weight.device
        # Sums in the working precision, not by a matrix product, which may be TF32.
        products_ = torch._foreach_mul([one for one, _ in pairs], [two for _, two in pairs])
        # One layer: all of its numbers; several: those of each, also where rows are parts of wider ones.
        if count == 1:
            return torch.stack([one.sum() for one in products_])[None].to(home)
        each = [one.view(count, -1, *one.shape[1:]).sum((1, 2, 3)) for one in products_]
        return torch.stack(each, dim=1).to(home)

    def _image(self, layer: Layer, v: Tensor) -> Tensor:
        """F g; in bfloat16 where K-FAC's own products are: s is one number of a layer."""
        if self.options.product_dtype != "bfloat16" or self.rule.damped:
            return self.multiply([layer], [v], damped=self.rule.damped)[0]
        a, g = self.statistics.read(layer)
        return products.multiply(products.multiply(g.bfloat16(), v), a.bfloat16())

    def _bare(self, layer: Layer) -> bool:
        """A layer without an inverse yet takes its plain gradient, so its F is the identity."""
        return any(slot.state is None for slot in self.slots[layer])

    def _signs(self, active: Sequence[Layer], like: Tensor) -> Tensor | None:
        if self.rule.beta != "random":
            return None
        places = {layer: place for place, layer in enumerate(self.layers)}
        found = [projection.sign(self.rule.seed, self.steps, places[layer]) for layer in active]
        return torch.tensor(found, dtype=like.dtype).to(like.device, non_blocking=True)

    # -- the record ----------------------------------------------------------------------------------------------------

    def _keep(self, active: Sequence[Layer], chosen: projection.Chosen) -> None:
        self.chosen, self.chosen_layers = chosen, list(active)
        kept = (chosen.beta, (chosen.beta < 0).double(), chosen.eta, chosen.c, torch.ones_like(chosen.eta))
        rows = torch.stack(kept, 1).nan_to_num(0.0, 0.0, 0.0)
        torch._foreach_add_(self.sums_on_device(active), list(rows.unbind()))

    def sums_on_device(self, layers: Sequence[Layer]) -> list[Tensor]:
        """The running sums of some layers, where the weights are."""
        home = self.layers[0].weight.device
        for layer in layers:
            if self._sums[layer].device != home:
                self._sums[layer] = self._sums[layer].to(home)
        return [self._sums[layer] for layer in layers]

    def coefficients(self) -> dict[str, float]:
        """Means of beta, of beta < 0, of eta and of c over the steps so far and the layers that this process updates.

        Reading waits for the device. With ``beta="zero"`` they are known beforehand, and c, which needs d, is left out.
        """
        if self.rule.beta == "zero":
            return {"beta": 0.0, "beta_negative": 0.0, "eta": self._eta()}
        total = torch.stack([one.cpu() for one in self._sums.values()]).sum(0)
        return dict(zip(_KEPT, (total[:-1] / total[-1].clamp_min(1.0)).tolist(), strict=True))

    def describe(self) -> dict[str, Any]:
        """As K-FAC's, with the components in use and the coefficients so far."""
        rule = {"split": self.split, "eta_ref": self.rule.eta_ref, "beta": self.rule.beta, "eta": self.rule.eta}
        return {**super().describe(), "projection": rule, "coefficients": self.coefficients()}

    def memory_usage(self) -> dict[str, int]:
        """As K-FAC's; ``halves`` is the gradient of a first half that waits for the second."""
        waiting = [
            *(self._first or {}).values(),
            *self._half.values(),
            *self._apart.values(),
            *self._difference.values(),
        ]
        return {**super().memory_usage(), "halves": sum(t.numel() * t.element_size() for t in waiting)}

    def extra_state(self, layer: Layer) -> dict[str, Any]:
        """Running sums of the coefficients, for the record alone."""
        return {**super().extra_state(layer), "coefficients": self._sums[layer]}

    def load_extra_state(self, layer: Layer, stored: Mapping[str, Any]) -> None:
        """Restore it."""
        super().load_extra_state(layer, stored)
        if "coefficients" in stored:
            self._sums[layer] = stored["coefficients"].detach().to(layer.weight.device, copy=True)


@dataclass
class Block:
    """Layers that are solved together: (layers x groups, height, width), padded as their stack is.

    Attributes:
        layers: in order.
        v: g.
        d: g1 - g2.
        p: F^-1 g.
        r: F^-1 d.
        stack: theirs; None for one layer by itself.
    """

    layers: list[Layer]
    v: Tensor
    d: Tensor
    p: Tensor
    r: Tensor
    stack: Stack | None

    def views(self, whole: Tensor) -> list[Tensor]:
        """(groups, d_out, d_in) of every layer."""
        if self.stack is None:
            return [whole]
        return [self.stack.view(whole, index) for index in range(len(self.layers))]

    def mixed(self, of_p: Tensor, of_r: Tensor) -> list[Tensor]:
        """of_p P + of_r R with the coefficients (layers,) of each layer."""
        groups = len(self.p) // len(self.layers)
        one, two = (x.to(self.p).repeat_interleave(groups)[:, None, None] for x in (of_p, of_r))
        return self.views(torch.addcmul(self.p * one, self.r, two))
