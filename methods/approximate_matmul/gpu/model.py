"""When look-ups can beat a dense product on a GPU: lower bounds from a device's rates.

A dense product does D / C multiply-adds where MADDNESS does one look-up, so the ratio of the two rates is the D / C at
which both take equally long, when neither waits for memory. Every time here is max(operations / rate, bytes /
bandwidth): a bound that a kernel may approach and not beat. Seconds, bytes and operations a second throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.errors import UserError

Dense = Literal["bf16", "int8", "fp8"]
Way = Literal["shared", "alu", "onehot", "onehot-sparse"]
Layout = Literal["feature", "row"]
DENSE: tuple[Dense, ...] = ("bf16", "int8", "fp8")
WAYS: tuple[Way, ...] = ("shared", "alu", "onehot", "onehot-sparse")

#: Prototypes of a codebook, and columns of A that its tree compares (arXiv 2106.10860, section 4).
LEAVES, LEVELS = 16, 4


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a device does in a second; measure them on the device that is judged.

    Attributes:
        bf16_flops: dense bfloat16 operations, a multiply-add counting two.
        int8_ops, fp8_flops: the same for one-byte operands.
        bytes_s: device memory, read and written bytes together.
        multiprocessors, clock_hz: for the rates of look-ups without tensor cores.
        shared_bytes_clock: bytes that a multiprocessor reads from shared memory in a clock.
        integer_ops_clock: 32-bit integer operations of a multiprocessor in a clock.
        sparsity: tensor-core rate with two of four operands zero, as a multiple of the dense rate; every aligned four
            entries of a one-hot row satisfy that pattern.
    """

    bf16_flops: float
    int8_ops: float
    fp8_flops: float
    bytes_s: float
    multiprocessors: int
    clock_hz: float
    shared_bytes_clock: float = 128.0
    integer_ops_clock: float = 64.0
    sparsity: float = 2.0

    def multiply_adds(self, dense: Dense) -> float:
        """Multiply-adds a second of a dense product."""
        return {"bf16": self.bf16_flops, "int8": self.int8_ops, "fp8": self.fp8_flops}[dense] / 2.0

    def lookups(self, way: Way) -> float:
        """Look-ups of one byte a second.

        ``shared``: four outputs a word, no bank conflict. ``alu``: half of that or less, one integer operation a
        look-up and half of one to widen, whichever is slower. ``onehot``: 16 multiply-adds a look-up at the faster
        of the one-byte rates. ``onehot-sparse``: the same on sparse tensor cores.
        """
        clocks = self.multiprocessors * self.clock_hz
        onehot = max(self.multiply_adds("int8"), self.multiply_adds("fp8")) / LEAVES
        return {
            "shared": clocks * self.shared_bytes_clock,
            "alu": clocks * min(self.shared_bytes_clock, self.integer_ops_clock),
            "onehot": onehot,
            "onehot-sparse": onehot * self.sparsity,
        }[way]


#: One H100 SXM: bf16 product of 8192^3 on random data and device-to-device copy as measured on one (798 TFLOP/s,
#: 3.0 TB/s); one-byte rates as twice the bf16 rate, 132 multiprocessors at 1.755 GHz, 128 bytes and 64 integer
#: operations a clock from NVIDIA's H100 white paper and the CUDA programming guide's table of arithmetic throughput.
H100 = Rates(
    bf16_flops=798e12,
    int8_ops=2 * 798e12,
    fp8_flops=2 * 798e12,
    bytes_s=3.0e12,
    multiprocessors=132,
    clock_hz=1.755e9,
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A product A [n, d] B [d, m] with ``codebooks`` codebooks."""

    n: int
    d: int
    m: int
    codebooks: int = 1

    def __post_init__(self) -> None:
        if min(self.n, self.d, self.m, self.codebooks) < 1 or self.codebooks > self.d:
            raise UserError(f"a product needs n, d, m >= 1 and 1 <= codebooks <= d; got {self}.")

    @property
    def ratio(self) -> float:
        """D / C: multiply-adds that one look-up replaces."""
        return self.d / self.codebooks


def break_even(rates: Rates, way: Way, against: Dense) -> float:
    """D / C from which look-ups are faster than the dense product when both are bound by operations."""
    return rates.multiply_adds(against) / rates.lookups(way)


def dense_bytes(shape: Shape, dense: Dense, out_bytes: float = 2.0) -> float:
    """A, B and the output once; one-byte operands are counted as given (no quantisation pass)."""
    item = 2.0 if dense == "bf16" else 1.0
    return item * (shape.n * shape.d + shape.d * shape.m) + out_bytes * shape.n * shape.m


def dense_s(shape: Shape, rates: Rates, dense: Dense, out_bytes: float = 2.0) -> float:
    """Seconds of an exact product."""
    work = float(shape.n) * shape.d * shape.m / rates.multiply_adds(dense)
    return max(work, dense_bytes(shape, dense, out_bytes) / rates.bytes_s)


def input_bytes(shape: Shape, layout: Layout, in_bytes: float = 2.0) -> float:
    """Bytes of A that encoding fetches: its 4 C columns where A is stored by feature, all of A where stored by row.

    Memory comes in sectors of 32 bytes; with 4 C >= D / 8 touched columns nearly all sectors of a row hold one.
    """
    columns = min(LEVELS * shape.codebooks, shape.d) if layout == "feature" else shape.d
    return in_bytes * shape.n * columns


def encode_s(shape: Shape, rates: Rates, layout: Layout, in_bytes: float = 2.0) -> float:
    """Seconds of encoding alone: A in, one byte a code out."""
    return (input_bytes(shape, layout, in_bytes) + shape.n * shape.codebooks) / rates.bytes_s


def scan_s(shape: Shape, rates: Rates, way: Way, out_bytes: float = 2.0) -> float:
    """Seconds of the sums alone: codes and tables in, output out."""
    moved = shape.n * shape.codebooks + _tables(shape) + out_bytes * shape.n * shape.m
    return max(_lookups(shape) / rates.lookups(way), moved / rates.bytes_s)


def fused_s(
    shape: Shape, rates: Rates, way: Way, layout: Layout, in_bytes: float = 2.0, out_bytes: float = 2.0
) -> float:
    """Seconds of both in one pass: A's columns and tables in, output out, codes nowhere."""
    moved = input_bytes(shape, layout, in_bytes) + _tables(shape) + out_bytes * shape.n * shape.m
    return max(_lookups(shape) / rates.lookups(way), moved / rates.bytes_s)


def best_speedup(shape: Shape, rates: Rates, way: Way, layout: Layout, against: Dense) -> float:
    """Dense seconds over fused seconds: the speed-up that no kernel of this way exceeds."""
    return dense_s(shape, rates, against) / fused_s(shape, rates, way, layout)


def verdict(shape: Shape, rates: Rates, layout: Layout, against: Dense) -> str:
    """Why look-ups win or lose on this shape, in one line."""
    needed = break_even(rates, "onehot", against)
    gain = best_speedup(shape, rates, "onehot", layout, against)
    bound = "memory" if dense_bytes(shape, against) / rates.bytes_s >= dense_s(shape, rates, against) else "operations"
    what = "can win" if gain > 1.0 else "cannot win"
    return (
        f"{what}: D/C = {shape.ratio:.3g}, break-even {needed:.3g} against {against}; the dense product is bound by "
        f"{bound}; at most {gain:.2g}x"
    )


def _lookups(shape: Shape) -> float:
    return float(shape.n) * shape.codebooks * shape.m


def _tables(shape: Shape) -> float:
    return float(LEAVES) * shape.codebooks * shape.m
