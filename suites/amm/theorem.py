"""The generalisation guarantee of MADDNESS, as a number that stands beside the measured gap."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: 8-bit tables: the largest rounding error of one entry in units of the table's range.
TABLE_ERROR = 1.0 / 256.0


#: What the theorem speaks of: 8-bit tables, summed exactly, of dense prototypes by ridge regression.
_SPOKEN_OF: Mapping[str, Any] = {"lut_bits": 8, "aggregation": "exact", "tables": "prototype", "nonzeros": None}


def covers(hyper: Mapping[str, Any]) -> bool:
    """Whether a look-up method with these options is one that the theorem speaks of."""
    ridge = hyper.get("ridge")
    regressed = isinstance(ridge, int | float) and ridge > 0 and "codebooks" in hyper
    return regressed and all(hyper.get(name, value) == value for name, value in _SPOKEN_OF.items())


def description_bits(codebooks: int, columns: int, delta: float) -> float:
    """nu(C, D, delta) = C (4 ceil(log2 D) + 256) log 2 - log delta.

    Four split columns and 256 further bits of thresholds and scales a codebook; the last figure is our reading.
    """
    return codebooks * (4 * math.ceil(math.log2(max(columns, 2))) + 256) * math.log(2.0) - math.log(delta)


def bound(
    *, codebooks: int, columns: int, rows: int, sigma: float, norm_b: float, ridge: float = 1.0, delta: float = 0.05
) -> float:
    """Largest excess of the expected over the training loss |a b - approximation| that the theorem allows.

    (C sigma_A ||b||_2) / (2 sqrt(lambda)) * (1/256 + (8 + sqrt(nu(C, D, delta))) / sqrt(2 n)), with probability
    1 - delta over the training rows.

    Source: Blalock and Guttag, Multiplying Matrices Without Multiplying, arXiv 2106.10860, theorem 4.1.

    Args:
        codebooks: C.
        columns: D.
        rows: n, training rows.
        sigma: largest singular value of the training matrix.
        norm_b: euclidean norm of the column of B.
        ridge: lambda of the prototypes' ridge regression.
        delta: probability that the bound fails.
    """
    if not (codebooks > 0 and columns > 0 and rows > 0 and ridge > 0 and 0 < delta < 1):
        raise ValueError("the bound needs positive codebooks, columns, rows and ridge, and 0 < delta < 1")
    nu = description_bits(codebooks, columns, delta)
    spread = TABLE_ERROR + (8.0 + math.sqrt(nu)) / math.sqrt(2.0 * rows)
    return codebooks * sigma * norm_b / (2.0 * math.sqrt(ridge)) * spread
