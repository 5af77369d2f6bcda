"""SINGD as one optimizer: structured factors that are moved by products alone, for every Linear and Conv2d.

Lin et al., arXiv 2312.05705; INGD is the dense structure (arXiv 2302.09738), IKFAC the ``kfac_like`` mode. See the
README for the mathematics and every departure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import Unsupported
from methods.first_order.groups import scalars, trainable
from methods.kfac import fallback
from methods.kfac.capture import Capture
from methods.kfac.from_model import FromModel
from methods.kfac.graphs import Graphs
from methods.kfac.layers import Layer, find
from methods.kfac.options import in_range
from methods.kfac.policy import Policy
from methods.kfac.sharding import average
from methods.kfac.timing import Parts
from methods.singd import checkpoint, stacks
from methods.singd.apply import Apply
from methods.singd.options import parse
from methods.singd.products import precision
from methods.singd.stacks import Side, Stack
from methods.singd.static import StaticStep
from methods.singd.statistics import Gather
from methods.singd.update import Update


class SINGD(FromModel):
    """m <- alpha_2 m + C C^T dW K K^T + wd W;  W <- W - lr m.  Every T steps K <- K (I - beta_1 m_K), C alike.

    Args:
        model: whose nn.Linear and nn.Conv2d are preconditioned; everything else goes to the fallback, with a warning
            that names it.
        lr: learning rate of the preconditioned layers.
        grad_scaler: the ``GradScaler``, needed only if gradients are unscaled before the step.
        options: see :class:`methods.singd.options.Options`.

    Attributes:
        coverage: parameters (scalars) by the optimizer that updates them.
        layers: the preconditioned layers.
        stacks: their factors; layers of equal shape lie together.
        left_over: name of every other trained parameter -> why it is not preconditioned.

    Raises:
        UserError: a hyper-parameter out of range.
        Unsupported: no layer with factors.
    """

    _step_supports_amp_scaling = True
    label = "singd"

    def __init__(self, model: nn.Module, lr: float = 1e-3, *, grad_scaler: Any = None, **options: Any) -> None:
        in_range("lr", lr, 0.0)
        self.options = parse(options)
        opt = self.options
        trainable(model)
        self.layers, others, self.left_over = find(model, opt.exclude)
        self.grad_scaler = grad_scaler
        self.fallback = fallback.optimizer([parameter for _, parameter in others], opt)
        self._stepper = fallback.Stepper(self.fallback) if self.fallback is not None else None
        mine = [parameter for layer in self.layers for parameter in layer.parameters]
        super().__init__([{"params": mine, "lr": lr}], {"lr": lr})
        self._main = self.param_groups[0]
        if self.fallback is not None:
            self.param_groups.extend(self.fallback.param_groups)
        self.coverage = {self.label: scalars(mine)}
        if others:
            self.coverage[opt.fallback] = scalars(parameter for _, parameter in others)
        self.policy = Policy(opt.update_period, 1, False, [])
        self.gather = Gather(opt)
        self.graphs = Graphs(opt.graphs)
        self._static = StaticStep(self.graphs, self._stepper)
        self.stacks: list[Stack] = []
        self.build()
        self.steps = 0
        self.grad_scale_estimate: Tensor | float = float(opt.init_grad_scale)
        self.seen: set[Layer] = set()
        self._skipped = torch.zeros((), dtype=torch.int64, device=self._device())
        self._overflowed = torch.zeros((), dtype=torch.int64, device=self._device())
        self._parts = Parts(("statistics", "update", "apply"))
        self._homes = self._where()
        self.capture = Capture(self.layers, self._take)
        self.capture.enabled = self._catches()
        fallback.announce(self.label, opt.fallback, self.left_over)

    def build(self) -> None:
        """Fresh factors (identities) for all layers, where the weights are now."""
        self.stacks = stacks.build(self.layers, self.options)
        self._stack_of = {layer: stack for stack in self.stacks for layer in stack.layers}
        self._apply = Apply(self.stacks, self.options.momentum, self.options.weight_decay)
        self.graphs.forget()
        self._static.forget()
        self._mover = Update(self.stacks, self.options, self.graphs)

    # -- statistics ----------------------------------------------------------------------------------------------------

    def _catches(self) -> bool:
        return self.policy.statistics_due(self.steps)

    def _take(self, layer: Layer, module: Any, inputs: Tensor, gradients: Tensor, backward: int) -> None:
        if self._stack_of[layer].home != (layer.weight.dtype, layer.weight.device):
            self._follow()
        with (
            self._parts.span("statistics", gradients.is_cuda),
            precision(self.options.products),
            torch.autocast(gradients.device.type, enabled=False),
        ):
            scale = self.grad_scale_estimate
            self.gather.take(layer, self._stack_of[layer], module, inputs, gradients, backward, scale)

    def _scaling(self) -> tuple[Tensor | None, Tensor | None]:
        """(no overflow, loss scale of the captured gradients) on the device; ``.grad`` is unscaled if nobody has."""
        found: Tensor | None = getattr(self, "found_inf", None)
        if found is None:
            return None, None
        scale: Tensor | None = getattr(self, "grad_scale", None)
        if scale is not None:
            by_device: dict[torch.device, list[Tensor]] = {}
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        by_device.setdefault(parameter.grad.device, []).append(parameter.grad)
            for device, grads in by_device.items():
                torch._foreach_mul_(grads, scale.to(device).float().reciprocal())
        elif self.grad_scaler is not None:
            scale = self.grad_scaler._get_scale_async()
        elif self.gather.sums:
            raise Unsupported(
                "gradients were unscaled before the step (gradient clipping?), so the scale of the captured ones is "
                "unknown; give the scaler to the constructor: grad_scaler=scaler."
            )
        return found.reshape(()) == 0, scale

    # -- a step --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update; nothing waits for the device.

        Raises:
            Unsupported: a layer whose weight is used behind its module's back; gradients of an unknown scale.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._follow()
        good, scale = self._scaling()
        if good is not None:
            self._overflowed = self._overflowed.to(good.device) + (~good).long()
        with precision(self.options.products), torch.autocast(self._device().type, enabled=False):
            if self.gather.sums:
                good = self._update(good, scale)
            if scale is not None:
                self.grad_scale_estimate = scale.detach().clone()
            self._apply.static, self._static.took_fallback = self._static, False
            with self._parts.span("apply", self._device().type == "cuda"):
                self._apply.step(float(self._main["lr"]), good)
        if self._stepper is not None and not self._static.took_fallback:
            self._stepper.step(good)
        self.steps += 1
        self.capture.enabled = self._catches()
        return loss

    def _device(self) -> torch.device:
        return self.layers[0].weight.device

    def _update(self, good: Tensor | None, scale: Tensor | None) -> Tensor:
        """Move the factors; returns whether the step is good."""
        for layer in self.layers:
            if layer.weight.grad is not None and layer not in self.gather.sums and layer not in self.seen:
                raise Unsupported(
                    f"layer {layer.name} has a gradient, but its module was never called (is its weight used by a "
                    f"function?); leave it to the fallback: exclude=[{layer.name!r}]."
                )
        correction = None
        if scale is not None:
            correction = (self.grad_scale_estimate / scale.double()).square()
        with self._parts.span("update", self._device().type == "cuda"):
            sums = self.gather.read_all(correction)
            average([tensor for pair in sums.values() for tensor in pair])
            self.seen.update(sums)
            finite, whole = self._mover.step(sums, self.steps, good)
            missed = ~finite if good is None else ~finite & good.to(finite.device)
            self._skipped = self._skipped.to(finite.device) + missed.long()
        return whole

    # -- the model moves -----------------------------------------------------------------------------------------------

    def _where(self) -> list[tuple[torch.dtype, torch.device]]:
        return [(p.dtype, p.device) for group in self.param_groups for p in group["params"]]

    def _follow(self) -> None:
        """Take the state along when the model has been cast or moved since the last step."""
        if (homes := self._where()) == self._homes:
            return
        self._homes = homes
        states = {layer: checkpoint.layer_state(self, layer) for layer in self.layers}
        self.build()
        for layer, state in states.items():
            checkpoint.restore_layer(self, layer, state)
        self._mover.keep()
        for sums in self.gather.sums.values():
            sums.a, sums.g = sums.a.to(self._device()), sums.g.to(self._device())
        for parameter, held in (self.fallback.state if self.fallback is not None else {}).items():
            for key, value in held.items():
                if isinstance(value, Tensor):
                    held[key] = value.to(parameter.device, None if key == "step" else parameter.dtype)

    # -- the outside ---------------------------------------------------------------------------------------------------

    def factors(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """K and C of a layer as dense matrices (groups, d, d)."""
        stack = self._stack_of[layer]
        k, c = (side.kind.to_dense(side.value[stack.places[layer]]) for side in (stack.a, stack.g))
        return k, c

    def sides(self, layer: Layer) -> tuple[Side, Side, slice]:
        """The stack's K and C and where the layer's matrices lie in them."""
        stack = self._stack_of[layer]
        return stack.a, stack.g, stack.places[layer]

    def forget(self) -> None:
        """Drop what backward passes have brought since the last step."""
        self.gather.forget()

    @property
    def counters(self) -> dict[str, int]:
        """Batches with statistics that were not finite, and steps that overflowed; reading waits for the device."""
        return {"skipped_batches": int(self._skipped), "overflowed_steps": int(self._overflowed)}

    def parts(self) -> dict[str, float]:
        """Seconds of statistics (inside backward), update and apply since the last call."""
        return self._parts.read()

    def describe(self) -> dict[str, Any]:
        """Layers, structures, what is left over and why, and the counters, for the record."""
        return {
            "layers": {layer.name: [layer.groups, layer.d_out, layer.d_in] for layer in self.layers},
            "structures": [self.stacks[0].a.kind.name, self.stacks[0].g.kind.name],
            "left_over": dict(self.left_over),
            "counters": self.counters,
            "graphs": self.graphs.describe(),
        }

    def scratch(self) -> int:
        """Bytes that are held between steps for graphs."""
        parts = (self._mover.nbytes(), self._apply.nbytes(), self._static.nbytes(), self.graphs.nbytes())
        return sum(parts)

    def memory_usage(self) -> dict[str, int]:
        """Bytes of state by category; see :mod:`methods.singd.checkpoint`."""
        return checkpoint.memory(self)

    def memory_formula(self) -> dict[str, int]:
        """Bytes of state that the structures' formulas give."""
        return stacks.formula(self.layers, self.options)

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings alone; see :mod:`methods.singd.checkpoint`."""
        return checkpoint.save(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Restore exactly what :meth:`state_dict` gave."""
        checkpoint.load(self, state_dict)

    def close(self) -> None:
        """Remove the hooks; the optimizer cannot be used afterwards."""
        self.capture.close()
        self.forget()
