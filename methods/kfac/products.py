"""Products of the K-FAC family in a chosen precision, always with a wide result.

``float32`` is IEEE, ``tf32`` lets a GPU's tensor cores round both operands to 11 bits, ``bfloat16`` rounds both to 8
bits; sums are float32 in each. ``as-set`` leaves torch's own setting alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

PRODUCTS = ("as-set", "float32", "tf32", "bfloat16")
HALVES = (torch.bfloat16, torch.float16)


@contextlib.contextmanager
def scope(name: str) -> Iterator[None]:
    """Float32 products inside are of this precision; ``bfloat16`` is the caller's affair and leaves the rest as set."""
    if name not in ("float32", "tf32"):
        yield
        return
    backend = torch.backends.cuda.matmul
    before = backend.allow_tf32
    backend.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        backend.allow_tf32 = before


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """Batched product; if one side is half-width, so becomes the other, and the result is the wide side's dtype."""
    if left.dtype == right.dtype:
        # One dispatched operation; ``@`` takes five.
        return torch.bmm(left, right) if left.ndim == right.ndim == 3 and len(left) == len(right) else left @ right
    half, wide = (left.dtype, right.dtype) if left.dtype in HALVES else (right.dtype, left.dtype)
    if half not in HALVES:
        return left.to(wide) @ right.to(wide)
    if left.is_cuda and wide == torch.float32 and left.ndim == right.ndim == 3:
        found: Tensor = torch.bmm(left.to(half), right.to(half), out_dtype=wide)  # type: ignore[call-overload]
        return found
    return left.to(half).to(wide) @ right.to(half).to(wide)


def fused_mix(running: list[Tensor], new: list[Tensor], share: float, bad: Tensor) -> None:
    """M <- (1 - share) M + new for running means M; none of them where ``bad`` (a 0-d float) is 1. One kernel."""
    pairs = zip(running, new, strict=True)
    # On a GPU the kernel takes equal strides alone, also of dimensions of length 1.
    new = [one if one.stride() == held.stride() else torch.empty_like(held).copy_(one) for held, one in pairs]
    torch._fused_sgd_(
        running,
        new,
        [],
        weight_decay=share,
        momentum=0.0,
        lr=1.0,
        dampening=0.0,
        nesterov=False,
        maximize=True,
        is_first_step=False,
        grad_scale=None,
        found_inf=bad,
    )
