"""Numbers and names as a page shows them: pure text, no HTML."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import PurePath
from typing import Any

from harness import units

DASH = "—"


def number(value: Any) -> float | None:
    """A finite float, or None for everything else (None, NaN, infinities, text)."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def times(value: float | None) -> str:
    """A ratio: ``1.18×``."""
    return DASH if value is None else units.ratio(value).replace("x", "×")


def interval(low: float | None, high: float | None) -> str:
    """``[1.15, 1.21]``; an open end is shown as such."""
    if low is None and high is None:
        return DASH
    return f"[{_end(low, '0')}, {_end(high, '∞')}]"


def _end(value: float | None, open_end: str) -> str:
    return open_end if value is None else units.ratio(value).removesuffix("x")


def percent(fraction: float | None) -> str:
    """``0.0123`` -> ``1.2 %``."""
    if fraction is None:
        return DASH
    return f"{100 * fraction:.1f} %" if fraction < 0.1 else f"{100 * fraction:.0f} %"


def seconds(value: float | None) -> str:
    """A time with its unit."""
    return DASH if value is None else units.seconds(value)


def size(value: float | None) -> str:
    """Bytes with their unit."""
    return DASH if value is None else units.size(value)


def plain(value: float | None) -> str:
    """A dimensionless number, three digits."""
    return DASH if value is None else f"{value:.3g}"


def amount(value: float | None) -> str:
    """Three digits without an exponent for what is large: ``62,400``."""
    if value is None:
        return DASH
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{rounded:g}"


def count(amount: int, noun: str) -> str:
    """``3 claims``, ``1 claim``."""
    return f"{amount} {noun}{'' if amount == 1 else 's'}"


def slug(text: str) -> str:
    """Lower-case letters, digits and hyphens only; a short hash keeps different texts apart."""
    short = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80]
    if short == text and text:
        return short
    return f"{short}-{hashlib.sha256(text.encode()).hexdigest()[:6]}".lstrip("-")


def anchor(kind: str, *parts: str) -> str:
    """A permanent id that depends only on what the row is, not on where it stands."""
    return "--".join([kind, *(slug(part) for part in parts)])


def spoken(metric: str) -> str:
    """A metric's name for people: ``polar_error`` -> ``polar error``."""
    return metric.replace("_", " ")


def shorten(text: str, limit: int = 44) -> str:
    """The beginning of a long text, cut between words."""
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    return text[: limit - 1].rsplit(" ", 1)[0] + "…"


def base(file: str | None) -> str:
    """A record file's name without its folder."""
    return PurePath(str(file)).name if file else DASH
