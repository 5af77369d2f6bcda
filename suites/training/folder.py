"""Images that stay files: decoded on host threads one batch ahead, for sets too large for a device."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from harness.catalogue.workload import Batch
from harness.errors import MissingDependency, UserError
from suites.training import augment as aug
from suites.training import counter
from suites.training.stream import Epochs, joined, pieces

#: Share of the short side that an evaluation crop takes: 224 of 256 (Krizhevsky et al. 2012).
CENTRE = 224 / 256
Box = tuple[float, float, float, float]


def random_box(words: Sequence[int], width: int, height: int, area: float) -> Box:
    """Random resized crop (Szegedy et al., arXiv 1409.4842): area uniform, aspect ratio log-uniform in 3/4 to 4/3.

    Departure: sides that leave the image are clipped to it instead of being drawn again.
    """
    row, column, shape, share = ((word + 0.5) / 2**32 for word in words)
    pixels = (area + (1.0 - area) * share) * width * height
    # The top bit decides the flip; the rest of the word is independent of it.
    ratio = (4.0 / 3.0) ** (2.0 * ((shape * 2.0) % 1.0) - 1.0)
    wide, tall = min((pixels * ratio) ** 0.5, float(width)), min((pixels / ratio) ** 0.5, float(height))
    left, top = column * (width - wide), row * (height - tall)
    return left, top, left + wide, top + tall


def centre_box(width: int, height: int) -> Box:
    """The middle square of ``CENTRE`` times the short side."""
    side = CENTRE * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def decoded(path: Path, side: int, words: Sequence[int] | None, area: float) -> np.ndarray:
    """One picture as uint8 [side, side, 3], cropped and resized with antialiasing."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency("reading image files needs Pillow; install it with pip install pillow.") from error
    with Image.open(path) as picture:
        colour = picture.convert("RGB")
    box = centre_box(*colour.size) if words is None else random_box(words, *colour.size, area)
    return np.asarray(colour.resize((side, side), Image.Resampling.BILINEAR, box=box))


class FolderImages:
    """The stream of :class:`suites.training.loader.ResidentImages` over image files.

    Only a random resized crop and an independent flip are known here. The next batch is decoded while the device
    works on this one.

    Args:
        root: folder of the paths.
        train: relative paths (bytes) and labels.
        held: the same of the evaluation split.
        mean: per channel, of the full scale.
        deviation: per channel, of the full scale.
        split: name of the evaluation split.
        augment: ``area`` and ``flip`` (``none`` or ``random``).
        side: of the network's input.
        device: training device.
        dtype: of the batches.
        channels_last: memory format of the batches.
        threads: decoding threads; 0 = one per core.

    Raises:
        UserError: an augmentation that files do not know.
    """

    def __init__(
        self,
        root: str,
        train: tuple[np.ndarray, np.ndarray],
        held: tuple[np.ndarray, np.ndarray],
        *,
        mean: Sequence[float],
        deviation: Sequence[float],
        augment: aug.Augment,
        side: int,
        split: str = "test",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        threads: int = 0,
    ) -> None:
        if augment.pad or augment.cutout or augment.flip == "alternating":
            raise UserError(f"image files know area and an independent flip, not {augment}")
        self.root, self.augment, self.side, self.split = Path(root), augment, side, split
        self.device, self.dtype = torch.device(device), dtype
        self._memory = torch.channels_last if channels_last else torch.contiguous_format
        self._train, self._held, self.size = train, held, len(train[0])
        self._mean, self._deviation = (
            torch.tensor(list(values), device=self.device).view(1, -1, 1, 1) for values in (mean, deviation)
        )
        self._epochs = Epochs(self._table)
        self._pool = ThreadPoolExecutor(threads or os.cpu_count() or 1)
        self._ahead = ThreadPoolExecutor(1)
        self._next: tuple[tuple[int, int, int], Future[tuple[torch.Tensor, torch.Tensor]]] | None = None
        self._constant: Batch | None = None

    def _table(self, seed: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        return counter.permutation(seed, epoch, self.size, "cpu"), aug.draw(self.augment, seed, epoch, self.size, "cpu")

    def positions(self, seed: int, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Indices of the stream's samples and the words of their augmentation, on the host."""
        order, words = [], []
        for piece in pieces(first, count, self.size):
            places, drawn = self._epochs.table(seed, piece.epoch)
            index = places[piece.start : piece.stop]
            order.append(index)
            if drawn is not None:
                words.append(drawn[index])
        return joined(order), joined(words) if words else None

    def _assembled(self, key: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        index, words = self.positions(*key)
        crops = words.tolist() if words is not None and self.augment.area else [None] * len(index)
        images = self._decoded(self._train[0][index.numpy()], crops)
        if words is not None and self.augment.flip == "random":
            images = torch.where((words[:, 2] >> 31).bool()[:, None, None, None], images.flip(2), images)
        return images, torch.from_numpy(self._train[1][index.numpy()])

    def _decoded(self, paths: np.ndarray, crops: Sequence[Sequence[int] | None]) -> torch.Tensor:
        def one(pair: tuple[bytes, Sequence[int] | None]) -> np.ndarray:
            return decoded(self.root / pair[0].decode(), self.side, pair[1], self.augment.area)

        return torch.from_numpy(np.stack(list(self._pool.map(one, zip(paths, crops, strict=True)))))

    def train(self, seed: int, first: int, count: int) -> Batch:
        """Samples ``first`` to ``first + count`` of the seed's stream; starts on those that follow them."""
        key = (seed, first, count)
        expected, self._next = self._next, None
        future = expected[1] if expected and expected[0] == key else self._ahead.submit(self._assembled, key)
        images, labels = future.result()
        following = (seed, first + count, count)
        self._next = following, self._ahead.submit(self._assembled, following)
        return self._batch(images, labels)

    def constant(self, count: int) -> Batch:
        """The first ``count`` training images (repeated when there are fewer), centre-cropped, decoded once."""
        if self._constant is None or len(self._constant.inputs) != count:
            index = np.arange(count) % self.size
            images = self._decoded(self._train[0][index], [None] * count)
            self._constant = self._batch(images, torch.from_numpy(self._train[1][index]))
        return self._constant

    def evaluation(self, split: str, batch: int) -> Iterator[Batch]:
        """The whole evaluation split, centre-cropped, in order.

        Raises:
            UserError: a split that this data does not hold.
        """
        if split != self.split:
            raise UserError(f"this data holds the split {self.split!r}, not {split!r}: ask for it when loading")
        paths, labels = self._held
        for start in range(0, len(paths), batch):
            part = paths[start : start + batch]
            yield self._batch(self._decoded(part, [None] * len(part)), torch.from_numpy(labels[start : start + batch]))

    def _batch(self, images: torch.Tensor, labels: torch.Tensor) -> Batch:
        shown = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32) / 255.0
        shown = ((shown - self._mean) / self._deviation).to(self.dtype).contiguous(memory_format=self._memory)
        return Batch(shown, labels.to(self.device, non_blocking=True))
