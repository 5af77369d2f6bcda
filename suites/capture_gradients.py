"""Capture the weight gradients of two small networks trained on data that ships inside scikit-learn.

``python -m suites.capture_gradients [NAME ...] [--out DIR]`` writes ``NAME.npz`` and its card ``NAME.toml``.

What is kept is the matrix that Muon orthogonalizes, the Nesterov form of the momentum average,
``u = (1 - b) g + b m`` with ``m <- b m + (1 - b) g`` and b = 0.95 (K. Jordan, "Muon: An optimizer for hidden layers in
neural networks", 2024). The networks themselves are trained by AdamW, so that no orthogonalization is involved.
Each matrix is divided by its largest magnitude and stored in float16; the divisor is stored beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from harness.catalogue import dataset
from harness.errors import MissingDependency

COMMAND = "python -m suites.capture_gradients"
MOMENTUM = 0.95
SEED = 20240
#: Early steps lie closer together: the spectrum changes most there.
STEPS = (10, 20, 30, 50, 75, 100, 150, 200, 250, 300, 350, 400)


@dataclass(frozen=True)
class Capture:
    """Matrices by key, stacked over the captured steps (float32), and the training losses at those steps."""

    matrices: dict[str, np.ndarray]
    losses: list[float]
    data_sha256: str
    samples: int


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


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    state = torch.random.get_rng_state()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        torch.random.set_rng_state(state)


def _train(
    net: nn.Module, loss_of: Callable[[], torch.Tensor], layers: Mapping[str, torch.Tensor], steps: Sequence[int]
) -> tuple[dict[str, np.ndarray], list[float]]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, foreach=False)
    momentum = {key: torch.zeros_like(weight) for key, weight in layers.items()}
    kept: dict[str, list[np.ndarray]] = {key: [] for key in layers}
    losses = []
    for step in range(1, max(steps) + 1):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        for key, weight in layers.items():
            assert weight.grad is not None
            momentum[key].lerp_(weight.grad, 1 - MOMENTUM)
            if step in steps:
                kept[key].append(weight.grad.lerp(momentum[key], MOMENTUM).flatten(1).numpy())
        if step in steps:
            losses.append(round(loss.item(), 4))
        optimizer.step()
    return {key: np.stack(matrices) for key, matrices in kept.items()}, losses


def capture_digits_cnn(steps: Sequence[int] = STEPS) -> Capture:
    """Gradients of :class:`DigitsNet` on scikit-learn's 1,797 digits, batches of 64 drawn with replacement."""
    digits = _sklearn().load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.tensor(digits.target)
    with _deterministic():
        net = DigitsNet()

        def loss_of() -> torch.Tensor:
            picked = torch.randint(len(labels), (64,))
            return functional.cross_entropy(net(images[picked]), labels[picked])

        layers = {"conv2": net.conv2.weight, "fc1": net.fc1.weight, "fc2": net.fc2.weight}
        matrices, losses = _train(net, loss_of, layers, steps)
    content = np.ascontiguousarray(digits.images, dtype=np.uint8).tobytes()
    return Capture(matrices, losses, hashlib.sha256(content).hexdigest(), len(labels))


def capture_text_transformer(steps: Sequence[int] = STEPS) -> Capture:
    """Gradients of :class:`TextNet` on scikit-learn's bundled descriptions, 16 windows of 64 characters a step."""
    text = bundled_text()
    known = {character: index for index, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([known[character] for character in text])
    with _deterministic():
        net = TextNet(len(known))
        window = torch.arange(TextNet.CONTEXT + 1)

        def loss_of() -> torch.Tensor:
            start = torch.randint(len(tokens) - TextNet.CONTEXT, (16, 1))
            part = tokens[start + window]
            return functional.cross_entropy(net(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten())

        layers = {"qkv": net.first.qkv.weight, "mlp_in": net.last.mlp_in.weight, "mlp_out": net.last.mlp_out.weight}
        matrices, losses = _train(net, loss_of, layers, steps)
    return Capture(matrices, losses, hashlib.sha256(text.encode()).hexdigest(), len(tokens))


@dataclass(frozen=True)
class Recipe:
    """How one card is made: the capture, and the words of the card."""

    capture: Callable[[], Capture]
    title: str
    licence: str
    citation: str
    words: str


RECIPES = {
    "gradients-digits-cnn": Recipe(
        capture_digits_cnn,
        "Momentum-averaged weight gradients of a small CNN on handwritten digits",
        "gradients: MIT, as this project; digits: CC BY 4.0 (UCI), shipped in scikit-learn (BSD-3-Clause)",
        "E. Alpaydin, C. Kaynak (1998). Optical Recognition of Handwritten Digits. UCI Machine Learning Repository. "
        "https://doi.org/10.24432/C50P49",
        "sklearn.datasets.load_digits, 1,797 images of 8 x 8 divided by 16; DigitsNet (convolutions 1-32-64 of 3 x 3, "
        "max pooling, linear 1024-128-10, GELU); cross-entropy, batches of 64 drawn with replacement",
    ),
    "gradients-text-transformer": Recipe(
        capture_text_transformer,
        "Momentum-averaged weight gradients of a small character transformer on English text",
        "gradients: MIT, as this project; text: BSD-3-Clause (scikit-learn)",
        "Pedregosa et al. (2011). Scikit-learn: Machine Learning in Python. JMLR 12, 2825-2830.",
        "scikit-learn's bundled data-set descriptions (sklearn/datasets/descr/*.rst, sorted by name, joined by an "
        "empty line); TextNet (2 pre-norm layers, width 128, 4 heads, MLP 4 x, GELU, context 64, characters as "
        "tokens); cross-entropy, 16 windows a step",
    ),
}


def pack(matrices: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each matrix over its largest magnitude as float16 under ``key``; the divisors as float32 under ``key.scale``."""
    packed: dict[str, np.ndarray] = {}
    for key, stack in matrices.items():
        scale = np.abs(stack).max(axis=(1, 2)).astype(np.float32)
        packed[key] = (stack / scale[:, None, None]).astype(np.float16)
        packed[f"{key}.scale"] = scale
    return packed


def write(name: str, out: Path) -> Path:
    """Capture ``name`` and write ``out/name.npz`` and ``out/name.toml``; returns the card's path."""
    recipe = RECIPES[name]
    captured = recipe.capture()
    data = out / f"{name}.npz"
    np.savez_compressed(data, **pack(captured.matrices))  # type: ignore[arg-type]
    card = out / f"{name}.toml"
    card.write_text(_card(name, recipe, captured, data), encoding="utf-8")
    return card


def _card(name: str, recipe: Recipe, captured: Capture, data: Path) -> str:
    lines = [
        f'title = "{recipe.title}"',
        f'licence = "{recipe.licence}"',
        f'citation = "{recipe.citation}"',
        f'file = "{data.name}"',
        f'sha256 = "{hashlib.sha256(data.read_bytes()).hexdigest()}"',
        f'command = "{COMMAND} {name}"',
        f'recipe = "{recipe.words}; AdamW 1e-3, seed {SEED}, float32 on one CPU thread, deterministic algorithms"',
        f'content = "Nesterov momentum average (b = {MOMENTUM}) of the gradient, flattened to two dimensions; float16 '
        'over the largest magnitude, which is under KEY.scale"',
        f"samples = {captured.samples}",
        f'data_sha256 = "{captured.data_sha256}"',
        f"steps = {list(STEPS)}",
        f"losses = {captured.losses}",
        f'versions = {{ python = "{platform.python_version()}", torch = "{torch.__version__}", '
        f'numpy = "{np.__version__}", scikit-learn = "{metadata.version("scikit-learn")}" }}',
    ]
    for key, stack in captured.matrices.items():
        lines += ["", "[[arrays]]", f'name = "{key}"', f"shape = {list(stack.shape[1:])}"]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: capture the named sets (all by default) into a folder."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Capture weight gradients as committed test inputs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{' or '.join(RECIPES)}; both when none is named")
    parser.add_argument("--out", type=Path, help="folder to write to (default: the folder of cards)")
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.names) - set(RECIPES))
    if unknown:
        parser.error(f"unknown capture {unknown[0]!r}; known: {', '.join(RECIPES)}")
    out = chosen.out or dataset.folder()
    out.mkdir(parents=True, exist_ok=True)
    for name in chosen.names or RECIPES:
        print(write(name, out))


if __name__ == "__main__":
    main()
