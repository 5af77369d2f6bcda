"""Runtime of the workloads that fine-tune a network whose layers are look-ups.

Keys of ``Workload.params`` beside those of :mod:`suites.training.images`:

* ``pretrain``: ``epochs``, ``batch``, ``lr``, ``weight_decay`` and ``warmup`` of the exact network's training by SGD
  with Nesterov momentum and a triangular rate (outside every clock; no epochs with generated data);
* ``calibration``: training images that the layers are fitted to;
* ``replace``: options of ``replace_layers``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from harness.catalogue.data.cache import cache_folder
from harness.catalogue.registry import resolve
from harness.catalogue.workload import Workload
from suites.training.images import EVALUATION_BATCH, ImageData, ImageRuntime

#: Methods are names here: a suite imports none of them.
LEARNED = "methods.approximate_matmul.learned"
#: Changes when stored networks no longer are what this code would make.
VERSION = 1
#: Seed of the exact network's weights and data order.
SEED = 20_311
#: Images of a calibration batch.
CALIBRATION_BATCH = 250
_MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where fine-tuning starts.

    Attributes:
        dense: state of the exact network.
        replaced: state of the network with look-ups.
        report: which layers were replaced.
        images: training images that the exact network saw.
    """

    dense: Mapping[str, torch.Tensor]
    replaced: Mapping[str, torch.Tensor]
    report: Mapping[str, Any]
    images: int


class ReplacedRuntime(ImageRuntime):
    """Image classification by a network that starts trained, with look-ups in place of products."""

    _workload: Workload | None = None

    def model(self, workload: Workload) -> nn.Module:
        """The same replaced network each time, on the CPU; made and kept in the cache when first asked for."""
        self._workload = workload
        return self._replaced(workload, self.start(workload))

    def _replaced(self, workload: Workload, found: Start) -> nn.Module:
        net = self.exact(workload)
        resolve(f"{LEARNED}:rebuild")(net, found.report)
        net.load_state_dict(found.replaced)
        return net

    def exact(self, workload: Workload, state: Mapping[str, torch.Tensor] | None = None) -> nn.Module:
        """The network before replacing, with ``state`` if given; torch's generators stay as they are."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            net = super().model(workload)
        if state is not None:
            net.load_state_dict(state)
        return net

    def start(self, workload: Workload) -> Start:
        """The starting point from the cache, or made now."""
        path = _place(workload)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                made = self._made(workload)
                partial = path.with_suffix(".part")
                torch.save({**vars(made), "report": json.dumps(made.report)}, partial)
                partial.replace(path)
            stored = torch.load(path, weights_only=True, map_location="cpu")
        return Start(**{**stored, "report": json.loads(stored["report"])})

    def _made(self, workload: Workload) -> Start:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        net = self.exact(workload).to(device)
        # A tenth stays unseen, so that a later tuning on it is honest.
        data = self.data(workload, device, validation=True)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(SEED)
            self._train(net, data, workload)
        dense = _on_cpu(net)
        images = data.constant(int(workload.params["calibration"])).inputs
        batches = list(images.contiguous().split(CALIBRATION_BATCH))
        options = {"on_unsupported": "error", **workload.params["replace"]}
        report = resolve(f"{LEARNED}:replace_layers")(net, batches, **options)
        resolve(f"{LEARNED}:renormalise")(net, batches)
        return Start(dense=dense, replaced=_on_cpu(net), report=report.to_json(), images=data.size)

    def _train(self, net: nn.Module, data: ImageData, workload: Workload) -> None:
        """SGD with Nesterov momentum; the rate rises linearly to ``lr`` and falls linearly to zero."""
        plan = workload.params["pretrain"]
        batch, epochs = int(plan["batch"]), 0 if workload.params.get("synthetic") else float(plan["epochs"])
        updates = round(epochs * data.size / batch)
        optimizer = torch.optim.SGD(
            net.parameters(), lr=plan["lr"], momentum=_MOMENTUM, nesterov=True, weight_decay=plan["weight_decay"]
        )
        rise = max(plan["warmup"] * updates, 1.0)
        net.train()
        for update in range(updates):
            part = min((update + 1) / rise, (updates - update) / max(updates - rise, 1.0))
            optimizer.param_groups[0]["lr"] = plan["lr"] * part
            inputs, targets = data.train(SEED, update * batch, batch)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(inputs.device.type, torch.bfloat16, enabled=inputs.is_cuda):
                outputs = net(inputs)
            self.loss(outputs, targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def final(self, model: nn.Module, data: ImageData) -> dict[str, float]:
        """Also accuracies: as fixed operators (integer tables, no gradients), before tuning, and of the exact network.

        The last two belong to the workload whose model this process asked for last, and are left out when it asked for
        none.
        """
        nets = {"deployed": resolve(f"{LEARNED}:deploy")(model, "torch")}
        if self._workload is not None:
            start = self.start(self._workload)
            device = next(iter(model.parameters())).device
            nets["exact"] = self.exact(self._workload, start.dense).to(device)
            nets["replaced"] = self._replaced(self._workload, start).to(device)
        accuracies = {
            f"{name}_accuracy": self.evaluate(net, data.evaluation(data.split, EVALUATION_BATCH))["accuracy"]
            for name, net in nets.items()
        }
        return {**super().final(model, data), **accuracies}


def _on_cpu(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}


def _place(workload: Workload) -> Path:
    """The cache's file of everything that the starting point depends on."""
    images = ("augment", "label_smoothing", "subset", "synthetic", "synthetic_images", "side", "classes")
    keys = ("net", "net_options", *images, "stored_side", "channels", "pretrain", "calibration", "replace")
    said = {key: workload.params[key] for key in keys if key in workload.params}
    text = json.dumps([VERSION, SEED, workload.data, workload.channels_last, said], sort_keys=True)
    folder = cache_folder() / "replaced"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{workload.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.pt"


RUNTIME = ReplacedRuntime()
