"""FOP on EKFAC: the Fisher is diagonal in the factors' eigenbases, with the second moments of the gradients in them.

    F V = Q_G (s * (Q_G^T V Q_A)) Q_A^T,   F^-1 V = Q_G ((Q_G^T V Q_A) / (s + lam)) Q_A^T,   s = E_n[(Q_G^T dW_n Q_A)^2]

EKFAC: George et al., arXiv 1806.03884. SOAP (Vyas et al., arXiv 2409.11321) keeps a running second moment of the mean
gradient in such a basis (of Shampoo's factors) under a square root; here s is the Fisher's own, without a root, so that
the equations of FOP hold as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from harness.errors import UserError
from methods.fop.fop import FOP, Block
from methods.kfac.ekfac import EKFAC
from methods.kfac.layers import Layer
from methods.kfac.products import multiply


class EKFOP(FOP, EKFAC):
    """FOP whose Fisher is EKFAC's; see the module. Before a layer's first refresh its F is the identity, as in FOP.

    Args:
        model: as for :class:`methods.kfac.kfac.KFAC`.
        lr: learning rate.
        options: as for :class:`methods.fop.fop.FOP` and :class:`methods.kfac.ekfac.EKFAC`.

    Raises:
        UserError: ``scaling="running"``, which takes s from every vector that is preconditioned, so from d too.
    """

    label = "fop-ekfac"

    def __init__(self, model: nn.Module, lr: float = 1e-3, **options: Any) -> None:
        if options.get("scaling", "intra-batch") != "intra-batch":
            raise UserError(f"scaling of {self.label} is intra-batch; got {options['scaling']!r}.")
        super().__init__(model, lr, **options)

    def _blocks(self, active: Sequence[Layer], gradients: Sequence[Tensor]) -> list[Block]:
        """One layer at a time: each has its own s."""
        found = []
        for layer, v in zip(active, gradients, strict=True):
            d = v.new_zeros(v.shape)
            self._fill([layer], [d])
            found.append(Block([layer], v, d, self.direction(layer, v), self.direction(layer, d), None))
        self._apart, self._difference = {}, {}
        return found

    def _image(self, layer: Layer, v: Tensor) -> Tensor:
        """F V."""
        a, g = (slot.state for slot in self.slots[layer])
        if a is None or g is None or layer not in self.scales:
            return super()._image(layer, v)
        qa, qg = a["vectors"], g["vectors"]
        weights = self.scales[layer] + self.damping() if self.rule.damped else self.scales[layer]
        return multiply(multiply(qg, multiply(multiply(qg.mT, v), qa) * weights), qa.mT)
