"""K-FAC as one optimizer: statistics from the ordinary backward, refreshes by policy, a fallback for other parameters.

Martens and Grosse, arXiv 1503.05671; convolutions: Grosse and Martens, arXiv 1602.01407. See the README for the
mathematics and every departure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import Unsupported, UserError
from methods.first_order.groups import scalars, trainable
from methods.kfac import checkpoint, damping, fallback, products, scaling
from methods.kfac.apply import Update
from methods.kfac.capture import Capture
from methods.kfac.fisher import Columns, model_passes
from methods.kfac.from_model import FromModel
from methods.kfac.inverse import inverse
from methods.kfac.inverse.base import State
from methods.kfac.layers import Layer, find
from methods.kfac.options import in_range, parse
from methods.kfac.policy import Policy, value_at
from methods.kfac.products import multiply
from methods.kfac.refresh import Job, Refresher, Slot
from methods.kfac.sharding import Sharing
from methods.kfac.static import Directions, StaticStep
from methods.kfac.statistics import Statistics
from methods.kfac.timing import Parts


class KFAC(FromModel):
    """v <- mu v + clip((G + ..)^-1 dW (A + ..)^-1);  w <- w - lr v.

    Args:
        model: whose nn.Linear and nn.Conv2d are preconditioned; everything else goes to the fallback, with a warning
            that names it.
        lr: learning rate of the preconditioned layers.
        inverse_options: of the back-end.
        grad_scaler: the ``GradScaler``, needed only if gradients are unscaled before the step.
        options: see :class:`methods.kfac.options.Options`.

    Attributes:
        coverage: parameters (scalars) by the optimizer that updates them.
        layers: the preconditioned layers.
        left_over: name of every other trained parameter -> why it is not preconditioned.

    Raises:
        UserError: a hyper-parameter out of range.
        Unsupported: no layer with factors.
    """

    _step_supports_amp_scaling = True
    label = "kfac"

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        *,
        inverse_options: Mapping[str, Any] | None = None,
        grad_scaler: Any = None,
        **options: Any,
    ) -> None:
        in_range("lr", lr, 0.0)
        self.options = parse(options)
        opt = self.options
        trainable(model)
        self.backend = inverse(opt.inverse, **(inverse_options or {}))
        if opt.damping_mode in damping.JOINT and not self.backend.spectral:
            raise UserError(
                f"damping_mode {opt.damping_mode!r} needs both factors' eigenvectors (inverse='eigh'); with "
                f"{opt.inverse!r} use pi, same or adaptive."
            )
        if opt.refresh_lag and type(self)._refreshed is not KFAC._refreshed:
            raise UserError(f"{self.label} needs new bases at once; refresh_lag is 0 for it, got {opt.refresh_lag}.")
        if opt.spread and type(self)._take is not KFAC._take:
            raise UserError(f"{self.label} takes all layers' statistics from one batch; spread is False for it.")
        self.layers, others, self.left_over = find(model, opt.exclude)
        self.grad_scaler = grad_scaler
        self.fallback = fallback.optimizer([parameter for _, parameter in others], opt)
        self._stepper = None if self.fallback is None else fallback.Stepper(self.fallback)
        mine = [parameter for layer in self.layers for parameter in layer.parameters]
        super().__init__([{"params": mine, "lr": lr}], {"lr": lr})
        self._main = self.param_groups[0]
        if self.fallback is not None:
            self.param_groups.extend(self.fallback.param_groups)
        self.coverage = {self.label: scalars(mine)}
        if others:
            self.coverage[opt.fallback] = scalars(parameter for _, parameter in others)
        self.statistics = Statistics(
            opt.sharing,
            opt.factor_decay,
            opt.factor_init,
            opt.loss_terms,
            opt.reduction,
            opt.subsample,
            opt.product_dtype,
            opt.packed,
        )
        costs = [float(layer.groups * (layer.d_in**3 + layer.d_out**3)) for layer in self.layers]
        self.ranks = self.statistics.ranks = Sharing(self.layers, costs, opt.sharding, opt.momentum > 0)
        if self.backend.takes_all:  # sketches: quadratic in the width
            costs = [float(layer.groups * (layer.d_in**2 + layer.d_out**2)) for layer in self.layers]
        self.policy = Policy(opt.update_period, opt.refresh_period, opt.stagger, costs, opt.spread, opt.groups)
        self.refresher = Refresher(self.backend)
        self.half = getattr(torch, opt.inverse_dtype) if opt.inverse_dtype != "wide" else None
        self.update = Update(self)
        self.static = StaticStep(self)
        self.lam: Tensor | None = None
        self.slots = {layer: (self._slot(layer, 0), self._slot(layer, 1)) for layer in self.layers}
        self._order = {layer: index for index, layer in enumerate(self.layers)}
        self.momenta: dict[Layer, Tensor] = {}
        self.steps = 0
        self._skipped = torch.zeros((), dtype=torch.int64)
        self._events = {"overflowed_steps": 0, "without_factors": 0}
        self._parts = Parts(("factor", "refresh", "apply"))
        self._homes = self._where()
        self.step_needs = frozenset() if opt.fisher == "empirical" else frozenset({"closure", "extra_backward"})
        self.columns = Columns(model, opt.loss) if opt.fisher == "type-2" else None
        self.capture = Capture(self.layers, self._take)
        self.capture.enabled = self._catches()
        if opt.spread:
            self.capture.wanted = lambda layer: self.policy.takes(self._order[layer], self.steps)
        fallback.announce(self.label, opt.fallback, self.left_over)

    def _slot(self, layer: Layer, side: int) -> Slot:
        return Slot(place=lambda start: self.update.allocate(layer, side, start))

    # -- statistics ----------------------------------------------------------------------------------------------------

    def _catches(self) -> bool:
        return self.options.fisher == "empirical" and self.captures(self.steps)

    def _take(self, layer: Layer, module: Any, inputs: Tensor, gradients: Tensor, backward: int) -> None:
        if not self.policy.takes(self._order[layer], self.steps):
            return
        with self._parts.span("factor", gradients.is_cuda):
            self.statistics.take(layer, module, inputs, gradients, backward)

    def _model_passes(self, closure: Callable[..., Any]) -> int:
        """Statistics from targets drawn from the model, or from columns; their gradients are dropped."""
        return model_passes(self, closure)

    def _loss_scale(self) -> Tensor | float | None:
        """Factor on the gradients of this step; unscales ``.grad`` if nobody has. None: an overflow, skip the step."""
        return scaling.loss_scale(self)

    # -- a step --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[..., Any] | None = None) -> Any:  # type: ignore[override]
        """One update.

        Raises:
            UserError: no closure although the Fisher needs further passes.
            Unsupported: a layer whose weight is used behind its module's back.
        """
        self.refresher.settle()
        loss, passes = None, 1
        if self.step_needs:
            if closure is None:
                raise UserError(f"fisher={self.options.fisher!r}: call step(closure), closure(part=None, targets=...).")
            if self.captures(self.steps):
                passes = self._model_passes(closure)
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._follow()
        scale = self._loss_scale()
        if scale is None:
            self.forget()
            self._events["overflowed_steps"] += 1
            return loss
        finite = self._fold(scale, passes)
        with self._parts.span("refresh", self._cuda()):
            self._refresh()
        with self._parts.span("apply", self._cuda()):
            self._update(finite)
        self._step_fallback(finite)
        self.steps += 1
        self.capture.enabled = self._catches()
        if self.capture.enabled and not self.static.holding:
            self.update.release()
        return loss

    def _cuda(self) -> bool:
        return self.layers[0].weight.is_cuda

    def _fold(self, scale: Tensor | float, passes: int) -> Tensor | None:
        if not self.statistics.sums:
            return None
        for layer in self.layers:
            if layer.weight.grad is not None and layer not in self.statistics.sums and layer not in self._known():
                raise Unsupported(
                    f"layer {layer.name} has a gradient, but its module was never called (is its weight used by a "
                    f"function?); leave it to the fallback: exclude=[{layer.name!r}]."
                )
        with self._parts.span("factor", self._cuda()):
            finite = self.statistics.fold(scale, passes, self.columns is not None)
        assert finite is not None
        self.count(finite)
        return finite

    def count(self, finite: Tensor) -> None:
        """Count a batch that is skipped, on the device."""
        self._skipped = self._skipped.to(finite.device) + ~finite

    def _known(self) -> Mapping[Layer, Any]:
        return self.statistics.factors

    def _refresh(self) -> None:
        """Refresh the layers that are due, and those that have just been seen for the first time."""
        due = set(self.policy.due(self.steps))
        known = self.statistics.factors
        chosen = [
            layer
            for index, layer in enumerate(self.layers)
            if layer in known and (index in due or self.slots[layer][0].state is None)
        ]
        late = [layer for layer in chosen if self.options.refresh_lag and self.slots[layer][0].state is not None]
        now = [layer for layer in chosen if layer not in late]
        with products.scope(self.options.product_dtype):
            arrived = [layer for layers in self.refresher.arrive(self.steps) for layer in layers]
            if now:
                self.refresher.refresh(self._all_jobs(now))
            if late:
                self.refresher.start(self._all_jobs(late), self.steps + self.options.refresh_lag, late)
        if now or arrived:
            self._refreshed([*arrived, *now])

    def _all_jobs(self, layers: Sequence[Layer]) -> list[Job]:
        """A's and G's job of every layer."""
        together = type(self)._jobs is KFAC._jobs
        return self._jobs_of(layers) if together else [job for layer in layers for job in self._jobs(layer)]

    def _jobs(self, layer: Layer) -> tuple[Job, Job]:
        """The jobs of one layer; a relative may make them differently."""
        first, second = self._jobs_of([layer])
        return first, second

    def _jobs_of(self, layers: Sequence[Layer]) -> list[Job]:
        mode, factors = self.options.damping_mode, [self.statistics.read(layer) for layer in layers]
        if mode in damping.JOINT:
            amounts = [(a.new_zeros(len(a)), g.new_zeros(len(g))) for a, g in factors]
        else:
            amounts = damping.separate_all(mode, self.damping(), factors)
        triples = zip(layers, factors, amounts, strict=True)
        return [Job(*one) for layer, pair, lams in triples for one in zip(self.slots[layer], pair, lams, strict=True)]

    def _refreshed(self, layers: Sequence[Layer]) -> None:
        """What a relative does after its bases have changed."""

    def direction(self, layer: Layer, gradient: Tensor) -> Tensor:
        """The preconditioned gradient (groups, d_out, d_in); the gradient itself for a layer without factors yet."""
        first, second = (slot.state for slot in self.slots[layer])
        if first is None or second is None:
            self._events["without_factors"] += 1
            return gradient
        with products.scope(self.options.product_dtype):
            return self.precondition(first, second, gradient)

    def precondition(self, first: State, second: State, gradients: Tensor) -> Tensor:
        """Gradients (k, d_out, d_in) of layers whose states of A and of G, k matrices each, are given.

        Rows and columns may be padded with zeros where the states are (:mod:`methods.kfac.apply`).
        """
        if self.options.damping_mode not in damping.JOINT:
            return self.backend.apply_right(first, self.backend.apply(second, gradients))
        qa, qg = first["vectors"], second["vectors"]
        lam = self.damping() if self.lam is None else self.lam
        amount = damping.joint(self.options.damping_mode, lam, first["values"], second["values"])
        spectrum = second["values"][:, :, None] * first["values"][:, None, :] + amount
        inner = multiply(multiply(qg.mT, gradients), qa) / spectrum
        return multiply(multiply(qg, inner), qa.mT)

    def directions(self, layers: Sequence[Layer], gradients: Sequence[Tensor]) -> list[Tensor]:
        """:meth:`direction` of many layers, equal shapes in one product; new tensors or the gradients themselves."""
        if type(self).direction is not KFAC.direction:
            return [self.direction(layer, gradient) for layer, gradient in zip(layers, gradients, strict=True)]
        with products.scope(self.options.product_dtype):
            return self.update.directions(layers, gradients)

    def multiply(self, layers: Sequence[Layer], vectors: Sequence[Tensor], damped: bool = False) -> list[Tensor]:
        """The Fisher times a vector, G V A for each layer, V (groups, d_out, d_in), from the running means.

        Args:
            layers: the layers.
            vectors: V of each.
            damped: of the damped matrix: (G + ..) V (A + ..), or G V A + lam V with a joint damping (``exact`` with
                lam; ``adaptive-exact`` with lam times the product of both largest eigenvalues).
        """
        mode, lam, read = self.options.damping_mode, self.damping() if damped else None, self.statistics.read
        return [damping.multiply(mode, lam, *read(one), v) for one, v in zip(layers, vectors, strict=True)]

    @property
    def plain(self) -> bool:
        """Whether directions are those of K-FAC, and no relative looks at those of a layer."""
        return all(getattr(type(self), n) is getattr(KFAC, n) for n in ("_combine", "directions", "direction"))

    def static_directions(self) -> Directions:
        """How a graph makes directions."""
        return Directions(self)

    def _combine(self, active: Sequence[Layer], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of the active layers -> directions before clipping, momentum and coupled decay."""
        return self.directions(active, gradients)

    def _update(self, finite: Tensor | None) -> None:
        opt, lr = self.options, float(self._main["lr"])
        decays = opt.weight_decay if self.steps >= opt.weight_decay_start else 0.0
        if not self.static.step(lr, decays, finite):
            self.update.step(lr, decays, finite)

    def _step_fallback(self, finite: Tensor | None) -> None:
        if self._stepper is not None and not self.static.took_fallback:
            self._stepper.step(finite)

    # -- the model moves -----------------------------------------------------------------------------------------------

    def _where(self) -> list[tuple[torch.dtype, torch.device]]:
        return [(p.dtype, p.device) for group in self.param_groups for p in group["params"]]

    def _follow(self) -> None:
        """Take the state along when the model has been cast or moved since the last step."""
        if (homes := self._where()) == self._homes:
            return
        self._homes = homes
        checkpoint.follow(self)

    def damping(self) -> float:
        """Lam at this step."""
        return value_at(self.options.damping, self.steps)

    # -- for relatives -------------------------------------------------------------------------------------------------

    def captures(self, step: int) -> bool:
        """Whether this step's backward is watched."""
        return self.policy.statistics_due(step)

    def extra_state(self, layer: Layer) -> dict[str, Any]:
        """What a relative keeps of a layer besides factors, inverses and momentum."""
        return {}

    def forget(self) -> None:
        """Drop what backward passes have brought since the last step."""
        self.statistics.forget()

    def follow(self, layer: Layer) -> None:
        """Take it along when the model has been cast or moved."""

    def load_extra_state(self, layer: Layer, stored: Mapping[str, Any]) -> None:
        """Restore :meth:`extra_state`, copying its tensors."""

    # -- the outside ---------------------------------------------------------------------------------------------------

    @property
    def counters(self) -> dict[str, int]:
        """What went wrong and how it was dealt with; reading waits for the device.

        ``direct``, ``damping``, ``float64``, ``kept``: failed factorisations by the rung that ended them;
        ``skipped_batches``: batches with statistics that were not finite; ``overflowed_steps``: loss scaling;
        ``without_factors``: applications to a layer that had no statistics yet; ``graph_failures``: captures that
        failed, after which steps are eager.
        """
        self.refresher.settle()
        more = self.static.graphs.counters
        return {**self.refresher.counters, "skipped_batches": int(self._skipped), **self._events, **more}

    def parts(self) -> dict[str, float]:
        """Seconds of factor (statistics, also inside backward), refresh and apply since the last call."""
        return {**self._parts.read(), **self.ranks.seconds()}

    def describe(self) -> dict[str, Any]:
        """Layers, what is left over and why, and the counters, for the record."""
        return {
            "layers": {layer.name: [layer.groups, layer.d_out, layer.d_in] for layer in self.layers},
            "left_over": dict(self.left_over),
            "counters": self.counters,
            "graphs": self.static.graphs.describe(),
            **({"sharding": self.ranks.describe()} if self.ranks.size > 1 else {}),
        }

    def memory_usage(self) -> dict[str, int]:
        """Bytes of state by category."""
        return checkpoint.memory(self)

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings alone; see :mod:`methods.kfac.checkpoint`."""
        return checkpoint.save(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Restore exactly what :meth:`state_dict` gave."""
        checkpoint.load(self, state_dict)

    def close(self) -> None:
        """Remove the hooks; the optimizer cannot be used afterwards."""
        self.capture.close()
        if self.columns is not None:
            self.columns.close()
        self.forget()
