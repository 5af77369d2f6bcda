"""EKFAC: K-FAC's eigenbases with the Fisher's own diagonal in them (George et al., arXiv 1806.03884).

    s = E_n[(Q_G^T dW_n Q_A)^2],   v = Q_G [(Q_G^T dW Q_A) / (s + lam)] Q_A^T

``intra-batch`` takes s from the single samples of a batch (section 3.1; without weight sharing it needs no matrix per
sample), one step after each batch whose statistics are taken, so that it always sees the bases in use. ``running``
averages N (Q_G^T dW Q_A)^2 of the mean gradient over all steps (the authors' published code).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import Unsupported, UserError
from methods.kfac.kfac import KFAC
from methods.kfac.layers import Layer
from methods.kfac.options import in_range, values
from methods.kfac.products import multiply
from methods.kfac.sharding import average, summed
from methods.kfac.statistics import Terms

SCALINGS = ("intra-batch", "running")
#: Most numbers in one piece of gradients per sample.
_PIECE = 2**22


class EKFAC(KFAC):
    """EKFAC; see the module. A refresh of the bases restarts s at d_G d_A^T.

    Args:
        model: as for :class:`KFAC`.
        lr: learning rate.
        scaling: ``intra-batch`` or ``running``.
        scale_decay: s <- scale_decay s + (1 - scale_decay) new; None: 0 for ``intra-batch``, 0.75 for ``running``
            (the published code's alpha).
        options: as for :class:`KFAC`, with ``inverse`` and ``damping_mode`` fixed. The damping is added to s.
    """

    label = "ekfac"

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        *,
        scaling: str = "intra-batch",
        scale_decay: float | None = None,
        **options: Any,
    ) -> None:
        if scaling not in SCALINGS:
            raise UserError(f"scaling is one of {', '.join(SCALINGS)}; got {scaling!r}.")
        self.scaling = scaling
        self.scale_decay = (0.75 if scaling == "running" else 0.0) if scale_decay is None else scale_decay
        in_range("scale_decay", self.scale_decay, 0.0, 1.0, right=False)
        for period in values(options.get("refresh_period", 2)):
            in_range("refresh_period of ekfac", period, 2, whole=True)
        self.scales: dict[Layer, Tensor] = {}
        self._terms: dict[Layer, int] = {}
        self._squares: dict[Layer, Tensor] = {}
        self._square_terms: dict[Layer, Terms] = {}
        super().__init__(model, lr, inverse="eigh", damping_mode="exact", **options)
        if self.ranks.sharded and scaling == "intra-batch":
            raise Unsupported(
                "sharding='owner': scaling='intra-batch' needs every layer's bases on each rank; use scaling='running' "
                "or sharding='none'."
            )

    def _scales_due(self, step: int) -> bool:
        """Whether s is taken from this batch."""
        return self.scaling == "intra-batch" and step > 0 and self.policy.statistics_due(step - 1)

    def captures(self, step: int) -> bool:
        """Also when s is taken."""
        return super().captures(step) or self._scales_due(step)

    # -- s -------------------------------------------------------------------------------------------------------------

    def _take(self, layer: Layer, module: Any, inputs: Tensor, gradients: Tensor, backward: int) -> None:
        if self.policy.statistics_due(self.steps):
            super()._take(layer, module, inputs, gradients, backward)
        if self._scales_due(self.steps) and layer in self.scales:
            self._square_terms.setdefault(layer, Terms()).add(self.statistics.terms(module, gradients), backward)
            with self._parts.span("factor", gradients.is_cuda):
                squares = self._squared(layer, *self.statistics.rows(layer, module, inputs, gradients))
                old = self._squares.get(layer)
                self._squares[layer] = squares if old is None else old + squares

    def _squared(self, layer: Layer, a: Tensor, b: Tensor) -> Tensor:
        """sum_n (Q_G^T (sum_s b a^T) Q_A)^2 of rows (groups, N, S, d): (groups, d_out, d_in)."""
        bases = [slot.state for slot in self.slots[layer]]
        qa, qg = (state["vectors"][:, None].to(a) for state in bases if state is not None)
        if layer.bias is not None:
            a = torch.cat([a, torch.ones_like(a[..., :1])], dim=3)
        a, b = a @ qa, b @ qg
        if a.shape[2] == 1:
            return b[:, :, 0].square().mT @ a[:, :, 0].square()
        piece = max(1, _PIECE // (layer.groups * layer.d_in * layer.d_out))
        pieces = zip(a.split(piece, 1), b.split(piece, 1), strict=True)  # type: ignore[no-untyped-call]
        total: Tensor = sum((bp.mT @ ap).square().sum(1) for ap, bp in pieces)  # type: ignore[assignment]
        return total

    def _fold(self, scale: Tensor | float, passes: int) -> Tensor | None:
        sums, home = self.statistics.sums, self.layers[0].weight.device
        self._terms |= dict(zip(sums, summed([one.terms.count for one in sums.values()], home), strict=True))
        finite = super()._fold(scale, passes)
        squares, terms, self._squares, self._square_terms = self._squares, self._square_terms, {}, {}
        if not squares:
            return finite
        average(list(squares.values()))
        # Rows of a rank are too long by the number of ranks: the sum of squares over its square is this mean over it.
        counts = summed([terms[layer].count for layer in squares], home)
        shared = dict(zip(squares, (count / self.ranks.size for count in counts), strict=True))
        good = torch.stack([square.sum().to(home) for square in squares.values()]).isfinite().all()
        if finite is None:
            self.count(good)
        else:
            good = good & finite.to(home)
        for layer, found in squares.items():
            weight = self.statistics.weight(shared[layer], passes, self.columns is not None)
            self._enter(layer, found * weight / scale**2, good)
        return good

    def _enter(self, layer: Layer, new: Tensor, good: Tensor) -> None:
        held = self.scales[layer]
        mixed = self.scale_decay * held + (1 - self.scale_decay) * new
        held.copy_(torch.where(good.to(held.device), mixed, held))

    def _refreshed(self, layers: Sequence[Layer]) -> None:
        for layer in layers:
            a, g = (slot.state for slot in self.slots[layer])
            assert a is not None
            assert g is not None
            self.scales[layer] = g["values"][:, :, None] * a["values"][:, None, :]

    def direction(self, layer: Layer, gradient: Tensor) -> Tensor:
        """Q_G [(Q_G^T dW Q_A) / (s + lam)] Q_A^T."""
        if layer not in self.scales:
            return super().direction(layer, gradient)
        a, g = (slot.state for slot in self.slots[layer])
        assert a is not None
        assert g is not None
        qa, qg = a["vectors"], g["vectors"]
        projected = multiply(multiply(qg.mT, gradient), qa)
        if self.scaling == "running":
            new = self.statistics.weight(self._terms[layer], 1, False) * projected.square()
            self._enter(layer, new, new.sum().isfinite())
        return multiply(multiply(qg, projected / (self.scales[layer] + self.damping())), qa.mT)

    def forget(self) -> None:
        """Drop what backward passes have brought since the last step."""
        self._squares, self._square_terms = {}, {}
        super().forget()

    # -- state ---------------------------------------------------------------------------------------------------------

    def extra_state(self, layer: Layer) -> dict[str, Any]:
        """The scales, and how many loss terms a batch has."""
        found: dict[str, Any] = {"scale": self.scales[layer]} if layer in self.scales else {}
        return found | ({"terms": self._terms[layer]} if layer in self._terms else {})

    def follow(self, layer: Layer) -> None:
        """Cast and move the scales."""
        if layer in self.scales:
            self.scales[layer] = self.scales[layer].to(layer.weight.device, layer.dtype)

    def load_extra_state(self, layer: Layer, stored: Mapping[str, Any]) -> None:
        """Restore it."""
        self.scales.pop(layer, None)
        self._terms.pop(layer, None)
        if "scale" in stored:
            self.scales[layer] = stored["scale"].detach().to(layer.weight.device, copy=True)
        if "terms" in stored:
            self._terms[layer] = int(stored["terms"])
