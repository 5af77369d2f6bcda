"""Second moments of patches against ``unfold``: strides, paddings, dilations, groups, both memory formats."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from methods.kfac import moments, shifts
from methods.kfac.layers import channels_last, find, input_rows

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


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("image", [(5, 7), (4, 4), (3, 3), (2, 2), (1, 1), (1, 6), (6, 2), (9, 3)])
def test_moments_from_shifts_equal_unfold(image, bias, last):
    torch.manual_seed(0)
    x = torch.randn(3, 4, *image, dtype=torch.float64)
    rows = functional.unfold(x, 3, padding=1).mT.reshape(-1, 4, 9)
    rows = (rows.transpose(1, 2) if last else rows).flatten(1)
    if bias:
        rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
    found = shifts.moment(x, bias, torch.float64, None, last)
    torch.testing.assert_close(found[0], rows.T @ rows, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("parts", [2, 7, 50])
def test_shifts_summed_over_several_products(parts, monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 4, dtype=torch.float64)
    wanted = shifts.moment(x, True, torch.float64, None, False)
    rows = -(-3 * 7 * 6 // parts)
    monkeypatch.setattr(shifts, "_cut", lambda inputs: (parts, rows, 6))
    torch.testing.assert_close(shifts.moment(x, True, torch.float64, None, False), wanted)


def test_shifts_in_half_precision_round_the_operands_alone():
    torch.manual_seed(0)
    x = torch.randn(4, 16, 8, 8)
    found = shifts.moment(x, True, torch.float32, torch.bfloat16, True)
    wanted = shifts.moment(x.bfloat16().double(), True, torch.float64, None, True)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "image", "wanted"),
    [
        ({"padding": 1}, (8, 8), True),
        ({"padding": "same"}, (4, 4), True),
        ({"padding": 1}, (2, 2), False),
        ({"padding": 0}, (8, 8), False),
        ({"padding": 1, "stride": 2}, (8, 8), False),
        ({"padding": 2, "dilation": 2}, (8, 8), False),
        ({"padding": 1, "groups": 2}, (8, 8), False),
        ({"padding": 1, "padding_mode": "reflect"}, (8, 8), False),
    ],
)
def test_where_shifts_are_used(options, image, wanted):
    module = nn.Conv2d(16, 4, 3, **options).double()
    assert shifts.fits(module, *image) is wanted
    assert not shifts.fits(nn.Conv2d(4, 4, 3, padding=1), *image)
    find(nn.Sequential(module))
    x = torch.randn(2, 16, *image, dtype=torch.float64)
    found = moments.input_moment(module, x, True, torch.float64, None)
    rows = input_rows(module, x).flatten(1, 2)
    rows = torch.cat([rows, torch.ones_like(rows[:, :, :1])], 2)
    torch.testing.assert_close(found, rows.mT @ rows)


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


@pytest.mark.parametrize(
    ("channels", "side", "ieee", "on_a_gpu"),
    [
        (64, 32, True, True),
        (64, 16, True, False),
        (128, 16, True, True),
        (128, 8, True, False),
        (256, 8, True, True),
        (256, 4, True, False),
        (512, 4, True, True),
        (64, 32, False, False),
        (512, 4, False, False),
        (3, 32, True, False),
    ],
)
def test_the_choice_follows_the_table(channels, side, ieee, on_a_gpu):
    module, shape = nn.Conv2d(channels, 8, 3, padding=1), (256, channels, side, side)
    assert shifts.chosen(module, shape, "cuda", ieee) is on_a_gpu
    assert shifts.chosen(module, shape, "cpu", ieee) is shifts.fits(module, side, side)


@pytest.mark.parametrize("bias", [False, True])
def test_wide_moments_keep_their_padding_and_it_is_zero(bias, monkeypatch):
    monkeypatch.setattr(moments, "ROOM_FROM", 20)
    torch.manual_seed(0)
    for module, x in [
        (nn.Conv2d(3, 4, 3), torch.randn(2, 3, 5, 5)),
        (nn.Conv2d(16, 4, 3, padding=1), torch.randn(2, 16, 5, 5)),
    ]:
        whole, width = moments.padded_moment(module.double(), x.double(), bias, torch.float64, None)
        assert whole.is_contiguous()
        assert whole.shape[1] == moments.room(width)
        torch.testing.assert_close(
            whole[:, :width, :width], moments.input_moment(module, x.double(), bias, torch.float64, None)
        )
        assert whole[:, width:].abs().sum() == whole[:, :, width:].abs().sum() == 0
