"""Gradients of the training workloads' own networks, fed by their own loaders, with fewer samples an update.

The workloads' batches and numbers of updates are made for a GPU. One CPU thread affords a part of them: the momentum
average over about 1 / (1 - b) = 20 updates makes up for some of the smaller batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from harness.catalogue import data as cards
from harness.catalogue import registry
from suites.gradient_capture import SEED, Capture, Layer, deterministic, train


@dataclass(frozen=True)
class Plan:
    """What is captured of one workload.

    Attributes:
        workload: its name.
        batch: samples of one update (the workload's own is larger).
        array: the data card's array that is trained on.
        layers: by key, the parameter's name in the network and the updates at which its gradient is kept. Wide layers
            are kept at fewer updates, so that the archive stays small.
    """

    workload: str
    batch: int
    array: str
    layers: Mapping[str, tuple[str, Sequence[int]]]

    @property
    def first(self) -> int:
        """The earliest captured update."""
        return min(step for _, steps in self.layers.values() for step in steps)


AIRBENCH = Plan(
    "cifar10-airbench",
    40,
    "train_x",
    {
        "groups0_conv2": ("groups.0.conv2.weight", (8, 16, 30, 45, 60, 80, 100, 120)),
        "groups1_conv1": ("groups.1.conv1.weight", (8, 30, 60, 120)),
        "groups2_conv2": ("groups.2.conv2.weight", (8, 120)),
    },
)
#: Evenly spread: for the first thirty updates attention's gradient hardly turns.
LATE_STEPS = (10, 40, 80, 120, 160, 200, 250, 300, 350, 400)
SOTU_CPU = Plan(
    "sotu-gpt-cpu",
    12,
    "train",
    {
        "qkv": ("blocks.1.qkv.weight", LATE_STEPS),
        "mlp_in": ("blocks.3.mlp_in.weight", LATE_STEPS),
    },
)
SOTU = Plan(
    "sotu-gpt",
    2,
    "train",
    {
        "qkv": ("blocks.2.qkv.weight", (5, 30, 100)),
        "mlp_out": ("blocks.4.mlp_out.weight", (5, 100)),
    },
)


def capture(plan: Plan, until: int | None = None) -> Capture:
    """Train the plan's workload and keep its layers' gradients.

    Args:
        plan: what is captured.
        until: leave out the steps beyond this one.

    Raises:
        Unavailable: the workload's data has not been fetched.
    """
    workload = registry.workload(plan.workload)
    runtime = registry.resolve(workload.runtime)
    with deterministic():
        data = runtime.data(workload, "cpu", False)
        net = runtime.model(workload)
        if hasattr(runtime, "prepare"):
            runtime.prepare(net, data)
        net.train()

        def loss_of(step: int) -> torch.Tensor:
            inputs, targets = data.train(SEED, (step - 1) * plan.batch, plan.batch)
            loss: torch.Tensor = runtime.loss(net(inputs), targets)
            return loss

        layers = {
            key: Layer(net.get_parameter(name), [step for step in steps if until is None or step <= until])
            for key, (name, steps) in plan.layers.items()
        }
        matrices, losses = train(net, loss_of, layers)
    digest = hashlib.sha256(cards.load(workload.data).arrays[plan.array].tobytes()).hexdigest()
    return Capture(matrices, losses, digest, data.size, {key: layer.steps for key, layer in layers.items()})


def capture_cifar10_airbench() -> Capture:
    """Three convolutions of the workload ``cifar10-airbench``, all of CIFAR-10's training images, 40 an update."""
    return capture(AIRBENCH)


def capture_sotu_gpt_cpu() -> Capture:
    """Two layers of the workload ``sotu-gpt-cpu`` (width 128), its own 12 windows of 64 characters an update."""
    return capture(SOTU_CPU)


def capture_sotu_gpt() -> Capture:
    """Two layers of the workload ``sotu-gpt`` (width 384), 2 windows of 256 characters an update."""
    return capture(SOTU)
