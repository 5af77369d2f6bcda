"""Trained networks and their images: what the problems of ``whole_network`` are about."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from harness.catalogue import data
from harness.catalogue.data import cards
from harness.errors import UserError
from suites import polar_cache
from suites.amm import features, nets

#: Training images that fitting and tuning may see.
TRAIN = 10_000


@dataclass(frozen=True, kw_only=True)
class Source:
    """One trained network.

    Attributes:
        net: in evaluation mode, on the CPU.
        train: float32 [N', C, H, W], normalised, that fitting may see.
        train_y: int64 [N'].
        pool: test images, from which contents are drawn.
        labels: int64 [P].
        digest: first digits of a hash over weights and images.
    """

    net: nn.Module
    train: torch.Tensor
    train_y: torch.Tensor
    pool: torch.Tensor
    labels: torch.Tensor
    digest: str


@functools.lru_cache(maxsize=2)
def source(name: str) -> Source:
    """The network called ``name`` and its images.

    Raises:
        Unavailable: the images are not here; the text names the command that brings them.
        UserError: an unknown network.
    """
    if name not in MAKERS:
        raise UserError(f"unknown network {name!r}; known: {', '.join(MAKERS)}.")
    card, maximum, maker = MAKERS[name]
    found = data.load(card)
    mean, std = tuple(found.meta["mean"]), tuple(found.meta["std"])
    inputs = {s: nets.to_input(found.arrays[f"{s}_x"][:TRAIN], mean, std, maximum) for s in ("train", "test")}
    labels = {s: torch.from_numpy(np.array(found.arrays[f"{s}_y"][:TRAIN], np.int64)) for s in inputs}
    net = maker(inputs["train"], labels["train"]).eval()
    total = hashlib.sha256()
    for value in [*net.state_dict().values(), inputs["train"][:100], inputs["test"]]:
        total.update(value.numpy().tobytes())
    return Source(
        net=net,
        train=inputs["train"],
        train_y=labels["train"],
        pool=inputs["test"],
        labels=labels["test"],
        digest=total.hexdigest()[:16],
    )


def _digits(train: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """Trained on first use and kept beside the oracles: every worker is a new process."""
    plan = features.DIGITS
    key = f"network-digits-cnn-{hashlib.sha256(repr(sorted(plan.items())).encode()).hexdigest()[:16]}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(plan["seed"]))
        net = nets.DigitsNet()
    kept = polar_cache.load(key)
    if kept is not None:
        net.load_state_dict({name: torch.from_numpy(value) for name, value in kept.items()})
        return net
    epochs, batch, seed = (int(plan[name]) for name in ("epochs", "batch", "seed"))
    for _loss in nets.train(net, train, labels, epochs=epochs, batch=batch, lr=plan["lr"], seed=seed):
        pass
    polar_cache.save(key, {name: value.numpy() for name, value in net.state_dict().items()})
    return net


def _cifar(train: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """The committed weights."""
    del train, labels
    card = cards.read("features-cifar10-net").card
    with np.load(card.file(card.fields["weights"])) as weights:
        state = {key: torch.from_numpy(weights[key].astype(np.float32)) for key in weights.files}
    net = nets.CifarNet()
    net.load_state_dict(state, strict=False)
    return net


#: Name -> data card, largest pixel, and what makes the trained network.
MAKERS = {"digits-cnn": ("digits", 16.0, _digits), "cifar10-net": ("cifar10", 255.0, _cifar)}
