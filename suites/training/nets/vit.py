"""A plain vision transformer: Dosovitskiy et al., "An image is worth 16 x 16 words" (arXiv 2010.11929)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class _Block(nn.Module):
    """Pre-norm block: attention in one matrix (3 d, d) and a projection, an MLP with GELU."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, width] -> the same shape."""
        batch, tokens, width = x.shape
        split = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(split[0], split[1], split[2])
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]


class ViT(nn.Module):
    """Patches, learned positions, pre-norm blocks, the mean over patches, one linear layer.

    Departures from the source: the mean instead of a class token (Beyer et al., "Better plain ViT baselines",
    arXiv 2205.01580), and no dropout. Linear layers start from a truncated N(0, 0.02^2).

    Args:
        side: pixels of an image's side.
        patch: pixels of a patch's side; divides ``side``.
        channels: colours of an image.
        width: of the residual stream.
        layers: number of blocks.
        heads: attention heads.
        ratio: hidden units of an MLP / ``width``.
        classes: number of logits.
    """

    def __init__(
        self,
        side: int = 32,
        patch: int = 4,
        channels: int = 3,
        width: int = 192,
        layers: int = 6,
        heads: int = 3,
        ratio: int = 4,
        classes: int = 10,
    ) -> None:
        super().__init__()
        if side % patch or width % heads:
            raise ValueError(f"patch divides side and heads divide width; got {patch}, {side} and {heads}, {width}")
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.place = nn.Parameter(torch.zeros(1, (side // patch) ** 2, width))
        self.blocks = nn.Sequential(*(_Block(width, heads, ratio * width) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.place, std=0.02)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, channels, side, side] -> logits [batch, classes]."""
        x = self.embed(images).flatten(2).mT + self.place
        return self.head(self.norm(self.blocks(x)).mean(1))  # type: ignore[no-any-return]
