"""Differentiable MADDNESS: layers that look up instead of multiply, and that can be trained inside a network.

``replace_layers(model, batches)`` puts them into a network, ``rebuild`` gives the same structure for a stored state
dictionary, ``deploy`` turns them into fixed operators on any back-end. Importing this package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "MaddnessLinear": "layers",
    "MaddnessConv2d": "layers",
    "replace_layers": "replace",
    "rebuild": "replace",
    "Report": "report",
    "deploy": "deployed",
    "renormalise": "norms",
}
__all__ = ["MaddnessConv2d", "MaddnessLinear", "Report", "deploy", "rebuild", "renormalise", "replace_layers"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
