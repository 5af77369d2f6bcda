"""Whole networks for the task ``whole_network``: the trained network itself, in bfloat16, and with look-ups.

``make(**hyper)`` gives an :class:`Estimator`; ``fit(net, images, labels)`` gives a :class:`Network`, whose call maps a
batch of images to logits. ``net`` is never changed.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import UserError
from methods.approximate_matmul.checks import one_of, whole
from methods.approximate_matmul.learned.deployed import Deployed, deploy
from methods.approximate_matmul.learned.norms import renormalise
from methods.approximate_matmul.learned.replace import PATCH, rebuild, replace_layers

#: Images of a calibration batch, and of an update of the tuning.
BATCH, TUNING_BATCH = 250, 64
#: Training rows of a replaced layer.
ROWS = 8000
Fit = Callable[[nn.Module, Tensor, Tensor, Mapping[str, Any], dict[str, float]], "Network"]


class Network:
    """A network ready to be called.

    Attributes:
        net: what runs, in evaluation mode.
        hyper: the options that it was made with.
        times: seconds of replacing (``train_s``) and of fine-tuning (``tune_s``).
        approximate: whether its answers are meant to differ from the exact network's.
        trained: the trainable form, which :meth:`state` is read from; None when nothing was learned.
        report: JSON form of what was replaced.
        dtype: of the arithmetic.
    """

    def __init__(
        self,
        net: nn.Module,
        hyper: Mapping[str, Any],
        times: Mapping[str, float],
        *,
        trained: nn.Module | None = None,
        report: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.net, self.hyper, self.times, self.trained, self.report = net, dict(hyper), dict(times), trained, report
        self.approximate, self.dtype = report is not None, dtype

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """[batch, C, H, W] -> logits in the images' dtype."""
        logits: Tensor = self.net(images.to(self.dtype))
        return logits.to(images.dtype)

    def describe(self) -> dict[str, Any]:
        """What really runs; back-ends of the look-up layers by their number."""
        told = [layer.op.describe() for layer in self.net.modules() if isinstance(layer, Deployed)]
        kinds = {f"{one['backend']} {one['level']}" for one in told}
        device = next(iter(self.net.parameters())).device
        return {
            "backend": ", ".join(sorted(kinds)) or "torch",
            "replaced_layers": len(told),
            "device": str(device),
            "threads": torch.get_num_threads() if device.type == "cpu" else None,
            "dtype": str(self.dtype).removeprefix("torch."),
            "hyper": self.hyper,
        }

    def state(self) -> dict[str, Any] | None:
        """Tensors and JSON text that :meth:`Estimator.restore` reads; None when there is nothing to keep."""
        if self.trained is None:
            return None
        return {
            "weights": {name: value.detach().cpu() for name, value in self.trained.state_dict().items()},
            "report": json.dumps(self.report),
            "times": dict(self.times),
        }


class Estimator:
    """An unfitted form of a network."""

    def __init__(self, name: str, hyper: Mapping[str, Any], fit: Fit) -> None:
        self.name, self.hyper, self._fit = name, dict(hyper), fit

    def fit(self, net: nn.Module, images: Tensor, labels: Tensor) -> Network:
        """Make the form from a trained network and training images [N', C, H, W] with their classes [N'].

        Raises:
            UserError: no images, or as many labels as there are not.
            Unsupported: a layer that cannot be replaced.
        """
        if images.ndim != 4 or not len(images) or labels.shape != images.shape[:1]:
            raise UserError(
                f"{self.name}: expected images [N, C, H, W] and labels [N], N > 0, got {tuple(images.shape)} and "
                f"{tuple(labels.shape)}."
            )
        return self._fit(copy.deepcopy(net).eval(), images, labels, self.hyper, {})

    def restore(self, net: nn.Module, stored: Mapping[str, Any]) -> Network:
        """What ``state`` was read from, over a network of the same class as the one that was fitted."""
        made, report = copy.deepcopy(net), json.loads(stored["report"])
        rebuild(made, report)
        device = next(iter(net.parameters())).device
        made.load_state_dict(stored["weights"])
        return _deployed(made.to(device), self.hyper, dict(stored["times"]), report)

    def __call__(self, images: Tensor) -> Tensor:
        """Refuse: there is no network yet."""
        raise UserError(f"{self.name} is not fitted: call fit(net, images, labels) and use what it returns.")


def make_dense() -> Estimator:
    """The network as it is."""
    return Estimator("dense", {}, lambda net, images, labels, hyper, times: Network(net, hyper, times))


def make_bf16() -> Estimator:
    """Weights, inputs and arithmetic in bfloat16."""

    def fit(net: nn.Module, images: Tensor, labels: Tensor, hyper: Mapping[str, Any], times: Any) -> Network:
        return Network(net.to(torch.bfloat16), hyper, times, dtype=torch.bfloat16)

    return Estimator("bf16", {}, fit)


def make_maddness(*, patch: int = PATCH, calibration: int = 1000, backend: str = "auto") -> Estimator:
    """Inner layers as look-ups, batch norms taken again, no fine-tuning.

    Args:
        patch: columns of a layer's input that a codebook sees.
        calibration: training images that the layers are fitted to.
        backend: of the look-ups: ``auto``, ``native``, ``torch`` or ``numpy``.
    """
    return _make("maddness", patch, calibration, backend, 0, 0.0)


def make_tuned(
    *, patch: int = PATCH, calibration: int = 1000, backend: str = "auto", updates: int = 140, lr: float = 1e-3
) -> Estimator:
    """The same, then fine-tuned through the differentiable look-ups by AdamW with a linearly falling rate.

    Args:
        patch: columns of a layer's input that a codebook sees.
        calibration: training images that the layers are fitted to.
        backend: of the look-ups: ``auto``, ``native``, ``torch`` or ``numpy``.
        updates: of 64 training images each.
        lr: the rate at the start.
    """
    return _make("maddness-tuned", patch, calibration, backend, updates, lr)


def _make(name: str, patch: int, calibration: int, backend: str, updates: int, lr: float) -> Estimator:
    whole(name, "patch", patch, 1)
    whole(name, "calibration", calibration, 1)
    whole(name, "updates", updates, 0)
    one_of(name, "backend", backend, ("auto", "native", "torch", "numpy"))
    if updates and not lr > 0:
        raise UserError(f"{name}: lr must be positive, got {lr!r}.")
    hyper: dict[str, Any] = {"patch": patch, "calibration": calibration, "backend": backend}
    return Estimator(name, hyper | ({"updates": updates, "lr": lr} if updates else {}), _replaced)


def _replaced(
    net: nn.Module, images: Tensor, labels: Tensor, hyper: Mapping[str, Any], times: dict[str, float]
) -> Network:
    begin = time.perf_counter()
    batches = list(torch.split(images[: hyper["calibration"]], BATCH))
    report = replace_layers(net, batches, patch=hyper["patch"], rows=ROWS)
    renormalise(net, batches)
    times["train_s"] = time.perf_counter() - begin
    if hyper.get("updates"):
        begin = time.perf_counter()
        tune(net, images, labels, hyper["updates"], hyper["lr"])
        times["tune_s"] = time.perf_counter() - begin
    return _deployed(net, hyper, times, report.to_json())


def _deployed(net: nn.Module, hyper: Mapping[str, Any], times: dict[str, float], report: Mapping[str, Any]) -> Network:
    device = next(iter(net.parameters())).device
    return Network(deploy(net, hyper["backend"]).to(device), hyper, times, trained=net, report=report)


def tune(net: nn.Module, images: Tensor, labels: Tensor, updates: int, lr: float) -> None:
    """Cross-entropy by AdamW on batches in a fixed random order, in place; the network ends in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0)
    order: list[int] = []
    net.train()
    with torch.enable_grad():
        for update in range(updates):
            if len(order) < TUNING_BATCH:
                order += torch.randperm(len(images), generator=generator).tolist()
            chosen, order = torch.tensor(order[:TUNING_BATCH], device=images.device), order[TUNING_BATCH:]
            optimizer.param_groups[0]["lr"] = lr * (1 - update / updates)
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(net(images[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    net.eval()
