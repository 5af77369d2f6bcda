"""Train the CIFAR-10 network whose features the suite uses: ``python -m suites.amm.train_net``.

The weights are committed in float16 (``datasets/features-cifar10-net.npz``), so that every machine computes the same
features; this command shows where they come from. Three passes, ten minutes on one CPU core: longer training makes a
better classifier, and these features need only be those of a trained one.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch

from harness.catalogue import data
from suites.amm import nets

EPOCHS = 3
BATCH = 250
RATE = 3e-3
SEED = 20_260


def main(target: str) -> None:
    """Train, print the test accuracy, write the weights."""
    found = data.load("cifar10")
    arrays, meta = found.arrays, found.meta
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(SEED)
    net = nets.CifarNet().to(device).to(memory_format=torch.channels_last)
    mean, std = tuple(meta["mean"]), tuple(meta["std"])
    inputs = nets.to_input(arrays["train_x"], mean, std, 255).to(device, memory_format=torch.channels_last)
    labels = torch.from_numpy(np.array(arrays["train_y"])).to(device)
    begin = time.monotonic()
    for epoch, loss in enumerate(
        nets.train(net, inputs, labels, epochs=EPOCHS, batch=BATCH, lr=RATE, seed=SEED, augment=True)
    ):
        print(f"epoch {epoch + 1}: loss {loss:.4f}, {time.monotonic() - begin:.0f} s", flush=True)
        save(net, Path(target))
    test = nets.to_input(arrays["test_x"], mean, std, 255).to(device)
    features = torch.from_numpy(nets.extract(net, test)).to(device)
    with torch.no_grad():
        right = net.head(features).argmax(1).cpu().numpy() == arrays["test_y"]
    print(f"test accuracy {right.mean():.4f}", flush=True)


def save(net: torch.nn.Module, target: Path) -> None:
    """float16 arrays by parameter name; counters are left out."""
    state = {k: v.detach().cpu().numpy().astype(np.float16) for k, v in net.state_dict().items() if v.ndim}
    np.savez_compressed(target, **state)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "datasets/features-cifar10-net.npz")
