"""The endless stream of sample positions: which sample of which epoch stands at each place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from harness.errors import UserError

Table = TypeVar("Table")
#: A batch may straddle two epochs, so two tables are kept.
KEPT = 2


@dataclass(frozen=True)
class Piece:
    """Places ``start`` to ``stop`` of one epoch's order."""

    epoch: int
    start: int
    stop: int


def pieces(first: int, count: int, size: int) -> Iterator[Piece]:
    """Split samples ``first`` to ``first + count`` of the stream at the ends of epochs.

    Raises:
        UserError: a negative position or an empty batch.
    """
    if first < 0 or count < 1:
        raise UserError(f"expected a position of at least 0 and at least 1 sample, got {first} and {count}")
    while count:
        epoch, start = divmod(first, size)
        taken = min(count, size - start)
        yield Piece(epoch, start, start + taken)
        first, count = first + taken, count - taken


class Epochs(Generic[Table]):
    """Tables of the last epochs, made once each: what keeps the work per batch to a few launches."""

    def __init__(self, make: Callable[[int, int], Table]) -> None:
        self._make = make
        self._tables: dict[tuple[int, int], Table] = {}

    def table(self, seed: int, epoch: int) -> Table:
        """The table of one seed's epoch."""
        key = (seed, epoch)
        if key not in self._tables:
            while len(self._tables) >= KEPT:
                del self._tables[next(iter(self._tables))]
            self._tables[key] = self._make(seed, epoch)
        return self._tables[key]


def joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """The parts in a row, without a copy when there is only one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
