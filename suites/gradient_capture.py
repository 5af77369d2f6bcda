"""What every capture of gradients shares: deterministic training by AdamW and the momentum average that is kept.

What is kept is the matrix that Muon orthogonalizes, the Nesterov form of the momentum average,
``u = (1 - b) g + b m`` with ``m <- b m + (1 - b) g`` and b = 0.95 (K. Jordan, "Muon: An optimizer for hidden layers in
neural networks", 2024). The networks themselves are trained by AdamW, so that no orthogonalization is involved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

MOMENTUM = 0.95
SEED = 20240
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Capture:
    """Matrices by key, stacked over the key's captured steps (float32), and the losses at all steps in order."""

    matrices: dict[str, np.ndarray]
    losses: list[float]
    data_sha256: str
    samples: int
    steps: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Layer:
    """A weight whose gradient is kept, and the updates (counted from 1) at which it is."""

    weight: torch.Tensor
    steps: Sequence[int]


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """One thread, deterministic algorithms and torch's generator at ``SEED``; all put back afterwards."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    state = torch.random.get_rng_state()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        torch.random.set_rng_state(state)


def train(
    net: nn.Module, loss_of: Callable[[int], torch.Tensor], layers: Mapping[str, Layer]
) -> tuple[dict[str, np.ndarray], list[float]]:
    """Train up to the last step of any layer; the kept matrices by key, flattened to [rows, rest], and the losses.

    Args:
        net: trained in place.
        loss_of: loss of the update with this number, counted from 1.
        layers: what is kept, by key.
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, foreach=False)
    momentum = {key: torch.zeros_like(layer.weight) for key, layer in layers.items()}
    kept: dict[str, list[np.ndarray]] = {key: [] for key in layers}
    every = {step for layer in layers.values() for step in layer.steps}
    losses = []
    for step in range(1, max(every) + 1):
        optimizer.zero_grad()
        loss = loss_of(step)
        loss.backward()  # type: ignore[no-untyped-call]
        for key, layer in layers.items():
            gradient = layer.weight.grad
            assert gradient is not None
            momentum[key].lerp_(gradient, 1 - MOMENTUM)
            if step in layer.steps:
                kept[key].append(gradient.lerp(momentum[key], MOMENTUM).flatten(1).numpy())
        if step in every:
            losses.append(round(loss.item(), 4))
        optimizer.step()
    return {key: np.stack(matrices) for key, matrices in kept.items()}, losses
