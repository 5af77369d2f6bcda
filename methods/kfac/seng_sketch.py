"""The empirical Fisher of one layer as U^T U, U the gradients of single samples, and Woodbury's identity on it.

Yang, Xu, Wang, Wen and Xu, arXiv 2006.05924:

    (U^T U + lam I)^-1 v = (v - U^T (lam I + U U^T)^-1 U v) / lam

Row n of U is sqrt(R) vec(sum_s b_ns a_ns^T), kept as it is (explicit) or as its factors b_n, a_n (implicit), whose
positions are reduced to p. Products with U and U^T are exact for what is kept; U U^T may be taken from sampled columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

#: Products with G^T G that sharpen the random projection of positions.
_SHARPEN = 2


@dataclass(frozen=True)
class Samples:
    """Gradients of N samples: ``u`` (groups, N, d_out, d_in), or ``a`` (groups, N, p, d_in) and ``g`` (.., d_out)."""

    u: Tensor | None = None
    a: Tensor | None = None
    g: Tensor | None = None

    def present(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) is not None}

    @property
    def count(self) -> int:
        """N."""
        return int(next(iter(self.present().values())).shape[1])

    def scaled(self, factor: Tensor | float) -> Samples:
        """Gradients times a factor."""
        if self.u is not None:
            return replace(self, u=self.u * factor)
        assert self.g is not None
        return replace(self, g=self.g * factor)

    # -- products ------------------------------------------------------------------------------------------------------

    def times(self, v: Tensor) -> Tensor:
        """U v for v (groups, d_out, d_in): (N,)."""
        if self.u is not None:
            found: Tensor = (self.u.flatten(2) @ v.flatten(1)[:, :, None]).sum((0, 2))
            return found
        assert self.a is not None
        assert self.g is not None
        rows = (self.g.flatten(1, 2) @ v).reshape(self.a.shape)
        return (rows * self.a).sum((0, 2, 3))

    def transposed_times(self, w: Tensor) -> Tensor:
        """U^T w for w (N,): (groups, d_out, d_in)."""
        if self.u is not None:
            groups, count, *shape = self.u.shape
            product: Tensor = (self.u.reshape(groups, count, -1).mT @ w[:, None]).reshape(groups, *shape)
            return product
        assert self.a is not None
        assert self.g is not None
        weighted: Tensor = self.g * w[:, None, None]
        return weighted.flatten(1, 2).mT @ self.a.flatten(1, 2)

    def gram(self, columns: int | None, seed: int) -> Tensor:
        """U U^T (N, N), or an unbiased estimate from sampled columns.

        Args:
            columns: q; q^2 columns of an explicit U, q of each factor of an implicit one. None: all.
            seed: of the sample.
        """
        if self.u is not None:
            whole = self.u.transpose(0, 1).flatten(1)
            some = sampled(whole, None if columns is None else columns**2, seed)
            return some @ some.mT
        assert self.a is not None
        assert self.g is not None
        groups, count, positions, _ = self.a.shape
        inner = [sampled(one.flatten(1, 2), columns, seed + i) for i, one in enumerate((self.a, self.g))]
        product = (inner[0] @ inner[0].mT) * (inner[1] @ inner[1].mT)
        blocks: Tensor = product.reshape(groups, count, positions, count, positions).sum((0, 2, 4))
        return blocks


def sampled(rows: Tensor, columns: int | None, seed: int) -> Tensor:
    """``columns`` random columns without replacement, scaled so that products of rows keep their mean."""
    width = rows.shape[-1]
    if columns is None or columns >= width:
        return rows
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(width, generator=generator)[:columns].sort().values.to(rows.device)
    some: Tensor = rows.index_select(-1, chosen) * (width / columns) ** 0.5
    return some


def explicit(a: Tensor, g: Tensor) -> Samples:
    """U itself from rows (groups, N, S, d)."""
    return Samples(u=g.mT @ a)


def implicit(a: Tensor, g: Tensor, positions: int | None, seed: int) -> Samples:
    """Factors of U, their S positions reduced to the p leading ones of each sample's output gradient.

    The projection is G_n Q Q^T A_n^T with Q from a random subspace iteration on G_n, exact while rank(G_n) <= p.
    """
    if positions is None or positions >= a.shape[2]:
        return Samples(a=a, g=g)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(g.shape[3], positions, generator=generator, dtype=torch.float64).to(g.device, g.dtype)
    basis = torch.linalg.qr(g @ start).Q
    for _ in range(_SHARPEN):
        basis = torch.linalg.qr(g @ (g.mT @ basis)).Q
    return Samples(a=basis.mT @ a, g=basis.mT @ g)


def joined(parts: Sequence[Samples]) -> Samples:
    """Samples of several backward passes; positions that only some have are zero in the others."""
    if len(parts) == 1:
        return parts[0]
    names = parts[0].present()
    return Samples(**{name: torch.cat(_levelled([part.present()[name] for part in parts]), 1) for name in names})


def _levelled(tensors: Sequence[Tensor]) -> list[Tensor]:
    most = max(tensor.shape[2] for tensor in tensors)
    return [torch.nn.functional.pad(t, (0, 0, 0, most - t.shape[2])) for t in tensors]


def also(one: Samples, other: Samples) -> Samples:
    """The same samples' gradients by another call of a shared weight: sums of U, further positions of the factors."""
    if one.u is not None and other.u is not None:
        return Samples(u=one.u + other.u)
    return Samples(**{name: torch.cat([value, other.present()[name]], 2) for name, value in one.present().items()})


def chosen(good: Tensor, new: Samples, old: Samples | None) -> Samples:
    """``new`` where the 0-d flag holds, else ``old`` (no samples at all, if there is none), in a common shape."""
    found = {}
    for name, value in new.present().items():
        held = torch.zeros_like(value) if old is None else old.present()[name]
        room = [max(a, b) for a, b in zip(value.shape, held.shape, strict=True)]
        found[name] = torch.where(good, _filled(value, room), _filled(held, room))
    return Samples(**found)


def _filled(tensor: Tensor, room: Sequence[int]) -> Tensor:
    """Zeros behind the samples and positions; zero rows of U change nothing."""
    after = [more - size for size, more in zip(tensor.shape, room, strict=True)]
    pads = [pad for more in reversed(after) for pad in (0, more)]
    return torch.nn.functional.pad(tensor, pads) if any(pads) else tensor
