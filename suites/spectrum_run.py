"""Training with a wide head, the factors of its middle layer, their eigenvalues, and the record of all that."""

from __future__ import annotations

import argparse
import datetime
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from harness.catalogue import registry
from harness.catalogue.protocol import Protocol
from harness.catalogue.suite import Problem
from harness.catalogue.workload import Workload
from harness.errors import UserError
from harness.record import environment, nvidia, store
from harness.record.run import Measurement, Run
from suites import spectrum
from suites.spectrum import METHOD, RANK, SHARE, TASK


class WideHead(nn.Module):
    """Features of a network, then Linear(features, w), ReLU, Linear(w, w), ReLU, Linear(w, classes).

    Args:
        net: a network whose last linear layers are cut off by taking what enters the first of them.
        width: w.
        features: what enters.
        classes: number of logits.
    """

    def __init__(self, net: nn.Module, width: int, features: int, classes: int = 10) -> None:
        super().__init__()
        self.net = net
        self.into, self.middle, self.last = (
            nn.Linear(features, width),
            nn.Linear(width, width),
            nn.Linear(width, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images to logits."""
        hidden = torch.relu(self.into(self.net(images)))
        return self.last(torch.relu(self.middle(hidden)))  # type: ignore[no-any-return]


def widened(workload: Workload, width: int) -> WideHead:
    """The workload's network, its linear layers replaced by the wide head.

    Raises:
        UserError: a network that this command does not know.
    """
    runtime = registry.resolve(workload.runtime)
    net = runtime.model(workload)
    if hasattr(net, "head") and hasattr(net, "features"):
        features = net.head[0].in_features
        net.head = nn.Identity()
        return WideHead(net, width, features)
    if not (hasattr(net, "fc1") and hasattr(net, "fc2")):
        raise UserError(f"{workload.name}: expected a network with fc1 and fc2, or features and head.")
    features = net.fc1.in_features
    # Features are not negative after their own ReLU and pooling, so the ReLU between fc1 and fc2 changes nothing.
    net.fc1 = net.fc2 = nn.Identity()
    return WideHead(net, width, features)


class Averages:
    """Running second moments of one linear layer's inputs (with a one) and output gradients, for several decays.

    Args:
        layer: watched.
        decays: rho of each average.
    """

    def __init__(self, layer: nn.Linear, decays: Sequence[float]) -> None:
        self.decays, self.count, self.enabled = list(decays), 0, False
        self._inputs: Tensor | None = None
        self.sums: dict[float, list[Tensor]] = {}
        self._handles = [layer.register_forward_hook(self._forward)]

    def _forward(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self.enabled and output.requires_grad:
            self._inputs = inputs[0].detach().float()
            hook: Any = output.register_hook
            hook(self._backward)

    @torch.no_grad()
    def _backward(self, gradient: Tensor) -> None:
        assert self._inputs is not None
        a = torch.cat([self._inputs, torch.ones_like(self._inputs[:, :1])], 1)
        g = gradient.float()
        moments = (a.mT @ a / len(a), g.mT @ g * len(g))
        for decay in self.decays:
            held = self.sums.setdefault(decay, [torch.zeros_like(moment) for moment in moments])
            for old, new in zip(held, moments, strict=True):
                old.mul_(decay).add_(new, alpha=1 - decay)
        self.count += 1

    def eigenvalues(self, decay: float) -> tuple[Tensor, Tensor]:
        """Of both averages, largest first, in float64 on the CPU."""
        weight = 1 - decay**self.count
        first, second = (torch.linalg.eigvalsh(moment.double() / weight).flip(0).cpu() for moment in self.sums[decay])
        return first, second

    def close(self) -> None:
        """Take the hook off."""
        for handle in self._handles:
            handle.remove()


def modes(values: Tensor, share: float = SHARE) -> int:
    """Eigenvalues of at least ``share`` of the largest."""
    return int((values >= share * values[0]).sum())


def tail(values: Tensor) -> float:
    """The eigenvalue at the fixed rank over the largest; 0 beyond the width."""
    return float((values[RANK - 1] / values[0]).clamp_min(0)) if len(values) >= RANK else 0.0


def points(updates: int, count: int) -> list[int]:
    """Updates at which the averages are decomposed: evenly spaced on a logarithmic axis from a tenth to the end."""
    if count == 1:
        return [updates]
    start = max(1, updates // 10)
    return sorted({round(start * (updates / start) ** (i / (count - 1))) for i in range(count)})


def trained(workload: Workload, width: int, seed: int, device: str, given: argparse.Namespace) -> dict[str, Any]:
    """One run: by decay the modes along training, the tail and the leading eigenvalues at the end."""
    runtime = registry.resolve(workload.runtime)
    data = runtime.data(workload, device, False)
    with seeded(seed):
        model = widened(workload, width).to(device).train()
    options = {"lr": given.lr} if given.lr is not None else {}
    optimizer = registry.load(given.method)(model, **options)
    averages = Averages(model.middle, given.decays)
    wanted = set(points(given.updates, given.points))
    path: dict[float, list[tuple[int, int, int]]] = {decay: [] for decay in given.decays}
    final: dict[float, tuple[Tensor, Tensor]] = {}
    loss = torch.zeros(())
    for update in range(1, given.updates + 1):
        averages.enabled = (update - 1) % given.every == 0
        inputs, targets = data.train(seed, (update - 1) * workload.batch, workload.batch)
        optimizer.zero_grad()
        loss = runtime.loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        if update in wanted:
            for decay in given.decays:
                first, second = final[decay] = averages.eigenvalues(decay)  # the last point is the end
                path[decay].append((update, modes(first), modes(second)))
    averages.close()
    if not torch.isfinite(loss):
        raise UserError(f"{workload.name} of width {width} diverged with {given.method}, lr {given.lr}; lower --lr.")
    return {"path": path, "final": final, "loss": float(loss.detach()), "captures": averages.count}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's generator at a seed for initial weights."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


def main(given: argparse.Namespace) -> None:
    """Every width and seed; one run a cell with one sample a seed."""
    device = given.device or ("cuda" if nvidia.present() and torch.cuda.is_available() else "cpu")
    workload = registry.workload(given.workload)
    if given.synthetic:
        workload = _synthetic(workload)
    widths = given.widths or list(spectrum.WIDTHS[device])
    begin = time.monotonic()
    given.out.mkdir(parents=True, exist_ok=True)
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S%fZ")
    path = given.out / f"{stamp}-{socket.gethostname()}-{os.getpid()}.jsonl"
    cells = [_cell(given, width, decay, device) for width in widths for decay in given.decays]
    with store.Writer(path) as writer:
        writer.header(_header(given, workload, cells, device))
        for width in widths:
            found = []
            for seed in range(given.seeds):
                found.append(trained(workload, width, seed, device, given))
                last = {decay: (modes(a), modes(g)) for decay, (a, g) in found[-1]["final"].items()}
                said = ", ".join(f"rho {decay:g}: {a} and {g} modes" for decay, (a, g) in last.items())
                print(f"width {width}, seed {seed}: {said}  ({time.monotonic() - begin:.0f} s)", flush=True)
            for decay in given.decays:
                writer.run(_run(given, width, decay, device, found))
        writer.end(utc=_utc(), elapsed_s=round(time.monotonic() - begin, 1))
    print(f"written to {path}", flush=True)


def _cell(given: argparse.Namespace, width: int, decay: float, device: str) -> Problem:
    """Made-up data have a name of their own: no claim about the workload is judged by them."""
    return spectrum.problem(f"{'synthetic-' if given.synthetic else ''}{given.workload}", width, decay, device)


def _run(given: argparse.Namespace, width: int, decay: float, device: str, found: Sequence[dict[str, Any]]) -> Run:
    cell = _cell(given, width, decay, device)
    final = [one["final"][decay] for one in found]
    first = found[0]["path"][decay]
    samples: dict[str, Sequence[float]] = {
        "modes_a": [modes(a) for a, _ in final],
        "modes_g": [modes(g) for _, g in final],
        "tail_a": [tail(a) for a, _ in final],
        "tail_g": [tail(g) for _, g in final],
        "modes_a_path": [a for _, a, _ in first],
        "modes_g_path": [g for _, _, g in first],
        "path_updates": [update for update, _, _ in first],
    }
    return Run(
        run=f"{cell.id}",
        phase="gate",
        case=f"{METHOD.name}/{cell.id}",
        task=TASK.name,
        method=METHOD.name,
        problem=cell.id,
        arm=METHOD.name,
        status="passed",
        measurements=[
            Measurement(metric=name, unit="1", samples=[float(value) for value in values])
            for name, values in samples.items()
        ],
        detail={
            "width": width,
            "decay": decay,
            "captures": found[0]["captures"],
            "loss": [one["loss"] for one in found],
            "path": [list(point) for point in first],
            "spectrum_a": _curve(final[0][0]),
            "spectrum_g": _curve(final[0][1]),
            "trained_by": {"method": given.method, "lr": given.lr, "updates": given.updates, "every": given.every},
        },
        utc=_utc(),
    )


def _curve(values: Tensor, most: int = 60) -> list[list[float]]:
    """[index from 1, eigenvalue over the largest] at about evenly spaced places of a logarithmic axis."""
    places = sorted({round(len(values) ** (i / (most - 1))) for i in range(most)})
    return [[place, float((values[place - 1] / values[0]).clamp_min(1e-12))] for place in places]


def _header(given: argparse.Namespace, workload: Workload, cells: Sequence[Any], device: str) -> dict[str, Any]:
    return {
        "utc": _utc(),
        "command": ["python", "-m", "suites.spectrum", *sys.argv[1:]],
        "project": environment.code(),
        "environment": environment.collect(device),
        "plan": {
            "tier": "quick" if given.quick else "standard",
            "blocks": given.seeds,
            "suites": [
                {
                    "name": TASK.name,
                    "task": TASK.name,
                    "task_summary": TASK.summary,
                    "task_contract": TASK.contract,
                    "task_oracle": TASK.oracle,
                    "task_errors": dict(TASK.errors),
                    "primary_error": TASK.primary_error,
                    "baseline": METHOD.name,
                    "protocol": Protocol().describe(),
                    "problems": [cell.describe() for cell in cells],
                    "methods": [METHOD.name],
                }
            ],
            "left_out": [],
            "workloads": [],
        },
        "methods": [METHOD.describe()],
    }


def _synthetic(workload: Workload) -> Workload:
    import dataclasses

    return dataclasses.replace(workload, params={**workload.params, "synthetic": True})


def _utc() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
