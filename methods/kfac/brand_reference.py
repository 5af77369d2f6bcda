"""The plain twin of B-KFAC and B-R-KFAC: dense matrices cut to their largest modes before each new term, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import Unsupported
from methods.kfac.catalogue import BRAND
from methods.kfac.policy import value_at
from methods.kfac.reference import Twin, _Held

_LEFT_OUT = ("adaptive_brand_rank", "correction_period")


class BrandTwin(Twin):
    """See the module; ``damping_mode`` adaptive or same, no corrections (they draw modes), no adaptive ranks."""

    def __init__(self, model: nn.Module, lr: float, **options: Any) -> None:
        given = {**BRAND, **options}
        given.pop("inverse")
        for name in _LEFT_OUT:
            if given.pop(name, None):
                raise Unsupported(f"the plain twin of B-KFAC has no {name}.")
        brand_rank = given.pop("brand_rank")
        self.brand_rank = int(given["rank"] if brand_rank is None else brand_rank)
        self.brand_period, self.truncate = given.pop("brand_period"), given.pop("truncate")
        self.overwrite_period = given.pop("overwrite_period")
        given.pop("correction_share")
        self.sides: dict[_Held, list[bool]] = {}
        self.low: dict[_Held, list[Tensor]] = {}
        self.width: dict[_Held, list[int]] = {}
        self.systems: dict[_Held, list[Tensor]] = {}
        self.counts: dict[_Held, int] = {}
        super().__init__(model, lr, **given)
        if self.opt.damping_mode not in ("adaptive", "same"):
            raise Unsupported("the plain twin of B-KFAC has damping_mode adaptive or same.")

    def _statistics(self, held: _Held) -> None:
        before, count = list(held.factors), held.count
        super()._statistics(held)
        if len(held.factors) > 1 or not isinstance(held.module, nn.Linear):
            return
        rows = sum(len(a) for a, _ in held.samples(0))
        if held not in self.sides:
            self.sides[held] = [self.brand_rank + rows < len(m) for m in held.factors[0]]
            self.low[held] = [torch.zeros_like(m) for m in held.factors[0]]
            self.width[held], self.counts[held], self.systems[held] = [0, 0], 0, []
        if not any(self.sides[held]):
            return
        period = int(value_at(self.opt.update_period, self.steps)) * self.brand_period
        if self.steps % period:
            if not self.overwrite_period:
                held.factors, held.count = before, count
            return
        self.counts[held] += 1
        for index, new in enumerate(held.factors[0]):
            self._follow(held, index, before, new, rows)
        if self.systems[held]:
            self._solver(held, [index for index in (0, 1) if self.sides[held][index]])

    def _follow(self, held: _Held, index: int, before: list[tuple[Tensor, Tensor]], new: Tensor, rows: int) -> None:
        rho, first = self.opt.factor_decay, not before
        start = 0.0 if self.opt.factor_init == "bias-corrected" else 1.0
        old = start * torch.eye(len(new)).double() if first else before[0][index]
        fresh = (new - rho * old) / (1 - rho)
        if first and self.opt.factor_init == "first-batch":
            fresh, rho = new, 0.0
        low = rho * _cut(self.low[held][index], self.brand_rank) + (1 - rho) * fresh
        self.width[held][index] = min(self.width[held][index], self.brand_rank) + rows
        if self.truncate:
            low, self.width[held][index] = _cut(low, self.brand_rank), min(self.width[held][index], self.brand_rank)
        self.low[held][index] = low

    def _refresh(self, held: _Held) -> None:
        if not any(self.sides.get(held, [])):
            super()._refresh(held)
            return
        period = int(value_at(self.opt.refresh_period, self.steps))
        if self.overwrite_period and self.steps and (self.steps // period) % self.overwrite_period == 0:
            self.counts[held] = held.count
            for index, matrix in enumerate(held.factors[0]):
                eye, count = torch.eye(len(matrix)).double(), self.counts[held]
                rest = self._rest(count)
                low = _cut(matrix / self._correct(held.count) - rest * eye, self.brand_rank)
                self.low[held][index] = low * self._correct(count)
                self.width[held][index] = min(self.brand_rank, len(matrix))
        self._solver(held, [0, 1])

    def _correct(self, count: int) -> float:
        return float(1 - self.opt.factor_decay**count) if self.opt.factor_init == "bias-corrected" else 1.0

    def _rest(self, count: int) -> float:
        return float(self.opt.factor_decay**count) if self.opt.factor_init == "identity" else 0.0

    def _solver(self, held: _Held, chosen: list[int]) -> None:
        """The damped dense factors of some sides, and what solves with both."""
        lam = value_at(self.opt.damping, self.steps)
        systems = self.systems[held] or [torch.empty(0), torch.empty(0)]
        for index in chosen:
            is_brand, rest = self.sides[held][index], self._rest(self.counts[held])
            if is_brand:
                matrix = self.low[held][index] / self._correct(self.counts[held])
                values, vectors = torch.linalg.eigh(matrix)
                if self.continuation:
                    kept = self.width[held][index]
                    values[: len(values) - kept] = values[len(values) - kept]
                top = values[-1] + rest
                matrix = vectors @ torch.diag(values + rest) @ vectors.mT
            else:
                matrix = held.factors[0][index] / self._correct(held.count)
                top = torch.linalg.eigvalsh(matrix)[-1]
                matrix = self._cut(matrix)
            amount = lam * top if self.opt.damping_mode == "adaptive" else lam
            systems[index] = matrix + amount * torch.eye(len(matrix)).double()
        self.systems[held] = systems
        held.inverse = [lambda v, a=systems[0], g=systems[1]: torch.linalg.solve(torch.kron(g, a), v)]  # type: ignore[misc]


def _cut(matrix: Tensor, rank: int) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    values = torch.cat([torch.zeros_like(values[:-rank]), values[-rank:].clamp_min(0.0)])
    found: Tensor = vectors @ torch.diag(values) @ vectors.mT
    return found


def brand(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> BrandTwin:
    """B-KFAC by definition."""
    return BrandTwin(model, lr, **options)


def brand_overwritten(model: nn.Module, *, lr: float = 1e-3, **options: Any) -> BrandTwin:
    """B-R-KFAC by definition."""
    return BrandTwin(model, lr, **{"overwrite_period": 5, **options})
