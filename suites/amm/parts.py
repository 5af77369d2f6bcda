"""Encoding and scanning of one operator apart, for the clocks of a block."""

from __future__ import annotations

from collections import deque
from typing import Any

from suites.amm.contents import Rows

#: Encodings whose codes a scan is timed on.
CODES_KEPT = 4


class Parts:
    """Encoding and scanning apart. Codes are in the back-end's own form, packed where it packs them.

    The scan gets the codes that the latest encodings made, one after another, so that successive calls differ. Where
    the back-end sums integers, ``scan`` stops at them, as the published scans do, and ``finish`` goes on to the
    outputs: ``finish`` less ``scan`` is the fix-up (scale, offset, float32, row order). Where tables were dequantised
    beforehand there is no fix-up, and ``scan`` gives the outputs. A fused operator's parts take longer than the whole,
    for its codes never leave a core.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._made: deque[Any] = deque(maxlen=CODES_KEPT)

    def encode(self, rows: Rows) -> Any:
        """Codes of the rows."""
        codes = self._inner.codes(rows.a)
        self._made.append(codes)
        return codes

    @property
    def divided(self) -> bool:
        """Whether look-ups and fix-up can be told apart."""
        return bool(getattr(self._inner, "integer_totals", False))

    def scan(self, rows: Rows) -> Any:
        """Integer sums of codes made before, or outputs where there is no fix-up."""
        codes = self._codes(rows)
        return self._inner.totals(codes) if self.divided else self._inner.scan(codes)

    def finish(self, rows: Rows) -> Any:
        """Outputs of codes made before."""
        return self._inner.scan(self._codes(rows))

    def _codes(self, rows: Rows) -> Any:
        """Codes made before; of these rows when there are none yet."""
        if not self._made:
            self.encode(rows)
        self._made.rotate(1)
        return self._made[0]
