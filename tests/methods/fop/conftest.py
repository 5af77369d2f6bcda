"""The closure that the trainer gives to a method of two halves."""

import pytest
import torch
from torch import nn

from methods.fop import factories

FAST = {"lr": 0.02, "update_period": 2, "refresh_period": 4, "damping": 0.03, "clip_value": 0.3, "factor_decay": 0.8}


@pytest.fixture
def closure():
    """closure(part, targets) of one batch, as the trainer gives it."""

    def make(model, x, y, scale=None, reduction="mean", pieces=1):
        def call(part=None, targets="data"):
            rows = torch.arange(len(x))
            if part is not None:
                rows = rows[part * len(x) // 2 : (part + 1) * len(x) // 2]
            total = 0.0
            for chosen in rows.chunk(pieces):
                z = model(x[chosen])
                drawn = y[chosen] if targets == "data" else z.detach().argmax(1)
                loss = nn.functional.cross_entropy(z, drawn, reduction=reduction)
                if reduction == "mean":
                    loss = loss * len(chosen) / len(rows)
                (loss if scale is None else scale(loss)).backward()
                total = total + loss.detach()
            return total

        return call

    return make


@pytest.fixture
def steps(closure):
    """Steps with a closure on batches first, first + 1, ..."""

    def run(model, optimizer, batches, count, first=0, **options):
        return [optimizer.step(closure(model, *batches(k), **options)) for k in range(first, first + count)]

    return run


@pytest.fixture
def fast():
    """Options under which a few steps reach every part."""
    return FAST


@pytest.fixture
def build():
    """``build(model, arm, **options)`` -> the optimizer under these options."""

    def make(model, arm="fop", **options):
        return getattr(factories, arm)(model, **{**FAST, **options})

    return make
