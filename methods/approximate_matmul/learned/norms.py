"""Batch norms after replacing: their running statistics belong to the exact products."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from harness.errors import UserError


@torch.no_grad()
def renormalise(model: nn.Module, batches: Iterable[Any]) -> int:
    """Take the running statistics of all batch norms again, as plain means over ``batches``.

    Only batch norms run in training mode meanwhile; every mode and momentum is put back.

    Args:
        model: a network with replaced layers.
        batches: inputs of the model, as for ``replace_layers``.

    Returns:
        The number of batch norms.

    Raises:
        UserError: no batches.
    """
    inputs = [batch if isinstance(batch, tuple | list) else (batch,) for batch in batches]
    if not inputs:
        raise UserError("renormalise needs at least one batch, got none.")
    kinds = nn.modules.batchnorm._BatchNorm
    norms = [module for module in model.modules() if isinstance(module, kinds) and module.track_running_stats]
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None
        for batch in inputs:
            model(*batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
    return len(norms)
