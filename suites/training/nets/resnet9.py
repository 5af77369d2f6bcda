"""ResNet-9 for 32 x 32 images, in the widths of the look-up accelerator Stella Nera (arXiv 2311.10207)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def _block(inputs: int, outputs: int, pool: bool = False) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class ResNet9(nn.Module):
    """Eight 3 x 3 convolutions with batch norm and two shortcuts, then a linear layer; 2,440,266 parameters.

    The layout is D. Page's ("How to train your ResNet", 2018) with a fourth plain block and at most 256 channels. One
    codebook per input channel is then at most 256 of them, whose 8-bit entries still sum exactly in 16 bits.

    Args:
        classes: number of logits.
        widths: channels of the stem, of the first residual stage and of the rest.
    """

    def __init__(self, classes: int = 10, widths: tuple[int, int, int] = (64, 128, 256)) -> None:
        super().__init__()
        first, middle, last = widths
        self.stem = _block(3, first)
        self.down1 = _block(first, middle, pool=True)
        self.residual1 = nn.Sequential(_block(middle, middle), _block(middle, middle))
        self.down2 = nn.Sequential(_block(middle, last, pool=True), _block(last, last, pool=True))
        self.residual2 = nn.Sequential(_block(last, last), _block(last, last))
        self.head = nn.Linear(last, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, 3, side, side] -> logits [batch, classes]."""
        hidden = self.down1(self.stem(images))
        hidden = self.down2(hidden + self.residual1(hidden))
        hidden = hidden + self.residual2(hidden)
        # A pool and not amax, for the reason in airbench.py.
        hidden = functional.max_pool2d(hidden, (hidden.shape[2], hidden.shape[3])).flatten(1)
        return self.head(hidden)  # type: ignore[no-any-return]
