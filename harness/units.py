"""Units as people read them: one place that turns seconds, bytes, flops and ratios into short text."""

from __future__ import annotations

import math

_TIME = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_BYTES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))
_SI = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def _digits(value: float) -> str:
    if value == 0:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(places, 6)}f}"


def seconds(value: float) -> str:
    """Three significant digits with the fitting unit: ``0.00214`` -> ``2.14 ms``."""
    if not math.isfinite(value):
        return str(value)
    for factor, unit in _TIME:
        if abs(value) >= factor:
            return f"{_digits(value / factor)} {unit}"
    return f"{_digits(value / 1e-9)} ns"


def size(value: float) -> str:
    """Binary bytes: ``1536`` -> ``1.50 KiB``."""
    for factor, unit in _BYTES:
        if abs(value) >= factor:
            return f"{value / factor:.0f} B" if unit == "B" else f"{_digits(value / factor)} {unit}"
    return f"{value:.0f} B"


def si(value: float, unit: str) -> str:
    """SI prefix: ``5.11e14, 'FLOP/s'`` -> ``511 TFLOP/s``."""
    for factor, prefix in _SI:
        if abs(value) >= factor:
            return f"{_digits(value / factor)} {prefix}{unit}"
    return f"{_digits(value)} {unit}"


def ratio(value: float) -> str:
    """A speed-up: ``1.1784`` -> ``1.18x``."""
    return f"{_digits(value)}x" if math.isfinite(value) else "unbounded"


def with_unit(value: float, unit: str) -> str:
    """Format ``value`` by its stored unit (``s``, ``bytes``, ``J``, ``1``)."""
    if unit == "s":
        return seconds(value)
    if unit == "bytes":
        return size(value)
    if unit in ("", "1"):
        return f"{value:.3g}"
    return f"{value:.3g} {unit}"
