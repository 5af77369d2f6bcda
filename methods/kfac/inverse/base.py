"""The interface of a way to invert factors: matrices in, state out, products with the inverse from the state."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

#: What torch raises when a decomposition does not converge.
LinAlgError: type[RuntimeError] = getattr(torch.linalg, "LinAlgError")  # noqa: B009

#: Identities up to this size are kept: 16 of them take at most 25 MiB in float32.
_SHARED = 640

#: Tensors by name, each with a leading dimension k of matrices.
State = dict[str, Tensor]


class Inverse(abc.ABC):
    """Inverse of symmetric positive semidefinite stacks M (k, d, d) plus a damping for each.

    A state is what ``refresh`` makes of the matrices; it is stored, checkpointed and replaced matrix by matrix, so its
    tensors lead with k and keep their shapes as long as d does.
    """

    #: The state holds ``vectors`` (k, d, d) and ``values`` (k, d) of M itself, as joint damping needs.
    spectral: bool = False
    #: The large tensors of the state -> their dimensions of length d. These may be padded with zeros and kept
    #: half-width for products, so ``apply`` uses :func:`methods.kfac.products.multiply` and takes padded columns.
    wide: Mapping[str, tuple[int, ...]] = {}
    #: Whether ``refresh`` looks at the state before.
    uses_state: bool = True
    #: ``refresh_all`` takes matrices of any sizes and ranks at once.
    takes_all: bool = False

    @abc.abstractmethod
    def allocate(self, matrices: Tensor) -> State:
        """A state of the right shapes for ``matrices`` that stands for the identity."""

    @abc.abstractmethod
    def refresh(self, matrices: Tensor, damping: Tensor, state: State | None) -> tuple[State, Tensor]:
        """New state and, for each matrix, whether it is good: (k,) bool on the device, not synchronised.

        Args:
            matrices: (k, d, d), symmetric; not changed.
            damping: (k,), already multiplied out.
            state: the state before, None the first time.
        """

    def refresh_all(self, jobs: Sequence[tuple[Tensor, Tensor, State | None]]) -> list[tuple[State, Tensor]]:
        """``refresh`` of (matrices, damping, state) one by one; a back-end with ``takes_all`` shares work."""
        return [self.refresh(*job) for job in jobs]

    @abc.abstractmethod
    def apply(self, state: State, columns: Tensor) -> Tensor:
        """(M + damping I)^-1 X for X (k, d, n)."""

    def apply_right(self, state: State, rows: Tensor) -> Tensor:
        """X (M + damping I)^-1 for X (k, n, d)."""
        return self.apply(state, rows.mT).mT

    def direct(self, matrices: Tensor, damping: Tensor) -> tuple[State, Tensor]:
        """As ``refresh`` by the most robust way there is, for the failure ladder: here ``refresh`` without a past."""
        return self.refresh(matrices, damping, None)


def damped(matrices: Tensor, damping: Tensor) -> Tensor:
    """M + damping I, a new tensor."""
    found = matrices.clone()
    found.diagonal(dim1=1, dim2=2).add_(damping[:, None])
    return found


def eye_like(matrices: Tensor) -> Tensor:
    """The identity for each matrix, contiguous."""
    size = matrices.shape[-1]
    return torch.eye(size, dtype=matrices.dtype, device=matrices.device).repeat(matrices.shape[0], 1, 1)


def shared_eye(matrices: Tensor) -> Tensor:
    """As :func:`eye_like`, not to be written: for a single narrow matrix, one tensor for all calls."""
    size = matrices.shape[-1]
    if len(matrices) > 1 or size > _SHARED:
        return eye_like(matrices)
    return _eye(size, matrices.dtype, matrices.device)


@lru_cache(maxsize=16)
def _eye(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.eye(size, dtype=dtype, device=device)[None]
