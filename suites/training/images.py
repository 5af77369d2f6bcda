"""Runtime of the image classification workloads.

Keys of ``Workload.params`` that it reads:

* ``net`` and ``net_options``: a network of :mod:`suites.training.nets`;
* ``augment``: fields of :class:`suites.training.augment.Augment`;
* ``label_smoothing`` and ``views`` (averaged per test image), which the named runtime must share;
* ``subset``: the first training and test images of each class, as two counts;
* ``side``: side of the network's input when it is smaller than the stored images;
* ``synthetic``: train on generated noise; ``classes``, ``stored_side``, ``channels`` and
  ``synthetic_images`` describe it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from harness.catalogue import data as cards
from harness.catalogue.workload import Batch, Workload
from harness.errors import UserError
from suites.training import nets
from suites.training.augment import Augment
from suites.training.conditioning import noise_accuracy, weight_spectra
from suites.training.folder import FolderImages
from suites.training.loader import ResidentImages, held_out

Pair = tuple[np.ndarray, np.ndarray]
ImageData = ResidentImages | FolderImages
#: Batch of evaluations that the runtime itself starts.
EVALUATION_BATCH = 1000


class ImageRuntime:
    """Classification of images by cross-entropy; see the module for the parameters it reads.

    Args:
        label_smoothing: of the training loss; the workload's parameter of that name must agree.
        views: views of a test image whose logits are averaged (see :func:`averaged`); must agree too.
    """

    def __init__(self, *, label_smoothing: float = 0.0, views: int = 1) -> None:
        self.label_smoothing, self.views = label_smoothing, views

    def _check(self, workload: Workload) -> None:
        said = workload.params.get("label_smoothing", 0.0), workload.params.get("views", 1)
        if said != (self.label_smoothing, self.views):
            raise UserError(
                f"{workload.name} asks for (label_smoothing, views) = {said}, but its runtime {workload.runtime} has "
                f"{(self.label_smoothing, self.views)}; name another runtime of suites.training.images."
            )

    def data(self, workload: Workload, device: str, validation: bool = False) -> ImageData:
        """The data on ``device``; ``validation`` holds a tenth of the training set out and hides the test set.

        Raises:
            Unavailable: the data card has not been fetched.
        """
        self._check(workload)
        train, test, meta = _arrays(workload)
        if validation:
            kept, held = held_out(len(train[0]))
            train, test = (train[0][kept], train[1][kept]), (train[0][held], train[1][held])
        augment = Augment(**workload.params.get("augment", {}))
        side = int(workload.params.get("side", 0))
        split = "validation" if validation else "test"
        dtype = torch.bfloat16 if workload.pure_bf16 else torch.float32
        if "root" in meta:
            return FolderImages(
                meta["root"],
                train,
                test,
                mean=meta["mean"],
                deviation=meta["std"],
                augment=augment,
                side=side,
                split=split,
                device=device,
                dtype=dtype,
                channels_last=workload.channels_last,
            )
        return ResidentImages(
            train,
            test,
            split=split,
            augment=augment,
            device=device,
            dtype=dtype,
            channels_last=workload.channels_last,
            side=side,
        )

    def model(self, workload: Workload) -> nn.Module:
        """A new float32 network on the CPU, drawn from torch's generator."""
        self._check(workload)
        net: nn.Module = nets.build(workload.params["net"], **workload.params.get("net_options", {}))
        return net

    def prepare(self, model: nn.Module, data: ImageData) -> None:
        """Data-dependent initialization, once per run and outside the training clock: nets that have ``whiten``."""
        whiten = getattr(model, "whiten", None)
        if whiten is not None and isinstance(data, ResidentImages):
            whiten(data.first_images(int(model.whitening_images)))  # type: ignore[arg-type]

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy, label-smoothed when the workload says so."""
        return functional.cross_entropy(outputs.float(), targets, label_smoothing=self.label_smoothing)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterator[Batch]) -> dict[str, float]:
        """``accuracy`` and unsmoothed cross-entropy ``loss`` over the batches; one synchronization, at the end."""
        was_training = model.training
        model.eval()
        hits: Any = 0
        loss: Any = 0.0
        count = 0
        for inputs, targets in batches:
            outputs = averaged(model, inputs, self.views).float()
            hits = hits + (outputs.argmax(1) == targets).sum()
            loss = loss + functional.cross_entropy(outputs, targets, reduction="sum").double()
            count += len(targets)
        model.train(was_training)
        if not count:
            raise UserError("expected at least one batch to evaluate, got none")
        return {"accuracy": float(hits) / count, "loss": float(loss) / count}

    def final(self, model: nn.Module, data: ImageData) -> dict[str, float]:
        """Spread of the weights' singular values and accuracy under input noise."""
        noise = noise_accuracy(
            lambda batches: self.evaluate(model, batches), lambda: data.evaluation(data.split, EVALUATION_BATCH)
        )
        return {**weight_spectra(model), **noise}


def averaged(model: nn.Module, inputs: torch.Tensor, views: int) -> torch.Tensor:
    """Logits averaged over views of each image.

    1: the image; 2: and its mirror image; 6: those two (weight 1/2) and both of the image moved by one pixel up-left
    and down-right over a reflected border (weight 1/4 each), as in K. Jordan, "94 % on CIFAR-10 in 3.29 seconds on a
    single GPU" (2024).
    """
    if views == 1:
        return model(inputs)  # type: ignore[no-any-return]
    # In float32: a mean of bfloat16 logits would tie classes that the views tell apart.
    both: torch.Tensor = (model(inputs).float() + model(inputs.flip(3)).float()) / 2
    if views == 2:
        return both
    if views != 6:
        raise UserError(f"expected 1, 2 or 6 views, got {views}")
    wide = functional.pad(inputs, (1, 1, 1, 1), mode="reflect")
    moved = [wide[:, :, :-2, :-2], wide[:, :, 2:, 2:]]
    shifted = sum((averaged(model, image, 2) for image in moved), torch.zeros_like(both)) / len(moved)
    return (both + shifted) / 2


def _arrays(workload: Workload) -> tuple[Pair, Pair, Mapping[str, Any]]:
    """Training and test images (or paths) and labels of the card, or generated ones, and the card's facts."""
    params = workload.params
    if params.get("synthetic"):
        return _synthetic(params, 0), _synthetic(params, 1), {}
    card = cards.load(workload.data)
    kind = "path" if card.kind == "folder" else "x"
    train, test = ((card.arrays[f"{split}_{kind}"], card.arrays[f"{split}_y"]) for split in ("train", "test"))
    if "subset" in params:
        each_train, each_test = params["subset"]
        train, test = _first_of_each(train, each_train), _first_of_each(test, each_test)
    return train, test, card.meta if card.kind == "folder" else {}


def _first_of_each(pair: Pair, each: int) -> Pair:
    """The first ``each`` samples of every class, in the original order.

    Raises:
        UserError: a class with fewer samples.
    """
    images, labels = pair
    rank = np.empty(len(labels), np.int64)
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if count < each:
            raise UserError(f"expected at least {each} samples of class {label}, got {count}")
        rank[labels == label] = np.arange(count)
    return images[rank < each], labels[rank < each]


def _synthetic(params: Mapping[str, Any], seed: int) -> Pair:
    """Noise images and labels: what step time, memory and communication can be measured with."""
    count, side = params.get("synthetic_images", 2048), params.get("stored_side", 32)
    draws = np.random.Generator(np.random.Philox(seed))
    images = draws.integers(0, 256, (count, side, side, params.get("channels", 3)), dtype=np.uint8)
    return images, draws.integers(0, params.get("classes", 10), count)


RUNTIME = ImageRuntime()
SMOOTHED = ImageRuntime(label_smoothing=0.1)
AIRBENCH = ImageRuntime(label_smoothing=0.2, views=6)
AIRBENCH_SMALL = ImageRuntime(label_smoothing=0.2)
