"""Python door of the population counts (popcount.cpp): in how many bits the codes of rows and of outputs differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import UserError
from methods.approximate_matmul.native import binding
from methods.approximate_matmul.native.arrays import Array, plain, pointer_to

#: Bits that a population count takes at a time.
WORD_BITS = 64


@dataclass(frozen=True)
class Signatures:
    """Packed bits of M outputs, word by word: uint64 [words, M rounded up to 8]."""

    data: npt.NDArray[np.uint64]
    m: int


def signatures(codes: Any) -> Signatures:
    """Bits uint8 [M, bytes], a multiple of eight of them, as :func:`distances` wants those of the outputs."""
    each = plain(codes, np.uint8, "codes")
    if each.ndim != 2 or not len(each) or not each.shape[1] or each.shape[1] % 8:
        raise UserError(f"bits must be [M, bytes] with whole words of eight bytes, got {each.shape}.")
    data = np.zeros((each.shape[1] // 8, -(-len(each) // 8) * 8), np.uint64)
    data[:, : len(each)] = each.view(np.uint64).T
    return Signatures(data, len(each))


def counter() -> str:
    """What :func:`distances` counts bits with: ``avx512vpopcntdq``, ``popcnt`` or ``plain``."""
    return binding.told("amm_distances_name", binding.level_index(None))


def distances(
    codes: Any,
    outputs: Signatures,
    table: Any = None,
    row_scale: Any = None,
    scale: Any = None,
    *,
    threads: int | None = None,
    level: str | None = None,
) -> Array:
    """Bits in which every row's code differs from every output's: uint16 [N, M], or float32 through a table.

    Args:
        codes: uint8 [N, bytes] with as many bytes as the outputs'.
        outputs: :func:`signatures`.
        table: float32, a number for each distance; then the result is ``row_scale[n] scale[m] table[distance]``. Of
            codes that are filled up to whole words it may leave out distances that they cannot have.
        row_scale: float32 [N], with ``table``.
        scale: float32 [M], with ``table``.
        threads: worker threads over rows.
        level: SIMD level instead of the best one.
    """
    each, words = plain(codes, np.uint8, "codes"), len(outputs.data)
    each = each.copy() if pointer_to(each) % 8 else each  # it is read by words
    if each.ndim != 2 or each.shape[1] != 8 * words:
        raise UserError(f"codes must be [N, {8 * words}] bytes like the outputs', got {each.shape}.")
    n, m = len(each), outputs.m
    given: list[Array] = []
    if table is not None:
        given = [_whole(table, words), _vector(row_scale, "row_scale", n), _vector(scale, "scale", m)]
    pointers = [pointer_to(array) for array in given] or [0, 0, 0]
    out = np.empty((n, m), np.float32 if given else np.uint16)
    binding.check(
        binding.library().amm_distances(
            binding.level_index(level), pointer_to(each), n, pointer_to(outputs.data), outputs.data.shape[1], m, words,
            *pointers, pointer_to(out), out.size, binding.workers(threads),
        )
    )  # fmt: skip
    return out


def _whole(table: Any, words: int) -> Array:
    """A number for each distance of whole words, zeros for those that filled-up codes cannot have."""
    size, found = WORD_BITS * words + 1, np.ravel(plain(table, np.float32, "table"))
    short = size - found.size
    return _vector(np.pad(found, (0, short)) if 0 < short < WORD_BITS else found, "table", size)


def _vector(values: Any, name: str, size: int) -> Array:
    array = np.ravel(plain(values, np.float32, name))
    if array.size != size:
        raise UserError(f"{name} must have {size} numbers, got {array.size}.")
    return array
