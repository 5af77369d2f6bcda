"""Python door of the C++ kernels: encode, scan and the fused product on NumPy arrays and torch CPU tensors.

    y[n, m] = (sum_c tables[c, code[n, c], m]) * scale[m] + offset[m]

Codes follow the walk i <- 2 i + [x >= v]; sums are exact in 16 bits up to 257 codebooks, or rounding averages over
groups of ``upcast`` codebooks (MADDNESS, arXiv 2106.10860, section 4.4). Nothing is copied; ctypes releases the
interpreter's lock.
All levels (scalar, AVX2, AVX-512, AVX-512 VBMI, AMX, NEON) give identical codes and integers.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import SpeedclaimError, Unavailable, Unsupported, UserError
from methods.approximate_matmul.native import build, team
from methods.approximate_matmul.native.arrays import (
    BLOCK,
    MAX_CODEBOOKS,
    Array,
    Centroids,
    Forest,
    Packed,
    Tables,
    centroids,
    forest,
    is_torch,
    pack,
    plain,
    pointer_to,
    prepare,
    unpack,
)
from methods.approximate_matmul.native.team import default_threads

__all__ = [
    "BLOCK",
    "MAX_CODEBOOKS",
    "Centroids",
    "Forest",
    "Packed",
    "Tables",
    "available",
    "centroids",
    "check",
    "default_threads",
    "describe",
    "encode",
    "encoder_of_centroids",
    "forest",
    "gigahertz",
    "habits",
    "highest_level",
    "level",
    "level_index",
    "library",
    "matmul",
    "nearest",
    "pack",
    "pool",
    "prepare",
    "scan",
    "sums",
    "told",
    "unpack",
    "workers",
]

#: By the processor's family, the least first.
LEVELS = (
    ("scalar", "neon")
    if platform.machine().lower() in ("aarch64", "arm64")
    else ("scalar", "avx2", "avx512", "avx512vbmi", "avx512amx")
)
#: The best level that is taken unasked: on a Xeon the one with AMX won with 16 codebooks and lost with 64 (README).
CEILING = "avx512vbmi"
#: Limits the level from outside, e.g. to compare levels on one machine.
VARIABLE = "SPEEDCLAIM_SIMD"
_ABI = 6
_KINDS = {"float32": 0, "uint16": 1, "uint8": 3}
_ERRORS = {
    1: "a null pointer was passed",
    2: "a size or stride is out of range",
    3: "a split column, or a subspace, lies outside the data's columns",
    4: "a buffer is smaller than its stated shape",
    5: f"too many codebooks: exact 16-bit sums hold at most {MAX_CODEBOOKS}",
    6: "upcast must be a power of two up to 128 that divides the codebooks",
    7: "out of memory",
    8: "this processor lacks the wanted SIMD level",
    9: "unknown kind of output",
}
_P, _L, _I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIGNATURES: dict[str, list[Any]] = {
    "amm_encode": [_I, _P, _L, _L, _L, _L, _P, _P, _I, _P, _L, _I],
    "amm_encode_bytes": [_I, _P, _L, _L, _L, _L, _P, _P, _I, _P, _L, _I],
    "amm_distances": [_I, _P, _L, _P, _L, _L, _I, _P, _P, _P, _P, _L, _I],
    "amm_nearest": [_I, _P, _L, _L, _L, _L, _P, _P, _L, _I, _P, _L, _I],
    "amm_scan": [_I, _P, _L, _L, _P, _L, _I, _I, _P, _P, _I, _I, _I, _P, _L, _L, _I],
    "amm_matmul": [_I, _P, _L, _L, _L, _L, _P, _P, _P, _L, _I, _I, _P, _P, _I, _I, _I, _P, _L, _L, _I],
}


@functools.lru_cache(maxsize=1)
def _load() -> ctypes.CDLL:
    """The library that the install built; where there is none, or none that loads here, one compiled for this user."""
    path = build.installed()
    if path is not None:
        with contextlib.suppress(Unavailable):
            return _opened(path)
    return _opened(build.library())


def _opened(path: Path) -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"cannot load {path}: {error}; set $SPEEDCLAIM_CACHE to a folder that allows it.") from error
    if lib.amm_abi() != _ABI:
        raise Unavailable(f"{path} is of another version; delete it and try again.")
    for name, arguments in _SIGNATURES.items():
        getattr(lib, name).argtypes = arguments
        getattr(lib, name).restype = ctypes.c_int
    return lib


@functools.lru_cache(maxsize=1)
def available() -> str | None:
    """Why the kernels cannot run here; None = they can (compiles them on the first call)."""
    try:
        _load()
    except SpeedclaimError as error:
        return str(error)
    return None


def habits(asking: bool = True, fetching: bool = True) -> None:
    """Switch habits for all calls from now on, to compare; without arguments, back to what is usual.

    Args:
        asking: the lines of more than a mebibyte of outputs are asked for a little before they are written.
        fetching: of A by column, what the next rows will read is fetched during the look-ups of the present ones.
    """
    _load().amm_set_habits(int(asking) + 2 * int(fetching))


def encoder_of_centroids() -> str:
    """The level that :func:`nearest` runs at: scalar, or AVX2."""
    return "avx2" if level_index(None) >= 1 and "avx2" in LEVELS else "scalar"


def sums(aggregation: str = "exact") -> str:
    """The level whose kernels do the look-ups: averages, and AVX-512 without VBMI, use AVX2's."""
    return told("amm_sums_name", level_index(None), int(aggregation == "average"))


def told(name: str, *arguments: int) -> str:
    """What a C function that returns a text says."""
    function = getattr(_load(), name)
    function.restype = ctypes.c_char_p
    return str(function(*arguments).decode())


def library() -> ctypes.CDLL:
    """The C functions themselves: those who call them answer for sizes that Python has not seen."""
    return _load()


@functools.lru_cache(maxsize=1)
def _highest() -> int:
    return int(_load().amm_highest_level())


def highest_level() -> str:
    """The best level that this processor has."""
    return LEVELS[_highest()]


def gigahertz() -> float:
    """The clock of the core that runs this, measured; 0.0 where that is unknown."""
    function = _load().amm_gigahertz
    function.restype = ctypes.c_double
    return float(function())


def level() -> str:
    """The level that calls use: the processor's best up to the ceiling, or what ``$SPEEDCLAIM_SIMD`` allows."""
    return LEVELS[level_index(None)]


def level_index(wanted: str | None) -> int:
    """Number of a level by name, of the one that calls use without a name."""
    highest = _highest()
    limit = wanted or os.environ.get(VARIABLE)
    if not limit:
        return min(highest, LEVELS.index(CEILING)) if CEILING in LEVELS else highest
    if limit not in LEVELS:
        where = "level" if wanted else f"${VARIABLE}"
        raise UserError(f"{where} must be one of {', '.join(LEVELS)}, got {limit!r}.")
    index = LEVELS.index(limit)
    if wanted and index > highest:
        raise Unsupported(f"level {wanted!r} was asked for and this processor's best is {LEVELS[highest]!r}.")
    return min(index, highest)


def workers(threads: int | None = None) -> int:
    """Threads of a call; with more than one the kernels get torch's own, if torch is loaded and has as many."""
    return team.workers(_load, threads)


def pool(threads: int | None = None) -> str:
    """Whose threads share rows: file name of the OpenMP run-time that torch loaded, or "own" (:mod:`.team`)."""
    return team.pool(_load, threads)


def describe(threads: int | None = None) -> dict[str, Any]:
    """What really runs: back-end, level, threads, compiler, and when it was built."""
    at_install = Path(_load()._name) == build.installed()
    count = workers(threads)
    return {
        "backend": "native",
        "level": level(),
        "threads": count,
        **({"pool": pool(count)} if count > 1 else {}),
        "compiler": build.installed_compiler() if at_install else build.version(build.compiler()),
        "built": "at install" if at_install else "at first use",
    }


def _input(a: Any, also: str = "") -> tuple[int, int, int, int, int]:
    """(pointer, N, D, row stride, column stride), strides in elements; of float32, or of the dtype named too."""
    if is_torch(a):
        torch = sys.modules["torch"]
        if a.device.type != "cpu":
            raise Unsupported(
                f"native kernels read CPU tensors, got one on {a.device}; move it or choose a GPU back-end."
            )
        good = a.layout is torch.strided and not a.is_neg()
        single = a.dtype is torch.float32 or str(a.dtype) == f"torch.{also}"
        stride, pointer = tuple(a.stride()), a.data_ptr()
    elif isinstance(a, np.ndarray):
        single, pointer, good = a.dtype.name in ("float32", also), pointer_to(a), a.dtype.isnative
        if a.dtype == np.float32 and (any(s % 4 for s in a.strides) or pointer % 4):
            raise UserError("float32 rows that start between 4-byte places cannot be read; pass a copy of the array.")
        stride = tuple(s // a.itemsize for s in a.strides)
    else:
        raise UserError(f"a must be a NumPy array or a torch tensor, got {type(a).__name__}.")
    if not (single and good):
        raise Unsupported(
            f"native kernels read dense float32{also and f' or {also}'}, got {a.dtype}"
            f"{' with a pending negation' if is_torch(a) and a.is_neg() else ''}; convert with .float() / "
            f".astype(np.float32), .resolve_neg()."
        )
    if a.ndim != 2:
        raise UserError(f"a must have the shape [N, D], got {tuple(a.shape)}.")
    return pointer, int(a.shape[0]), int(a.shape[1]), int(stride[0]), int(stride[1])


def check(code: int) -> None:
    """Turn a C function's error code into words."""
    if code:
        text = _ERRORS.get(code, f"error {code}")
        if code == 8:
            raise Unsupported(f"native kernels: {text}.")
        if code == 7:
            raise MemoryError(f"native kernels: {text}")
        raise UserError(f"native kernels: {text}.")


def encode(
    a: Any, columns: Any, thresholds: Any = None, *, threads: int | None = None, level: str | None = None
) -> Packed:
    """Codes of every row, packed two to a byte.

    Args:
        a: float32 or uint8 [N, D] with any strides (column-major reads only the touched columns).
        columns: :class:`Forest`, or int32 [C, 4], one column per level.
        thresholds: float32 [C, 15] in heap order; nothing with a forest.
        threads: worker threads over rows.
        level: SIMD level instead of the best one.
    """
    pointer, n, d, rows, cols = _input(a, "uint8")
    trees = columns if isinstance(columns, Forest) else forest(columns, thresholds)
    data = np.empty((-(-n // BLOCK), (trees.codebooks + 1) // 2, BLOCK), np.uint8)
    given, function = trees.pointers, _load().amm_encode
    if str(a.dtype).endswith("uint8"):
        given, function = (given[0], pointer_to(trees.of_bytes)), _load().amm_encode_bytes
    check(
        function(
            level_index(level), pointer, n, d, rows, cols, *given, trees.codebooks, pointer_to(data), data.nbytes,
            workers(threads),
        )
    )  # fmt: skip
    return Packed(data, n, trees.codebooks)


def nearest(a: Any, given: Centroids, *, threads: int | None = None, level: str | None = None) -> Packed:
    """Codes of the nearest centroids of every row, packed two to a byte.

    Args:
        a: float32 [N, D] with any strides.
        given: :func:`centroids`.
        threads: worker threads over rows.
        level: SIMD level instead of the best one; all compute the same codes.
    """
    pointer, n, d, rows, cols = _input(a)
    data = np.empty((-(-n // BLOCK), (given.codebooks + 1) // 2, BLOCK), np.uint8)
    check(
        _load().amm_nearest(
            level_index(level), pointer, n, d, rows, cols, *given.pointers, given.own.size, given.codebooks,
            pointer_to(data), data.nbytes, workers(threads),
        )
    )  # fmt: skip
    return Packed(data, n, given.codebooks)


def _output(kind: str, order: str, n: int, m: int, like_torch: bool, out: Any) -> tuple[Any, int, int, int, int]:
    """(array, kind code, pointer, stride, elements)."""
    if kind not in _KINDS or order not in ("row", "column") or (order == "column" and kind != "uint16"):
        raise UserError(
            f"out is float32, uint16 or uint8 in order 'row', or uint16 in order 'column', got {kind}, {order}."
        )
    if out is not None:
        pointer, rows, cols, stride, unit = _input(out)
        if kind != "float32" or (rows, cols) != (n, m) or (unit != 1 and m > 1) or (stride < m and n > 1):
            raise UserError(f"out must be float32 [{n}, {m}] with neighbouring columns, got {tuple(out.shape)}.")
        stride = max(stride, m)
        return out, 0, pointer, stride, (n - 1) * stride + m
    if order == "column":
        columns = np.empty((m, n), np.uint16)
        return columns.T, 2, pointer_to(columns), max(n, 1), columns.size
    if like_torch:
        torch = sys.modules["torch"]
        tensor = torch.empty((n, m), dtype=getattr(torch, kind))
        return tensor, _KINDS[kind], tensor.data_ptr(), m, n * m
    array = np.empty((n, m), np.dtype(kind))
    return array, _KINDS[kind], pointer_to(array), m, n * m


def scan(
    packed: Packed,
    tables_q: Any,
    out: str = "float32",
    scale: Any = 1.0,
    offset: Any = 0.0,
    aggregation: str = "exact",
    upcast: int = 16,
    *,
    order: str = "row",
    threads: int | None = None,
    level: str | None = None,
) -> Array:
    """Look up and add: [N, M] from packed codes.

    Args:
        packed: codes from :func:`encode` or :func:`pack`.
        tables_q: :class:`Tables` from :func:`prepare` (which then holds the next four), or uint8 [C, 16, M].
        out: "float32" (scaled), "uint16" (sums; with averaging the sums of group means) or "uint8" (those, saturated).
        scale: number or float32 [M].
        offset: number or float32 [M].
        aggregation: "exact" or "average".
        upcast: codebooks averaged before widening.
        order: memory order of the result; "column" (uint16) stores each output's rows together.
        threads: worker threads over rows.
        level: SIMD level instead of the best one.
    """
    t = (
        tables_q
        if isinstance(tables_q, Tables)
        else prepare(tables_q, scale, offset, aggregation=aggregation, upcast=upcast)
    )
    if t.codebooks != packed.codebooks:
        raise UserError(f"codes have {packed.codebooks} codebooks and the tables {t.codebooks}; they must agree.")
    array, kind, pointer, stride, elements = _output(out, order, packed.n, t.m, False, None)
    data = plain(packed.data, np.uint8, "packed.data")
    table, factor, shift = t.pointers
    check(
        _load().amm_scan(
            level_index(level), pointer_to(data), data.nbytes, packed.n, table, t.data.nbytes, t.codebooks, t.m, factor,
            shift, int(t.aggregation == "average"), t.upcast, kind, pointer, stride, elements,
            workers(threads),
        )
    )  # fmt: skip
    return array  # type: ignore[no-any-return]


def matmul(
    a: Any,
    columns: Any,
    thresholds: Any,
    tables_q: Any,
    scale: Any = 1.0,
    offset: Any = 0.0,
    threads: int | None = None,
    *,
    out: Any = None,
    level: str | None = None,
) -> Any:
    """Encode and scan in one pass over the rows: float32 [N, M], a tensor for a tensor and an array for an array.

    Args:
        a: float32 [N, D] with any strides.
        columns: :class:`Forest`, or int32 [C, 4].
        thresholds: float32 [C, 15] in heap order; None with a forest.
        tables_q: :class:`Tables` (scale and offset are then its own) or uint8 [C, 16, M].
        scale: number or float32 [M].
        offset: number or float32 [M].
        threads: worker threads over rows.
        out: float32 [N, M] to write into.
        level: SIMD level instead of the best one.
    """
    pointer, n, d, rows, cols = _input(a)
    trees = columns if isinstance(columns, Forest) else forest(columns, thresholds)
    t = tables_q if isinstance(tables_q, Tables) else prepare(tables_q, scale, offset)
    if t.codebooks != trees.codebooks:
        raise UserError(f"the trees have {trees.codebooks} codebooks and the tables {t.codebooks}; they must agree.")
    table, factor, shift = t.pointers
    array, kind, target, stride, elements = _output("float32", "row", n, t.m, is_torch(a), out)
    check(
        _load().amm_matmul(
            level_index(level), pointer, n, d, rows, cols, *trees.pointers, table, t.data.nbytes, t.codebooks, t.m,
            factor, shift, int(t.aggregation == "average"), t.upcast, kind, target, stride, elements,
            workers(threads),
        )
    )  # fmt: skip
    return array
