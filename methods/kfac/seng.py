"""SENG: the sketchy empirical natural gradient, a layer at a time (Yang et al., arXiv 2006.05924).

    v <- mu v + (U^T U + lam I)^-1 dW + wd W;   w <- w - lr v

with U the single samples' gradients of one batch, renewed every ``update_period`` steps; see
:mod:`methods.kfac.seng_sketch`. Any batch size; batches may differ in size. Of several processes each gathers the
samples of all, so that U is that of the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import Unsupported, UserError
from methods.kfac.inverse.cholesky import Cholesky
from methods.kfac.kfac import KFAC
from methods.kfac.layers import Layer
from methods.kfac.options import flag, in_range, values
from methods.kfac.policy import Schedule, value_at
from methods.kfac.seng_sketch import Samples, also, chosen, explicit, implicit, joined
from methods.kfac.statistics import Terms

_FIXED = ("inverse", "damping_mode", "sharing", "loss_terms", "subsample", "refresh_period", "factor_decay")


class SENG(KFAC):
    """SENG; see the module.

    Args:
        model: as for :class:`KFAC`.
        lr: learning rate.
        damping: lam, a number or pieces [[step, lam], ...]; taken when U is.
        svd_rank: p, positions kept of each sample of an implicit layer; None: all.
        col_sample: q, see :meth:`methods.kfac.seng_sketch.Samples.gram`; None: no sampling.
        explicit_threshold: layers with more weights keep U by its factors.
        exact: no reduction and no sampling: the two arguments above count as None.
        seed: of the sampled columns and of the projections, which also depend on the step and the layer.
        fallback_lr: learning rate of what is neither Linear nor Conv2d; None: lr / (1 + lam), the step that a
            gradient without curvature takes.
        options: as for :class:`KFAC`, but what belongs to Kronecker factors.
    """

    label = "seng"

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.05,
        *,
        damping: Schedule = 0.05,
        svd_rank: int | None = 16,
        col_sample: int | None = 256,
        explicit_threshold: int = 1_000_000,
        exact: bool = False,
        seed: int = 0,
        update_period: Schedule = 200,
        clip: str = "none",
        fallback: str = "sgd",
        fallback_lr: float | None = None,
        **options: Any,
    ) -> None:
        for name in _FIXED:
            if name in options:
                raise UserError(f"seng has no {name}: it keeps gradients of single samples, not Kronecker factors.")
        if options.get("sharding", "none") != "none":
            raise UserError("seng keeps the samples of all layers on every rank: sharding has to be none.")
        for name, value in (("svd_rank", svd_rank), ("col_sample", col_sample)):
            if value is not None:
                in_range(name, value, 1, whole=True)
        flag("exact", exact)
        in_range("seed", seed, 0, whole=True)
        in_range("lr", lr, 0.0)
        for number in values(damping, "damping"):
            in_range("damping", number, 0.0, left=False)
        in_range("explicit_threshold", explicit_threshold, 0, whole=True)
        self.positions, self.columns_sampled = (None, None) if exact else (svd_rank, col_sample)
        self.explicit_threshold, self.seed = explicit_threshold, seed
        self._rows: dict[Layer, list[Samples]] = {}
        self._terms: dict[Layer, Terms] = {}
        self._is_explicit: dict[Layer, bool] = {}
        self.sketches: dict[Layer, Samples] = {}
        self.cores: dict[Layer, Tensor] = {}
        self.lams: dict[Layer, Tensor] = {}
        self._fresh: dict[Layer, Tensor] = {}
        self._failed = torch.zeros((), dtype=torch.int64)
        chosen_lr = lr / (1 + value_at(damping, 0)) if fallback_lr is None else fallback_lr
        given: dict[str, Any] = {"damping": damping, "update_period": update_period, "clip": clip}
        super().__init__(model, lr, damping_mode="same", fallback=fallback, fallback_lr=chosen_lr, **given, **options)

    # -- samples -------------------------------------------------------------------------------------------------------

    def _take(self, layer: Layer, module: Any, inputs: Tensor, gradients: Tensor, backward: int) -> None:
        with self._parts.span("factor", gradients.is_cuda):
            a, g = self.statistics.rows(layer, module, inputs, gradients)
            if layer.bias is not None:
                a = torch.cat([a, torch.ones_like(a[..., :1])], dim=3)
            small = layer.groups * layer.d_in * layer.d_out <= self.explicit_threshold
            # One position has the same cost either way, and less memory by factors.
            if self._is_explicit.setdefault(layer, small and a.shape[2] > 1):
                found = explicit(a, g)
            else:
                found = implicit(a, g, self.positions, self._seed(layer))
            terms, parts = self._terms.setdefault(layer, Terms()), self._rows.setdefault(layer, [])
            again = parts and backward >= 0 and terms.backward == backward
            if again and parts[-1].count == found.count:
                parts[-1] = also(parts[-1], found)
            else:
                parts.append(found)
            terms.add(self.statistics.terms(module, gradients), backward)

    def _seed(self, layer: Layer) -> int:
        """Of this layer's random choices at this step."""
        return self.seed + 2 * (self.steps * len(self.layers) + self.layers.index(layer))

    def _known(self) -> Mapping[Layer, Any]:
        return self.sketches

    def forget(self) -> None:
        """Drop what backward passes have brought since the last step."""
        self._rows, self._terms = {}, {}
        super().forget()

    # -- a step --------------------------------------------------------------------------------------------------------

    def _fold(self, scale: Tensor | float, passes: int) -> Tensor | None:
        rows, terms, self._rows, self._terms = self._rows, self._terms, {}, {}
        if self.captures(self.steps):
            seen = [int(layer in rows) + 2 * int(self._is_explicit.get(layer, False)) for layer in self.layers]
            self.ranks.compare(seen, self.layers[0].weight.device)
        if not rows:
            return None
        for layer in self.layers:
            if layer.weight.grad is not None and layer not in rows and layer not in self.sketches:
                raise Unsupported(
                    f"layer {layer.name} has a gradient, but its module was never called (is its weight used by a "
                    f"function?); leave it to the fallback: exclude=[{layer.name!r}]."
                )
        with self._parts.span("factor", self._cuda()):
            home = self.layers[0].weight.device
            fresh, counts = self._gathered(
                {layer: joined(rows[layer]) for layer in self.layers if layer in rows}, terms
            )
            tops = [t.abs().amax().to(home) for one in fresh.values() for t in one.present().values()]
            finite = torch.stack(tops).isfinite().all()
            for layer, one in fresh.items():
                weight = self.statistics.weight(counts[layer], passes, self.columns is not None, self.ranks.size)
                good = finite.to(layer.weight.device)
                self.sketches[layer] = chosen(good, one.scaled(weight**0.5 / scale), self.sketches.get(layer))
        self._fresh = dict.fromkeys(fresh, finite)
        self.count(finite)
        return finite

    def _gathered(
        self, samples: Mapping[Layer, Samples], terms: Mapping[Layer, Terms]
    ) -> tuple[dict[Layer, Samples], dict[Layer, int]]:
        """The samples and numbers of loss terms of all ranks."""
        names = [(layer, name) for layer, one in samples.items() for name in one.present()]
        parts = [samples[layer].present()[name] for layer, name in names]
        tensors, counts = self.ranks.gathered(parts, [terms[layer].count for layer in samples], 1)
        found: dict[Layer, dict[str, Tensor]] = {}
        for (layer, name), tensor in zip(names, tensors, strict=True):
            found.setdefault(layer, {})[name] = tensor
        return {layer: Samples(**one) for layer, one in found.items()}, dict(zip(samples, counts, strict=True))

    def _refresh(self) -> None:
        """(lam I + U U^T)^-1 of the layers with new samples, equal counts in one batch."""
        fresh, self._fresh = self._fresh, {}
        buckets: dict[tuple[int, torch.dtype, torch.device], list[Layer]] = {}
        for layer in fresh:
            key = (self.sketches[layer].count, layer.dtype, layer.weight.device)
            buckets.setdefault(key, []).append(layer)
        for layers in buckets.values():
            seeds = [self._seed(layer) for layer in layers]
            pairs = zip(layers, seeds, strict=True)
            gram = torch.stack([self.sketches[one].gram(self.columns_sampled, seed) for one, seed in pairs])
            lam = torch.full_like(gram[:, 0, 0], self.damping())
            state, good = Cholesky().refresh(gram, lam, None)
            cores = torch.where(good[:, None, None], state["inverse"], 0.0)
            self._failed = self._failed.to(good.device) + (~good).sum()
            for layer, core, one in zip(layers, cores, lam, strict=True):
                finite, held = fresh[layer].to(core.device), self.cores.get(layer)
                if held is None:
                    self.cores[layer], self.lams[layer] = core, one
                    continue
                more = len(core) - len(held)
                self.cores[layer] = torch.where(finite, core, nn.functional.pad(held, (0, more, 0, more)))
                self.lams[layer] = torch.where(finite, one, self.lams[layer])

    def direction(self, layer: Layer, gradient: Tensor) -> Tensor:
        """(v - U^T (lam I + U U^T)^-1 U v) / lam."""
        if layer not in self.cores:
            self._events["without_factors"] += 1
            return gradient
        samples = self.sketches[layer]
        weights = self.cores[layer] @ samples.times(gradient)
        return (gradient - samples.transposed_times(weights)) / self.lams[layer]

    def multiply(self, layers: Sequence[Layer], vectors: Sequence[Tensor], damped: bool = False) -> list[Tensor]:
        """U^T U V, with ``damped`` plus lam V."""
        found = []
        for layer, vector in zip(layers, vectors, strict=True):
            samples = self.sketches[layer]
            product = samples.transposed_times(samples.times(vector))
            found.append(product + self.lams[layer] * vector if damped else product)
        return found

    # -- state ---------------------------------------------------------------------------------------------------------

    def extra_state(self, layer: Layer) -> dict[str, Any]:
        """The samples and what inverts them."""
        if layer not in self.cores:
            return {}
        samples = {f"samples_{name}": value for name, value in self.sketches[layer].present().items()}
        return samples | {"core": self.cores[layer], "lam": self.lams[layer]}

    def load_extra_state(self, layer: Layer, stored: Mapping[str, Any]) -> None:
        """Restore it."""
        for held in (self.sketches, self.cores, self.lams):
            held.pop(layer, None)
        if "core" not in stored:
            return
        placed = {
            key: value.detach().to(layer.weight.device, copy=True)
            for key, value in stored.items()
            if key.startswith("samples_") or key in ("core", "lam")
        }
        self.cores[layer], self.lams[layer] = placed.pop("core"), placed.pop("lam")
        self.sketches[layer] = Samples(**{key.removeprefix("samples_"): value for key, value in placed.items()})
        self._is_explicit[layer] = self.sketches[layer].u is not None

    def follow(self, layer: Layer) -> None:
        """Cast and move the samples."""
        if layer in self.cores:
            home = (layer.weight.device, layer.dtype)
            present = self.sketches[layer].present()
            self.sketches[layer] = Samples(**{name: value.to(*home) for name, value in present.items()})
            self.cores[layer], self.lams[layer] = self.cores[layer].to(*home), self.lams[layer].to(*home)

    @property
    def counters(self) -> dict[str, int]:
        """Also ``failed_cores``: cores that could not be factorised; the step is then v / lam."""
        return {**super().counters, "failed_cores": int(self._failed)}

    def memory_usage(self) -> dict[str, int]:
        """Bytes by category: samples are ``factors``, what inverts them ``inverses``."""
        found = super().memory_usage()
        samples = _bytes([t for one in self.sketches.values() for t in one.present().values()])
        inverses = _bytes([*self.cores.values(), *self.lams.values()])
        pending = _bytes([t for parts in self._rows.values() for one in parts for t in one.present().values()])
        found["factors"] += samples
        found["inverses"] += inverses
        found["scales"] = 0
        found["pending"] += pending
        return found


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
