"""Features of networks, computed once and kept in the data cache: ``python -m suites.amm.features NAME``.

The card of each (``datasets/features-*.toml``) names shapes and source; the cache's stamp holds the arrays' hashes, and
the record of a run repeats the hash of what was used, since another machine rounds some features differently.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from harness.catalogue import data, dataset
from harness.catalogue.data import arrays as hashing
from harness.catalogue.data import cache, cards
from harness.errors import UnknownName, UserError
from suites.amm import efficientnet, nets

Arrays = dict[str, NDArray[Any]]
#: Training of the digits network: 15 passes of AdamW reach 99 % in about two seconds.
DIGITS = {"epochs": 15, "batch": 64, "lr": 3e-3, "seed": 7}
#: Side that EfficientNet-Lite0 sees; its training used 224, at three times the cost.
ENET_SIDE = 128
#: Its input is (RGB - 127) / 128 (the package's own preprocessing).
ENET_SHIFT, ENET_SCALE = 127.0, 128.0


def digits_cnn(_: cards.DataCard) -> tuple[Arrays, dict[str, Any]]:
    """512 features of every digit from :class:`suites.amm.nets.DigitsNet`."""
    found = data.load("digits")
    mean, std = tuple(found.meta["mean"]), tuple(found.meta["std"])
    split = {s: nets.to_input(found.arrays[f"{s}_x"], mean, std, 16) for s in ("train", "test")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(DIGITS["seed"])
        net = nets.DigitsNet()
    labels = torch.from_numpy(np.array(found.arrays["train_y"]))
    for _loss in nets.train(
        net,
        split["train"],
        labels,
        epochs=int(DIGITS["epochs"]),
        batch=int(DIGITS["batch"]),
        lr=DIGITS["lr"],
        seed=int(DIGITS["seed"]),
    ):
        pass
    return _arrays({s: nets.extract(net, inputs) for s, inputs in split.items()}, found.arrays), {"classes": 10}


def cifar10_net(card: cards.DataCard) -> tuple[Arrays, dict[str, Any]]:
    """512 features of every CIFAR-10 picture from the committed weights."""
    found = data.load("cifar10")
    with np.load(card.card.file(card.card.fields["weights"])) as weights:
        state = {key: torch.from_numpy(weights[key].astype(np.float32)) for key in weights.files}
    net = nets.CifarNet()
    net.load_state_dict(state, strict=False)
    device = _device()
    net = net.to(device).to(memory_format=torch.channels_last)
    mean, std = tuple(found.meta["mean"]), tuple(found.meta["std"])
    out = {}
    for split in ("train", "test"):
        parts = []
        for at in range(0, len(found.arrays[f"{split}_x"]), 1000):
            inputs = nets.to_input(found.arrays[f"{split}_x"][at : at + 1000], mean, std, 255)
            parts.append(nets.extract(net, inputs.to(device, memory_format=torch.channels_last)))
            _tell(split, at + 1000, len(found.arrays[f"{split}_x"]))
        out[split] = np.concatenate(parts)
    return _arrays(out, found.arrays), {"classes": 10}


def cifar10_enet(card: cards.DataCard) -> tuple[Arrays, dict[str, Any]]:
    """1280 features of the first CIFAR-10 pictures from EfficientNet-Lite0."""
    raw = data.load("efficientnet-lite0").arrays["weights"].tobytes()
    net = efficientnet.from_weights(torch.load(io.BytesIO(raw), weights_only=True))
    device = _device()
    net = net.to(device).to(memory_format=torch.channels_last)
    found = data.load("cifar10")
    out = {}
    for split in ("train", "test"):
        count = card.arrays[f"{split}_x"].shape[0]
        parts = []
        for at in range(0, count, 100):
            pictures = torch.from_numpy(np.array(found.arrays[f"{split}_x"][at : min(at + 100, count)])).to(device)
            with torch.no_grad():
                inputs = (pictures.permute(0, 3, 1, 2).float() - ENET_SHIFT) / ENET_SCALE
                inputs = functional.interpolate(inputs, size=(ENET_SIDE, ENET_SIDE), mode="bicubic")
                inputs = inputs.contiguous(memory_format=torch.channels_last)
                parts.append(net.features(inputs).float().cpu().numpy())
            _tell(split, at + 100, count)
        out[split] = np.concatenate(parts)
    labels = {f"{s}_y": found.arrays[f"{s}_y"][: len(out[s])] for s in out}
    return _arrays(out, labels), {"classes": 10}


MAKERS: Mapping[str, Callable[[cards.DataCard], tuple[Arrays, dict[str, Any]]]] = {
    "features-digits-cnn": digits_cnn,
    "features-cifar10-net": cifar10_net,
    "features-cifar10-enet": cifar10_enet,
}
#: Features that cost seconds and need no download: made when first asked for.
QUICKLY_MADE = ("features-digits-cnn",)


def load(name: str) -> hashing.Arrays:
    """Features from the cache; the cheap ones are computed and kept when they are not there.

    Raises:
        Unavailable: they are not here and take long; the text names the command.
    """
    if name in QUICKLY_MADE and cache.find(cards.read(name)) is None:
        make(name)
    return data.load(name)


def make(name: str) -> None:
    """Compute features and write them into the cache."""
    if name not in MAKERS:
        raise UnknownName("features", name, MAKERS)
    card = cards.read(name)
    arrays, meta = MAKERS[name](card)
    hashing.check(card, arrays, "suites.amm.features")
    cache.write(card, arrays, meta, str(card.card.fields["command"]))


def _arrays(features: Mapping[str, NDArray[np.float32]], labels: Mapping[str, NDArray[Any]]) -> Arrays:
    out: Arrays = {}
    for split in ("train", "test"):
        out[f"{split}_x"] = features[split].astype(np.float16)
        out[f"{split}_y"] = np.array(labels[f"{split}_y"][: len(features[split])], np.int64)
    return out


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _tell(split: str, done: int, total: int) -> None:
    print(f"\r{split}: {min(done, total)} of {total}", end="\n" if done >= total else "", file=sys.stderr, flush=True)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compute features and keep them in the data cache.")
    parser.add_argument("name", choices=sorted(MAKERS))
    name = parser.parse_args().name
    try:
        make(name)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{dataset.card(name).title}\n{data.path(name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
