"""A whole network with look-ups: accuracy before, after and after fine-tuning, and end-to-end time.

``python -m suites.amm.finetune digits-cnn-maddness`` prints JSON. Times are the fastest of interleaved calls on one
batch: a first look, not a record. ``speedclaim train digits-cnn-maddness`` writes records of the fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from harness.catalogue import registry
from harness.catalogue.workload import Workload
from harness.errors import Unsupported, UserError
from suites.training.replaced import LEARNED, ReplacedRuntime

#: Seed of the fine-tuning's data order.
SEED = 0
#: Images of an evaluation batch.
EVALUATION_BATCH = 500
#: Interleaved calls that the fastest is taken of.
CALLS = 15


def study(name: str, *, epochs: float | None = None, lr: float = 1e-3, images: int = 200) -> dict[str, Any]:
    """Run the experiment.

    Args:
        name: a workload whose runtime is a :class:`suites.training.replaced.ReplacedRuntime`.
        epochs: of AdamW with a linearly falling rate; None takes the workload's.
        lr: its rate at the start.
        images: of the batch that is timed.

    Returns:
        Accuracy of each stage, what was replaced, seconds per image of each form, and the number of updates.

    Raises:
        UserError: a workload without look-ups.
    """
    workload = registry.workload(name)
    runtime = registry.resolve(workload.runtime)
    if not isinstance(runtime, ReplacedRuntime):
        raise UserError(f"workload {name!r} replaces no layers; try digits-cnn-maddness.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = runtime.start(workload)
    data = runtime.data(workload, device, False)
    dense, net = runtime.exact(workload, start.dense).to(device), runtime.model(workload).to(device)

    def accuracy(model: nn.Module) -> float:
        return runtime.evaluate(model, data.evaluation("test", EVALUATION_BATCH))["accuracy"]

    found: dict[str, Any] = {"dense": accuracy(dense), "replaced": accuracy(net)}
    updates = _tune(net, runtime, workload, data, workload.epochs if epochs is None else epochs, lr)
    forms, absent = _deployed(net, device)
    found["tuned"] = accuracy(net)
    found.update({f"deployed_{form}": accuracy(model) for form, model in forms.items()})
    batch = data.constant(images).inputs
    calls = {"dense": dense, "trainable": net, **{f"deployed_{form}": model for form, model in forms.items()}}
    return {
        "workload": name,
        "accuracy": found,
        "seconds_per_image": {form: s / images for form, s in _fastest(calls, batch).items()},
        "not_run": absent,
        "updates": updates,
        "report": start.report,
        "device": device,
        "threads": torch.get_num_threads(),
    }


def _tune(net: nn.Module, runtime: ReplacedRuntime, workload: Workload, data: Any, epochs: float, lr: float) -> int:
    updates = round(epochs * int(data.size) / workload.batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0)
    net.train()
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = lr * (1 - update / updates)
        inputs, targets = data.train(SEED, update * workload.batch, workload.batch)
        optimizer.zero_grad(set_to_none=True)
        runtime.loss(net(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return updates


def _deployed(net: nn.Module, device: str) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The network on every back-end that runs here, and why the others do not."""
    deploy = registry.resolve(f"{LEARNED}:deploy")
    forms, absent = {}, {}
    for backend in ("torch", "native"):
        try:
            forms[backend] = deploy(net, backend).to(device)
        except Unsupported as error:
            absent[backend] = str(error)
    return forms, absent


@torch.no_grad()
def _fastest(models: Mapping[str, nn.Module], batch: torch.Tensor) -> dict[str, float]:
    wait: Callable[[], None] = torch.cuda.synchronize if batch.is_cuda else lambda: None
    best = dict.fromkeys(models, float("inf"))
    for model in models.values():
        model.eval()
        model(batch)
    for _ in range(CALLS):
        for name, model in models.items():
            wait()
            begin = time.perf_counter()
            model(batch)
            wait()
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Accuracy and end-to-end time of a network with look-ups.")
    parser.add_argument("workload", nargs="?", default="digits-cnn-maddness")
    parser.add_argument("--epochs", type=float, default=None)
    parser.add_argument("--lr", type=float, default=1e-3)
    arguments = parser.parse_args()
    try:
        found = study(arguments.workload, epochs=arguments.epochs, lr=arguments.lr)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
