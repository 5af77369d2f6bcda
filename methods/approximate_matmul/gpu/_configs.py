"""Tile sizes of the kernels: one rule, no trials at run time, so that a first call only compiles.

They were chosen from what the compiler reports for compute capability 9.0 (Triton 3.6: wgmma products, registers
without spills) and from counting instructions of a loop against clocks of its products; ``_bench --tune`` times
alternatives, which nobody has done yet. Timed as they are on an H100 on five shapes (2026-11-22): of the model's lower
bounds, encoding rows reaches 48 to 96 %, tables through the cache 27 to 78 %, one-hot int8 products 26 to 53 % and the
fused kernel 12 to 76 %.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["int8", "bfloat16", "float16", "float8"]
KINDS: tuple[Kind, ...] = ("int8", "bfloat16", "float16", "float8")

#: Fewest tiles that occupy a GPU of 132 multiprocessors; below that, smaller tiles.
_FILL = 132


@dataclass(frozen=True, kw_only=True)
class Config:
    """Tile sizes and launch options of one kernel.

    Attributes:
        bm: rows of a program.
        bn: outputs of a program (encode: bytes of codes).
        bc: codebooks of one step of a one-hot product, which is 16 times as deep; elsewhere unused.
        warps, stages: warps a program, and tiles in flight.
        group: rows of tiles that are worked on together, so that they share the L2 cache.
    """

    bm: int
    bn: int
    bc: int = 8
    warps: int = 4
    stages: int = 3
    group: int = 8

    def describe(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)


def encode(width: int, contiguous_rows: bool) -> Config:
    """Eight codes a thread: four keep too few loads in flight, sixteen need twice the registers.

    Args:
        width: bytes of a row of codes.
        contiguous_rows: consecutive rows of A lie beside each other (stored by feature): tall tiles then read whole
            sectors.
    """
    if contiguous_rows:
        return Config(bm=128, bn=min(8, _power(width)))
    bn = min(32, _power(width))
    return Config(bm=1024 // bn, bn=bn)


def lookup(n: int, m: int) -> Config:
    """128 bytes of every entry, so that 64 codebooks (128 KiB of tables) fit a first-level cache of 256 KiB."""
    bn = min(128, max(16, _power(m)))
    bm = max(16, 8192 // bn)
    while bm > 16 and _tiles(n, m, bm, bn) < _FILL:
        bm //= 2
    return Config(bm=min(bm, 128), bn=bn)


def onehot(n: int, m: int, kind: Kind, split: bool) -> Config:
    """128 x 256 accumulators of 32 bits, 128 x 128 where there are two of them.

    A step is 128 bytes deep, the widest swizzled row of shared memory. 215 instructions of a step of eight warps take
    some 430 clocks of a multiprocessor's four schedulers, its int8 products 1024. Outputs that are no multiple of 16
    get 64 rows: the masked stores of 128 spill.
    """
    bn = min(128 if split else 256, max(16, _power(m)))
    bm = 128 if m % 16 == 0 and _tiles(n, m, 128, bn) >= _FILL else 64
    return Config(bm=bm, bn=bn, bc=_books(kind), warps=8 if bm == 128 else 4)


def fused(m: int, kind: Kind) -> Config:
    """64 x 128 tiles, three to a multiprocessor, whose loads of A hide behind each other.

    Without pipelining a step has 370 instructions; with it 514, for even thresholds are then copied to shared memory.
    The encoding is repeated for every 128 outputs; tiles of one row run together.
    """
    return Config(bm=64, bn=min(128, max(16, _power(m))), bc=_books(kind), warps=4, stages=1, group=1)


def _books(kind: Kind) -> int:
    return 8 if kind in ("int8", "float8") else 4


def _tiles(n: int, m: int, bm: int, bn: int) -> int:
    return -(-n // bm) * -(-m // bn)


def _power(value: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << max(value - 1, 0).bit_length()
