"""Loss scaling: the factor on a step's captured gradients, by the protocol of ``torch.amp.GradScaler``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from harness.errors import Unsupported

if TYPE_CHECKING:
    from methods.kfac.kfac import KFAC


def loss_scale(optimizer: KFAC) -> Tensor | float | None:
    """The factor; unscales ``.grad`` if nobody has. None: an overflow, skip the step.

    Raises:
        Unsupported: gradients were unscaled before and the scaler is not known.
    """
    if not hasattr(optimizer, "found_inf"):
        return 1.0
    if float(optimizer.found_inf) > 0:
        return None
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    if scale is not None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for grad in grads:
            grad.div_(scale.to(grad.device))
        return scale
    if optimizer.grad_scaler is None and optimizer.statistics.sums:
        raise Unsupported(
            "gradients were unscaled before the step (gradient clipping?), so the scale of the captured ones is "
            "unknown; give the scaler to the constructor: grad_scaler=scaler."
        )
    return 1.0 if optimizer.grad_scaler is None else float(optimizer.grad_scaler.get_scale())
