"""``approximate_matmul.popcount``: signs of random projections, compared by counting the bits in which they differ."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.errors import Unsupported
from methods.approximate_matmul.checks import one_of, whole
from methods.approximate_matmul.linear import draws
from methods.approximate_matmul.linear.base import Estimator, Fit, Op, State
from methods.approximate_matmul.linear.sketch import checked_seed

#: Bits of a codebook of 16 entries: as many bytes as a look-up product of so many codebooks.
BITS = 4
#: Bits of a word that distances are counted in.
WORD = 64
BACKENDS = ("auto", "native", "torch")
_NATIVE = "methods.approximate_matmul.native"


@dataclass(frozen=True)
class Codes:
    """Packed signs uint8 [N, bytes] and the lengths of the rows, float32 [N]."""

    bits: np.ndarray[Any, Any]
    lengths: Tensor


class Popcount(Op):
    """y = |a| |b| cos(pi H / n): H of n random hyperplanes part a from b, which they do at the rate angle / pi.

    Charikar, Similarity estimation techniques from rounding algorithms (STOC 2002), section 3. Fit: the hyperplanes,
    the signs and lengths of B's columns. Run time: A times n normal vectors, signs packed to bits, lengths; distances
    by exclusive or and population count; one cosine an entry from a table. n = 4 ``codebooks``.
    """

    method = "approximate_matmul.popcount"

    @classmethod
    def learn(cls, a_train: Tensor, b: Tensor, hyper: Mapping[str, Any], fit: Fit) -> State:
        """Draw hyperplanes; encode B."""
        with fit.clock("table_s"):
            drawn = torch.from_numpy(draws.hyperplanes(len(b), BITS * hyper["codebooks"], hyper["seed"]))
            planes = drawn.to(b.device, b.dtype)
            codes = torch.from_numpy(_packed(b.T @ planes)).to(b.device)
        return {"planes": planes, "codes": codes, "lengths": torch.linalg.vector_norm(b, dim=0)}

    def prepare(self) -> None:
        """Lay out B's codes for the back-end."""
        bits = BITS * self.hyper["codebooks"]
        self._cosines = torch.cos(torch.arange(bits + 1, dtype=torch.float64) * (math.pi / bits)).float()
        self._why = self._missing()
        if self._why and self.hyper["backend"] == "native":
            raise Unsupported(f"{self.method}: back-end 'native' cannot run: {self._why}; use 'torch'.")
        self._native = None if self._why else importlib.import_module(f"{_NATIVE}.distances")
        if self._native is not None:
            self._outputs = self._native.signatures(self.state["codes"].numpy())
            self._lengths = self.state["lengths"].float().numpy()
        else:
            self._cosines = self._cosines.to(self.device)
            self._signs = _signs(self.state["codes"], bits)

    def _missing(self) -> str:
        if self.hyper["backend"] == "torch":
            return "torch was asked for"
        if self.device.type != "cpu":
            return f"the native kernels run on the CPU, not on {self.device.type}"
        return importlib.import_module(f"{_NATIVE}.binding").available() or ""

    @torch.no_grad()
    def codes(self, a: Tensor) -> Codes:
        """What encoding alone costs; input of :meth:`scan`."""
        rows = self._rows(a)
        return Codes(_packed(rows @ self.state["planes"]), torch.linalg.vector_norm(rows, dim=1).float())

    integer_totals = True

    def totals(self, codes: Codes) -> Any:
        """(N, M) integer distances: what the count alone costs."""
        if self._native is not None:
            return self._native.distances(codes.bits, self._outputs)
        return self._distances(codes)

    @torch.no_grad()
    def scan(self, codes: Codes) -> Tensor:
        """(N, M) float32 outputs of codes."""
        if self._native is not None:
            made = self._native.distances(
                codes.bits, self._outputs, self._cosines.numpy(), codes.lengths.numpy(), self._lengths
            )
            return torch.from_numpy(made)
        scale: Tensor = codes.lengths[:, None] * self.state["lengths"].float()
        return scale.mul_(self._cosines[self._distances(codes).long()])

    def _distances(self, codes: Codes) -> Tensor:
        """(n - s t) / 2 of signs +-1, exact in float32."""
        bits = BITS * self.hyper["codebooks"]
        signs = _signs(torch.from_numpy(codes.bits).to(self.device), bits)
        found: Tensor = (bits - signs @ self._signs.T) / 2
        return found.round_().to(torch.int32)

    def product(self, a: Tensor) -> Tensor:
        """Signs, distances, cosines."""
        return self.scan(self.codes(a))

    def narrow(self, a: Tensor) -> Tensor:
        """The packed signs, uint8 [N, bytes]."""
        return torch.from_numpy(self.codes(a).bits).to(a.device)

    @classmethod
    def arrays(cls, hyper: Mapping[str, Any]) -> dict[str, str]:
        """Hyperplanes, packed signs of B's columns and their lengths."""
        return {"planes": "D K", "codes": "M W uint8", "lengths": "M"}

    def describe(self) -> dict[str, Any]:
        """Adds the back-end of the distances."""
        told = super().describe() | {"codebooks": self.hyper["codebooks"], "not_native_because": self._why or None}
        if self._native is None:
            return told
        binding = importlib.import_module(f"{_NATIVE}.binding")
        return told | {
            "backend": "native",
            "level": binding.level(),
            "counts": self._native.counter(),
            "threads": binding.default_threads(),
            "pool": binding.pool() if binding.default_threads() > 1 else None,
        }

    def multiplies(self, n: int) -> float:
        """Projections, lengths, and two scalings an entry."""
        bits = BITS * int(self.hyper["codebooks"])
        return float(n) * (self.inner * (bits + 1) + 2 * self.outer)


def _packed(projections: Tensor) -> np.ndarray[Any, Any]:
    """Signs as bits (1: not negative), [n, bytes], filled with zeros to whole words."""
    bits = np.packbits((projections >= 0).cpu().numpy(), axis=1)
    spare = -bits.shape[1] % (WORD // 8)
    return np.ascontiguousarray(np.pad(bits, ((0, 0), (0, spare))) if spare else bits)


def _signs(packed: Tensor, bits: int) -> Tensor:
    """float32 +-1 [n, bits] of packed signs."""
    shifts = torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
    each = (packed[:, :, None] >> shifts) & 1
    return each.reshape(len(packed), -1)[:, :bits].float().mul_(2).sub_(1)


KIND = Popcount


def make(*, codebooks: int = 16, backend: str = "auto", seed: int = 0) -> Estimator:
    """Signs of random projections.

    Args:
        codebooks: 4-bit codes of a look-up product with as many bytes; there are four hyperplanes for each.
        backend: ``auto``, ``native`` (C++) or ``torch`` (a product of signs).
        seed: of the hyperplanes.
    """
    name = Popcount.method.removeprefix("approximate_matmul.")
    whole(name, "codebooks", codebooks, 1, 16_000)
    one_of(name, "backend", backend, BACKENDS)
    return Estimator(
        Popcount, {"codebooks": codebooks, "backend": backend, "seed": checked_seed(seed, Popcount.method)}
    )
