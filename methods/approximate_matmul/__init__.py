"""Approximate matrix products: A B estimated from A's training distribution and a fixed B.

Vector quantisation (MADDNESS, Bolt, product quantisation) lives here, sketches and low rank in ``linear``, C++ kernels
in ``native``, Triton kernels in ``gpu``. Importing this package imports no torch. ``load(path)`` reads what ``op.save``
of any of them wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from methods.approximate_matmul.files import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from methods.approximate_matmul.files import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
