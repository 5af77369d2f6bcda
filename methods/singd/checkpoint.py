"""State of a SINGD optimizer as plain tensors and numbers: ``torch.load(weights_only=True)`` reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.errors import UserError
from methods.kfac.checkpoint import restore_groups
from methods.kfac.layers import Layer
from methods.singd.stacks import zeros

if TYPE_CHECKING:
    from methods.singd.singd import SINGD

_VERSION = 2
_SIDES = ("k", "c")


def layer_state(optimizer: SINGD, layer: Layer) -> dict[str, Tensor]:
    """A layer's factors, their momenta and its own momentum, copied."""
    stack = optimizer._stack_of[layer]
    place, found = stack.places[layer], {}
    for name, side in zip(_SIDES, (stack.a, stack.g), strict=True):
        found[name] = side.value[place].clone()
        if side.momentum is not None:
            found[f"m_{name}"] = side.momentum[place].clone()
    if stack.momentum is not None:
        found["momentum"] = stack.momentum[place].clone()
    return found


@torch.no_grad()
def restore_layer(optimizer: SINGD, layer: Layer, stored: Mapping[str, Tensor]) -> None:
    """Put a layer's state into its stack, in the stack's dtypes and on its device; K K^T is still to be kept."""
    stack = optimizer._stack_of[layer]
    place = stack.places[layer]
    for name, side in zip(_SIDES, (stack.a, stack.g), strict=True):
        side.value[place] = stored[name].to(side.value)
        if side.momentum is not None:
            side.momentum[place] = stored[f"m_{name}"].to(side.value)
    if "momentum" in stored:
        if stack.momentum is None:
            stack.momentum = zeros(stack)
        stack.momentum[place] = stored["momentum"].to(stack.momentum)


def save(optimizer: SINGD) -> dict[str, Any]:
    """Everything that the next step depends on."""
    scale = optimizer.grad_scale_estimate
    return {
        "version": _VERSION,
        "structures": [type(side.kind).name for side in (optimizer.stacks[0].a, optimizer.stacks[0].g)],
        "steps": optimizer.steps,
        "layers": {layer.name: layer_state(optimizer, layer) for layer in optimizer.layers},
        "seen": [layer.name for layer in optimizer.layers if layer in optimizer.seen],
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
        "grad_scale": scale.clone() if isinstance(scale, Tensor) else scale,
        "skipped": int(optimizer._skipped),
        "overflowed": int(optimizer._overflowed),
        "fallback": optimizer.fallback.state_dict() if optimizer.fallback is not None else None,
    }


@torch.no_grad()
def load(optimizer: SINGD, stored: Mapping[str, Any]) -> None:
    """Restore into an optimizer of the same model and hyper-parameters.

    Raises:
        UserError: other layers, structures or another format.
    """
    names = [layer.name for layer in optimizer.layers]
    kinds = [side.kind.name for side in (optimizer.stacks[0].a, optimizer.stacks[0].g)]
    if (version := stored.get("version")) != _VERSION:
        raise UserError(f"the saved optimizer has format {version}, this one reads {_VERSION}; train it again.")
    if list(stored["layers"]) != names or stored["structures"] != kinds:
        raise UserError(
            f"the saved optimizer has the layers {list(stored.get('layers', {}))} and structures "
            f"{stored.get('structures')}, this one {names} and {kinds}; build it with the same model and "
            f"hyper-parameters."
        )
    if (stored["fallback"] is None) != (optimizer.fallback is None):
        raise UserError("only one of the saved optimizer and this one has a fallback; build it with the same model.")
    optimizer.forget()
    optimizer.build()
    for layer in optimizer.layers:
        restore_layer(optimizer, layer, stored["layers"][layer.name])
    optimizer._mover.keep()
    optimizer.steps = int(stored["steps"])
    optimizer.seen = {layer for layer in optimizer.layers if layer.name in stored["seen"]}
    scale = stored["grad_scale"]
    home = optimizer.layers[0].weight.device
    optimizer.grad_scale_estimate = scale.to(home, copy=True) if isinstance(scale, Tensor) else scale
    optimizer._skipped = torch.tensor(int(stored["skipped"]), device=home)
    optimizer._overflowed = torch.tensor(int(stored["overflowed"]), device=home)
    restore_groups(optimizer, stored)
    optimizer.capture.enabled = optimizer._catches()


def memory(optimizer: SINGD) -> dict[str, int]:
    """Bytes by category.

    ``factors`` K and C, ``riemannian_momentum`` m_K and m_C, ``cache`` K K^T and C C^T where kept, ``momentum`` m_W,
    ``pending`` statistics of a batch before its step, ``fallback``, ``scratch`` that is held between steps: copies and
    padded stacks of graphs, and the memory of their own.
    """
    sides = [side for stack in optimizer.stacks for side in (stack.a, stack.g)]
    fallback = optimizer.fallback.state if optimizer.fallback is not None else {}
    return {
        "factors": _bytes(side.value for side in sides),
        "riemannian_momentum": _bytes(side.momentum for side in sides),
        "cache": _bytes(side.kept for side in sides),
        "momentum": _bytes(stack.momentum for stack in optimizer.stacks),
        "pending": _bytes(t for sums in optimizer.gather.sums.values() for t in (sums.a, sums.g)),
        "fallback": _bytes(t for held in fallback.values() for t in held.values()),
        "scratch": optimizer.scratch(),
    }


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
