"""Which tile sizes a Triton kernel uses: one rule, no trials at run time, so that a first call only compiles.

The published design tunes up to 45 candidates a kernel and shape, which costs minutes; here a small table by dtype,
size class and compute capability is looked up. The entries were chosen with :mod:`methods.orthogonalize._tune`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from methods.orthogonalize import _triton_direct

Line = Literal["gram", "square", "apply"]  # X Xᵀ; alpha A Aᵀ + beta A; a X + B X
Design = Literal["published", "fast"]
SizeClass = Literal["small", "medium", "large", "deep"]
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


_SMALL = make(64, 64, 128, 4, 3)
_TWO_A_PROCESSOR = make(128, 128, 64, 4, 3)
#: Half precision on devices with at least 160 KiB of shared memory a block (compute capability 8.0 and 9.0 or later).
#: Measured on one H100 in bfloat16, L2 flushed (torch 2.11, triton 3.6), at 4096², 2048², 1024², 4096 x 11008,
#: 768 x 3072 and batches of the last two small sizes; "was" is what the entry replaced.
HALF: dict[tuple[Design, Line, SizeClass], Config] = {
    # 64 x 64 tiles fill the device; tiles 128 deep halve the loop: 11.0 us at 1024², 16.5 at 768 x 3072 (was 13, 23).
    ("published", "gram", "small"): _SMALL,
    # Four warps leave room for two programs a multiprocessor: 27.3 us at 2048² (was 35.1 with eight).
    ("published", "gram", "medium"): _TWO_A_PROCESSOR,
    # The same: 119.5 us at 4096² (was 133), and first in both batches.
    ("published", "gram", "large"): _TWO_A_PROCESSOR,
    # Contracting 11008 entries, a fourth stage pays: 325 us (was 388; three stages 358).
    ("published", "gram", "deep"): make(128, 128, 64, 4, 4),
    # 11.8 us at 1024², 9.2 at 768² (was 13.4 and 10.2).
    ("published", "square", "small"): _SMALL,
    # 29.0 us at 2048² (was 42).
    ("published", "square", "medium"): _TWO_A_PROCESSOR,
    # 124 us at 4096² (was 161), 100 for 32 x 1024² (was 121), 21 for 12 x 768² (was 27).
    ("published", "square", "large"): _TWO_A_PROCESSOR,
    # 12.1 us at 1024² (was 14.4).
    ("published", "apply", "small"): _SMALL,
    # 32.3 us at 2048² (was 36.9); 18.0 at 768 x 3072, where 64 x 128 takes 17.4.
    ("published", "apply", "medium"): _TWO_A_PROCESSOR,
    # 205 us at 4096², 602 at 4096 x 11008: first but for 12 x 768 x 3072 (116 against 113).
    ("published", "apply", "large"): make(128, 256, 64, 8, 3),
    # Without descriptors, whose making costs more than these products: 10.0 us at 1024²; at 768 x 3072 the whole
    # engine replayed in 134 us, and in 143 with what looked fastest kernel by kernel.
    ("fast", "gram", "small"): make(64, 64, 64, 4, 4),
    # 27.0 us at 2048² (eight warps 27.2).
    ("fast", "gram", "medium"): _TWO_A_PROCESSOR,
    # Within 1 % of the first at 4096² (112 us) and 32 x 1024² (87); eight warps capped at 128 registers took 134.
    ("fast", "gram", "large"): replace(_TWO_A_PROCESSOR, tma=True),
    # 316 us for a depth of 11008 (three stages 331).
    ("fast", "gram", "deep"): make(128, 128, 64, 8, 4, tma=True),
    # 15.5 us at 1024² (64 x 64 x 64: 18.7); part of the engine that replayed fastest there, in 100 us.
    ("fast", "square", "small"): make(64, 128, 64, 4, 4),
    # 29.0 us at 2048² (eight warps 40).
    ("fast", "square", "medium"): _TWO_A_PROCESSOR,
    # First at 4096² (116.5 us, eight warps without a cap 144), 97 for 32 x 1024² where 94 is the least.
    ("fast", "square", "large"): replace(_TWO_A_PROCESSOR, tma=True),
    # 13.9 us at 1024² (64 x 64 x 128: 15.6).
    ("fast", "apply", "small"): make(64, 64, 64, 4, 4),
    # 29.6 us at 2048² (128 x 256: 30.7).
    ("fast", "apply", "medium"): make(128, 128, 64, 8, 3),
    # Within 2 % of the first everywhere but 12 x 768 x 3072 (103 against 95): 191 us at 4096², 540 at 4096 x 11008.
    ("fast", "apply", "large"): make(128, 256, 64, 8, 4, tma=True),
}
#: Depth (length of the contracted dimension) from which a large Gram product counts as deep; between the measured
#: 4096, where three stages are faster, and 11008, where four are.
_DEEP = 8192
#: Half precision where a block has about 100 KiB of shared memory (compute capability 8.6, 8.9, 12.0) or less.
_HALF_SMALL_MEMORY = make(64, 64, 32, 4, 3)
#: IEEE float32 runs without tensor cores; larger tiles spill.
_SINGLE = make(64, 64, 16, 4, 3)


def size_class(line: Line, rows: int, cols: int, batch: int, depth: int) -> SizeClass:
    """By the number of output entries: small up to 1024², medium up to 2048², else large, or deep for a long Gram."""
    entries = rows * cols * batch
    if entries <= 1024 * 1024:
        return "small"
    if entries <= 2048 * 2048:
        return "medium"
    return "deep" if line == "gram" and depth >= _DEEP else "large"


def choose(
    design: Design, line: Line, rows: int, cols: int, batch: int, depth: int, dtype: torch.dtype, major: int
) -> Config:
    """The configuration for an output of [batch, rows, cols]; ``major`` is what :func:`memory_class` returned."""
    if dtype == torch.float32:
        return _SINGLE
    if major < 9:
        return _HALF_SMALL_MEMORY
    return HALF[design, line, size_class(line, rows, cols, batch, depth)]


@functools.cache
def memory_class(index: int) -> int:
    """9 for devices with large shared memory and TMA (compute capability 9.0, 10.x), else 8."""
    major, _ = torch.cuda.get_device_capability(index)
    return 9 if major in (9, 10) else 8


def configuration(
    shape: tuple[int, ...], dtype: torch.dtype, design: Design = "fast", major: int = 9
) -> dict[str, dict[str, Any]]:
    """What runs for an input of this shape, by product, and how kernels are launched; ready to be put in a record.

    A descriptor (``tma``) is used only where strides and alignment allow it; see ``_triton_launch.takes_descriptor``.
    ``launch`` tells whether repeated launches go to the compiled kernel directly, and if not, why.
    """
    n, m = min(shape[-2:]), max(shape[-2:])
    batch = math.prod(shape[:-2])
    chosen = {
        line: choose(
            design, line, n, m if line == "apply" else n, batch, m if line == "gram" else n, dtype, major
        ).describe()
        for line in LINES
    }
    return chosen | {"launch": _triton_direct.state()}
