"""Which tile sizes a Triton kernel uses: one rule, no trials at run time, so that a first call only compiles.

The published design tunes up to 45 candidates a kernel and shape, which costs minutes; here a small table by dtype,
size class and compute capability is looked up. The entries were chosen with :mod:`methods.orthogonalize._tune`.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

Line = Literal["gram", "square", "apply"]  # X Xᵀ; alpha A Aᵀ + beta A; a X + B X
Design = Literal["published", "fast"]
SizeClass = Literal["small", "medium", "large"]
LINES: tuple[Line, ...] = ("gram", "square", "apply")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Tile sizes and launch options of one product kernel.

    Attributes:
        bm, bn, bk: tile of the output, and of the contracted dimension.
        warps, stages: warps a program, and tiles in flight.
        group: rows of tiles that are worked on together, so that they share the L2 cache.
        tma: read operands through tensor descriptors where strides and alignment allow it.
        registers: cap of registers a thread (0: none); 128 lets two programs of eight warps share a multiprocessor.
    """

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    group: int = 8
    tma: bool = False
    registers: int = 0

    def describe(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)


def make(bm: int, bn: int, bk: int, warps: int, stages: int, **options: Any) -> Config:
    """A :class:`Config` in one line."""
    return Config(bm=bm, bn=bn, bk=bk, warps=warps, stages=stages, **options)


#: Half precision on devices with at least 160 KiB of shared memory a block (compute capability 8.0 and 9.0 or later).
HALF: dict[tuple[Design, Line, SizeClass], Config] = {
    ("published", "gram", "small"): make(64, 64, 64, 4, 4),
    ("published", "gram", "medium"): make(128, 128, 64, 8, 3),
    ("published", "gram", "large"): make(128, 128, 64, 8, 3),
    ("published", "square", "small"): make(64, 64, 64, 4, 4),
    ("published", "square", "medium"): make(128, 128, 64, 8, 3),
    ("published", "square", "large"): make(128, 128, 64, 8, 3),
    ("published", "apply", "small"): make(64, 64, 64, 4, 4),
    ("published", "apply", "medium"): make(128, 128, 64, 8, 3),
    ("published", "apply", "large"): make(128, 256, 64, 8, 3),
    ("fast", "gram", "small"): make(64, 64, 64, 4, 4),
    ("fast", "gram", "medium"): make(128, 128, 64, 8, 3),
    ("fast", "gram", "large"): make(128, 128, 64, 8, 3, tma=True, registers=128),
    ("fast", "square", "small"): make(64, 64, 64, 4, 4),
    ("fast", "square", "medium"): make(128, 128, 64, 8, 3),
    ("fast", "square", "large"): make(128, 128, 64, 8, 3, tma=True, registers=128),
    ("fast", "apply", "small"): make(64, 64, 64, 4, 4),
    ("fast", "apply", "medium"): make(128, 128, 64, 8, 3),
    ("fast", "apply", "large"): make(128, 256, 64, 8, 4, tma=True),
}
#: Half precision where a block has about 100 KiB of shared memory (compute capability 8.6, 8.9, 12.0) or less.
_HALF_SMALL_MEMORY = make(64, 64, 32, 4, 3)
#: IEEE float32 runs without tensor cores; larger tiles spill.
_SINGLE = make(64, 64, 16, 4, 3)


def size_class(rows: int, cols: int, batch: int) -> SizeClass:
    """By the number of output entries: small up to 1024², medium up to 2048², else large."""
    entries = rows * cols * batch
    if entries <= 1024 * 1024:
        return "small"
    return "medium" if entries <= 2048 * 2048 else "large"


def choose(design: Design, line: Line, rows: int, cols: int, batch: int, dtype: torch.dtype, major: int) -> Config:
    """The configuration for an output of [batch, rows, cols]; ``major`` is what :func:`memory_class` returned."""
    if dtype == torch.float32:
        return _SINGLE
    if major < 9:
        return _HALF_SMALL_MEMORY
    return HALF[design, line, size_class(rows, cols, batch)]


@functools.cache
def memory_class(index: int) -> int:
    """9 for devices with large shared memory and TMA (compute capability 9.0, 10.x), else 8."""
    major, _ = torch.cuda.get_device_capability(index)
    return 9 if major in (9, 10) else 8


def configuration(
    shape: tuple[int, ...], dtype: torch.dtype, design: Design = "fast", major: int = 9
) -> dict[str, dict[str, Any]]:
    """What runs for an input of this shape, by product; ready to be printed in a record.

    A descriptor (``tma``) is used only where strides and alignment allow it; see ``_triton_launch.takes_descriptor``.
    """
    n, m = min(shape[-2:]), max(shape[-2:])
    batch = 1
    for extent in shape[:-2]:
        batch *= extent
    return {
        line: choose(design, line, n, m if line == "apply" else n, batch, dtype, major).describe() for line in LINES
    }
