"""VGG-16 with batch norm for 32 x 32 images: Simonyan and Zisserman, arXiv 1409.1556, column D."""

from __future__ import annotations

import math

import torch
from torch import nn

#: Channels of the 3 x 3 convolutions; 0 is a 2 x 2 pooling.
LAYOUT = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


class VGG16(nn.Module):
    """Thirteen convolutions with bias and batch norm, then Linear 512-512, ReLU, dropout, Linear 512-classes.

    The head is that of the randomized K-FAC experiments (arXiv 2206.15397 and its published code); 14,990,922
    parameters for ten classes. Convolutions start from N(0, 2 / (9 outputs)), linear layers from N(0, 0.01²), as there.

    Args:
        classes: number of logits.
        dropout: probability in the head.
        wide: the network of the B-KFAC experiments (arXiv 2210.08494): the poolings halve height and width in turn, so
            that 512 x 4 x 8 = 16,384 features enter the head, Linear 16,384-2048, ReLU, dropout, Linear 2048-classes.
    """

    def __init__(self, classes: int = 10, dropout: float = 0.5, wide: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, pools = 3, 0
        for width in LAYOUT:
            if width:
                conv = nn.Conv2d(inputs, width, 3, padding=1)
                nn.init.normal_(conv.weight, std=math.sqrt(2.0 / (9 * width)))
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            else:
                layers.append(nn.MaxPool2d(((2, 1), (1, 2))[pools % 2] if wide else 2))
                pools += 1
        self.features = nn.Sequential(*layers)
        features, hidden = (512 * 4 * 8, 2048) if wide else (512, 512)
        self.head = nn.Sequential(
            nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, classes)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, 3, 32, 32] -> logits [batch, classes]."""
        return self.head(self.features(images).flatten(1))  # type: ignore[no-any-return]
