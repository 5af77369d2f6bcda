"""Residual networks: He, Zhang, Ren and Sun, "Deep residual learning for image recognition" (arXiv 1512.03385)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    # He et al., arXiv 1502.01852, over the outputs.
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class _Padded(nn.Module):
    """Shortcut A: every second pixel, the missing channels zero on both sides; no parameters."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.missing = outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.missing // 2
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.missing - before))


def _projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Shortcut B: a 1 x 1 convolution and batch norm."""
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class Basic(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, padded: bool = False) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = _conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = _Padded(inputs, outputs) if padded else _projection(inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, inputs, side, side] -> [batch, outputs, side / stride, side / stride]."""
        out = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (which carries the stride, as in the "v1.5" of common use) and 1 x 1 convolutions."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.norm1 = _conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.norm3 = _conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _projection(inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, inputs, side, side] -> [batch, 4 width, side / stride, side / stride]."""
        out = functional.relu(self.norm1(self.conv1(x)))
        out = functional.relu(self.norm2(self.conv2(out)))
        return functional.relu(self.norm3(self.conv3(out)) + self.shortcut(x))


class ResNetCifar(nn.Module):
    """The CIFAR network of section 4.2: 6 n + 2 layers of 16, 32, 64 channels; ResNet-32 has 464,154 parameters.

    Args:
        depth: 6 n + 2.
        classes: number of logits.
    """

    def __init__(self, depth: int = 32, classes: int = 10) -> None:
        super().__init__()
        if depth % 6 != 2:
            raise ValueError(f"a CIFAR ResNet has 6 n + 2 layers, got {depth}")
        blocks: list[nn.Module] = []
        inputs = 16
        for width in (16, 32, 64):
            for place in range(depth // 6):
                blocks.append(Basic(inputs, width, 2 if place == 0 and width > 16 else 1, padded=True))
                inputs = width
        self.stem = nn.Sequential(_conv(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(64, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, 3, 32, 32] -> logits [batch, classes]."""
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))  # type: ignore[no-any-return]


class _Stem(nn.Module):
    """7 x 7 convolution and 3 x 3 pooling, each of stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = _conv(3, width, 7, 2), nn.BatchNorm2d(width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return functional.max_pool2d(functional.relu(self.norm(self.conv(images))), 3, 2, 1)


class ResNet(nn.Module):
    """A stem, four stages of blocks, average pooling and a linear layer."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], features: int, classes: int) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.Sequential(*blocks), nn.Linear(features, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, 3, side, side] -> logits [batch, classes]."""
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))  # type: ignore[no-any-return]


def resnet18_cifar(classes: int = 10, widths: tuple[int, ...] = (64, 128, 256, 512)) -> ResNet:
    """ResNet-18 with the stem of one 3 x 3 convolution that is usual for 32 x 32 images; 11,173,962 parameters."""
    blocks: list[nn.Module] = []
    inputs = widths[0]
    for stage, width in enumerate(widths):
        blocks += [Basic(inputs, width, 1 if stage == 0 else 2), Basic(width, width, 1)]
        inputs = width
    stem = nn.Sequential(_conv(3, widths[0], 3), nn.BatchNorm2d(widths[0]), nn.ReLU())
    return ResNet(stem, blocks, widths[-1], classes)


def resnet50(classes: int = 1000) -> ResNet:
    """ResNet-50; 25,557,032 parameters.

    The last norm of each block starts at zero (Goyal et al., arXiv 1706.02677, section 5.1).
    """
    blocks: list[nn.Module] = []
    inputs = 64
    for width, count in zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True):
        for place in range(count):
            block = Bottleneck(inputs, width, 2 if place == 0 and width > 64 else 1)
            nn.init.zeros_(block.norm3.weight)
            blocks.append(block)
            inputs = 4 * width
    return ResNet(_Stem(64), blocks, inputs, classes)
