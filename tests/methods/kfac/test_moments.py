"""Second moments of patches against ``unfold``: strides, paddings, dilations, groups, both memory formats."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from methods.kfac import moments
from methods.kfac.layers import channels_last, find

CASES = [
    ((2, 6, 3), {"padding": 1}, (5, 7)),
    ((4, 6, 3), {"padding": 1}, (2, 2)),
    ((4, 6, 3), {"padding": 1}, (1, 3)),
    ((3, 4, 3), {"stride": 2, "padding": 1}, (8, 6)),
    ((4, 6, (2, 3)), {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}, (6, 7)),
    ((3, 4, 1), {}, (3, 4)),
    ((3, 2, 5), {"padding": 2}, (9, 9)),
    ((3, 2, 3), {"padding": 0}, (6, 5)),
]


def unfolded(module, x):
    """Rows (groups, n, d) by ``unfold``, columns (channel, height, width)."""
    columns = functional.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
    split = columns.reshape(len(x), module.groups, -1, columns.shape[-1])
    return split.permute(1, 0, 3, 2).reshape(module.groups, -1, split.shape[2])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("piece", [2**24, 200])
@pytest.mark.parametrize(("shape", "options", "image"), CASES)
def test_input_moments_equal_unfold(shape, options, image, piece, last, monkeypatch):
    monkeypatch.setattr(moments, "PIECE", piece)
    torch.manual_seed(0)
    module = nn.Conv2d(*shape, **options).double()
    x = torch.randn(6, shape[0], *image, dtype=torch.float64)
    if last:
        module, x = module.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    layers, *_ = find(nn.Sequential(module))
    rows = unfolded(module, x)
    if channels_last(module.weight):
        kernel = module.kernel_size[0] * module.kernel_size[1]
        rows = rows.unflatten(2, (-1, kernel)).transpose(2, 3).flatten(2)
    rows = torch.cat([rows, torch.ones_like(rows[:, :, :1])], 2)
    found = moments.input_moment(module, x, True, torch.float64, None)
    torch.testing.assert_close(found, rows.mT @ rows, rtol=1e-12, atol=1e-12)
    plain = moments.input_moment(module, x, False, torch.float64, None)
    torch.testing.assert_close(plain, (rows.mT @ rows)[:, :-1, :-1], rtol=1e-12, atol=1e-12)
    assert layers[0].d_in == found.shape[1]
    out = module(x).detach()
    b = out.reshape(6, module.groups, -1, out.shape[2] * out.shape[3]).permute(1, 0, 3, 2).flatten(1, 2)
    torch.testing.assert_close(moments.output_moment(module, out, torch.float64, None), b.mT @ b)


def test_channels_last_weights_have_the_channel_innermost():
    plain, last = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    point = nn.Conv2d(3, 4, 1).to(memory_format=torch.channels_last)
    layers, *_ = find(nn.Sequential(plain, last, point))
    assert [channels_last(layer.weight) for layer in layers] == [False, True, False]
    matrix = layers[1].matrix([last.weight, last.bias])
    torch.testing.assert_close(matrix[0, :, :-1], last.weight.permute(0, 2, 3, 1).reshape(4, -1))
    weight, bias = layers[1].views(matrix)
    assert torch.equal(weight, last.weight)
    assert torch.equal(bias, last.bias)


def test_linear_rows_and_a_single_vector():
    module = nn.Linear(5, 3).double()
    for shape in [(7, 5), (4, 6, 5), (5,)]:
        x = torch.randn(shape, dtype=torch.float64)
        rows = torch.cat([x.reshape(-1, 5), torch.ones(x.numel() // 5, 1).double()], 1)
        found = moments.input_moment(module, x, True, torch.float64, None)
        torch.testing.assert_close(found[0], rows.mT @ rows)


@pytest.mark.parametrize("panels_from", [4, 2048])
@pytest.mark.parametrize("width", [5, 33, 70])
@pytest.mark.parametrize("splits", [1, 4])
def test_gram_in_panels_and_splits(width, splits, panels_from, monkeypatch):
    monkeypatch.setattr(moments, "PANELS_FROM", panels_from)
    torch.manual_seed(0)
    rows = torch.randn(2, 24, width, dtype=torch.float64)
    torch.testing.assert_close(moments.gram(rows, None, splits), rows.mT @ rows)
    rounded = rows.bfloat16().double()
    half = moments.gram(rows.float(), torch.bfloat16, splits)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), rounded.mT @ rounded, rtol=1e-5, atol=1e-4)
