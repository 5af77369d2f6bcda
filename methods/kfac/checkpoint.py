"""State of a K-FAC optimizer as plain tensors and numbers: ``torch.load(weights_only=True)`` reads it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.errors import UserError
from methods.kfac.layers import Layer, channels_last
from methods.kfac.refresh import Job, Late

if TYPE_CHECKING:
    from methods.kfac.kfac import KFAC

_VERSION = 1
_SIDES = ("a", "g")


def save(optimizer: KFAC) -> dict[str, Any]:
    """Everything that the next step depends on. Failed refreshes climb their ladder first."""
    optimizer.refresher.settle()
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return {
        "version": _VERSION,
        "steps": optimizer.steps,
        "sharding": optimizer.ranks.mark(),
        "layers": {layer.name: _layer(optimizer, layer) for layer in optimizer.layers},
        "groups": groups,
        "skipped": int(optimizer._skipped),
        "events": dict(optimizer._events),
        "rungs": dict(optimizer.refresher.counters),
        "late": [_compact(_late(optimizer, late)) for late in optimizer.refresher.late],
        "fallback": optimizer.fallback.state_dict() if optimizer.fallback is not None else None,
    }


def _late(optimizer: KFAC, late: Late) -> dict[str, Any]:
    """A refresh that has begun: what it was given, and its result."""
    if late.event is not None:
        late.event.synchronize()
    return {
        "due": late.due,
        "layers": [layer.name for layer in late.tag],
        "given": [[job.matrix, job.damping] for job in late.jobs],
        "states": [dict(state) for state, _ in late.found],
        "goods": [good for _, good in late.found],
    }


def _arriving(optimizer: KFAC, stored: Mapping[str, Any]) -> Late:
    named = {layer.name: layer for layer in optimizer.layers}
    layers = [named[name] for name in stored["layers"]]
    home = layers[0].weight.device

    def placed(tensor: Tensor) -> Tensor:
        return tensor.detach().to(home, copy=True)

    slots = [slot for layer in layers for slot in optimizer.slots[layer]]
    pairs = zip(slots, stored["given"], strict=True)
    jobs = [Job(slot, placed(matrix), placed(damping)) for slot, (matrix, damping) in pairs]
    both = zip(stored["states"], stored["goods"], strict=True)
    found = [({key: placed(value) for key, value in state.items()}, placed(good)) for state, good in both]
    return Late(int(stored["due"]), layers, jobs, found, None)


def _layer(optimizer: KFAC, layer: Layer) -> dict[str, Any]:
    found: dict[str, Any] = {"channels_last": channels_last(layer.weight)}
    if (factors := optimizer.statistics.factors.get(layer)) is not None:
        found |= {"factor_a": factors.compact(0), "factor_g": factors.compact(1), "count": factors.count}
    for side, slot in zip(_SIDES, optimizer.slots[layer], strict=True):
        if slot.state is not None:
            found[f"inverse_{side}"] = dict(slot.state)
    if layer in optimizer.momenta:
        found["momentum"] = optimizer.momenta[layer]
    return {key: _compact(value) for key, value in (found | optimizer.extra_state(layer)).items()}


def _compact(value: Any) -> Any:
    """Tensors, also in dictionaries and lists, that bring no larger storage along: parts of a stack are copied."""
    if isinstance(value, Mapping):
        return {key: _compact(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_compact(one) for one in value]
    if not isinstance(value, Tensor) or value.untyped_storage().nbytes() == value.numel() * value.element_size():
        return value
    return value.clone(memory_format=torch.contiguous_format)


def restore_groups(optimizer: Any, stored: Mapping[str, Any]) -> None:
    """The fallback's state and every group's numbers, of an optimizer with ``fallback``."""
    if optimizer.fallback is not None:
        optimizer.fallback.load_state_dict(stored["fallback"])
        optimizer.param_groups[1:] = optimizer.fallback.param_groups
    for group, values in zip(optimizer.param_groups, stored["groups"], strict=True):
        for key in [key for key in group if key != "params" and key not in values]:
            del group[key]
        group.update(values)


@torch.no_grad()
def load(optimizer: KFAC, stored: Mapping[str, Any]) -> None:
    """Restore into an optimizer of the same model and hyper-parameters.

    Raises:
        UserError: other layers or another format.
    """
    names = [layer.name for layer in optimizer.layers]
    if stored.get("version") != _VERSION or list(stored["layers"]) != names:
        raise UserError(
            f"the saved optimizer has the layers {list(stored.get('layers', {}))}, this one {names}; build it with the "
            f"same model and hyper-parameters."
        )
    optimizer.ranks.check(stored.get("sharding", []))
    for layer in optimizer.layers:
        if stored["layers"][layer.name].get("channels_last", False) != channels_last(layer.weight):
            raise UserError(
                f"the saved factors of {layer.name} have another memory format; build the optimizer on the model in "
                f"the memory format (channels_last or not) that it was trained in."
            )
    if (stored["fallback"] is None) != (optimizer.fallback is None):
        raise UserError("only one of the saved optimizer and this one has a fallback; build it with the same model.")
    optimizer.refresher.forget()
    optimizer.forget()
    optimizer.steps = int(stored["steps"])
    optimizer._skipped = torch.tensor(int(stored["skipped"]), device=optimizer._skipped.device)
    optimizer._events = dict(stored["events"])
    optimizer.refresher.counters = dict(stored["rungs"])
    restore_groups(optimizer, stored)
    for layer in optimizer.layers:
        _restore(optimizer, layer, stored["layers"][layer.name])
    optimizer.refresher.late = [_arriving(optimizer, one) for one in stored.get("late", [])]
    optimizer.capture.enabled = optimizer._catches()


def _restore(optimizer: KFAC, layer: Layer, stored: Mapping[str, Any]) -> None:
    def placed(tensor: Tensor) -> Tensor:
        return tensor.detach().to(layer.weight.device, copy=True)

    optimizer.statistics.factors.pop(layer, None)
    if "factor_a" in stored:
        a, g, count = (placed(stored[key]) for key in ("factor_a", "factor_g", "count"))
        optimizer.statistics.enter(layer, a, g, count)
    for side, slot in zip(_SIDES, optimizer.slots[layer], strict=True):
        state = stored.get(f"inverse_{side}")
        slot.state = None if state is None else {key: placed(value) for key, value in state.items()}
    optimizer.update.adopt(layer)
    optimizer.momenta.pop(layer, None)
    if "momentum" in stored:
        optimizer.momenta[layer] = placed(stored["momentum"])
    optimizer.load_extra_state(layer, stored)


def follow(optimizer: KFAC) -> None:
    """Take the state along when the model has been cast or moved; refreshes that have begun are taken over first."""
    optimizer.refresher.arrive(sys.maxsize)
    optimizer.static.forget()
    optimizer.update.build()
    for layer in optimizer.layers:
        home = (layer.weight.device, layer.dtype)
        for slot in optimizer.slots[layer]:
            if slot.state is not None:
                slot.state = {key: value.to(*home) for key, value in slot.state.items()}
        if layer in optimizer.momenta:
            optimizer.momenta[layer] = optimizer.momenta[layer].to(*home)
        optimizer.update.adopt(layer)
        optimizer.follow(layer)
    for parameter, held in (optimizer.fallback.state if optimizer.fallback is not None else {}).items():
        for key, value in held.items():
            if isinstance(value, Tensor):
                held[key] = value.to(parameter.device, None if key == "step" else parameter.dtype)


def memory(optimizer: KFAC) -> dict[str, int]:
    """Bytes by category; ``pending`` are statistics of a batch before its step, ``gradients`` stacks between steps."""
    factors = [t for f in optimizer.statistics.factors.values() for t in f.held]
    inverses = [t for pair in optimizer.slots.values() for slot in pair for t in (slot.state or {}).values()]
    fallback = optimizer.fallback.state if optimizer.fallback is not None else {}
    return {
        "factors": _bytes(factors),
        "inverses": _bytes(inverses),
        "momentum": _bytes(optimizer.momenta.values()),
        "scales": _bytes(t for layer in optimizer.layers for t in optimizer.extra_state(layer).values()),
        "pending": _bytes(t for sums in optimizer.statistics.sums.values() for t in (sums.a, sums.g)),
        "fallback": _bytes(t for held in fallback.values() for t in held.values()),
        "gradients": _bytes(t for stack in optimizer.update.stacks for t in stack.kept()),
        **optimizer.static.memory(),
    }


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
