"""A vision transformer with progressive tokenization: Yuan et al., "Tokens-to-token ViT" (arXiv 2101.11986)."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional


class _Attention(nn.Module):
    """Multi-head self-attention; the values may be wider or narrower than the inputs."""

    def __init__(self, inputs: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(inputs, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[batch, tokens, inputs] -> (mixed values, values), each [batch, tokens, width]."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).chunk(3, -1)
        split = [part.view(batch, tokens, self.heads, -1).transpose(1, 2) for part in (q, k, v)]
        mixed = functional.scaled_dot_product_attention(*split)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1)), v


class _MLP(nn.Sequential):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class _Token(nn.Module):
    """A narrow transformer layer whose residual is its values, since its inputs are wider (section 3.1)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(inputs), nn.LayerNorm(width)
        self.attention, self.mlp = _Attention(inputs, width, 1), _MLP(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed, values = self.attention(self.norm1(x))
        x = values + mixed
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = _Attention(width, width, heads), _MLP(width, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))[0]
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


def sinusoids(count: int, width: int) -> torch.Tensor:
    """Fixed positions [1, count, width] (Vaswani et al., arXiv 1706.03762, section 3.5)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(count)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[None, :, :width]


class T2TViT(nn.Module):
    """Two rounds of "unfold, re-tokenize" (7 x 7 stride 4, 3 x 3 stride 2), a last unfold (3 x 3 stride 2), a backbone.

    The defaults are T2T-ViT-7: 7 layers, width 256, 4 heads, MLP ratio 2 (Table 1 of the paper). The tokenizer uses
    its transformer form, softmax attention of width 64, instead of the Performer of the small published models.

    Departures from the paper: no stochastic depth; LayerNorm with torch's eps; attention without dropout.

    Args:
        side: of the images, a multiple of 16.
        classes: number of logits.
        layers: of the backbone.
        width: of the backbone.
        heads: of the backbone.
        ratio: MLP width over ``width``.
        token_width: of the tokenizer.
    """

    def __init__(
        self,
        side: int = 224,
        classes: int = 100,
        layers: int = 7,
        width: int = 256,
        heads: int = 4,
        ratio: float = 2.0,
        token_width: int = 64,
    ) -> None:
        super().__init__()
        if side % 16:
            raise ValueError(f"T2T-ViT needs a side that is a multiple of 16, got {side}")
        self.grid = side // 4
        self.first, self.second = _Token(3 * 7 * 7, token_width), _Token(token_width * 9, token_width)
        self.project = nn.Linear(token_width * 9, width)
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sinusoids((side // 16) ** 2 + 1, width), persistent=False)
        self.blocks = nn.Sequential(*(_Block(width, heads, int(ratio * width)) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.start, std=0.02)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, 3, side, side] -> logits [batch, classes]."""
        x = functional.unfold(images, 7, stride=4, padding=2).mT
        for layer, grid in ((self.first, self.grid), (self.second, self.grid // 2)):
            picture = layer(x).mT.reshape(len(images), -1, grid, grid)
            x = functional.unfold(picture, 3, stride=2, padding=1).mT
        x = torch.cat([self.start.expand(len(images), -1, -1), self.project(x)], dim=1)
        positions = self.get_buffer("positions")
        x = self.norm(self.blocks(x + positions.to(x.dtype)))
        return self.head(x[:, 0])  # type: ignore[no-any-return]
