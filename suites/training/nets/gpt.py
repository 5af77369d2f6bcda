"""A small causal transformer over characters: Radford et al., "Language models are unsupervised multitask learners"."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional


class _Block(nn.Module):
    """Pre-norm block: causal attention and an MLP of four times the width with GELU."""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        self.mlp_in, self.mlp_out = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, time, width] -> the same shape."""
        batch, time, width = x.shape
        q, k, v = (part.view(batch, time, self.heads, -1).transpose(1, 2) for part in self._split(x))
        rate = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        x = x + self._dropped(self.out(mixed.transpose(1, 2).reshape(batch, time, width)))
        return x + self._dropped(self.mlp_out(functional.gelu(self.mlp_in(self.norm2(x)))))

    def _split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.qkv(self.norm1(x)).chunk(3, -1)  # type: ignore[no-any-return]

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(x, self.dropout, self.training)


class CharGPT(nn.Module):
    """Learned positions, pre-norm blocks, GELU; the output layer shares the embedding's weight.

    Weights start from N(0, 0.02²), the two that end on the residual stream from N(0, 0.02² / (2 layers)).

    Args:
        vocabulary: number of characters.
        context: longest window.
        layers: number of blocks.
        heads: attention heads.
        width: of the residual stream.
        dropout: probability after the embedding, in the attention and on each branch.
        bias: whether linear layers and norms have biases.
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        layers: int,
        heads: int,
        width: int,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout, bias) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=bias)
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                continue
            ends = name.endswith(("out.weight", "mlp_out.weight"))
            nn.init.normal_(weight, std=0.02 / (math.sqrt(2.0 * layers) if ends else 1.0))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [batch, time] -> logits [batch, time, vocabulary]."""
        x = self.embed(tokens) + self.place.weight[: tokens.shape[1]]
        x = functional.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.embed.weight)
