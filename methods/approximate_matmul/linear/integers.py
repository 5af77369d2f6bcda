"""Products of int8 matrices with exact int32 sums: the engines there are, all with the same integers as a result."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from harness.errors import Unsupported
from methods.approximate_matmul.linear import calls

#: Largest magnitude of a quantised entry: symmetric, so that -128 never occurs.
TOP = 127
#: Columns whose sum of products of entries up to 127 stays an exact float32 integer: 1040 * 127² < 2**24.
_EXACT_COLUMNS = 1040
#: torch._int_mm on CUDA wants more than 16 rows and multiples of 8 in the other sides (ATen, cuda/Blas.cpp).
_CUDA_ROWS, _CUDA_SIDE = 32, 8
#: int32 sums overflow beyond this many columns.
LARGEST_INNER = (2**31 - 1) // (TOP * TOP)

Engine = Callable[[Tensor], Tensor]
ENGINES = ("int_mm", "float32")


def engine(name: str, b: Tensor) -> Engine:
    """``q -> q @ b`` for integer-valued float32 q [n, D] and int8 b [D, M]: exact integers, int32 or float32."""
    if name not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}; got {name!r}")
    return _int_mm(b) if name == "int_mm" else _float32(b)


def choose(b: Tensor, sample: Tensor) -> tuple[str, dict[str, float], list[str]]:
    """The fastest engine whose sums are exact here: name, seconds of each, what was left out and why.

    Some CPUs without VNNI saturate the sums of two products in 16 bits, so every engine is first tried at the extremes.
    """
    if b.shape[0] > LARGEST_INNER:
        raise Unsupported(f"int8: D = {b.shape[0]} overflows 32-bit sums, at most {LARGEST_INNER} columns")
    usable, left_out = {}, []
    for name in ENGINES:
        if wrong := inexact(name, b):
            left_out.append(f"{name}: {wrong}")
        else:
            usable[name] = engine(name, b)
    if "int_mm" in usable and b.device.type == "cuda":
        return "int_mm", {}, left_out  # a few rows tell nothing there: launches then hide that float32 moves four bytes
    if not usable:
        raise Unsupported(f"no exact int8 product here: {'; '.join(left_out)}")
    chosen, seconds = calls.fastest(usable, sample)
    return chosen, seconds, left_out


def inexact(name: str, b: Tensor) -> str | None:
    """Why an engine cannot be used on B's shape (it fails, or is wrong on entries of +-127); None when it can."""
    inner, outer = b.shape
    extreme = torch.full((inner, outer), TOP, dtype=torch.int8, device=b.device)
    extreme[:, 1::2] = -TOP
    rows = torch.full((2, inner), float(TOP), device=b.device)
    rows[1] = -TOP
    signs = extreme[:1].double() / TOP
    expected = torch.tensor([[1.0], [-1.0]], dtype=torch.float64, device=b.device) * signs * (inner * TOP * TOP)
    try:
        got = engine(name, extreme)(rows).double()
    except (RuntimeError, AttributeError) as error:
        return " ".join(str(error).split())[:120]
    return None if torch.equal(got, expected) else "sums saturate"


def padded(b: Tensor) -> Tensor:
    """B as torch._int_mm takes it on its device: sides padded with zeros, column-major for the tensor cores."""
    if b.device.type != "cuda":
        return b.contiguous()
    inner, outer = b.shape
    return functional.pad(b, (0, -outer % _CUDA_SIDE, 0, -inner % _CUDA_SIDE)).t().contiguous().t()


def least_rows(n: int, device: torch.device) -> int:
    """Rows that torch._int_mm wants for n of them."""
    return max(n, _CUDA_ROWS) if device.type == "cuda" else n


def _int_mm(b: Tensor) -> Engine:
    inner, outer = b.shape
    weight = padded(b)

    def run(q: Tensor) -> Tensor:
        n = q.shape[0]
        rows = least_rows(n, q.device)
        narrow = q.to(torch.int8)
        if rows != n or weight.shape[0] != inner:
            narrow = functional.pad(narrow, (0, weight.shape[0] - inner, 0, rows - n))
        return torch._int_mm(narrow.contiguous(), weight)[:n, :outer]

    return run


def _float32(b: Tensor) -> Engine:
    """Sums of integers below 2**24 are exact in float32 (and in TF32, which holds 11 bits of each factor)."""
    parts = [part.float().t().contiguous() for part in torch.split(b, _EXACT_COLUMNS)]
    if len(parts) == 1:
        return lambda q: functional.linear(q, parts[0])

    def run(q: Tensor) -> Tensor:
        pieces = zip(torch.split(q, _EXACT_COLUMNS, dim=1), parts, strict=True)
        total = torch.zeros((q.shape[0], b.shape[1]), dtype=torch.int32, device=q.device)
        for piece, weight in pieces:
            total += functional.linear(piece, weight).to(torch.int32)
        return total

    return run
