"""B-KFAC and its relatives: wide linear layers' factors kept as eigenpairs that Brand's update carries along.

Puiu, arXiv 2210.08494. A running mean of second moments is a low-rank matrix that gains one term a batch,

    M_k = rho M_(k-1) + (1 - rho) B B^T,   B = rows^T / sqrt(n) (inputs), sqrt(R) rows^T (output gradients),

so its leading eigenpairs follow by :func:`methods.kfac.inverse.brand.update`, at a cost linear in the width, without
the matrix. The start's share of the identity, rho^k I, never enters the pairs; it is added to the damping.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import UserError
from methods.kfac import products
from methods.kfac.brand_state import Held, Rows, empty, widened
from methods.kfac.damping import mean_diagonal
from methods.kfac.inverse import brand
from methods.kfac.inverse.base import LinAlgError, State
from methods.kfac.layers import Layer
from methods.kfac.options import flag, in_range
from methods.kfac.policy import Schedule, value_at
from methods.kfac.randomized import SIDES, Loose, RandomizedKFAC
from methods.kfac.rank import Ranks, Rule
from methods.kfac.refresh import Job
from methods.kfac.statistics import moment

_TINY = 1e-30


class BrandKFAC(RandomizedKFAC):
    """B-KFAC; with ``overwrite_period`` B-R-KFAC, with ``correction_period`` B-KFAC-C, with both B-R-KFAC-C.

    A side of a linear layer with brand_rank + n < d rows n of its first batch is followed by Brand's update; all
    else is RS- (or SRE-) KFAC. The pairs are cut to ``brand_rank`` before each update and used with the n new ones.

    Args:
        model: the model.
        lr: learning rate.
        brand_rank: modes kept, or pieces [[step, r], ...]; None: ``rank``.
        brand_period: Brand's update every so many statistics; the other side of such a layer goes along.
        truncate: cut back to ``brand_rank`` after the update too, before the inverse is used.
        adaptive_brand_rank: the rank follows the tail ratio.
        overwrite_period: every so many refreshes the pairs are replaced by a randomized decomposition of the dense
            running mean, which is then kept; 0: never.
        correction_period: every so many Brand updates a share of the modes is corrected by the dense running mean,
            which is then kept; 0: never.
        correction_share: phi, that share.
        options: as for :class:`methods.kfac.randomized.RandomizedKFAC`.
    """

    label = "b-kfac"

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        *,
        brand_rank: Schedule | None = None,
        brand_period: int = 1,
        truncate: bool = False,
        adaptive_brand_rank: bool = False,
        overwrite_period: int = 0,
        correction_period: int = 0,
        correction_share: float = 0.2,
        inverse: str = "rsvd",
        **options: Any,
    ) -> None:
        if inverse not in ("rsvd", "sre"):
            raise UserError(
                f"inverse of the Brand methods is rsvd or sre, whose states are eigenpairs; got {inverse!r}."
            )
        flag("truncate", truncate)
        flag("adaptive_brand_rank", adaptive_brand_rank)
        in_range("brand_period", brand_period, 1, whole=True)
        in_range("overwrite_period", overwrite_period, 0, whole=True)
        in_range("correction_period", correction_period, 0, whole=True)
        in_range("correction_share", correction_share, 0.0, 1.0, left=False)
        if options.get("subsample", 1.0) != 1.0:
            raise UserError(f"subsample has to be 1 with Brand's update; got {options['subsample']!r}.")
        if options.get("sharding", "none") != "none":
            raise UserError("Brand's update keeps the pairs of all layers on every rank: sharding has to be none.")
        # The published code's rule for Brand ranks.
        rule = Rule(above=0.015, below=0.02, up=10, down=5, floor=70, cap=500) if adaptive_brand_rank else None
        chosen, name = (options.get("rank", 220), "rank") if brand_rank is None else (brand_rank, "brand_rank")
        self.brand_ranks = Ranks(chosen, rule, name)
        self.brand_period, self.truncate = brand_period, truncate
        self.overwrite_period, self.correction_period = overwrite_period, correction_period
        self.correction_share = correction_share
        self.keeps_dense = bool(overwrite_period or correction_period)
        self.held: dict[Layer, Held] = {}
        self._rows: dict[Layer, Rows] = {}
        super().__init__(model, lr, inverse=inverse, **options)
        self.update = Loose(self)
        #: Brand updates and corrections whose eigendecomposition did not converge.
        self._events["brand_failures"] = 0

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _sides(self, layer: Layer, rows: int) -> tuple[bool, bool]:
        """Which sides Brand's update follows, decided by the first batch (of several ranks: of equal size)."""
        if (held := self.held.get(layer)) is not None:
            return held.sides
        rank = self.brand_ranks.start(0)
        rows *= self.ranks.size
        linear = all(isinstance(module, nn.Linear) for module in layer.modules)
        found = (linear and rank + rows < layer.d_in, linear and rank + rows < layer.d_out)
        if any(found):
            count = torch.zeros((), dtype=layer.dtype, device=layer.weight.device)
            self.held[layer] = Held(found, count, [rank, rank], self.options.factor_decay, self.options.factor_init)
        return found

    def _brand_due(self) -> bool:
        period = max(1, int(value_at(self.policy.update_period, self.steps)))
        return self.steps % (period * self.brand_period) == 0

    def _take(self, layer: Layer, module: Any, inputs: Tensor, gradients: Tensor, backward: int) -> None:
        if not any(self._sides(layer, gradients.numel() // gradients.shape[-1])):
            super()._take(layer, module, inputs, gradients, backward)
            return
        if self.keeps_dense:
            super()._take(layer, module, inputs, gradients, backward)
        if not self._brand_due():
            return
        with self._parts.span("factor", gradients.is_cuda):
            a, b = self.statistics.rows(layer, module, inputs, gradients)
            rows = self._rows.setdefault(layer, Rows())
            a = a.reshape(-1, a.shape[-1])
            rows.a.append(torch.cat([a, torch.ones_like(a[:, :1])], 1) if layer.bias is not None else a.clone())
            rows.g.append(b.reshape(-1, b.shape[-1]).clone())
            rows.terms.add(self.statistics.terms(module, gradients), backward)

    def _known(self) -> Mapping[Layer, Any]:
        return {**self.statistics.factors, **self.held}

    def forget(self) -> None:
        """Drop what backward passes have brought since the last step."""
        self._rows = {}
        super().forget()

    # -- running means -------------------------------------------------------------------------------------------------

    def _fold(self, scale: Tensor | float, passes: int) -> Tensor | None:
        if self.captures(self.steps):
            # Ranks whose first batches, by their sizes, chose different sides would wait for each other.
            self.ranks.compare([self._seen(layer) for layer in self.layers], self.layers[0].weight.device)
        finite = super()._fold(scale, passes)
        if not self._rows:
            return finite
        with self._parts.span("factor", self._cuda()):
            rows, self._rows = self._gathered(), {}
            home = self.layers[0].weight.device
            sums = [one.abs().amax().to(home) for a, g, _ in rows.values() for one in (a, g)]
            good = torch.stack(sums).isfinite().all()
            if finite is None:
                self.count(good)
            else:
                good = good & finite.to(home)
            for layer, (a, g, terms) in rows.items():
                weight = self.statistics.weight(terms, passes, self.columns is not None, self.ranks.size)
                scaled = (a / len(a) ** 0.5, g * weight**0.5 / scale)
                self._enter(layer, scaled, good.to(layer.weight.device))
        return good

    def _seen(self, layer: Layer) -> int:
        """What backward passes have brought of a layer and which sides are followed, as one number."""
        sides = self.held[layer].sides if layer in self.held else (False, False)
        flags = (layer in self._rows, layer in self.statistics.sums, *sides)
        return sum(flag << place for place, flag in enumerate(flags))

    def _gathered(self) -> dict[Layer, tuple[Tensor, Tensor, int]]:
        """Rows (n, d) of both sides and the number of loss terms since the last step, of all ranks."""
        layers = [layer for layer in self.layers if layer in self._rows]
        rows = [torch.cat(one) for layer in layers for one in (self._rows[layer].a, self._rows[layer].g)]
        terms = [self._rows[layer].terms.count for layer in layers]
        rows, terms = self.ranks.gathered(rows, terms, 0)
        return {layer: (rows[2 * i], rows[2 * i + 1], terms[i]) for i, layer in enumerate(layers)}

    def _enter(self, layer: Layer, scaled: tuple[Tensor, Tensor], good: Tensor) -> None:
        """One batch of one layer, its rows scaled so that their moments are the batch's."""
        held = self._held(layer)
        opt = self.options
        keep = torch.full_like(held.count, opt.factor_decay)
        if opt.factor_init == "first-batch":
            keep = (held.count > 0).to(keep.dtype) * keep
        read = held.weight()
        held.count = held.count + good.to(held.count.dtype)
        for index, batch in enumerate(scaled):
            clean = torch.where(good, batch, 0.0)[None]
            if held.sides[index]:
                self._follow_side(layer, index, clean, keep, good, read)
            elif not self.keeps_dense:
                old = held.start(batch.shape[1]) if held.dense is None else held.dense
                held.dense = torch.where(good, keep * old + (1 - keep) * moment(clean, False), old)
        if self.keeps_dense and self._correction_due():
            self._correct(layer, good)
        self._damp(layer)

    def _held(self, layer: Layer) -> Held:
        held = self.held[layer]
        if held.count.device != layer.weight.device:
            held.count = held.count.to(layer.weight.device)
        return held

    def _follow_side(self, layer: Layer, index: int, batch: Tensor, keep: Tensor, good: Tensor, read: Tensor) -> None:
        """Brand's update of one side's pairs; where the batch was not finite the old ones stay, as many as fit."""
        held, slot = self.held[layer], self.slots[layer][index]
        state = slot.state if slot.state is not None else empty(batch)
        key, size = (layer.name, f"brand-{SIDES[index]}"), batch.shape[2]
        rank = held.ranks[index] = min(size - 1, self._next_rank(key, held.ranks[index], state))
        try:
            vectors, values = brand.follow(state["vectors"], state["values"] * read, batch, keep, rank)
        except LinAlgError:
            # The running mean misses this batch; rescaling it would need no decomposition, but hide the failure.
            self._events["brand_failures"] += 1
            if slot.state is None:
                slot.state = {"vectors": batch[:, :1].mT * 0, "values": batch[:, :1, 0] * 0, "damping": keep[None]}
            return
        values = values / held.weight()
        if self.truncate:
            vectors, values = vectors[:, :, :rank], values[:, :rank]
        # Zeros behind fewer modes than before would be the smallest kept eigenvalue.
        width = vectors.shape[2]
        pairs = ((vectors, state["vectors"]), (values, state["values"]))
        new_vectors, new_values = (torch.where(good, widened(new, width), widened(old, width)) for new, old in pairs)
        slot.state = {"vectors": new_vectors, "values": new_values, "damping": torch.ones_like(new_values[:, 0])}
        ratios: dict[Hashable, Tensor] = {key: self._tail(slot.state, rank)}
        self.brand_ranks.watch(ratios, self._stamp())

    def _next_rank(self, key: tuple[str, str], rank: int, state: State) -> int:
        if "damping" not in state:
            return self.brand_ranks.start(self.steps)
        return self.brand_ranks.next(key, rank, self.steps, self._stamp(), lambda: self._tail(state, rank))

    def _tail(self, state: State, rank: int) -> Tensor:
        values = state["values"][0, :rank]
        return (values[-1] / values[0].clamp_min(_TINY)).float()

    def _correction_due(self) -> bool:
        period = int(value_at(self.policy.update_period, self.steps)) * self.brand_period
        return bool(self.correction_period) and self.steps > 0 and self.steps % (period * self.correction_period) == 0

    def _correct(self, layer: Layer, good: Tensor) -> None:
        held = self.held[layer]
        for index, slot in enumerate(self.slots[layer]):
            if not held.sides[index] or slot.state is None:
                continue
            vectors, values = slot.state["vectors"], slot.state["values"]
            chosen = brand.choice(values.shape[1], self.correction_share, self.sketched.seed + self.steps)
            matrix = self.statistics.read(layer)[index]
            try:
                found = brand.correct(vectors, values, matrix, held.remainder(), chosen.to(vectors.device))
            except LinAlgError:
                self._events["brand_failures"] += 1
                continue
            slot.state["vectors"] = torch.where(good, found[0], vectors)
            slot.state["values"] = torch.where(good, found[1], values)

    # -- damping -------------------------------------------------------------------------------------------------------

    def _lams(self, layer: Layer, dense: Sequence[Tensor | None]) -> list[Tensor]:
        """Damping (1,) of each side before the remainder; relative for a dense side if the back-end multiplies."""
        held, lam, mode = self.held[layer], self.damping(), self.options.damping_mode
        shift = held.remainder()
        sides = zip(held.sides, self.slots[layer], dense, strict=True)
        states = [slot.state if is_brand else matrix for is_brand, slot, matrix in sides]
        if mode == "pi":
            means = []
            for size, one in zip((layer.d_in, layer.d_out), states, strict=True):
                assert one is not None
                means.append(mean_diagonal(one) if isinstance(one, Tensor) else one["values"].sum(1) / size + shift)
            ratio = (means[0].clamp_min(_TINY) / means[1].clamp_min(_TINY)).sqrt()
            return [ratio * lam**0.5, lam**0.5 / ratio]
        full = torch.full_like(shift[None], lam)
        if mode == "same":
            return [full, full]
        tops = [None if one is None or isinstance(one, Tensor) else one["values"].amax(1) + shift for one in states]
        return [full if top is None else full * top for top in tops]

    def _damp(self, layer: Layer) -> None:
        """Damping of the pairs: lam, and the identity's share that they leave out."""
        held = self.held[layer]
        if any(side and slot.state is None for slot, side in zip(self.slots[layer], held.sides, strict=True)):
            return
        for side, slot, lam in zip(held.sides, self.slots[layer], self._lams(layer, self._dense(layer)), strict=True):
            if side and slot.state is not None:
                slot.state["damping"] = (lam + held.remainder()).clamp_min(_TINY)

    def _dense(self, layer: Layer) -> list[Tensor | None]:
        """Running means as they are read, where there are dense ones."""
        if self.keeps_dense:
            return list(self.statistics.read(layer)) if layer in self.statistics.factors else [None, None]
        held = self.held[layer]
        matrix = held.read()
        return [None if side else matrix for side in held.sides]

    # -- refreshes -----------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        super()._refresh()
        due = set() if self.keeps_dense else set(self.policy.due(self.steps))
        chosen = []
        for index, layer in enumerate(self.layers):
            states = [slot.state is not None for slot in self.slots[layer]]
            # Brand's update gives a new layer one state before its first refresh.
            if layer in self.held and any(states) and (index in due or not all(states)):
                chosen.append(layer)
        if chosen:
            with products.scope(self.options.product_dtype):
                self.refresher.refresh([job for layer in chosen for job in self._jobs(layer)])
            self._refreshed(chosen)

    def _overwrites(self) -> bool:
        period = max(1, int(value_at(self.policy.refresh_period, self.steps)))
        return bool(self.overwrite_period) and self.steps > 0 and (self.steps // period) % self.overwrite_period == 0

    def _jobs(self, layer: Layer) -> tuple[Job, ...]:  # type: ignore[override]
        held = self.held.get(layer)
        if held is None:
            return super()._jobs(layer)
        self.sketched.rank = self.kept_ranks.start(self.steps)
        dense = self._dense(layer)
        if self._overwrites() and layer in self.statistics.factors:
            # The dense mean has taken every batch, the pairs one in brand_period: from here on they stand for all.
            # With their own, larger share of the identity, what is left below would have negative eigenvalues.
            held.count = self.statistics.factors[layer].count.clone()
        jobs = []
        for index, (slot, lam) in enumerate(zip(self.slots[layer], self._lams(layer, dense), strict=True)):
            matrix = dense[index]
            if matrix is None or (held.sides[index] and not self._overwrites()):
                continue
            if not held.sides[index]:
                if slot.state is not None:
                    slot.state = self._resized((layer.name, SIDES[index]), slot.state)
            else:
                rank = min(held.ranks[index], layer.d_in if index == 0 else layer.d_out)
                slot.state = None if slot.state is None else self.sketched.resized(slot.state, rank)
                matrix = matrix.clone()
                matrix.diagonal(dim1=1, dim2=2).sub_(held.remainder())
            jobs.append(Job(slot, matrix, lam))
        return tuple(jobs)

    def _refreshed(self, layers: Sequence[Layer]) -> None:
        self._watch(layers)
        for layer in layers:
            if layer in self.held:
                self._damp(layer)

    def _adapts(self, layer: Layer, side: str) -> bool:
        return layer not in self.held or not self.held[layer].sides[SIDES.index(side)]

    # -- state ---------------------------------------------------------------------------------------------------------

    def extra_state(self, layer: Layer) -> dict[str, Any]:
        """How many batches have entered, which sides, their ranks, and a dense running mean of the other side."""
        held = self.held.get(layer)
        if held is None:
            return {}
        found: dict[str, Any] = {
            "brand_count": held.count,
            "brand_sides": list(held.sides),
            "brand_ranks": held.ranks[:],
        }
        return found | ({} if held.dense is None else {"brand_dense": held.dense})

    def load_extra_state(self, layer: Layer, stored: Mapping[str, Any]) -> None:
        """Restore it."""
        self.held.pop(layer, None)
        if "brand_count" not in stored:
            return
        home = layer.weight.device
        dense = stored.get("brand_dense")
        a, g = stored["brand_sides"]
        self.held[layer] = Held(
            (bool(a), bool(g)),
            stored["brand_count"].detach().to(home, copy=True),
            [int(rank) for rank in stored["brand_ranks"]],
            self.options.factor_decay,
            self.options.factor_init,
            None if dense is None else dense.detach().to(home, copy=True),
        )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Restore exactly what ``state_dict`` gave."""
        super().load_state_dict(state_dict)
        self.brand_ranks.forget()

    def follow(self, layer: Layer) -> None:
        """Cast and move the running means."""
        super().follow(layer)
        self.brand_ranks.forget()
        if (held := self.held.get(layer)) is not None:
            home = (layer.weight.device, layer.dtype)
            held.count = held.count.to(*home)
            held.dense = None if held.dense is None else held.dense.to(*home)

    def memory_usage(self) -> dict[str, int]:
        """Bytes by category; the eigenpairs are ``inverses``."""
        found = super().memory_usage()
        mine = [held.dense for held in self.held.values() if held.dense is not None]
        extra = sum(t.numel() * t.element_size() for t in mine)
        pending = [t for rows in self._rows.values() for t in (*rows.a, *rows.g)]
        found["factors"] += extra
        found["scales"] -= extra
        found["pending"] += sum(t.numel() * t.element_size() for t in pending)
        return found
