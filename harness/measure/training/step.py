"""One update: data, forward, backward, optimizer, for plain optimizers and for those that call a closure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from harness.catalogue.workload import Batch
from harness.errors import Unsupported
from harness.measure.training.clock import Buckets
from harness.measure.training.distributed import ALONE, Alone
from harness.measure.training_device import TrainingCPU

Fetch = Callable[[int, int], Batch]
Loss = Callable[[nn.Module, Any, Any], torch.Tensor]
#: What a method may ask of its step beyond gradients.
NEEDS = frozenset({"closure", "extra_backward"})


def pieces(count: int, parts: int) -> Iterator[tuple[int, int]]:
    """(offset, count) of ``parts`` nearly equal pieces of ``count`` samples."""
    for index in range(parts):
        start, stop = index * count // parts, (index + 1) * count // parts
        if stop > start:
            yield start, stop - start


def counted(optimizer: Any) -> dict[str, Any]:
    """What an optimizer counted (``counters``) and holds (``memory_usage()``, bytes by category), at the run's end.

    Reading may wait for the device; what fails to answer is left out.
    """
    found: dict[str, Any] = {}
    with contextlib.suppress(Exception):
        if isinstance(counters := getattr(optimizer, "counters", None), Mapping):
            found["counters"] = {str(name): int(value) for name, value in counters.items()}
        if callable(usage := getattr(optimizer, "memory_usage", None)):
            found["memory_usage"] = {str(name): int(value) for name, value in usage().items()}
    return found


def told(optimizer: Any) -> dict[str, Any]:
    """What an optimizer says of itself: ``coverage`` (scalars by component) and ``describe()`` (engines it chose)."""
    coverage, describe = getattr(optimizer, "coverage", None), getattr(optimizer, "describe", None)
    return {
        "coverage": dict(coverage) if coverage is not None else None,
        "optimizer": describe() if callable(describe) else None,
    }


class Stepper:
    """Updates a model with one optimizer.

    Args:
        model: on its device, in training mode.
        optimizer: what the method's factory made.
        loss: ``loss(model, inputs, targets)`` -> mean loss; compiled when the run asks for it.
        runtime_loss: ``loss(outputs, targets)``, for targets drawn from the model.
        device: the training device.
        buckets: where the seconds go.
        batch: samples of one update.
        trainer: ``accumulate`` and ``clip_norm``.
        ranks: the processes that share each batch.
        stream: seed of the run, for random numbers of several ranks.

    Raises:
        Unsupported: a need that the trainer does not serve, or clipping of gradients that only the method sees.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Any,
        loss: Loss,
        runtime_loss: Callable[[Any, Any], torch.Tensor],
        device: TrainingCPU,
        buckets: Buckets,
        batch: int,
        trainer: Mapping[str, Any],
        ranks: Alone = ALONE,
        stream: int = 0,
    ) -> None:
        self.ranks, self.stream = ranks, stream
        self.model, self.optimizer, self.loss, self.runtime_loss = model, optimizer, loss, runtime_loss
        self.device, self.buckets, self.batch = device, buckets, batch
        self.accumulate, self.clip_norm = int(trainer["accumulate"]), trainer["clip_norm"]
        self.scaler = device.scaler()
        self.parts = int(getattr(optimizer, "sub_batches", 1))
        self.needs = frozenset(getattr(optimizer, "step_needs", ()))
        many = self.ranks.size > 1 and self.ranks.size % self.parts == 0
        self.at_once = many and self.parts > 1 and bool(getattr(optimizer, "parts_at_once", False))
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if strange := self.needs - NEEDS:
            raise Unsupported(f"its step needs {sorted(strange)}; the trainer serves {sorted(NEEDS)}.")
        if self.needs and self.clip_norm is not None:
            raise Unsupported("clip_norm: this method runs backward inside its step, so only it can clip.")
        if self.needs and self.scaler is not None:
            raise Unsupported("fp16 loss scaling: this method runs backward inside its step; use bf16.")

    def update(self, fetch: Fetch, first: int) -> torch.Tensor:
        """One update on samples ``first`` to ``first + batch``; returns the mean loss, detached, not synchronised."""
        for parameter in self.parameters:
            parameter.grad = None
        return self._with_closure(fetch, first) if self.needs else self._plain(fetch, first)

    def _plain(self, fetch: Fetch, first: int) -> torch.Tensor:
        self.ranks.seed(self.stream, first, True)
        total = self.passes(fetch, first)
        self._average()
        self.ranks.seed(self.stream, first, False)
        with self.buckets.span("optimizer"):
            self._step()
        return total

    def passes(self, fetch: Fetch, first: int = 0) -> torch.Tensor:
        """Forward and backward of one update on the data's own targets, without the optimizer; the mean loss.

        Of several ranks each takes its slice; the mean over the ranks of what they return is the batch's mean loss.
        """
        total: torch.Tensor | None = None
        begin, size = self.ranks.slice(0, self.batch)
        for offset, count in pieces(size, self.accumulate):
            with self.buckets.span("data"):
                inputs, targets = fetch(first + begin + offset, count)
            value = self._backward(inputs, targets, count * self.ranks.size / self.batch)
            total = value if total is None else total + value
        assert total is not None
        return total

    def _backward(self, inputs: Any, targets: Any, weight: float) -> torch.Tensor:
        with self.buckets.span("forward"), self.device.autocast():
            value = self.loss(self.model, inputs, targets)
        with self.buckets.span("backward"):
            weighted = value if weight == 1.0 else value * weight
            (weighted if self.scaler is None else self.scaler.scale(weighted)).backward()  # type: ignore[no-untyped-call]
        return weighted.detach()

    def _average(self) -> None:
        """Average what backward has left over the ranks."""
        if self.ranks.size > 1:
            with self.buckets.span("communication"):
                self.ranks.average(self.parameters)

    def _step(self) -> None:
        if self.scaler is not None:
            if self.clip_norm is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()

    # -- methods that call a closure -------------------------------------------------------------------------------

    def _with_closure(self, fetch: Fetch, first: int) -> torch.Tensor:
        whole: dict[tuple[int, int], Batch] = {}
        losses: list[torch.Tensor] = []
        shared: dict[int, list[torch.Tensor | None]] = {}

        def closure(part: int | None = None, targets: str = "data") -> torch.Tensor:
            """Forward and backward on one part (None: all of it), gradients added to ``.grad``; returns its loss.

            Of several ranks each takes its slice of the part; ``.grad`` is then the mean over them.
            """
            if targets not in ("data", "model"):
                raise Unsupported(f"closure(targets={targets!r}): expected 'data' or 'model'.")
            if part is not None and not 0 <= part < self.parts:
                raise Unsupported(f"closure(part={part}): the method declared {self.parts} sub-batches.")
            if self.at_once and part is not None and targets == "data":
                return self._at_once(fetch, first, part, shared, losses)
            begin, size = (0, self.batch) if part is None else list(pieces(self.batch, self.parts))[part]
            mine, share = self.ranks.slice(begin, size)
            value: torch.Tensor | None = None
            self.ranks.seed(self.stream, first, True)
            with torch.enable_grad():
                for offset, count in pieces(share, self.accumulate):
                    with self.buckets.span("data"):
                        batch = self._slice(whole, fetch, first, mine + offset, count)
                    one = self._closure_backward(batch, count * self.ranks.size / size, targets)
                    value = one if value is None else value + one
            self._average()
            self.ranks.seed(self.stream, first, False)
            assert value is not None
            if targets == "data":
                losses.append(value)
            return value

        self.ranks.seed(self.stream, first, False)
        with self.buckets.span("optimizer"):
            self.optimizer.step(closure)
        if not losses:
            raise Unsupported("its step never called the closure on the data's own targets: there is no loss to watch.")
        return torch.stack(losses).mean()

    def _at_once(
        self,
        fetch: Fetch,
        first: int,
        part: int,
        shared: dict[int, list[torch.Tensor | None]],
        losses: list[torch.Tensor],
    ) -> torch.Tensor:
        """One part of several that groups of ranks work on at the same time: rank r belongs to part r mod parts.

        The first call runs them all; each call adds its part's gradients. For methods whose ``parts_at_once`` says
        that they do not move the weights between the parts.
        """
        if not losses:
            own, place, many = (
                self.ranks.rank % self.parts,
                self.ranks.rank // self.parts,
                self.ranks.size // self.parts,
            )
            begin, size = list(pieces(self.batch, self.parts))[own]
            start, stop = place * size // many, (place + 1) * size // many
            before = [parameter.grad for parameter in self.parameters]
            for parameter in self.parameters:
                parameter.grad = None
            self.ranks.seed(self.stream, first, True)
            total: torch.Tensor | None = None
            with torch.enable_grad():
                for offset, count in pieces(stop - start, self.accumulate):
                    with self.buckets.span("data"):
                        batch = fetch(first + begin + start + offset, count)
                    value = self._backward(*batch, count * self.ranks.size / size)
                    total = value if total is None else total + value
            with self.buckets.span("communication"):
                shared |= dict(enumerate(self.ranks.average_parts(self.parameters, own, self.parts)))
            self.ranks.seed(self.stream, first, False)
            for parameter, grad in zip(self.parameters, before, strict=True):
                parameter.grad = grad
            assert total is not None
            losses.append(total / self.parts)
        if part not in shared:
            raise Unsupported(
                f"closure(part={part}) was called twice in one step, but its parts are worked on at once."
            )
        for parameter, gradient in zip(self.parameters, shared.pop(part), strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return losses[0]

    def _slice(self, whole: dict[tuple[int, int], Batch], fetch: Fetch, first: int, offset: int, count: int) -> Batch:
        """A part of the update's samples; without accumulation they are fetched once and shared by all parts.

        A rank of several fetches its slice of each part once.
        """
        if self.accumulate > 1:
            return fetch(first + offset, count)
        begin, size = (0, self.batch) if self.ranks.size == 1 else (offset, count)
        if (begin, size) not in whole:
            whole[begin, size] = fetch(first + begin, size)
        inputs, targets = whole[begin, size]
        return Batch(inputs[offset - begin : offset - begin + count], targets[offset - begin : offset - begin + count])

    def _closure_backward(self, batch: Batch, weight: float, targets: str) -> torch.Tensor:
        if targets == "data":
            return self._backward(*batch, weight)
        with self.buckets.span("forward"), self.device.autocast():
            outputs = self.model(batch.inputs)
            value = self.runtime_loss(outputs, drawn(outputs.detach(), batch.targets)) * weight
        with self.buckets.span("backward"):
            value.backward()  # type: ignore[no-untyped-call]
        return value.detach()


def drawn(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Targets drawn from the model's own distribution: a class per row of logits in the last dimension.

    Raises:
        Unsupported: outputs that are no logits of such targets.
    """
    if targets.is_floating_point() or outputs.shape[:-1] != targets.shape:
        raise Unsupported(
            f"closure(targets='model') draws classes from logits; got outputs {tuple(outputs.shape)} and "
            f"{targets.dtype} targets {tuple(targets.shape)}."
        )
    chances = torch.softmax(outputs.float(), dim=-1).reshape(-1, outputs.shape[-1])
    return torch.multinomial(chances, 1).reshape(targets.shape).to(targets.dtype)
