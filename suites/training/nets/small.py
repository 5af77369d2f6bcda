"""Small networks for the CPU: convolutional ones for digits and garments, and a deep linear one."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional


class DigitsCNN(nn.Module):
    """Two 3 x 3 convolutions (16, 32), a pooling and two linear layers (64, 10) on 8 x 8 digits; 38,282 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc1 = nn.Linear(32 * 4 * 4, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, 1, 8, 8] -> logits [batch, 10]."""
        hidden = functional.relu(self.conv2(functional.relu(self.conv1(images))))
        hidden = functional.max_pool2d(hidden, 2).flatten(1)
        return self.fc2(functional.relu(self.fc1(hidden)))  # type: ignore[no-any-return]


class FashionCNN(nn.Module):
    """Two convolutions (16, 32; batch norm, pooling) and two linear layers (128, 10) on 28 x 28; 207,018 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.fc1 = nn.Linear(32 * 7 * 7, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, 1, 28, 28] -> logits [batch, 10]."""
        hidden = functional.relu(self.norm1(functional.max_pool2d(self.conv1(images), 2)))
        hidden = functional.relu(self.norm2(functional.max_pool2d(self.conv2(hidden), 2)))
        return self.fc2(functional.relu(self.fc1(hidden.flatten(1))))  # type: ignore[no-any-return]


class DeepLinear(nn.Module):
    """Linear layers without bias and without any non-linearity between them.

    In exact arithmetic its logits are one matrix times the pixels, whatever the depth. In low precision every layer's
    rounding, underflow and overflow is a non-linear function of its input; whether training can use it is the
    question (J. Foerster, "Nonlinear computation in deep linear networks", OpenAI, 2017).

    Args:
        inputs: pixels of an image.
        width: width of the hidden layers.
        depth: number of linear layers.
        classes: number of logits.
    """

    def __init__(self, inputs: int = 64, width: int = 128, depth: int = 6, classes: int = 10) -> None:
        super().__init__()
        widths = [inputs, *[width] * (depth - 1), classes]
        layers = [nn.Linear(a, b, bias=False) for a, b in pairwise(widths)]
        for layer in layers:
            nn.init.orthogonal_(layer.weight)
        self.layers = nn.ModuleList(layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, channels, height, width] -> logits [batch, classes]."""
        hidden = images.flatten(1)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden
