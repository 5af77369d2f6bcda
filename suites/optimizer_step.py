"""Suite ``optimizer_step``: one update of all weights of a known network, gradients frozen. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from harness.catalogue.protocol import Protocol
from harness.catalogue.suite import Problem, Suite, Tier
from harness.catalogue.task import Task

ERRORS: Mapping[str, str] = {
    "descent_gap": "1 - cosine of update and negative gradient, the mean over the parameters; 1 or more is no descent, "
    "3 no update at all",
    "fidelity_error": "||w - w_ref|| / (||w_ref - w_0|| + eps ||w_ref||) against the plain twin in float64, the worst "
    "parameter; eps is the dtype's rounding unit; gated by dtype and by the iteration's dtype",
    "fidelity_full": "the same ratio over all parameters at once",
}

TASK = Task(
    name="training",
    summary="One update of all weights of a network from frozen gradients (an optimizer's step)",
    contract=(
        "make(model: nn.Module, **hyper) -> torch.optim.Optimizer; step() changes the parameters in place and no "
        "gradient; all of its state is reachable through optimizer.state and changed in place or replaced"
    ),
    runtime="suites.optimizer_step_runtime:RUNTIME",
    oracle=(
        "no optimizer's update is the true one: the direction must descend, and a method with a plain twin must agree "
        "with it in float64, from the same weights and the state after two earlier steps"
    ),
    needs=("torch",),
    errors=ERRORS,
    primary_error="descent_gap",
)

Role = Literal["weight", "embedding", "head"]


class Weight(NamedTuple):
    """One parameter: its name, its shape, and what it is (``weight``: hidden matrix, convolution, bias or norm)."""

    name: str
    shape: tuple[int, ...]
    role: Role = "weight"


def _linear(name: str, out: int, into: int) -> list[Weight]:
    return [Weight(f"{name}.weight", (out, into)), Weight(f"{name}.bias", (out,))]


def _norm(name: str, width: int) -> list[Weight]:
    return [Weight(f"{name}.weight", (width,)), Weight(f"{name}.bias", (width,))]


def _convolution(name: str, out: int, into: int, size: int, *, bias: bool = False, norm: bool = True) -> list[Weight]:
    made = [Weight(f"{name}.weight", (out, into, size, size))]
    made += [Weight(f"{name}.bias", (out,))] if bias else []
    return made + (_norm(f"{name}_norm", out) if norm else [])


def _head(out: int, into: int) -> list[Weight]:
    return [Weight("head.weight", (out, into), "head"), Weight("head.bias", (out,))]


def _blocks(depth: int, width: int) -> list[Weight]:
    """Pre-norm transformer blocks: attention in one matrix (3 d, d) and a projection, MLP of width 4 d."""
    made: list[Weight] = []
    for block in range(depth):
        name = f"block{block}"
        made += _norm(f"{name}.norm1", width) + _linear(f"{name}.qkv", 3 * width, width)
        made += _linear(f"{name}.proj", width, width) + _norm(f"{name}.norm2", width)
        made += _linear(f"{name}.fc1", 4 * width, width) + _linear(f"{name}.fc2", width, 4 * width)
    return made


def _digits_cnn() -> list[Weight]:
    made = _convolution("conv1", 16, 1, 3, bias=True, norm=False) + _convolution(
        "conv2", 32, 16, 3, bias=True, norm=False
    )
    return made + _linear("fc1", 64, 512) + _head(10, 64)


def _gpt_char() -> list[Weight]:
    """Four layers of width 128, 65 characters, context 64, the head tied to the embedding."""
    made = [Weight("tokens.weight", (65, 128), "embedding"), Weight("positions.weight", (64, 128), "embedding")]
    return made + _blocks(4, 128) + _norm("norm", 128)


def _vgg16_bn() -> list[Weight]:
    """VGG16 with batch norm for 32x32 images; its head has one hidden layer of 512."""
    made: list[Weight] = []
    into = 3
    for index, out in enumerate((64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)):
        made += _convolution(f"conv{index}", out, into, 3, bias=True)
        into = out
    return made + _linear("fc", 512, 512) + _head(10, 512)


def _resnet18() -> list[Weight]:
    """ResNet-18 with the 3x3 stem for 32x32 images."""
    made = _convolution("stem", 64, 3, 3)
    into = 64
    for stage, out in enumerate((64, 128, 256, 512)):
        for block in range(2):
            name = f"stage{stage}.{block}"
            made += _convolution(f"{name}.conv1", out, into, 3) + _convolution(f"{name}.conv2", out, out, 3)
            made += _convolution(f"{name}.shortcut", out, into, 1) if into != out else []
            into = out
    return made + _head(10, 512)


def _resnet50() -> list[Weight]:
    """ResNet-50 for 224x224 images."""
    made = _convolution("stem", 64, 3, 7)
    into = 64
    for stage, (depth, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(depth):
            name = f"stage{stage}.{block}"
            made += _convolution(f"{name}.conv1", width, into, 1) + _convolution(f"{name}.conv2", width, width, 3)
            made += _convolution(f"{name}.conv3", 4 * width, width, 1)
            made += _convolution(f"{name}.shortcut", 4 * width, into, 1) if block == 0 else []
            into = 4 * width
    return made + _head(1000, 2048)


def _vit_b16() -> list[Weight]:
    """ViT-B/16 for 224x224 images, whole."""
    made = [Weight("class_token", (1, 1, 768)), Weight("positions", (1, 197, 768))]
    made += _convolution("patches", 768, 3, 16, bias=True, norm=False)
    return made + _blocks(12, 768) + _norm("norm", 768) + _head(1000, 768)


#: Networks by name: every trainable parameter, in order. ``gpt2_blocks``: GPT-2 small without embedding and last norm.
NETWORKS: Mapping[str, Sequence[Weight]] = {
    "digits_cnn": _digits_cnn(),
    "gpt_char": _gpt_char(),
    "vgg16_bn": _vgg16_bn(),
    "resnet18": _resnet18(),
    "resnet50": _resnet50(),
    "vit_b16": _vit_b16(),
    "gpt2_blocks": _blocks(12, 768),
}


def scalars(network: str) -> int:
    """Number of scalars of a network."""
    return sum(math.prod(weight.shape) for weight in NETWORKS[network])


def iteration_flops(network: str) -> float:
    """Floating-point operations of four plain Newton-Schulz steps on every hidden matrix: 4 (4 n^2 m + 2 n^3)."""
    total = 0
    for weight in NETWORKS[network]:
        if weight.role == "weight" and len(weight.shape) in (2, 4):
            small, large = sorted((weight.shape[0], math.prod(weight.shape[1:])))
            total += 4 * (4 * small**2 * large + 2 * small**3)
    return float(total)


QUICK: tuple[Tier, ...] = ("quick", "standard")
STANDARD: tuple[Tier, ...] = ("standard",)
FULL: tuple[Tier, ...] = ("full",)


def _problems(device: Literal["cpu", "cuda"], rows: list[tuple[str, str, tuple[Tier, ...]]]) -> list[Problem]:
    return [
        Problem(kind=network, shape=(scalars(network),), dtype=dtype, device=device, tiers=tiers)
        for network, dtype, tiers in rows
    ]


#: In the order of importance: a time budget drops whole problems from the end.
CPU = _problems(
    "cpu",
    [
        ("digits_cnn", "float32", QUICK),
        ("gpt_char", "float32", QUICK),
        ("digits_cnn", "float64", STANDARD),
        ("gpt_char", "bfloat16", STANDARD),
        ("resnet18", "float32", FULL),
        ("vgg16_bn", "float32", FULL),
    ],
)
CUDA = _problems(
    "cuda",
    [
        ("resnet18", "float32", QUICK),
        ("gpt2_blocks", "float32", STANDARD),
        ("vgg16_bn", "float32", STANDARD),
        ("gpt2_blocks", "bfloat16", STANDARD),
        ("vit_b16", "float32", STANDARD),
        ("resnet50", "float32", FULL),
        ("digits_cnn", "float32", FULL),
        ("gpt_char", "float32", FULL),
    ],
)


SUITE = Suite(
    name="optimizer_step",
    task=TASK,
    problems=(*CPU, *CUDA),
    baseline="training.adamw",
    protocol=Protocol(),
    weight=0.25,
)
