"""What optimizers share that take their layers from the model and their statistics from its backward passes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch

from harness.errors import Unsupported


class FromModel(torch.optim.Optimizer):
    """An optimizer whose parameters are a model's layers.

    Attributes:
        label: its name in messages and in ``coverage``.
    """

    label = ""

    @abstractmethod
    def forget(self) -> None:
        """Drop what backward passes have brought since the last step."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and the statistics that came with them."""
        self.forget()
        super().zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only for the base class: layers come from the model.

        Raises:
            Unsupported: called later.
        """
        if hasattr(self, "coverage"):
            raise Unsupported(f"{self.label} takes its layers from the model; build it again for a new parameter.")
        super().add_param_group(param_group)
