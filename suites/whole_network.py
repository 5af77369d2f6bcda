"""Suite ``whole_network``: a trained network with its inner products replaced, end to end. Imports no torch.

The product suite times one product; here the convolutions' gathering of windows, the layers that stay exact and all
that lies between them are part of the time, as they are for whoever runs a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from harness.catalogue.protocol import Protocol
from harness.catalogue.suite import Problem, Suite, Tier
from harness.catalogue.task import Task

ERRORS: Mapping[str, str] = {
    "top1_error": "1 - accuracy on the test images of the content",
    "accuracy": "share of test images classified rightly",
    "accuracy_exact": "the same by the exact network in float64",
    "accuracy_retained": "accuracy / accuracy_exact",
    "argmax_agreement": "share of images whose largest logit is the exact network's",
    "softmax_distance": "mean total variation between the class probabilities of both networks (0 is equal)",
    "nmse": "mean((Y' - Y)^2) / var(Y) over all logits",
    "nmse_norm": "||Y' - Y||_F^2 / ||Y||_F^2 over all logits; gates the exact and bfloat16 networks",
    "pearson": "correlation of all logits with the true ones",
    "cosine": "cosine between Y' and Y as vectors; must be positive",
    "max_abs_error": "largest error of a logit",
    "rounding_error": "||Y' - Y||_F / ||Y||_F",
    "beats_mean": "1 when the error is below that of the constant answer mean(Y), else 0",
}

TASK = Task(
    name="whole_network",
    summary="Logits of a trained network: exact, in fewer bits, or with look-ups in place of its inner products",
    contract=(
        "make(**hyper).fit(net, images: Tensor[N', C, H, W], labels: Tensor[N']) -> op; op(images: Tensor[N, C, H, W])"
        " -> logits Tensor[N, classes] in float32, images untouched; fitting is not timed"
    ),
    runtime="suites.amm.network_runtime:RUNTIME",
    oracle="the exact network in float64 on the images passed; true labels",
    needs=("torch",),
    errors=ERRORS,
    primary_error="top1_error",
)

Device = Literal["cpu", "cuda"]
STANDARD: tuple[Tier, ...] = ("standard",)
FULL: tuple[Tier, ...] = ("full",)


def _problem(
    net: str, shape: tuple[int, int, int, int], patch: int, device: Device, tiers: tuple[Tier, ...], **hyper: Any
) -> Problem:
    params = {"net": net, "hyper": {"patch": patch, **hyper}}
    return Problem(
        kind=f"{net.replace('-', '_')}_p{patch}",
        shape=shape,
        dtype="float32",
        device=device,
        tiers=tiers,
        params=params,
    )


DIGITS, CIFAR, LARGE = (355, 1, 8, 8), (250, 3, 32, 32), (5000, 3, 32, 32)

#: A codebook for 9 columns (one channel's window, as published) keeps most accuracy; one for 32 is where look-ups are
#: meant to be fast. Fine-tuning: six passes over the digits, 100 batches of CIFAR-10.
PROBLEMS = (
    _problem("digits-cnn", DIGITS, 9, "cpu", STANDARD, updates=140),
    _problem("cifar10-net", CIFAR, 9, "cpu", FULL, updates=100),
    _problem("cifar10-net", CIFAR, 32, "cpu", FULL, updates=100),
    _problem("digits-cnn", DIGITS, 32, "cpu", FULL, updates=140),
    _problem("cifar10-net", LARGE, 9, "cuda", STANDARD, updates=400),
    _problem("cifar10-net", LARGE, 32, "cuda", FULL, updates=400),
)

SUITE = Suite(
    name="whole_network",
    task=TASK,
    problems=PROBLEMS,
    baseline="whole_network.dense",
    protocol=Protocol(max_inner=25),
    weight=0.1,
)
