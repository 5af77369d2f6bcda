"""Gradients of two small networks trained on data that ships inside scikit-learn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from harness.errors import MissingDependency
from suites.gradient_capture import Capture, Layer, deterministic, train

#: Early steps lie closer together: the spectrum changes most there.
STEPS = (10, 20, 30, 50, 75, 100, 150, 200, 250, 300, 350, 400)


class DigitsNet(nn.Module):
    """Two 3 x 3 convolutions (32, 64 channels), pooling, and two linear layers on 8 x 8 digits; 151,306 parameters.

    The activation is GELU: with ReLU, dying units leave rows of exact zeros, whose polar factor is arbitrary.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 4 * 4, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, 1, 8, 8] -> logits [batch, 10]."""
        hidden = functional.gelu(self.conv2(functional.gelu(self.conv1(images))))
        hidden = functional.max_pool2d(hidden, 2).flatten(1)
        return self.fc2(functional.gelu(self.fc1(hidden)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm transformer block: causal attention and a 4 x MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, time, width] -> the same shape."""
        batch, time, width = x.shape
        q, k, v = (
            part.view(batch, time, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mask = torch.full((time, time), float("-inf")).triu(1)
        weights = (q @ k.mT / q.shape[-1] ** 0.5 + mask).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, time, width))
        return x + self.mlp_out(functional.gelu(self.mlp_in(self.norm2(x))))  # type: ignore[no-any-return]


class TextNet(nn.Module):
    """Character transformer: two layers, width 128, four heads, context 64."""

    WIDTH, HEADS, CONTEXT = 128, 4, 64

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, self.WIDTH)
        self.place = nn.Embedding(self.CONTEXT, self.WIDTH)
        self.first, self.last = Block(self.WIDTH, self.HEADS), Block(self.WIDTH, self.HEADS)
        self.norm = nn.LayerNorm(self.WIDTH)
        self.head = nn.Linear(self.WIDTH, characters, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[batch, time] -> logits [batch, time, characters]."""
        x = self.embed(tokens) + self.place.weight[: tokens.shape[1]]
        return self.head(self.norm(self.last(self.first(x))))  # type: ignore[no-any-return]


def _sklearn() -> Any:
    try:
        import sklearn.datasets
    except ImportError as error:
        raise MissingDependency(
            "capturing gradients needs scikit-learn, whose bundled data it trains on; install it with "
            "pip install scikit-learn."
        ) from error
    return sklearn.datasets


def bundled_text() -> str:
    """The data-set descriptions inside scikit-learn (``datasets/descr/*.rst``), joined in the order of their names."""
    folder = Path(_sklearn().__file__).parent / "descr"
    return "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.rst")))


def capture_digits_cnn(steps: Sequence[int] = STEPS) -> Capture:
    """Gradients of :class:`DigitsNet` on scikit-learn's 1,797 digits, batches of 64 drawn with replacement."""
    digits = _sklearn().load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.tensor(digits.target)
    with deterministic():
        net = DigitsNet()

        def loss_of(_step: int) -> torch.Tensor:
            picked = torch.randint(len(labels), (64,))
            return functional.cross_entropy(net(images[picked]), labels[picked])

        weights = {"conv2": net.conv2.weight, "fc1": net.fc1.weight, "fc2": net.fc2.weight}
        matrices, losses = train(net, loss_of, {key: Layer(weight, steps) for key, weight in weights.items()})
    content = np.ascontiguousarray(digits.images, dtype=np.uint8).tobytes()
    return Capture(matrices, losses, hashlib.sha256(content).hexdigest(), len(labels), dict.fromkeys(matrices, steps))


def capture_text_transformer(steps: Sequence[int] = STEPS) -> Capture:
    """Gradients of :class:`TextNet` on scikit-learn's bundled descriptions, 16 windows of 64 characters a step."""
    text = bundled_text()
    known = {character: index for index, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([known[character] for character in text])
    with deterministic():
        net = TextNet(len(known))
        window = torch.arange(TextNet.CONTEXT + 1)

        def loss_of(_step: int) -> torch.Tensor:
            start = torch.randint(len(tokens) - TextNet.CONTEXT, (16, 1))
            part = tokens[start + window]
            return functional.cross_entropy(net(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten())

        weights = {"qkv": net.first.qkv.weight, "mlp_in": net.last.mlp_in.weight, "mlp_out": net.last.mlp_out.weight}
        matrices, losses = train(net, loss_of, {key: Layer(weight, steps) for key, weight in weights.items()})
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Capture(matrices, losses, digest, len(tokens), dict.fromkeys(matrices, steps))
