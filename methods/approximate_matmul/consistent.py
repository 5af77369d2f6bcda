"""Whether arrays read from a file belong together: what a fit guarantees, a file does not. Raises plain ValueErrors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from methods.approximate_matmul.encoders import Encoder, TreeEncoder
from methods.approximate_matmul.tables import Tables, largest_exact
from methods.approximate_matmul.tree import DEPTH, LEAVES, NODES

#: Codes are bytes.
MOST_ENTRIES = 256


def lookup(encoder: Encoder, tables: Tables, upcast: object) -> None:
    """Check an encoder, its tables and the group that is averaged.

    Raises:
        ValueError: naming the array, what it should be and what it is.
    """
    codebooks = trees(encoder) if isinstance(encoder, TreeEncoder) else centroids(encoder)
    values = tables.values
    if values.dtype not in (np.uint8, np.float32) or values.ndim != 3 or values.shape[:2] != codebooks:
        raise ValueError(f"values must be uint8 or float32 {(*codebooks, 'M')}, {_is(values)}")
    outputs = values.shape[2]
    for name, array in (("scale", tables.scale), ("offset", tables.offset)):
        _expect(name, array, (outputs,), np.float32)
    if not outputs:
        raise ValueError("values have no output")
    groups = codebooks[0]
    if upcast is not None:
        if isinstance(upcast, bool) or not isinstance(upcast, int) or upcast < 1 or upcast & (upcast - 1):
            raise ValueError(f"upcast must be None or a power of two, is {upcast!r}")
        if codebooks[0] % upcast or not tables.quantised:
            raise ValueError(f"averages of {upcast} need uint8 values and a multiple of {upcast} codebooks")
        groups //= upcast
    if tables.quantised and groups > largest_exact(8):
        most = int(values.max(axis=1).astype(np.int64).sum(axis=0).max()) // (upcast or 1)
        if most > np.iinfo(np.uint16).max:
            raise ValueError(f"sums of {groups} entries reach {most}, more than 16 bits hold")


def trees(encoder: TreeEncoder) -> tuple[int, int]:
    """Codebooks and entries of trees."""
    found = encoder.trees
    codebooks = _starts(found.starts)
    _expect("columns", found.columns, (codebooks, DEPTH), np.int32)
    _expect("thresholds", found.thresholds, (codebooks, NODES), np.float32)
    width = int(found.starts[-1])
    if not 0 <= int(found.columns.min()) <= int(found.columns.max()) < width:
        raise ValueError(f"columns must lie in 0..{width - 1}, are {found.columns.min()}..{found.columns.max()}")
    return codebooks, LEAVES


def centroids(encoder: Any) -> tuple[int, int]:
    """Codebooks and entries of centroids."""
    codebooks = _starts(encoder.starts)
    found: NDArray[Any] = encoder.centroids
    widest, width = int(np.diff(encoder.starts).max()), int(encoder.starts[-1])
    entries = found.shape[1] if found.ndim == 3 else 0
    _expect("centroids", found, (codebooks, entries, widest), np.float32)
    if not 1 <= entries <= MOST_ENTRIES:
        raise ValueError(f"centroids must be 1 to {MOST_ENTRIES} a codebook, are {entries}")
    if encoder.rotation is not None:
        _expect("rotation", encoder.rotation, (width, width), np.float32)
    return codebooks, entries


def sides(arrays: Mapping[str, tuple[NDArray[Any], str]], known: Mapping[str, int]) -> None:
    """Check arrays against patterns such as ``D M``, ``d M int8`` or ``d int64<D``: letters are sides, equal by name.

    Raises:
        ValueError: naming the array, what it should be and what it is.
    """
    lengths = dict(known)
    for name, (array, pattern) in arrays.items():
        *letters, last = pattern.split()
        kind, _, limit = last.partition("<")
        if last.isalpha() or last == "1":
            letters, kind = [*letters, last], "float"
        wrong = not np.issubdtype(array.dtype, np.floating) if kind == "float" else array.dtype != kind
        shape = tuple(lengths.get(letter, 1 if letter == "1" else letter) for letter in letters)
        fits = array.ndim == len(shape) and all(
            isinstance(side, str) or side == real for side, real in zip(shape, array.shape, strict=True)
        )
        if wrong or not fits or not array.size:
            raise ValueError(f"{name} must be {kind} ({', '.join(map(str, shape))}), {_is(array)}")
        lengths |= dict(zip(letters, array.shape, strict=True))
        if limit and not 0 <= int(array.min()) <= int(array.max()) < lengths[limit]:
            raise ValueError(f"{name} must lie in 0..{lengths[limit] - 1}, is {array.min()}..{array.max()}")


def _starts(starts: NDArray[Any]) -> int:
    if starts.ndim != 1 or len(starts) < 2 or starts.dtype != np.int32:
        raise ValueError(f"starts must be int32 (C + 1,), {_is(starts)}")
    if starts[0] != 0 or not (np.diff(starts) > 0).all():
        raise ValueError(f"starts must grow from 0, are {starts.tolist()}")
    return len(starts) - 1


def _expect(name: str, array: NDArray[Any], shape: tuple[int, ...], dtype: type) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{name} must be {np.dtype(dtype)} {shape}, {_is(array)}")


def _is(array: NDArray[Any]) -> str:
    return f"is {array.dtype} {array.shape}"
