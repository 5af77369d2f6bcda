"""Several optimizers that act as one: each has its own parameters, its own hyper-parameters and a name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from harness.errors import Unsupported, UserError
from methods.first_order.groups import scalars


class Composite(torch.optim.Optimizer):
    """Named parts over disjoint parameters, stepped in order.

    ``param_groups`` is the concatenation of the parts' groups (the very dictionaries, so a schedule that writes
    ``group["lr"]`` reaches the part), ``state`` their union, ``state_dict`` one dictionary per part.

    Attributes:
        optimizers: the parts by name.
        coverage: how many scalars each part updates.

    Raises:
        UserError: no part, or a parameter in two parts.
    """

    def __init__(self, parts: Mapping[str, torch.optim.Optimizer]) -> None:
        if not parts:
            raise UserError("a composite optimizer needs at least one part.")
        self.optimizers = dict(parts)
        groups = self._concatenated()
        super().__init__([{"params": group["params"]} for group in groups], {})
        self.param_groups = groups
        self.coverage: dict[str, int] = {
            name: scalars(tensor for group in part.param_groups for tensor in group["params"])
            for name, part in self.optimizers.items()
        }

    def _concatenated(self) -> list[dict[str, Any]]:
        groups = [group for part in self.optimizers.values() for group in part.param_groups]
        seen = [id(parameter) for group in groups for parameter in group["params"]]
        if len(seen) != len(set(seen)):
            raise UserError("two parts of a composite optimizer share a parameter; each must have one owner.")
        return groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        """The union of the parts' states (a new dictionary; the inner ones are the parts' own)."""
        merged: defaultdict[Tensor, Any] = defaultdict(dict)
        for part in self.optimizers.values():
            merged.update(part.state)
        return merged

    @state.setter
    def state(self, value: Any) -> None:
        """Ignored: the parts own their states (the base class assigns an empty one)."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Evaluate the closure once, if any, then step every part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.optimizers.values():
            part.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear every part's gradients."""
        for part in self.optimizers.values():
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """``{"parts": {name: the part's own state_dict}}``: tensors, numbers and strings alone."""
        return {"parts": {name: part.state_dict() for name, part in self.optimizers.items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Restore every part.

        Raises:
            UserError: the names of the parts differ.
        """
        saved = state_dict.get("parts", {})
        if set(saved) != set(self.optimizers):
            raise UserError(
                f"the saved optimizer has the parts {sorted(saved)}, this one {sorted(self.optimizers)}; build it with "
                f"the same model and hyper-parameters."
            )
        for name, part in self.optimizers.items():
            part.load_state_dict(saved[name])
        self.param_groups = self._concatenated()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only while the base class is built; afterwards a parameter must be given to a part.

        Raises:
            Unsupported: called later.
        """
        if hasattr(self, "coverage"):
            raise Unsupported("a composite optimizer cannot tell which part a new parameter belongs to.")
        super().add_param_group(param_group)

    def describe(self) -> dict[str, Any]:
        """What each part says of itself, for the record."""
        return {
            name: describe() for name, part in self.optimizers.items() if (describe := getattr(part, "describe", None))
        }

    def parts(self) -> dict[str, float]:
        """Seconds of what the parts measure of themselves since the last call."""
        found: dict[str, float] = {}
        for part in self.optimizers.values():
            if (read := getattr(part, "parts", None)) is not None:
                found |= read()
        return found

    def close(self) -> None:
        """Close the parts that have something to close."""
        for part in self.optimizers.values():
            if (close := getattr(part, "close", None)) is not None:
                close()
