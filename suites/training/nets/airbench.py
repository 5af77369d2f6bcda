"""A small fast network for 32 x 32 images, after K. Jordan's airbench (2024) and T. Swan's hlb-CIFAR10 (2023)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

#: The last layer's inputs are not normalized; this factor keeps early logits small (airbench, 2024).
LOGIT_SCALE = 1.0 / 9.0
#: Added to the eigenvalues of the patch covariance before their inverse root (hlb-CIFAR10, 2023).
WHITENING_EPS = 5e-4
BN_MOMENTUM = 0.4
#: Published with the network (airbench, 2024); torch's default is 1e-5.
BN_EPS = 1e-12


def patch_covariance(images: torch.Tensor) -> torch.Tensor:
    """Second moment of all 2 x 2 patches of [count, channels, height, width], float64 [4 channels, 4 channels]."""
    channels = 4 * images.shape[1]
    total = torch.zeros(channels, channels, dtype=torch.float64, device=images.device)
    count = 0
    for part in images.split(500):  # type: ignore[no-untyped-call]
        patches = part.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, channels).double()
        total += patches.mT @ patches
        count += len(patches)
    return total / count


class _Group(nn.Module):
    """Convolution, 2 x 2 pooling, batch norm, GELU, convolution, batch norm, GELU; norms learn a shift and no scale."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = (nn.BatchNorm2d(outputs, eps=BN_EPS, momentum=BN_MOMENTUM) for _ in range(2))
        for conv in (self.conv1, self.conv2):
            # The first channels pass through at the start (Zagoruyko and Komodakis 2017, "DiracNets").
            nn.init.dirac_(conv.weight.data[: conv.in_channels])
        for norm in (self.norm1, self.norm2):
            norm.weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, inputs, side, side] -> [batch, outputs, side // 2, side // 2]."""
        x = functional.gelu(self.norm1(functional.max_pool2d(self.conv1(x), 2)))
        return functional.gelu(self.norm2(self.conv2(x)))


class Airbench(nn.Module):
    """Whitening 2 x 2 convolution, three groups of two convolutions, global pooling and a linear layer.

    The whitening layer holds the eigenvectors of the 2 x 2 patches' covariance over the root of their eigenvalues, and
    their negatives. :meth:`whiten` sets it from data; it is then never trained (its bias is). Until then, and when
    ``whitening_images`` is 0, the layer is an ordinary convolution that is trained.

    Departures from airbench94: float32 weights under autocast instead of half precision; the whitening bias is trained
    to the end. airbench94_muon draws the head with a standard deviation of 1 and divides the logits by 256; here, as in
    airbench94, it is 0.036 and 1/9: the same function, and a rate of the head there is (9 / 256)² times that rate here.
    The biases' factor of 64 belongs to the optimizer (``norm_bias_lr_factor``).

    Args:
        widths: channels of the three groups; the source has 64, 256, 256.
        classes: number of logits.
        whitening_images: images that :meth:`whiten` is to be given.
    """

    def __init__(
        self, widths: tuple[int, int, int] = (64, 256, 256), classes: int = 10, whitening_images: int = 5000
    ) -> None:
        super().__init__()
        self.whitening_images = whitening_images
        channels = 2 * 3 * 2 * 2
        self.first = nn.Conv2d(3, channels, 2, bias=True)
        self.groups = nn.Sequential(*(_Group(a, b) for a, b in zip((channels, *widths[:-1]), widths, strict=True)))
        self.head = nn.Linear(widths[-1], classes, bias=False)

    @torch.no_grad()
    def whiten(self, images: torch.Tensor) -> None:
        """Set and freeze the first layer from normalized images [count, 3, height, width]."""
        if not self.whitening_images:
            return
        values, vectors = torch.linalg.eigh(patch_covariance(images.float()))
        rows = (vectors / (values + WHITENING_EPS).sqrt()).mT.reshape(-1, 3, 2, 2).flip(0)
        # An eigenvector's sign is arbitrary and differs between devices: both signs are kept, so only order matters.
        largest = rows.flatten(1).gather(1, rows.flatten(1).abs().argmax(1, keepdim=True)).sign()
        rows = rows * largest[:, :, None, None]
        self.first.weight.copy_(torch.cat([rows, -rows]))
        self.first.weight.requires_grad_(False)
        assert self.first.bias is not None
        self.first.bias.zero_()

    def whitened(self, images: torch.Tensor) -> torch.Tensor:
        """The first layer, in the weights' precision; its output in autocast's.

        It takes differences of neighbouring pixels and enlarges the small ones up to 45 times: products of bfloat16
        numbers would put errors of up to 6 % into the finest channels (1 % in half precision, as published).
        """
        kind = images.device.type
        with torch.autocast(kind, enabled=False):
            found: torch.Tensor = self.first(images.to(self.first.weight.dtype))
        return found.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else found

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, 3, 32, 32] -> logits [batch, classes]."""
        x = self.groups(functional.gelu(self.whitened(images)))
        # Not amax: its backward compares x with the stored maximum, which a compiler may round differently (0 / 0).
        x = functional.max_pool2d(x, (x.shape[2], x.shape[3])).flatten(1)
        return self.head(x) * LOGIT_SCALE  # type: ignore[no-any-return]
