"""The update as one CUDA graph: what follows the gathering of the gradients, on tensors that keep their places.

The arithmetic is that of :mod:`methods.kfac.apply` up to rounding: the learning rate, weight decay, a joint damping and
the flag of a batch that was not finite are numbers on the device; directions take the gradients' place, a few layers at
a time, so that a graph's own memory stays small; the momentum always goes through the kernel that can skip it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from methods.kfac import clipping, products
from methods.kfac.fallback import Plan, fused
from methods.kfac.graphs import Graphs, Scalars, places
from methods.kfac.inverse.base import State
from methods.kfac.stacks import Stack, split

if TYPE_CHECKING:
    from methods.kfac.kfac import KFAC

#: Numbers of the directions that are computed at once, a whole layer at least: 32 MiB in float32.
PART = 2**23


@dataclass
class Held:
    """One stack with everything that the work reads and writes of it."""

    stack: Stack
    a: State
    g: State
    x: Tensor
    momentum: Tensor | None

    def tensors(self) -> list[Tensor]:
        """All of them."""
        more = [] if self.momentum is None else [self.momentum]
        return [*self.a.values(), *self.g.values(), self.x, *more]

    def inner(self, matrices: Tensor) -> Tensor:
        """Without padding."""
        return matrices[:, : self.stack.d_out, : self.stack.d_in]

    def cuts(self) -> Iterator[slice]:
        """Matrices of a few layers at a time."""
        groups = self.stack.groups
        step = groups * max(1, PART // (groups * self.x[0].numel()))
        return (slice(start, start + step) for start in range(0, len(self.x), step))

    def inverses(self, cut: slice) -> tuple[State, State]:
        """A's and G's of some matrices."""
        a, g = ({key: value[cut] for key, value in state.items()} for state in (self.a, self.g))
        return a, g

    def parts(self) -> Iterator[tuple[State, State, Tensor]]:
        """A few layers at a time."""
        for cut in self.cuts():
            yield *self.inverses(cut), self.x[cut]


class Directions:
    """K-FAC's directions in place of the gradients; a relative gives its own kind (``optimizer.static_directions``).

    Args:
        optimizer: whose.
    """

    def __init__(self, optimizer: KFAC) -> None:
        self.optimizer: Any = optimizer

    def suits(self) -> bool:
        """Whether a graph can make this step's directions."""
        return bool(self.optimizer.plain)

    def prepare(self, held: Sequence[Held]) -> list[Tensor]:
        """Bring what :meth:`write` needs besides gradients, inverses and momenta to where it stays; these tensors."""
        return []

    def own(self) -> list[Tensor]:
        """What is kept between steps for a graph alone."""
        return []

    def forget(self) -> None:
        """The model has been moved or cast."""

    def write(self, held: Sequence[Held]) -> list[Tensor]:
        """Directions into the gradients' places; <direction, gradient> of every part if the clipping asks for it."""
        optimizer, dots = self.optimizer, []
        for one in held:
            for a, g, x in one.parts():
                v = optimizer.precondition(a, g, x)
                if optimizer.options.clip == "kl":
                    dots.append(clipping.dot(v, x))
                # The padding is left alone: what is not finite must not get into it.
                one.inner(x).copy_(one.inner(v))
                del v  # before the next part needs the memory
        return dots


class StaticStep:
    """Takes the whole step of a K-FAC optimizer by a graph, where nothing stands against it.

    Not where a relative's directions are no graph's, where layers are shared out over processes, where a parameter has
    no gradient or a layer no inverse yet, or where a weight is narrower than its factors.

    Attributes:
        graphs: the optimizer's.
        directions: how directions are made.
        holding: the stacks of gradients are in use and may not be given back between steps.
        took_fallback: the last step moved the fallback's parameters too.
    """

    def __init__(self, optimizer: KFAC) -> None:
        self.optimizer = optimizer
        self.directions = optimizer.static_directions()
        self.graphs = Graphs(optimizer.options.graphs)
        self.holding = self.took_fallback = False
        self._scalars: Scalars | None = None
        self._bad: Tensor | None = None
        self._clean = False
        self._copies: dict[int, list[Tensor]] = {}

    def forget(self) -> None:
        """The model has been moved or cast: nothing of before is used again."""
        self.graphs.forget()
        self.directions.forget()
        self.holding, self._scalars, self._bad, self._copies = False, None, None, {}

    def memory(self) -> dict[str, int]:
        """Bytes of the graphs' pool and of what they are given, while they are in use; of what is kept in any case."""
        own = sum(t.numel() * t.element_size() for t in self.directions.own())
        if not self.holding:
            return {"graphs": own} if own else {}
        given = [one for copies in self._copies.values() for one in copies]
        return {"graphs": self.graphs.nbytes() + own + sum(t.numel() * t.element_size() for t in given)}

    def step(self, lr: float, decays: float, finite: Tensor | None) -> bool:
        """Move the weights, and the fallback's if it can be; False: nothing has been done.

        Args:
            lr: learning rate.
            decays: weight decay of this step.
            finite: whether the batch was finite, None for yes.
        """
        self.took_fallback = False
        if not self._suits():
            self.holding = False
            return False
        held = self._held()
        if held is None:
            self.holding = False
            return False
        self.optimizer.update.bring()
        plans = self._plans()
        self._fill(lr, decays, finite, plans)
        device = held[0].x.device
        key = (places(self.directions.prepare(held)), self._key(held, plans))
        done = self.graphs.run("step", key, device, lambda: self._work(held, plans))
        self.holding, self.took_fallback = done, done and bool(plans)
        if not done:
            self.directions.forget()
        return done

    # -- whether and on what -------------------------------------------------------------------------------------------

    def _suits(self) -> bool:
        optimizer = self.optimizer
        if not self.graphs.usable(optimizer.layers[0].weight.device):
            return False
        if optimizer.ranks.sharded or not self.directions.suits():
            return False
        home = (optimizer.layers[0].weight.device, optimizer.layers[0].dtype)
        return all(
            p.grad is not None and (p.device, p.dtype) == home for layer in optimizer.layers for p in layer.parameters
        )

    def _held(self) -> list[Held] | None:
        """Every stack; None unless all have their inverses in place."""
        optimizer, found = self.optimizer, []
        for stack in optimizer.update.stacks:
            pairs = [optimizer.slots[layer] for layer in stack.layers]
            a, g = (stack.whole(side, [pair[side] for pair in pairs]) for side in (0, 1))
            if a is None or g is None:
                return None
            momentum = stack.momentum(optimizer.momenta, stack.layers) if optimizer.options.momentum else None
            found.append(Held(stack, a, g, stack.gradients()[0], momentum))
        return found

    def _plans(self) -> list[tuple[Plan, list[Tensor]]]:
        """The fallback's lists and copies of its gradients; empty: it takes its own step."""
        stepper = self.optimizer._stepper
        plans = [] if stepper is None else stepper.plans()
        found, home = [], self.optimizer.layers[0].weight.device
        for index, plan in enumerate(plans):
            grads = [p.grad for p in plan.params if p.grad is not None]
            if len(grads) != len(plan.params) or plan.params[0].device != home:
                return []
            held = self._copies.get(index, [])
            if len(held) != len(grads) or held[0].dtype != grads[0].dtype:
                # As the parameters lie in memory, which the fused kernel takes for granted.
                held = [torch.empty_like(p, dtype=x.dtype) for p, x in zip(plan.params, grads, strict=True)]
                self._copies[index] = held
            torch._foreach_copy_(held, grads)
            found.append((plan, held))
        return found

    def _fill(self, lr: float, decays: float, finite: Tensor | None, plans: Sequence[Any]) -> None:
        """Bring this step's numbers to the device."""
        rates = {f"fallback {index}": float(plan.group["lr"]) for index, (plan, _) in enumerate(plans)}
        values = {"lr": lr, "decay": decays, "damping": self.optimizer.damping(), **rates}
        first = self.optimizer.layers[0]
        if self._scalars is None or self._scalars.names != list(values):
            self._scalars = Scalars(list(values), first.dtype, first.weight.device)
        self._scalars.set(values)
        if self._bad is None:
            self._bad, self._clean = torch.zeros((), device=first.weight.device), True
        if finite is not None:
            torch.logical_not(finite.to(self._bad.device), out=self._bad)
            self._clean = False
        elif not self._clean:
            self._bad.zero_()
            self._clean = True

    def _key(self, held: Sequence[Held], plans: Sequence[tuple[Plan, list[Tensor]]]) -> tuple[Any, ...]:
        """Whatever a capture bakes in."""
        assert self._scalars is not None
        assert self._bad is not None
        tensors = [*self._scalars.tensors(), self._bad]
        tensors += [tensor for one in held for tensor in one.tensors()]
        tensors += [parameter for layer in self.optimizer.layers for parameter in layer.parameters]
        shapes = tuple(value.shape for one in held for state in (one.a, one.g) for value in state.values())
        fixed = []
        for plan, copies in plans:
            tensors += [*plan.params, *copies]
            # A plan's other tensors are its own as long as it lives.
            fixed.append((plan, *(plan.group[name] for name in ("betas", "eps", "weight_decay"))))
        return places(tensors), shapes, tuple(fixed), torch.backends.cuda.matmul.allow_tf32

    # -- the work ------------------------------------------------------------------------------------------------------

    def _work(self, held: Sequence[Held], plans: Sequence[tuple[Plan, list[Tensor]]]) -> None:
        """What a graph records: no number of the host changes from step to step in it."""
        opt, scalars, bad = self.optimizer.options, self._scalars, self._bad
        assert scalars is not None
        assert bad is not None
        lr, decay = scalars["lr"], scalars["decay"]
        good = 1.0 - bad.to(lr.dtype)
        mode = opt.weight_decay_mode if opt.weight_decay else ""
        if mode == "gradient":
            _add_weights(held, decay)
        dots = self._directions(held, scalars["damping"])
        _clip(held, dots, opt.clip, opt.clip_value, lr)
        if mode == "coupled":
            _add_weights(held, decay)
        moving = [one.x for one in held]
        if opt.momentum:
            kept = [one.momentum for one in held if one.momentum is not None]
            products.fused_mix(kept, moving, 1 - opt.momentum, bad)
            moving = kept
        else:
            for v in moving:
                v.masked_fill_(bad > 0, 0.0)
        _move(held, moving, -(lr * good), 1.0 - good * lr * decay if mode == "decoupled" else None)
        for index, (plan, copies) in enumerate(plans):
            rate = scalars[f"fallback {index}"]
            fused(plan, copies, bad, rate.float() if rate.is_cuda else rate)  # the GPU's kernel reads a float32

    def _directions(self, held: Sequence[Held], lam: Tensor) -> list[Tensor]:
        optimizer = self.optimizer
        optimizer.lam = lam
        try:
            with products.scope(optimizer.options.product_dtype):
                return self.directions.write(held)
        finally:
            optimizer.lam = None


def _clip(held: Sequence[Held], dots: Sequence[Tensor], mode: str, clip: float, lr: Tensor) -> None:
    if mode == "kl":
        factor = clipping.kl(torch.stack(list(dots)).sum(), clip, lr)
        # Zero instead of what is no number, for the padding's sake.
        torch._foreach_mul_([one.x for one in held], factor.nan_to_num(0.0))
    elif mode == "rms":
        for view in (view for one in held for view in _views(one)):
            view.mul_(clipping.rms(view, clip))


def _views(one: Held) -> list[Tensor]:
    return [one.stack.view(one.x, index) for index in range(len(one.stack.layers))]


def _add_weights(held: Sequence[Held], decay: Tensor) -> None:
    """X + decay W."""
    for one in held:
        for layer, view in zip(one.stack.layers, _views(one), strict=True):
            for target, source in zip(split(layer, view), layer.parts(layer.parameters), strict=True):
                target.addcmul_(source, decay)


def _move(held: Sequence[Held], moving: Sequence[Tensor], amount: Tensor, shrink: Tensor | None) -> None:
    """W <- shrink W + amount V."""
    for one, v in zip(held, moving, strict=True):
        for index, layer in enumerate(one.stack.layers):
            for weight, piece in zip(layer.parameters, one.stack.pieces(v, 0, index), strict=True):
                if shrink is not None:
                    weight.mul_(shrink)
                weight.addcmul_(piece, amount)
