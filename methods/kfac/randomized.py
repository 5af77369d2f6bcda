"""RS- and SRE-KFAC: K-FAC with low-rank inverses whose rank follows a schedule or the spectrum (arXiv 2206.15397)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import UserError
from methods.kfac.apply import Update
from methods.kfac.inverse.base import State
from methods.kfac.inverse.low_rank import Sketched
from methods.kfac.kfac import KFAC
from methods.kfac.layers import Layer
from methods.kfac.options import flag, in_range
from methods.kfac.policy import Schedule
from methods.kfac.rank import Ranks, Rule
from methods.kfac.refresh import Job

SIDES = ("a", "g")


class Loose(Update):
    """States stay where they are: shapes that change do not lie in stacks."""

    def allocate(self, layer: Layer, side: int, start: State) -> State:
        """A copy, half-width where asked for."""
        half = self.optimizer.half if layer.dtype == torch.float32 else None
        wide = self.optimizer.backend.wide
        return {key: value.to(half if half and key in wide else value.dtype, copy=True) for key, value in start.items()}


class RandomizedKFAC(KFAC):
    """K-FAC on a back-end with a rank; see :class:`methods.kfac.kfac.KFAC`.

    With ``damping_mode="adaptive"`` lam is multiplied with the largest eigenvalue that the decomposition itself finds.

    Args:
        model: the model.
        lr: learning rate.
        inverse: ``rsvd``, ``sre`` or ``subspace``.
        rank: r, or pieces [[step, r], ...].
        adaptive_rank: the rank follows ``rank_target`` from the value at step 0 on.
        rank_target: see :class:`methods.kfac.rank.Rule`.
        rank_floor: least rank.
        rank_cap: largest rank.
        sketch: further arguments of the back-end.
        options: as for :class:`KFAC`.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        *,
        inverse: str = "rsvd",
        rank: Schedule = 220,
        adaptive_rank: bool = False,
        rank_target: float = Rule.target,
        rank_floor: int = Rule.floor,
        rank_cap: int = Rule.cap,
        sketch: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        flag("adaptive_rank", adaptive_rank)
        rule = Rule(target=rank_target, floor=rank_floor, cap=rank_cap)
        self.kept_ranks = Ranks(rank, rule if adaptive_rank else None)
        if adaptive_rank and type(self)._refreshed is KFAC._refreshed:
            raise UserError("adaptive_rank needs the class AdaptiveRankKFAC.")
        given = dict(sketch or {})
        for key in ("continuation", "warm", "dense"):
            flag(key, given.get(key, False))
        for key, low in {"oversampling": 0, "power": 1 if inverse == "subspace" else 0, "seed": 0}.items():
            if key in given:
                in_range(key, given[key], low, whole=True)
        given |= {"rank": self.kept_ranks.start(0), "relative": options.get("damping_mode") == "adaptive"}
        super().__init__(model, lr, inverse=inverse, inverse_options=given, **options)
        if self.kept_ranks.varies:
            self.update = Loose(self)

    @property
    def sketched(self) -> Sketched:
        """The back-end."""
        assert isinstance(self.backend, Sketched)
        return self.backend

    # -- refreshes -----------------------------------------------------------------------------------------------------

    def _jobs(self, layer: Layer) -> tuple[Job, Job]:
        backend = self.sketched
        backend.rank = self.kept_ranks.start(self.steps)
        for side, slot in zip(SIDES, self.slots[layer], strict=True):
            if slot.state is not None:
                slot.state = self._resized((layer.name, side), slot.state)
        if not backend.relative:
            return super()._jobs(layer)
        factors = self.statistics.read(layer)
        lams = [m.new_full((len(m),), self.damping()) for m in factors]
        one, other = (Job(slot, m, lam) for slot, m, lam in zip(self.slots[layer], factors, lams, strict=True))
        return one, other

    def _resized(self, key: tuple[str, str], state: State) -> State:
        backend = self.sketched
        rank = backend.kept(state)
        wanted = self.kept_ranks.next(key, rank, self.steps, self._stamp(), lambda: backend.ratio(state))
        return state if min(wanted, backend.size(state)) == rank else backend.resized(state, wanted)

    def _stamp(self) -> int:
        """Failures so far: their ladder changes states."""
        return sum(self.refresher.counters.values())

    def _watch(self, layers: Sequence[Layer]) -> None:
        """Send the tail ratios of new inverses to the host."""
        if self.kept_ranks.rule is None:
            return
        ratios: dict[Hashable, Tensor] = {
            (layer.name, side): self.sketched.ratio(slot.state).float()
            for layer in layers
            for side, slot in zip(SIDES, self.slots[layer], strict=True)
            if slot.state is not None and self._adapts(layer, side)
        }
        self.kept_ranks.watch(ratios, self._stamp())

    def _adapts(self, layer: Layer, side: str) -> bool:
        """Whether the rank of this side's inverse is the rule's affair."""
        return True

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Restore exactly what ``state_dict`` gave."""
        super().load_state_dict(state_dict)
        self.kept_ranks.forget()

    def follow(self, layer: Layer) -> None:
        """Ratios of states before a cast are not those after it."""
        super().follow(layer)
        self.kept_ranks.forget()

    def describe(self) -> dict[str, Any]:
        """Also the ranks."""
        kept = {
            layer.name: [self.sketched.kept(slot.state) for slot in self.slots[layer] if slot.state is not None]
            for layer in self.layers
        }
        return super().describe() | {"ranks": kept}


class AdaptiveRankKFAC(RandomizedKFAC):
    """With ranks that follow the spectrum: each refresh looks at the one before, so none may be under way."""

    def _refreshed(self, layers: Sequence[Layer]) -> None:
        self._watch(layers)
