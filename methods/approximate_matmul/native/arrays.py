"""Arrays in the kernels' order: packed codes, and tables with their scale and offset."""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import UserError

BLOCK = 32
PROTOTYPES = 16
#: 257 * 255 = 65535: exact sums of bytes fit 16 bits up to here.
MAX_CODEBOOKS = 257
#: Bytes of a cache line.
LINE = 64
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Packed:
    """Codes of N rows in blocks of 32: ``data[block, pair, row]``, low nibble codebook 2·pair, high nibble the next."""

    data: npt.NDArray[np.uint8]
    n: int
    codebooks: int


@dataclass(frozen=True)
class Forest:
    """Trees as the kernels take them: ``columns`` int32 [C, 4], ``thresholds`` float32 [C, 15] in heap order."""

    columns: npt.NDArray[np.int32]
    thresholds: npt.NDArray[np.float32]

    @property
    def codebooks(self) -> int:
        """C."""
        return int(self.columns.shape[0])

    @functools.cached_property
    def pointers(self) -> tuple[int, int]:
        """Addresses of the two: NumPy takes longer to tell one than a small product takes."""
        return pointer_to(self.columns), pointer_to(self.thresholds)

    @functools.cached_property
    def of_bytes(self) -> npt.NDArray[np.uint8]:
        """The thresholds for rows of bytes, uint8 [C, 32]: x >= v of an integer is x >= ceil v, never above 255."""
        least = np.ceil(self.thresholds)
        own = np.zeros((self.codebooks, 2, PROTOTYPES), np.uint8)
        own[:, 0, : least.shape[1]] = np.nan_to_num(np.clip(least, 0, 255))
        own[:, 1, : least.shape[1]] = np.where(least <= 255, 255, 0)
        return own.reshape(self.codebooks, -1)


@dataclass(frozen=True)
class Centroids:
    """Centroids as the kernels take them: each codebook's 16 squared norms, then 16 numbers -2 c for each column."""

    starts: npt.NDArray[np.int32]
    own: npt.NDArray[np.float32]

    @property
    def codebooks(self) -> int:
        """C."""
        return len(self.starts) - 1

    @functools.cached_property
    def pointers(self) -> tuple[int, int]:
        """Addresses of the two."""
        return pointer_to(self.starts), pointer_to(self.own)


@dataclass(frozen=True)
class Tables:
    """Tables in the kernels' order, ``data[m, c, k]`` with C padded by zero tables to a multiple of 4."""

    data: npt.NDArray[np.uint8]
    scale: npt.NDArray[np.float32]
    offset: npt.NDArray[np.float32]
    codebooks: int
    aggregation: str
    upcast: int

    @property
    def m(self) -> int:
        """Number of outputs."""
        return int(self.data.shape[0])

    @functools.cached_property
    def pointers(self) -> tuple[int, int, int]:
        """Addresses of data, scale and offset."""
        return pointer_to(self.data), pointer_to(self.scale), pointer_to(self.offset)


def is_torch(a: object) -> bool:
    """Whether a is a tensor; torch is not imported for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(a, torch.Tensor)


def pointer_to(array: Array) -> int:
    """Address of an array's first element; several times quicker than ``array.ctypes.data``."""
    return int(array.__array_interface__["data"][0])


def plain(a: Any, dtype: Any, name: str) -> Array:
    """A contiguous NumPy array of the wanted type; lossy conversions are refused."""
    if isinstance(a, np.ndarray) and a.dtype == dtype and a.flags.c_contiguous and a.flags.aligned:
        return a
    array = np.asarray(a.detach().cpu().numpy() if is_torch(a) else a)
    whole = np.issubdtype(dtype, np.integer) and np.issubdtype(array.dtype, np.integer)
    if not whole and not np.can_cast(array.dtype, dtype, "same_kind"):
        raise UserError(f"{name} must be {np.dtype(dtype).name}, got {array.dtype}; convert it first.")
    if whole and array.size:
        info = np.iinfo(dtype)
        if int(array.min()) < info.min or int(array.max()) > info.max:
            raise UserError(f"{name} must fit {info.dtype}, got values in {array.min()}..{array.max()}.")
    return np.require(array, dtype, ["C", "A"])


def forest(columns: Any, thresholds: Any) -> Forest:
    """Checked trees, to be used again and again."""
    c, v = plain(columns, np.int32, "columns"), plain(thresholds, np.float32, "thresholds")
    if c.ndim != 2 or c.shape[1] != 4 or c.shape[0] < 1:
        raise UserError(f"columns must have the shape [C, 4], got {c.shape}.")
    if v.shape != (c.shape[0], 15):
        raise UserError(f"thresholds must have the shape [{c.shape[0]}, 15] like columns, got {v.shape}.")
    return Forest(c, v)


def centroids(values: Any, starts: Any) -> Centroids:
    """Checked centroids, to be used again and again.

    Args:
        values: float32 [C, 16, d]; d is the widest subspace, columns beyond a narrower one's own are not read.
        starts: int32 [C + 1], each subspace's first column and the end of the last.
    """
    v, s = plain(values, np.float32, "centroids"), plain(starts, np.int32, "starts")
    if v.ndim != 3 or v.shape[1] != PROTOTYPES or not len(v):
        raise UserError(f"centroids must have the shape [C, {PROTOTYPES}, d], got {v.shape}.")
    sizes = np.diff(s) if s.shape == (len(v) + 1,) else np.empty(0)
    if not len(sizes) or s[0] != 0 or sizes.min() < 0 or sizes.max() > v.shape[2]:
        raise UserError(f"starts must be {len(v) + 1} columns that rise from 0 by at most {v.shape[2]}, got {s}.")
    own = []
    for each, size in zip(v, sizes, strict=True):
        used = each[:, :size]
        own += [(used**2).sum(axis=1)[None], -2 * used.T]
    return Centroids(s, np.ascontiguousarray(np.concatenate(own), np.float32))


def pack(codes: Any) -> Packed:
    """Packed form of plain codes uint8 [N, C] with values 0..15."""
    each = plain(codes, np.uint8, "codes")
    if each.ndim != 2 or each.shape[1] < 1 or (each.size and int(each.max()) > 15):
        raise UserError(f"codes must be [N, C] with values 0..15, got shape {each.shape}.")
    n, codebooks = each.shape
    blocks, pairs = -(-n // BLOCK), (codebooks + 1) // 2
    whole = np.zeros((blocks * BLOCK, 2 * pairs), np.uint8)
    whole[:n, :codebooks] = each
    split = whole.reshape(blocks, BLOCK, pairs, 2)
    return Packed(np.ascontiguousarray((split[..., 0] | split[..., 1] << 4).transpose(0, 2, 1)), n, codebooks)


def unpack(packed: Packed) -> npt.NDArray[np.uint8]:
    """Plain codes uint8 [N, C]."""
    blocks, pairs, _ = packed.data.shape
    both = packed.data.transpose(0, 2, 1).reshape(blocks * BLOCK, pairs)
    codes = np.stack([both & 15, both >> 4], axis=-1).reshape(blocks * BLOCK, 2 * pairs)
    return np.ascontiguousarray(codes[: packed.n, : packed.codebooks])


def prepare(
    tables_q: Any, scale: Any = 1.0, offset: Any = 0.0, *, aggregation: str = "exact", upcast: int = 16
) -> Tables:
    """Tables uint8 [C, 16, M] in the kernels' order; averaging folds its factor and its bias into scale and offset.

    A sum of means over groups of U stands for U times as much and is too large by C log2(U) / 4 on average (uniform low
    bits): y = (U s - C log2(U) / 4) scale + offset.
    """
    q = plain(tables_q, np.uint8, "tables_q")
    if q.ndim != 3 or q.shape[1] != PROTOTYPES or 0 in q.shape:
        raise UserError(f"tables_q must have the shape [C, {PROTOTYPES}, M], got {q.shape}.")
    codebooks, _, m = q.shape
    if aggregation not in ("exact", "average"):
        raise UserError(f"aggregation must be 'exact' or 'average', got {aggregation!r}.")
    if aggregation == "average" and (upcast not in (1, 2, 4, 8, 16, 32, 64, 128) or codebooks % upcast):
        raise UserError(
            f"upcast must be a power of two up to 128 that divides the {codebooks} codebooks, got {upcast}; "
            "choose a smaller one or aggregation='exact'."
        )
    if codebooks // (upcast if aggregation == "average" else 1) > MAX_CODEBOOKS:
        raise UserError(f"exact 16-bit sums hold at most {MAX_CODEBOOKS} codebooks, got {codebooks}; use fewer.")
    data = _lines((m, -(-codebooks // 4) * 4, PROTOTYPES))
    data[:, :codebooks] = q.transpose(2, 0, 1)
    s, f = (_vector(x, m, name) for x, name in ((scale, "scale"), (offset, "offset")))
    if aggregation == "average":
        f = f - s * (codebooks * math.log2(upcast) / 4)
        s = s * upcast
    return Tables(data, s.astype(np.float32), f.astype(np.float32), codebooks, aggregation, upcast)


def _lines(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Zeros that begin with a cache line: the tables of four codebooks are then one line each."""
    size = math.prod(shape)
    room = np.zeros(size + LINE - 1, np.uint8)
    start = -room.ctypes.data % LINE
    return room[start : start + size].reshape(shape)


def _vector(x: Any, m: int, name: str) -> npt.NDArray[np.float64]:
    values = np.asarray(x.detach().cpu().numpy() if is_torch(x) else x, np.float64)
    if values.shape not in ((), (1,), (m,)):
        raise UserError(f"{name} must be a number or have the shape [{m}], got {values.shape}.")
    return np.array(np.broadcast_to(values, (m,)))
