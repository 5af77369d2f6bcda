"""Coefficient tables of the odd quintic iteration x <- a x + b x^3 + c x^5, and the generator of Polar Express."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

Row = tuple[float, float, float]


@dataclass(frozen=True)
class Table:
    """One row (a, b, c) per iteration; singular values go through ``a x + b x^3 + c x^5`` row by row.

    Attributes:
        name: short name, the key of :data:`TABLES`.
        rows: the coefficients, first iteration first.
        source: where the numbers were published.
    """

    name: str
    rows: tuple[Row, ...]
    source: str

    def tail(self, steps: int) -> Table:
        """The table of the last ``steps`` rows."""
        return Table(f"{self.name}[-{steps}:]", self.rows[-steps:], f"last {steps} rows of: {self.source}")


def evaluate(rows: Iterable[Row], x: float) -> float:
    """Send one scalar (a normalised singular value) through the rows."""
    for a, b, c in rows:
        square = x * x
        x *= a + square * (b + square * c)
    return x


def slope_at_zero(rows: Iterable[Row]) -> float:
    """Growth of an infinitesimal singular value: the product of the linear coefficients."""
    return math.prod(a for a, _, _ in rows)


def safe(table: Table, factor: float, name: str) -> Table:
    """Table with p(x / factor) in place of p(x) in every row but the last.

    Rounding pushes singular values above 1; a row fitted on [0, 1] may explode there. Dividing (a, b, c) by
    (f, f^3, f^5) makes the row valid up to ``factor``. The last row is left alone, for its value is the answer.

    Source: Polar Express (arXiv 2505.16932), its remarks on finite precision.
    """
    head = tuple((a / factor, b / factor**3, c / factor**5) for a, b, c in table.rows[:-1])
    return Table(name, (*head, table.rows[-1]), f"{table.source}; all rows but the last at x / {factor:g}")


def optimal_quintic(low: float, high: float) -> Row:
    """Odd quintic p that minimises max |p(x) - 1| over [low, high].

    A Remez exchange on four points: p - 1 takes the values -e, e, -e, e at low, q, r, high, where q and r are the
    extrema of p. Nearly equal ends give the Pade-like limit (15, -10, 3)/8.

    Source: Polar Express (arXiv 2505.16932).
    """
    if not 0.0 < low <= high:
        raise ValueError(f"optimal_quintic needs 0 < low <= high, got {low} and {high}")
    if low >= (1.0 - 5e-6) * high:  # beyond this the exchange is singular to double precision; limit as upstream
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    inner, outer = (3 * low + high) / 4, (low + 3 * high) / 4
    error = math.inf
    for _ in range(100):
        a, b, c, new_error = _equioscillating(low, inner, outer, high)
        if abs(error - new_error) < 1e-15:
            break
        error = new_error
        root = math.sqrt(9 * b * b - 20 * a * c)
        inner, outer = math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))
    return a, b, c


def optimal_composition(
    low: float = 1e-3, steps: int = 5, safety: float = 0.02, cushion: float = 0.02
) -> tuple[Row, ...]:
    """Rows of Polar Express: greedily optimal quintics for singular values in [low, 1].

    Each step fits max(low, cushion * high) .. high. Where the cushion was active the row is rescaled so that its
    values at low and high lie symmetrically about 1. All rows but the last are fitted to x / (1 + safety). Then
    low <- p(low) and high <- 2 - low.

    Source: Polar Express (arXiv 2505.16932) and its published code.
    """
    high, factor, rows = 1.0, 1.0 + safety, []
    for step in range(steps):
        row = optimal_quintic(max(low, cushion * high), high)
        if cushion * high > low:
            centre = 2 / (evaluate([row], low) + evaluate([row], high))
            row = (row[0] * centre, row[1] * centre, row[2] * centre)
        if step < steps - 1:
            row = (row[0] / factor, row[1] / factor**3, row[2] / factor**5)
        rows.append(row)
        low = evaluate([row], low)
        high = 2 - low
    return tuple(rows)


def _equioscillating(*points: float) -> tuple[float, float, float, float]:
    """Solve a x + b x^3 + c x^5 + (+-) e = 1 at four points with alternating signs of e."""
    system = [[x, x**3, x**5, (-1.0) ** k, 1.0] for k, x in enumerate(points)]
    for column in range(4):
        pivot = max(range(column, 4), key=lambda k: abs(system[k][column]))
        system[column], system[pivot] = system[pivot], system[column]
        for k in range(4):
            if k != column:
                ratio = system[k][column] / system[column][column]
                system[k] = [left - ratio * right for left, right in zip(system[k], system[column], strict=True)]
    a, b, c, error = (system[k][4] / system[k][k] for k in range(4))
    return a, b, c, error


JORDAN = Table("jordan", ((3.4445, -4.7750, 2.0315),) * 5, "K. Jordan et al., Muon (2024); torch.optim.Muon's default")

YOU5 = Table(
    "you5",
    (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "J. You, modded-nanogpt record of 2025-02-14; the default of microsoft/dion's Newton-Schulz",
)

TURBO4 = Table("turbo4", YOU5.rows[1:], "Turbo-Muon's published code: rows 2-5 of the table of J. You, not re-tuned")

AOL_V1 = Table(
    "aol_v1",
    (
        (4.6051, -9.6552, 5.6769),
        (4.7505, -6.0861, 2.1790),
        (2.7763, -2.3190, 0.5523),
        (2.4231, -2.2861, 0.8193),
    ),
    "thib-s/flash-newton-schulz (2025-09-22), also microsoft/dion's four-step variant; tuned for AOL-scaled inputs",
)

POLAR_EXPRESS = Table(
    "polar_express",
    (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
    "Polar Express (arXiv 2505.16932) with five steps, low 1e-3, safety and cushion 2e-2; as in modded-nanogpt",
)

CANS5 = Table(
    "cans5",
    (
        (8.4703, -25.1081, 18.6293),
        (4.1828, -3.1087, 0.5806),
        (3.9619, -2.9541, 0.5630),
        (3.2866, -2.4647, 0.5074),
        (2.2737, -1.6447, 0.4162),
    ),
    "CANS (arXiv 2506.10935), rows as in NVIDIA-NeMo/Emerging-Optimizers",
)

# Without the factor a bfloat16 run on heavy-tailed inputs left singular values above 3; see README.md.
CANS5_SAFE = safe(CANS5, 1.02, "cans5_safe")

TABLES: dict[str, Table] = {
    table.name: table for table in (JORDAN, YOU5, TURBO4, AOL_V1, POLAR_EXPRESS, CANS5, CANS5_SAFE)
}
