"""EfficientNet-Lite0: size, padding, reading of stored names, and a cat where the weights are here."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch.nn import functional

from harness.catalogue import data
from harness.errors import Unavailable
from suites.amm import efficientnet
from suites.amm.efficientnet import EfficientNetLite0, Unit

#: ImageNet's classes of domestic cats.
CATS = range(281, 286)


def test_size_and_shapes():
    net = EfficientNetLite0().eval()
    assert sum(p.numel() for p in net.parameters()) == 4_652_008
    with torch.no_grad():
        assert net.features(torch.zeros(2, 3, 33, 48)).shape == (2, 1280)
        assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


@pytest.mark.parametrize(("side", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2), (1, 1)])
@pytest.mark.parametrize("size", [7, 8])
def test_padding_is_tensorflows_same(side, stride, size):
    unit = Unit(2, 3, side, stride, linear=True).eval()
    x = torch.randn(1, 2, size, size, generator=torch.Generator().manual_seed(0))
    out = -(-size // stride)
    total = max((out - 1) * stride + side - size, 0)
    padded = functional.pad(x, (total // 2, total - total // 2) * 2)
    with torch.no_grad():
        want = functional.conv2d(padded, unit.conv.weight, stride=stride) / np.sqrt(1 + efficientnet.EPSILON)
        assert unit(x).shape == (1, 3, out, out)
        assert torch.allclose(unit(x), want, atol=1e-5)


def test_stored_names_are_read_and_others_refused():
    net = EfficientNetLite0().eval()
    stored = {}
    for name, value in net.state_dict().items():
        old = name.replace("blocks.", "_blocks.").replace("classifier.", "_fc.")
        for unit, number in (("expand", 0), ("depth", 1), ("project", 2), ("stem", 0), ("head", 1)):
            old = old.replace(f"{unit}.norm.", f"_bn{number}.")
        for ours, theirs in (("stem", "stem"), ("head", "head")):
            old = old.replace(f"{ours}.conv.", f"_conv_{theirs}.")
        for ours, theirs in (("expand", "expand"), ("depth", "depthwise"), ("project", "project")):
            old = old.replace(f"{ours}.conv.", f"_{theirs}_conv.")
        stored[old] = value
    assert {"_conv_stem.weight", "_bn1.running_var", "_blocks.3._depthwise_conv.weight", "_fc.bias"} <= set(stored)
    twin = efficientnet.from_weights(stored)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(twin(x), net(x))
    del stored["_fc.bias"]
    with pytest.raises(RuntimeError, match=r"classifier\.bias"):
        efficientnet.from_weights(stored)


def test_the_published_weights_know_a_cat():
    try:
        raw = data.load("efficientnet-lite0").arrays["weights"].tobytes()
        picture = data.load("photos").arrays["chelsea"]
    except Unavailable as error:
        pytest.skip(str(error))
    net = efficientnet.from_weights(torch.load(io.BytesIO(raw), weights_only=True))
    square = torch.from_numpy(np.array(picture[:300, 75:375])).permute(2, 0, 1)[None].float()
    inputs = functional.interpolate((square - 127.0) / 128.0, size=(224, 224), mode="bicubic")
    with torch.no_grad():
        assert int(net(inputs).argmax()) in CATS
