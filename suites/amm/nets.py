"""The two small networks whose last hidden layer feeds the products: one for 8 x 8 digits, one for CIFAR-10."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

Images = NDArray[np.uint8]
#: Pixels of padding of the random crops, the usual augmentation of CIFAR-10 (He et al. 2016, section 4.2).
PAD = 4


class DigitsNet(nn.Module):
    """Two 3 x 3 convolutions (32 channels each), 2 x 2 pooling: 512 non-negative features of an 8 x 8 image."""

    width = 512

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(self.width, classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, 1, 8, 8] -> [batch, 512]."""
        hidden = functional.relu(self.conv2(functional.relu(self.conv1(images))))
        return functional.max_pool2d(hidden, 2).flatten(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, 1, 8, 8] -> logits."""
        return self.head(self.features(images))  # type: ignore[no-any-return]


class CifarNet(nn.Module):
    """Five convolutions with batch norm, 32 to 512 channels, and a mean over the last 4 x 4 positions.

    17 million multiply-adds an image and 0.5 million parameters: small enough for a CPU, and with the 512 features of
    the classifiers in the MADDNESS paper. Not their network, and less accurate.
    """

    width = 512
    channels = (32, 64, 128, 256, 512)
    sides = (3, 3, 3, 3, 1)
    strides = (2, 1, 2, 2, 1)

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        inputs = 3
        layers: list[nn.Module] = []
        for outputs, side, stride in zip(self.channels, self.sides, self.strides, strict=True):
            conv = nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(self.width, classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, 3, 32, 32] -> [batch, 512], non-negative."""
        hidden: torch.Tensor = self.body(images)
        return hidden.mean((2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, 3, 32, 32] -> logits."""
        return self.head(self.features(images))  # type: ignore[no-any-return]


def to_input(images: Images, mean: tuple[float, ...], std: tuple[float, ...], maximum: float) -> torch.Tensor:
    """uint8 [N, height, width, channels] -> float32 [N, channels, height, width], normalized."""
    scaled = torch.from_numpy(np.ascontiguousarray(images)).float() / maximum
    return ((scaled - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2).contiguous()


def train(
    net: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    epochs: int,
    batch: int,
    lr: float,
    seed: int,
    augment: bool = False,
) -> Iterator[float]:
    """AdamW with a one-cycle rate and label smoothing 0.1 (Szegedy et al. 2016); yields the mean loss of each epoch.

    The order, crops and flips come from one generator, so a machine repeats its own result.
    """
    device = inputs.device
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.05)
    steps = epochs * (len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.25)
    for _ in range(epochs):
        net.train()
        order = torch.randperm(len(inputs), generator=generator)
        losses = []
        for start in range(0, len(order) - batch + 1, batch):
            chosen = order[start : start + batch].to(device)
            images = _crop_and_flip(inputs[chosen], generator) if augment else inputs[chosen]
            optimizer.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(net(images), labels[chosen], label_smoothing=0.1)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        yield sum(losses) / len(losses)


def _crop_and_flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One crop offset and one coin for the whole batch: cheap, and enough variety over thousands of batches."""
    side = images.shape[-1]
    top, left, coin = (int(torch.randint(2 * PAD + 1, (), generator=generator)) for _ in range(3))
    padded = functional.pad(images, (PAD, PAD, PAD, PAD), mode="reflect")
    cut = padded[:, :, top : top + side, left : left + side]
    return cut.flip(3) if coin % 2 else cut


@torch.no_grad()
def extract(net: DigitsNet | CifarNet, inputs: torch.Tensor, batch: int = 500) -> NDArray[np.float32]:
    """Features of every image in evaluation mode, float32 [N, width]."""
    net.eval()
    parts = [net.features(inputs[i : i + batch]).float().cpu() for i in range(0, len(inputs), batch)]
    return torch.cat(parts).numpy()
