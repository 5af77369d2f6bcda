"""Runtime of the character language models.

Keys of ``Workload.params`` that it reads: ``layers``, ``heads``, ``width``, ``dropout`` and ``bias`` of the network;
``context``; ``vocabulary`` (size, which the card must agree with); ``windows`` (evaluation windows, 0 = all);
``synthetic`` (train on generated tokens).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from harness.catalogue import data as cards
from harness.catalogue.workload import Batch, Workload
from harness.errors import UserError
from suites.training import counter, nets
from suites.training.conditioning import weight_spectra
from suites.training.tokens import ResidentTokens

#: Share of the training text, at its end, that ``validation=True`` holds out.
HELD_OUT = 0.1
SYNTHETIC_TOKENS = 1 << 18


class TextRuntime:
    """Prediction of the next character by cross-entropy (nats a character)."""

    def data(self, workload: Workload, device: str, validation: bool = False) -> ResidentTokens:
        """The text on ``device``; ``validation`` holds the last tenth of the training text out and hides the test."""
        train, held = _tokens(workload)
        if validation:
            cut = len(train) - round(len(train) * HELD_OUT)
            train, held = train[:cut], train[cut:]
        return ResidentTokens(
            train,
            held,
            context=workload.params["context"],
            split="validation" if validation else "test",
            device=device,
            windows=workload.params.get("windows", 0),
        )

    def model(self, workload: Workload) -> nn.Module:
        """A new float32 network on the CPU, drawn from torch's generator."""
        keys = ("vocabulary", "context", "layers", "heads", "width", "dropout", "bias")
        options = {key: workload.params[key] for key in keys if key in workload.params}
        net: nn.Module = nets.build("char-gpt", **options)
        return net

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over all characters."""
        return functional.cross_entropy(outputs.float().flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterator[Batch]) -> dict[str, float]:
        """``loss`` (nats a character) and ``accuracy`` over the batches; one synchronization, at the end."""
        was_training = model.training
        model.eval()
        hits: Any = 0
        loss: Any = 0.0
        count = 0
        for inputs, targets in batches:
            outputs = model(inputs).float().flatten(0, 1)
            hits = hits + (outputs.argmax(1) == targets.flatten()).sum()
            loss = loss + functional.cross_entropy(outputs, targets.flatten(), reduction="sum").double()
            count += targets.numel()
        model.train(was_training)
        if not count:
            raise UserError("expected at least one batch to evaluate, got none")
        return {"loss": float(loss) / count, "accuracy": float(hits) / count}

    def final(self, model: nn.Module, data: ResidentTokens) -> dict[str, float]:
        """Spread of the weights' singular values."""
        return weight_spectra(model)


def _tokens(workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Training and test token ids of the card, or generated ones.

    Raises:
        UserError: a card with another number of characters than the network's.
    """
    size = workload.params["vocabulary"]
    if workload.params.get("synthetic"):
        words = counter.uniform_bits(0, counter.SYNTHETIC, 0, torch.arange(SYNTHETIC_TOKENS))[:, 0]
        tokens = counter.below(words, size).numpy()
        return tokens, tokens[: SYNTHETIC_TOKENS // 16]
    card = cards.load(workload.data)
    found = len(card.meta["vocabulary"])
    if found != size:
        raise UserError(f"{workload.name} is built for {size} characters, but {workload.data} has {found}")
    return card.arrays["train"], card.arrays["test"]


RUNTIME = TextRuntime()
