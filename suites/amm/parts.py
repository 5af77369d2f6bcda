"""Encoding and scanning of one operator apart, for the clocks of a block."""

from __future__ import annotations

from collections import deque
from typing import Any

from suites.amm.contents import Rows

#: Encodings whose codes a scan is timed on.
CODES_KEPT = 4


class Parts:
    """Encoding and scanning apart. Codes are in the back-end's own form, packed where it packs them.

    The scan gets the codes that the latest encodings made, one after another, so that successive calls differ; what it
    times is the look-ups, their sums and the fix-up to the output's dtype. A fused operator's parts take longer than
    the whole, for its codes never leave a core.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._made: deque[Any] = deque(maxlen=CODES_KEPT)

    def encode(self, rows: Rows) -> Any:
        """Codes of the rows."""
        codes = self._inner.codes(rows.a)
        self._made.append(codes)
        return codes

    def scan(self, rows: Rows) -> Any:
        """Outputs of codes made before; of these rows when there are none yet."""
        if not self._made:
            self.encode(rows)
        self._made.rotate(1)
        return self._inner.scan(self._made[0])
