"""The closure that the trainer gives to a method of two halves."""

import pytest
import torch
from torch import nn


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
