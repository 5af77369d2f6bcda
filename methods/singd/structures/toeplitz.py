"""Lower and upper triangular Toeplitz matrices."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from methods.singd.products import extent, fast, multiplied, operand, product
from methods.singd.rows import Rows, wide
from methods.singd.structures.base import Sizes, Structure
from methods.singd.structures.dense import inner_moment, padded_moment
from methods.singd.tensors import unflatten

#: Bytes of rows that are transformed at once; their spectra take several times that.
_PIECE = 1 << 26
_HALF = (torch.bfloat16, torch.float16)
#: Up to here K K^T is kept as a dense matrix: one product then takes less than the four transforms it replaces, and
#: 1.6 MB in float32 are little beside the weights.
_WHOLE = 640


def fast_length(least: int) -> int:
    """The smallest even 5-smooth number of at least ``least``, which transforms handle quickly."""
    best = 1 << max(1, (least - 1).bit_length())
    five = 1
    while five < best:
        three = five
        while three < best:
            two = three * 2
            while two < least:
                two *= 2
            best = min(best, two)
            three *= 3
        five *= 5
    return best


class TrilToeplitz(Structure):
    """K_ij = c_(i-j) for i >= j: d numbers; Pi(S)_l = u sum_i S_(i+l, i) / (d - l), u = 1 for l = 0, else 2.

    Products are polynomial products: by Fourier transforms in float32 and float64 (O(d log d) for a column); these
    do not exist in bfloat16 and float16, where products with M gather the dense matrix for the tensor cores and
    products of members run in float32. The diagonal sums of Y Y^T are the autocorrelations of the rows of Y, summed in
    the frequency domain: one inverse transform for all rows.
    """

    name = "tril-toeplitz"
    _lower = True

    def __init__(self, d: int, sizes: Sizes | None = None) -> None:
        super().__init__(d, sizes)
        self.count = d
        self.length = fast_length(2 * d - 1)
        self._sizes: Tensor | None = None
        self._known: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._weights: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def identity(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """See :class:`Structure`."""
        found = torch.zeros(batch, self.d, dtype=dtype, device=device)
        found[:, 0] = 1
        return found

    def to_dense(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return self._dense(k, self.d)

    def _dense(self, k: Tensor, room: int) -> Tensor:
        """(B, room, room) of c followed by zeros, which is K in its first d rows and columns: one view, one copy."""
        extended = torch.nn.functional.pad(k, (room - 1, room - self.d))
        mirrored = extended.as_strided((k.shape[0], room, room), (extended.stride(0), 1, 1))
        lower = mirrored.flip(2)
        return lower if self._lower else lower.mT

    # -- the frequency domain ------------------------------------------------------------------------------------------

    def _forth(self, rows: Tensor) -> Tensor:
        found: Tensor = torch.fft.rfft(rows.to(wide(rows.dtype)), n=self.length, dim=-1)
        return found

    def _back(self, spectrum: Tensor) -> Tensor:
        found: Tensor = torch.fft.irfft(spectrum, n=self.length, dim=-1)
        return found[..., : self.d]

    def _spectrum(self, k: Tensor, transposed: bool) -> Tensor:
        """What multiplies spectra: that of the lower triangle, or its conjugate for the upper."""
        found = self._forth(k)[:, None]
        return found.conj() if transposed == self._lower else found

    def _filter(self, k: Tensor, m: Tensor, transposed: bool) -> Tensor:
        if k.dtype in _HALF:
            dense = self.to_dense(k)
            return product(dense.mT if transposed else dense, m)
        return self._back(self._forth(m.mT).mul_(self._spectrum(k, transposed))).mT.to(m.dtype)

    def matmul(self, k: Tensor, m: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return self._filter(k, m, False)

    def t_matmul(self, k: Tensor, m: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return self._filter(k, m, True)

    def keeps(self, dtype: torch.dtype) -> bool:
        """See :class:`Structure`."""
        return self.d <= _WHOLE or dtype not in _HALF

    def kept_numbers(self) -> int:
        """See :class:`Structure`."""
        return self.d**2 if self.d <= _WHOLE else 4 * self.length

    def keep(self, k: Tensor) -> Tensor:
        """See :class:`Structure`: (B, d, d) for a small d, else the whole spectra of K and K^T (B, 2, 1, length)."""
        if self.d <= _WHOLE:
            dense = self.to_dense(k)
            return torch.bmm(dense, dense.mT)
        found: Tensor = torch.fft.fft(k, n=self.length)[:, None]
        pair = [found.conj(), found] if self._lower else [found, found.conj()]
        return torch.stack(pair, dim=1)

    def right(self, kept: Tensor, x: Tensor, out: torch.dtype) -> Tensor:
        """See :class:`Structure`. Two rows make one complex one: fewer passes over memory than by real transforms."""
        if self.d <= _WHOLE:
            return torch.bmm(x.to(kept.dtype), kept).to(out)
        first, second = kept.unbind(1)
        batch, rows, d = x.shape
        if rows % 2:
            x = torch.nn.functional.pad(x, (0, 0, 0, 1))
        whole = torch.empty(batch, x.shape[1] // 2, self.length, 2, dtype=wide(x.dtype), device=x.device)
        whole[:, :, d:].zero_()
        whole[:, :, :d].copy_(unflatten(x, 1, (-1, 2)).transpose(2, 3))
        between = torch.fft.ifft(torch.fft.fft(torch.view_as_complex(whole)).mul_(first))
        between[..., d:].zero_()
        found = torch.view_as_real(torch.fft.ifft(torch.fft.fft(between).mul_(second)))[:, :, :d]
        return found.transpose(2, 3).flatten(1, 2)[:, :rows].to(out)

    def left(self, kept: Tensor, y: Tensor, out: torch.dtype) -> Tensor:
        """See :class:`Structure`."""
        if self.d <= _WHOLE:
            return torch.bmm(kept, y.to(kept.dtype)).to(out)
        return self.right(kept, y.mT, out).mT

    def compose(self, k: Tensor, other: Tensor) -> Tensor:
        """See :class:`Structure`."""
        found = self._back(self._forth(k) * self._forth(other))
        return (found if self._sizes is None else found * (self._lengths(found) > 0)).to(k.dtype)

    def add_identity(self, k: Tensor, amount: float) -> Tensor:
        """See :class:`Structure`."""
        k[:, 0].add_(amount)
        return k

    # -- padded --------------------------------------------------------------------------------------------------------

    @property
    def alike(self) -> Hashable:
        """See :class:`Structure`."""
        return self.name

    def covering(self, d: int, sizes: Tensor) -> Structure:
        """See :class:`Structure`."""
        found = type(self)(d, self.sizes)
        found._sizes = sizes
        return found

    def within(self, big: Tensor, whole: Structure) -> list[Tensor]:
        """See :class:`Structure`."""
        return [big if whole is self else big[:, : self.d]]

    # -- projections ---------------------------------------------------------------------------------------------------

    def _lengths(self, like: Tensor) -> Tensor:
        """Numbers on the diagonals, d - l: (d,), or (B, d) of padded matrices."""
        key = (like.dtype, like.device)
        if key not in self._known:
            down = torch.arange(self.d, 0, -1, dtype=like.dtype, device=like.device)
            if self._sizes is not None:
                down = (down - (self.d - self._sizes.to(like.dtype))[:, None]).clamp_min_(0)
            self._known[key] = down
        return self._known[key]

    def _averages(self, sums: Tensor) -> Tensor:
        """Pi from diagonal sums (B, d)."""
        key = (sums.dtype, sums.device)
        if key not in self._weights:
            weights = 2 / self._lengths(sums).clamp_min(1)
            weights[..., 0] *= 0.5
            self._weights[key] = weights
        return sums * self._weights[key]

    def gather(self, k: Tensor, rows: Rows) -> Tensor:
        """See :class:`Structure`. With K already applied.

        The moment first where products are fast or small and rows are many: what is left has d rows.
        """
        if k.dtype in _HALF or (
            rows.count >= 2 * self.d and (self.d <= _WHOLE or (k.dtype == torch.float32 and fast()))
        ):
            return self._gather_moment(k, rows)
        spectrum = self._spectrum(k, True).resolve_conj()
        power: Tensor | None = None
        for piece in rows.pieces(_PIECE, self.length):
            filtered: Tensor = torch.fft.irfft(self._forth(piece).mul_(spectrum), n=self.length)
            filtered[..., self.d :].zero_()
            norms: Tensor = torch.linalg.vector_norm(torch.fft.rfft(filtered), dim=1)
            power = norms.square_() if power is None else power.addcmul_(norms, norms)
        assert power is not None
        return self._averages(torch.fft.irfft(power, n=self.length, dim=-1)[:, : self.d])

    def _gather_moment(self, k: Tensor, rows: Rows) -> Tensor:
        """The dense moment on tensor cores, then its diagonal sums."""
        if rows.count >= 2 * self.d:
            room = extent(self.d, k)
            kind, dense = operand(k.dtype), self._dense(k, room)
            ready = dense.to(kind)
            half = multiplied(padded_moment(rows, k).to(k.dtype).to(kind), ready, k.dtype)
            total = multiplied(ready.mT, half.to(kind), k.dtype).to(wide(k.dtype))
        else:
            total = inner_moment(self.to_dense(k), rows)
        # With as many zeros behind each row, a row's numbers from its diagonal on lie one further in each next row.
        d = total.shape[1]
        sheared = torch.nn.functional.pad(total, (0, d))
        sheared = sheared.as_strided((len(total), d, d), (2 * d * d, 2 * d + 1, 1))
        return self._averages(sheared.sum(1)[:, : self.d])

    def inner(self, k: Tensor, sums: Tensor) -> Tensor:
        """See :class:`Structure`."""
        return sums.to(k.dtype)

    def gram(self, k: Tensor) -> Tensor:
        """See :class:`Structure`: sum_i (K^T K)_(i+l, i) = sum_u (d - u) c_u c_(u-l), in either orientation."""
        wider = k.to(wide(k.dtype))
        weighted, plain = self._forth(wider * self._lengths(wider)), self._forth(wider)
        return self._averages(self._back(weighted * plain.conj())).to(k.dtype)

    def trace(self, k: Tensor) -> Tensor:
        """See :class:`Structure`."""
        first = k[:, 0].to(wide(k.dtype))
        return self.d * first if self._sizes is None else self._sizes.to(first.dtype) * first


class TriuToeplitz(TrilToeplitz):
    """K_ij = c_(j-i) for j >= i."""

    name = "triu-toeplitz"
    _lower = False
