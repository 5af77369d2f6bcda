"""Text held whole on the training device, and the stream of windows drawn from it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from harness.catalogue.workload import Batch
from harness.errors import UserError
from suites.training import counter
from suites.training.stream import Epochs, joined, pieces


class ResidentTokens:
    """Windows of ``context`` tokens and their successors.

    An epoch cuts the text into ``size = tokens // context - 1`` windows that follow one another from a random offset
    in [0, context), and visits each once in random order: the offset makes the windows of different epochs differ.

    Args:
        train: token ids of the training text.
        held: token ids of the evaluation text.
        context: tokens of a window.
        split: name of the evaluation split, ``test`` or ``validation``.
        device: where everything lives.
        windows: evaluation windows, evenly spaced and not overlapping; 0 = all.

    Raises:
        UserError: a text shorter than two windows.
    """

    def __init__(
        self,
        train: np.ndarray,
        held: np.ndarray,
        *,
        context: int,
        split: str = "test",
        device: str = "cpu",
        windows: int = 0,
    ) -> None:
        if min(len(train), len(held)) < 2 * context:
            raise UserError(
                f"windows of {context} tokens need texts of at least {2 * context}, got {len(train)} and {len(held)}"
            )
        self.device, self.context, self.split = torch.device(device), context, split
        self.size = len(train) // context - 1
        self._train, self._held = (torch.from_numpy(text.astype(np.int64)).to(self.device) for text in (train, held))
        self._within = torch.arange(context + 1, device=self.device)
        self._epochs = Epochs(self._table)
        self._windows = windows

    def _table(self, seed: int, epoch: int) -> torch.Tensor:
        """First token of each window in the epoch's order."""
        word = counter.uniform_bits(seed, counter.OFFSET, epoch, torch.zeros(1, dtype=torch.int64, device=self.device))
        offset = counter.below(word[:, 0], self.context)
        return counter.permutation(seed, epoch, self.size, self.device) * self.context + offset

    def starts(self, seed: int, first: int, count: int) -> torch.Tensor:
        """First token of the stream's windows ``first`` to ``first + count``."""
        return joined(
            [
                self._epochs.table(seed, piece.epoch)[piece.start : piece.stop]
                for piece in pieces(first, count, self.size)
            ]
        )

    def train(self, seed: int, first: int, count: int) -> Batch:
        """Windows ``first`` to ``first + count`` of the seed's stream: int64 [count, context] each."""
        return self._batch(self._train, self.starts(seed, first, count))

    def constant(self, count: int) -> Batch:
        """The first ``count`` windows of the text, repeated when there are fewer."""
        return self._batch(self._train, torch.arange(count, device=self.device) % self.size * self.context)

    def evaluation(self, split: str, batch: int) -> Iterator[Batch]:
        """Evenly spaced windows of the evaluation text, in order; at least one batch.

        Raises:
            UserError: a split that this data does not hold.
        """
        if split != self.split:
            raise UserError(f"this data holds the split {self.split!r}, not {split!r}: ask for it when loading")
        total = (len(self._held) - 1) // self.context
        used = min(total, self._windows) if self._windows else total
        starts = torch.arange(used, device=self.device) * total // used * self.context
        for first in range(0, used, batch):
            yield self._batch(self._held, starts[first : first + batch])

    def _batch(self, text: torch.Tensor, starts: torch.Tensor) -> Batch:
        rows = text[starts[:, None] + self._within]
        return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
