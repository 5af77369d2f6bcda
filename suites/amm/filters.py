"""Image filters as products: patches of photographs [N, 27 or 75] times two flattened kernels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from harness.catalogue import data
from harness.errors import UserError

F32 = NDArray[np.float32]

#: Crops of this side, as in the paper's experiment (arXiv 2106.10860, section 5.6); the centre of each picture.
CROP = 224
#: Rows kept of the training pictures; the paper's pictures gave more than any tree needs.
TRAIN_ROWS = 50_000
#: Which pictures of a card are only for tests.
TEST: Mapping[str, tuple[str, ...]] = {"photos-sample": ("flower",), "photos": ("coffee", "motorcycle", "rocket")}
#: Standard deviations in pixels of the pair of 5 x 5 Gaussian filters (arXiv 2106.10860, section 5.6: 1 and 2).
SIGMAS = (1.0, 2.0)


def kernels(name: str) -> F32:
    """[side * side * 3, 2]: Sobel's two 3 x 3, or two normalized 5 x 5 Gaussians, on each colour."""
    if name == "sobel":
        across = np.outer([1.0, 2.0, 1.0], [-1.0, 0.0, 1.0])
        pair = [across, across.T]
    elif name == "gauss":
        at = np.arange(-2, 3)
        powers = [np.exp(-(at**2) / (2 * s * s)) for s in SIGMAS]
        pair = [np.outer(p, p) / np.outer(p, p).sum() for p in powers]
    else:
        raise UserError(f"unknown filter {name!r}; known: sobel, gauss.")
    return np.stack([np.repeat(k.ravel(), 3) for k in pair], 1).astype(np.float32)


def unfold(picture: NDArray[np.uint8], side: int) -> F32:
    """Every ``side`` x ``side`` colour patch of the centre crop, row by row: float32 [N, side * side * 3], 0..255."""
    top, left = (max(0, (length - CROP) // 2) for length in picture.shape[:2])
    cut = picture[top : top + CROP, left : left + CROP]
    windows = np.lib.stride_tricks.sliding_window_view(cut, (side, side), axis=(0, 1))
    return windows.transpose(0, 1, 3, 4, 2).reshape(-1, side * side * 3).astype(np.float32)


def patches(name: str, card: str) -> tuple[F32, F32, F32]:
    """Training patches, test patches of other pictures, and the kernels."""
    b = kernels(name)
    side = 3 if name == "sobel" else 5
    pictures = data.load(card).arrays
    held = TEST[card]
    parts = {
        split: [p for key, p in pictures.items() if (key in held) == (split == "test")] for split in ("train", "test")
    }
    train = np.concatenate([unfold(p, side) for p in parts["train"]])
    chosen = np.random.default_rng(0).permutation(len(train))[:TRAIN_ROWS]
    return train[np.sort(chosen)], np.concatenate([unfold(p, side) for p in parts["test"]]), b
