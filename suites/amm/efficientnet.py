"""EfficientNet-Lite0, the network of 1280 features: its layers, and reading the published weights into them.

Layers: M. Tan and Q. V. Le, EfficientNet, ICML 2019 (arXiv 1905.11946), table 1, without squeeze-and-excitation and
with ReLU6 for swish, which makes it Lite (TensorFlow's announcement of the Lite models, 2020). Weights converted from
TensorFlow want its SAME padding, which puts the odd row and column at the end.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Kernel side, stride, expansion, channels, repeats (arXiv 1905.11946, table 1, stages 2 to 8).
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM, WIDTH, CLASSES = 32, 1280, 1000
#: Added to variances: that of the TensorFlow models.
EPSILON = 1e-3
#: Parts of the stored names -> ours, in the order of replacement.
_NAMES = (
    ("_blocks.", "blocks."),
    ("_conv_stem.", "stem.conv."),
    ("_conv_head.", "head.conv."),
    ("_fc.", "classifier."),
    ("_expand_conv.", "expand.conv."),
    ("_depthwise_conv.", "depth.conv."),
    ("_project_conv.", "project.conv."),
)
_NORMS = {True: ("expand", "depth", "project"), False: ("stem", "head")}


class Unit(nn.Module):
    """Convolution with SAME padding, batch norm, ReLU6 unless ``linear``."""

    def __init__(
        self, inputs: int, outputs: int, side: int, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, side, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=EPSILON)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, h, w] -> [batch, outputs, ceil(h / stride), ceil(w / stride)]."""
        side, stride = self.conv.kernel_size[0], self.conv.stride[0]
        tall, wide = (max((-(-n // stride) - 1) * stride + side - n, 0) for n in x.shape[2:])
        x = functional.pad(x, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))
        x = self.norm(self.conv(x))
        return x if self.linear else functional.relu6(x)


class Block(nn.Module):
    """Inverted bottleneck: 1 x 1 expansion (none at ratio 1), depthwise, 1 x 1 projection, sum with its input."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int, ratio: int) -> None:
        super().__init__()
        inner = inputs * ratio
        self.expand = Unit(inputs, inner, 1) if ratio != 1 else nn.Identity()
        self.depth = Unit(inner, inner, side, stride, groups=inner)
        self.project = Unit(inner, outputs, 1, linear=True)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, h, w] -> [batch, outputs, h / stride, w / stride]."""
        y: Tensor = self.project(self.depth(self.expand(x)))
        return x + y if self.shortcut else y


class EfficientNetLite0(nn.Module):
    """[batch, 3, h, w], (RGB - 127) / 128, -> 1280 features or 1000 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Unit(3, STEM, 3, 2)
        blocks, inputs = [], STEM
        for side, stride, ratio, outputs, repeats in STAGES:
            for place in range(repeats):
                blocks.append(Block(inputs, outputs, side, stride if place == 0 else 1, ratio))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = Unit(inputs, WIDTH, 1)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """[batch, 1280]: means over positions."""
        hidden: Tensor = self.head(self.blocks(self.stem(images)))
        return hidden.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """[batch, 1000] logits of ImageNet's classes."""
        return self.classifier(self.features(images))  # type: ignore[no-any-return]


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The stored weights under our names; the batch norms are numbered from 0 within each block and outside them."""
    found = {}
    for name, value in state.items():
        inside, new = name.startswith("_blocks."), name
        for old, ours in _NAMES:
            new = new.replace(old, ours)
        for number, unit in enumerate(_NORMS[inside]):
            new = new.replace(f"_bn{number}.", f"{unit}.norm.")
        found[new] = value
    return found


def from_weights(state: Mapping[str, Tensor]) -> EfficientNetLite0:
    """The network with the published weights, in evaluation mode.

    Raises:
        RuntimeError: names or shapes are not this network's.
    """
    with torch.device("meta"):
        net = EfficientNetLite0()
    net.load_state_dict(renamed(state), assign=True)
    return net.eval()
