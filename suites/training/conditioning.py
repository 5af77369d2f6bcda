"""Facts about a trained network: how well conditioned its weights are, and how it bears noise on its input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from harness.catalogue.workload import Batch
from suites.training import counter

#: Standard deviations of the input noise, in units of the normalized input.
NOISE = (0.1, 0.2, 0.4)
#: Noise is drawn once for this many images and used again for the next ones.
BANK = 256
NOISE_SEED = 0
#: Condition numbers are reported up to here: float32 cannot hold a smaller ratio of singular values.
LARGEST = 1.0 / torch.finfo(torch.float32).eps


def weight_spectra(model: nn.Module) -> dict[str, float]:
    """Geometric means over the trained weights with two or more dimensions, flattened to [out, rest].

    Returns:
        ``weight_sigma_spread`` = σ_max / σ_median and ``weight_condition`` = σ_max / σ_min, each at most 1 / eps of
        float32; vectors and frozen weights are left out. Empty when nothing is left.
    """
    spreads, conditions = [], []
    for weight in model.parameters():
        if not weight.requires_grad or weight.dim() < 2:
            continue
        matrix = weight.detach().float().flatten(1)
        if min(matrix.shape) < 2:
            continue
        sigma = torch.linalg.svdvals(matrix)
        ratios = (sigma[0] / torch.stack([sigma.median(), sigma[-1]]).clamp_min(1e-38)).clamp(max=LARGEST)
        spread, condition = ratios.log().tolist()
        spreads.append(spread)
        conditions.append(condition)
    if not spreads:
        return {}
    return {
        "weight_sigma_spread": math.exp(sum(spreads) / len(spreads)),
        "weight_condition": math.exp(sum(conditions) / len(conditions)),
    }


def noisy(batches: Iterator[Batch], deviation: float, bank: torch.Tensor) -> Iterator[Batch]:
    """The batches with ``deviation`` times the bank's noise added: image k takes row k modulo the bank's size."""
    first = 0
    for inputs, targets in batches:
        rows = torch.arange(first, first + len(inputs), device=inputs.device) % len(bank)
        yield Batch(inputs + deviation * bank[rows].to(inputs.dtype), targets)
        first += len(inputs)


def noise_bank(sample: torch.Tensor) -> torch.Tensor:
    """Fixed standard normal noise for ``BANK`` images of the shape of ``sample`` [channels, height, width]."""
    count = BANK * sample.numel()
    return counter.normal(NOISE_SEED, counter.NOISE, count, sample.device).view(BANK, *sample.shape)


def noise_accuracy(
    evaluate: Callable[[Iterator[Batch]], Mapping[str, float]], batches: Callable[[], Iterator[Batch]]
) -> dict[str, float]:
    """``noise_accuracy_<deviation>`` for each deviation of ``NOISE``."""
    bank = noise_bank(next(iter(batches())).inputs[0])
    return {f"noise_accuracy_{level}": evaluate(noisy(batches(), level, bank))["accuracy"] for level in NOISE}
