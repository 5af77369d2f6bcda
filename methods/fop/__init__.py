"""FOP: natural gradients with a Fisher-orthogonal second direction; ``from methods.fop import FOP``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from methods.fop.fop import FOP

__all__ = ["FOP"]


def __getattr__(name: str) -> Any:
    """Import torch only when the class is asked for: listing stays light."""
    if name == "FOP":
        from methods.fop.fop import FOP

        return FOP
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
