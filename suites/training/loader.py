"""Images held whole on the training device, and the stream of augmented batches drawn from them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from harness.catalogue.workload import Batch
from harness.errors import UserError
from suites.training import augment as aug
from suites.training import counter
from suites.training.stream import Epochs, joined, pieces

#: Share of the training set that ``validation=True`` holds out, and the seed that chooses it (fixed for ever).
HELD_OUT, HELD_OUT_SEED = 0.1, 0
#: Images summed at once: a chunk of CIFAR's stays in the cache, and 32 bits hold its sums of squares.
_CHUNK = 256
#: Sets that need no augmentation are kept normalized up to this size, so that a batch is one gather.
READY_BYTES = 512 * 1024 * 1024
#: On a GPU the next few batches are made at once, up to this size: the host launches the same kernels less often.
AHEAD_MOST = 8
AHEAD_BYTES = {"cuda": 64 * 1024 * 1024}


def held_out(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, held out): a tenth of the training set chosen by hash, both in the original order."""
    order = counter.permutation(HELD_OUT_SEED, 0, size, "cpu", stream=counter.SPLIT).numpy()
    cut = max(1, round(size * HELD_OUT))
    return np.sort(order[cut:]), np.sort(order[:cut])


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel over all pixels, in units of the full scale 255.

    The sums are integers, so the result does not depend on the order of summation.

    Args:
        images: uint8 [size, height, width, channels].

    Returns:
        Two float64 arrays [channels].
    """
    channels, width = images.shape[-1], math.prod(images.shape[1:])
    total, squares = np.zeros(width, np.int64), np.zeros(width, np.int64)
    # Over the images first: sums along rows of all pixels run at the speed of memory, along a few channels they do not.
    for start in range(0, len(images), _CHUNK):
        rows = images[start : start + _CHUNK].reshape(-1, width).astype(np.uint16)
        total += rows.sum(axis=0, dtype=np.uint32)
        squares += np.multiply(rows, rows, out=rows).sum(axis=0, dtype=np.uint32)  # 255² fits 16 bits
    count = images.size // channels
    mean = total.reshape(-1, channels).sum(axis=0) / count
    square = squares.reshape(-1, channels).sum(axis=0) / count
    return mean / 255.0, np.sqrt(np.maximum(square - mean**2, 1e-12)) / 255.0


class ResidentImages:
    """uint8 images on the device; batches are gathered, augmented and normalized there.

    Args:
        train: uint8 images [size, height, width, channels] and int64 labels [size].
        held: the evaluation images and labels.
        split: name of the evaluation split, ``test`` or ``validation``.
        augment: what is done to training images.
        device: where everything lives.
        dtype: dtype of the batches.
        channels_last: memory format of the batches (shape [batch, channels, height, width] either way).
        side: side of the images that ``augment.area`` makes and of evaluation crops; 0 = the stored size.
        ahead_bytes: size of the batches that are made at once; None = what suits the device. It changes no batch.
    """

    def __init__(
        self,
        train: tuple[np.ndarray, np.ndarray],
        held: tuple[np.ndarray, np.ndarray],
        *,
        split: str = "test",
        augment: aug.Augment | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        side: int = 0,
        ahead_bytes: int | None = None,
    ) -> None:
        self.device, self.dtype, self.channels_last, self.split = torch.device(device), dtype, channels_last, split
        self.augment = augment or aug.Augment()
        self.side = side
        self.size = len(train[0])
        mean, deviation = channel_statistics(train[0])
        self.mean, self.deviation = torch.from_numpy(mean), torch.from_numpy(deviation)
        # Whole rows of pixels: a product that broadcasts over three channels is three times as slow on a CPU.
        width = train[0].shape[2]
        self._scale = (1.0 / (255.0 * self.deviation)).to(self.device, torch.float32).repeat(width)
        self._shift = (-self.mean / self.deviation).to(self.device, torch.float32).repeat(width)
        self._images = aug.padded(self._resident(train[0]), self.augment)
        small = self._images.numel() * torch.empty((), dtype=dtype).element_size() <= READY_BYTES
        self._ready = self._plain(self._images) if small and not self.augment.draws else None
        self._labels = self._resident(train[1])
        self._held = self._resident(held[0]), self._resident(held[1])
        self._epochs = Epochs(self._table)
        self._ahead_bytes = AHEAD_BYTES.get(self.device.type, 0) if ahead_bytes is None else ahead_bytes
        #: Seed, first sample and batches made ahead; seed and end of the last request.
        self._kept: tuple[int, int, Batch] | None = None
        self._next: tuple[int, int] | None = None

    def _resident(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(np.ascontiguousarray(array)).to(self.device)

    def _table(self, seed: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        order = counter.permutation(seed, epoch, self.size, self.device)
        return order, aug.draw(self.augment, seed, epoch, self.size, self.device)

    def positions(self, seed: int, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Indices of the stream's samples and the words of their augmentation."""
        order, words = [], []
        for piece in pieces(first, count, self.size):
            places, drawn = self._epochs.table(seed, piece.epoch)
            index = places[piece.start : piece.stop]
            order.append(index)
            if drawn is not None:
                words.append(drawn[index])
        return joined(order), joined(words) if words else None

    def train(self, seed: int, first: int, count: int) -> Batch:
        """Samples ``first`` to ``first + count`` of the seed's stream."""
        many = min(AHEAD_MOST, self._ahead_bytes // self._bytes(count))
        # Only behind the last request: a rank that takes its share of each batch would make the others' too.
        follows, self._next = self._next == (seed, first), (seed, first + count)
        if self._kept is None or not self._has(self._kept, seed, first, count):
            # A resampled image comes from a product, which may round otherwise in another size.
            if many < 2 or not follows or self.augment.area:
                return self._made(seed, first, count)
            self._kept = None  # before its successor needs the memory
            self._kept = (seed, first, self._made(seed, first, many * count))
        _, begin, (inputs, targets) = self._kept
        place = slice(first - begin, first - begin + count)
        return Batch(inputs[place], targets[place])

    def forget(self) -> None:
        """Drop the batches made ahead: at the beginning of a run, whose own memory they are."""
        self._kept = self._next = None

    @staticmethod
    def _has(kept: tuple[int, int, Batch], seed: int, first: int, count: int) -> bool:
        begin = kept[1]
        return kept[0] == seed and begin <= first and first + count <= begin + len(kept[2].targets)

    def _bytes(self, count: int) -> int:
        _, height, width, channels = self._images.shape
        area = (height - 2 * self.augment.pad) * (width - 2 * self.augment.pad)
        return count * area * channels * torch.empty((), dtype=self.dtype).element_size()

    def _made(self, seed: int, first: int, count: int) -> Batch:
        index, words = self.positions(seed, first, count)
        labels = self._labels.index_select(0, index)
        if self._ready is not None:
            return Batch(self._formatted(self._ready.index_select(0, index)), labels)
        if words is None:
            return Batch(self._plain(self._images[index]), labels)
        if self.augment.area:
            images = aug.resized(self._normalized(self._images[index]), words, self.augment, self._out_side)
        else:
            images = self._normalized(aug.crop(self._images, index, words, self.augment))
        if self.augment.cutout:
            images = images.masked_fill(aug.hole(words, images.shape[2], images.shape[3], self.augment.cutout), 0.0)
        return Batch(self._formatted(images), labels)

    def constant(self, count: int) -> Batch:
        """The first ``count`` training images (repeated when there are fewer), unaugmented."""
        index = torch.arange(count, device=self.device) % self.size
        pad = self.augment.pad
        height, width = (length - pad for length in self._images.shape[1:3])
        images = self._images[index, pad:height, pad:width]
        return Batch(self._plain(images), self._labels[index])

    def evaluation(self, split: str, batch: int) -> Iterator[Batch]:
        """The whole evaluation split, unaugmented, in order; at least one batch.

        Raises:
            UserError: a split that this data does not hold.
        """
        if split != self.split:
            raise UserError(f"this data holds the split {self.split!r}, not {split!r}: ask for it when loading")
        images, labels = self._held
        for start in range(0, len(images), batch):
            yield Batch(self._plain(images[start : start + batch]), labels[start : start + batch])

    def first_images(self, count: int) -> torch.Tensor:
        """The first ``count`` normalized training images in dataset order: what data-dependent initialization sees."""
        return self.constant(min(count, self.size)).inputs  # type: ignore[no-any-return]

    def _normalized(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 NHWC -> float32 NCHW in channels_last strides: ``(x / 255 - mean) / deviation``."""
        batch, height, width, channels = images.shape
        rows = images.reshape(batch, height, width * channels).to(torch.float32)
        rows = torch.addcmul(self._shift, rows, self._scale)
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def _plain(self, images: torch.Tensor) -> torch.Tensor:
        """Unpadded, unaugmented images as a network sees them."""
        return self._formatted(self._centre(self._normalized(images)))

    @property
    def _out_side(self) -> int:
        return self.side or int(self._images.shape[1])

    def _centre(self, images: torch.Tensor) -> torch.Tensor:
        if not self.side or self.side >= images.shape[2]:
            return images
        top, left = ((length - self.side) // 2 for length in images.shape[2:])
        return images[:, :, top : top + self.side, left : left + self.side]

    def _formatted(self, images: torch.Tensor) -> torch.Tensor:
        memory = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.to(self.dtype).contiguous(memory_format=memory)
