"""State of a run as trees of tensors: copies, restoring, and a hash that proves both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn


def copied(tree: Any) -> Any:
    """A deep copy of nested dictionaries, lists and tuples with every tensor cloned."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().clone()
    if isinstance(tree, Mapping):
        return {key: copied(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [copied(value) for value in tree]
    return tree


def tensors(tree: Any) -> Iterator[torch.Tensor]:
    """Every tensor of a tree."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors(value)


def digest(*trees: Any) -> str:
    """sha256 over structure, dtypes, shapes and bytes of the trees."""
    hashed = hashlib.sha256()
    for tree in trees:
        _hash(tree, hashed)
    return hashed.hexdigest()


def _hash(tree: Any, hashed: Any) -> None:
    if isinstance(tree, torch.Tensor):
        # a copy: torch calls a single element contiguous whatever its stride, and then refuses to view its bytes
        flat = torch.empty(tree.numel(), dtype=tree.dtype).copy_(tree.detach().reshape(-1))
        hashed.update(f"{tree.dtype}{tuple(tree.shape)}".encode())
        hashed.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    elif isinstance(tree, Mapping):
        for key, value in sorted(tree.items(), key=lambda item: repr(item[0])):
            hashed.update(f"{key!r}:".encode())
            _hash(value, hashed)
    elif isinstance(tree, list | tuple):
        hashed.update(f"[{len(tree)}".encode())
        for value in tree:
            _hash(value, hashed)
    else:
        hashed.update(repr(tree).encode())


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers (those left out of the state dictionary too) by name."""
    return {**dict(model.named_parameters()), **{f"buffer {k}": v for k, v in model.named_buffers()}}


@torch.no_grad()
def restore_weights(model: nn.Module, stored: Mapping[str, torch.Tensor]) -> None:
    """Copy stored values into the model's own tensors, and drop the gradients."""
    for name, tensor in weights(model).items():
        if name in stored:
            tensor.copy_(stored[name])
    for parameter in model.parameters():
        parameter.grad = None


def hooks(model: nn.Module) -> int:
    """Number of hooks on modules and parameters."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found = sum(len(getattr(module, kind, ())) for module in model.modules() for kind in kinds)
    for parameter in model.parameters():
        found += len(getattr(parameter, "_backward_hooks", None) or ())
        found += len(getattr(parameter, "_post_accumulate_grad_hooks", None) or ())
    return found


def of_run(model: nn.Module, optimizer: Any, random_state: Mapping[str, Any], position: int) -> str:
    """The hash that must be the same before the warm-up and after the reset."""
    gradients = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    shape = [hooks(model), gradients, [parameter.requires_grad for parameter in model.parameters()], model.training]
    return digest(weights(model), optimizer.state_dict(), random_state, [position], shape)


def device_bytes(model: nn.Module) -> float:
    """Bytes of the parameters and buffers that lie on an accelerator."""
    found = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in weights(model).values() if not t.is_cpu}
    return float(sum(storage.nbytes() for storage in found.values()))


def state_bytes(optimizer: Any, model: nn.Module) -> int:
    """Bytes of the optimizer's state: distinct storages that no parameter or buffer uses."""
    shared = {tensor.untyped_storage().data_ptr() for tensor in weights(model).values()}
    found: dict[tuple[str, int], int] = {}
    for tensor in tensors(optimizer.state_dict()):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in shared:
            found[str(tensor.device), storage.data_ptr()] = storage.nbytes()
    return sum(found.values())
