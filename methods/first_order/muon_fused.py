"""Launching Muon's fused elementwise passes on a GPU: address tables, grids, and when they apply."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from methods.first_order import _kernels_muon as kernels

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Elements of one program: 16 bytes a thread of four warps in float32, twice.
BLOCK = 1024
#: Bytes that every address must be a multiple of, so that loads are vectors.
ALIGNMENT = 16


class Addresses:
    """A table of addresses on the device, uploaded anew only when one of them has changed."""

    def __init__(self) -> None:
        self._known: tuple[int, ...] = ()
        self._table: Tensor | None = None

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """The table of ``tensors``, in their order; the upload does not wait for the device."""
        found = tuple(tensor.data_ptr() for tensor in tensors)
        if self._table is None or found != self._known:
            device = tensors[0].device
            pinned = torch.tensor(found, dtype=torch.int64, pin_memory=device.type == "cuda")
            self._table = pinned.to(device, non_blocking=True)
            self._known = found
        return self._table


def applies(weights: Sequence[Tensor], gradients: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether the passes can read these tensors: one dtype, memory laid out alike, aligned."""
    first = weights[0]
    if first.dtype not in DTYPES or dtype not in DTYPES:
        return False
    return all(
        gradient.dtype == first.dtype
        and gradient.stride() == weight.stride()
        and gradient.data_ptr() % ALIGNMENT == 0
        and weight.data_ptr() % ALIGNMENT == 0
        for weight, gradient in zip(weights, gradients, strict=True)
    )


def _on(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the tensor's device current, since Triton launches there; free when it already is."""
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)


def advance(table: Tensor, momentum: Tensor, mu: float, nesterov: bool, dtype: torch.dtype) -> Tensor:
    """Update the momentum (k, m, n) in place from the gradients of ``table``; what is to be orthogonalized."""
    out = torch.empty(momentum.shape, dtype=dtype, device=momentum.device)
    size = momentum[0].numel()
    kernel: Any = kernels.advance
    with _on(momentum):
        kernel[(triton.cdiv(size, BLOCK), momentum.shape[0])](
            table, momentum, out, size, mu, NESTEROV=nesterov, BLOCK=BLOCK
        )
    return out


def apply(table: Tensor, like: Tensor, update: Tensor, keep: float, rate: float) -> None:
    """Set w <- keep w - rate o for the weights of ``table``, of ``like``'s dtype; ``update``: (k, m, n), contiguous."""
    size = update[0].numel()
    kernel: Any = kernels.apply
    with _on(update):
        kernel[(triton.cdiv(size, BLOCK), update.shape[0])](table, like, update, size, keep, rate, BLOCK=BLOCK)
