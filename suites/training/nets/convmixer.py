"""ConvMixer: Trockman and Kolter, "Patches are all you need?" (arXiv 2201.09792)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class _Mixer(nn.Module):
    """A depthwise convolution beside the identity mixes places, a 1 x 1 convolution mixes channels."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, groups=width, padding="same")
        self.pointwise = nn.Conv2d(width, width, 1)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, width, side, side] -> the same shape."""
        x = x + self.norm1(functional.gelu(self.depthwise(x)))
        return self.norm2(functional.gelu(self.pointwise(x)))  # type: ignore[no-any-return]


class ConvMixer(nn.Module):
    """Patches by a strided convolution, mixers, the mean over places, one linear layer.

    Args:
        channels: colours of an image.
        width: channels of every layer.
        depth: number of mixers.
        kernel: side of the depthwise convolutions.
        patch: side of a patch.
        classes: number of logits.
    """

    def __init__(
        self, channels: int = 3, width: int = 256, depth: int = 8, kernel: int = 5, patch: int = 2, classes: int = 10
    ) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(channels, width, patch, stride=patch), nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(_Mixer(width, kernel) for _ in range(depth)))
        self.head = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, channels, side, side] -> logits [batch, classes]."""
        x = self.norm(functional.gelu(self.embed(images)))
        return self.head(self.blocks(x).mean((2, 3)))  # type: ignore[no-any-return]
