"""Look-up layers against operators, references and exact cases."""

import io

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.errors import UserError
from methods.approximate_matmul import maddness
from methods.approximate_matmul.learned import MaddnessConv2d, MaddnessLinear, deploy
from methods.approximate_matmul.native import binding
from methods.approximate_matmul.save import load

SHAPES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 1), "bias": False},
    {"kernel_size": 3, "dilation": 2, "padding": "same"},
    {"kernel_size": 1, "padding": "valid"},
]


@pytest.fixture
def linear():
    torch.manual_seed(0)
    layer = nn.Linear(37, 11)
    rows = torch.randn(600, 6) @ torch.randn(6, 37) + 0.1 * torch.randn(600, 37)
    return layer, rows


def test_it_starts_as_maddness(linear):
    layer, rows = linear
    made = MaddnessLinear.from_linear(layer, rows, 9)
    op = maddness.make(codebooks=9, backend="numpy").fit(rows, layer.weight.detach().T)
    assert torch.equal(made.to_operator("numpy").encode(rows), op.encode(rows))
    torch.testing.assert_close(made(rows), op(rows) + layer.bias, atol=2e-2, rtol=0)
    exact = layer(rows)
    assert (made(rows) - exact).square().sum() < 0.1 * exact.square().sum()


@pytest.mark.parametrize("trains", ["tables", "prototypes"])
@pytest.mark.parametrize("bits", [8, 3])
def test_the_hard_forward_is_the_exported_operator(linear, trains, bits):
    layer, rows = linear
    made = MaddnessLinear.from_linear(layer, rows, 5, trains=trains, lut_bits=bits)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        got = made(rows) - 0.0
        assert torch.equal(got, made.to_operator("numpy")(rows) + made.bias)
        numpy, torch_ = made.to_operator("numpy"), made.to_operator("torch")
        assert torch.equal(numpy.encode(rows), torch_.encode(rows))
        torch.testing.assert_close(got, torch_(rows) + made.bias, atol=1e-5, rtol=1e-5)
    assert numpy.tables.values.max() == 2**bits - 1


@pytest.mark.skipif(binding.available() is not None, reason="no native kernels here")
def test_the_native_kernels_run_the_export(linear):
    layer, rows = linear
    made = MaddnessLinear.from_linear(layer, rows, 5)
    native = made.to_operator("native")
    assert native.describe()["backend"] == "native"
    assert torch.equal(native.encode(rows), made.to_operator("numpy").encode(rows))
    torch.testing.assert_close(made(rows).detach(), native(rows) + made.bias.detach(), atol=1e-5, rtol=1e-5)


def test_float_tables_are_exported_as_they_are(linear):
    layer, rows = linear
    made = MaddnessLinear.from_linear(layer, rows, 5, lut_bits=None)
    op = made.to_operator("torch")
    assert torch.equal(torch.from_numpy(op.tables.values), made.tables.detach())
    torch.testing.assert_close(made(rows).detach(), op(rows) + made.bias.detach(), atol=1e-5, rtol=1e-5)


def test_the_export_is_saved_as_plain_arrays(linear, tmp_path):
    layer, rows = linear
    op = MaddnessLinear.from_linear(layer, rows, 5).to_operator("numpy")
    op.save(tmp_path / "op.npz")
    assert torch.equal(load(tmp_path / "op.npz")(rows), op(rows))


def _sixteen(width):
    """(16, width) rows that a tree of depth 4 separates: bits of the row number in columns of falling variance."""
    number = torch.arange(16)
    base = torch.randn(16, width, generator=torch.Generator().manual_seed(4)) * 1e-3
    for bit in range(4):
        base[:, bit] = (number >> bit & 1) * (8.0 - bit) + bit
    return base


@pytest.mark.parametrize("trains", ["tables", "prototypes"])
def test_sixteen_distinct_patches_are_recovered_exactly(trains):
    torch.manual_seed(0)
    layer, rows = nn.Linear(9, 6), _sixteen(9)
    chosen = rows[torch.randint(16, (400,))]
    made = MaddnessLinear.from_linear(layer, chosen, 1, lut_bits=None, trains=trains, hyper={"ridge": 1e-9})
    assert len(made.to_operator("numpy").encode(rows).unique()) == 16
    torch.testing.assert_close(made(rows), layer(rows), atol=1e-5, rtol=1e-5)


def test_sixteen_distinct_windows_are_recovered_exactly():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 5, 3, stride=3)
    patches = _sixteen(9)[torch.randint(16, (30, 2, 4, 4))]
    images = patches.view(30, 2, 4, 4, 3, 3).permute(0, 1, 2, 4, 3, 5).reshape(30, 2, 12, 12)
    made = MaddnessConv2d.from_conv(conv, images, lut_bits=None, hyper={"ridge": 1e-9})
    assert made.codebooks == 2
    torch.testing.assert_close(made(images), conv(images), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("options", SHAPES)
def test_a_convolution_is_the_product_of_its_windows(options):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 7, **options)
    images = torch.randn(6, 4, 9, 8)
    made = MaddnessConv2d.from_conv(conv, images)
    weight = conv.weight.flatten(1)
    bias = 0 if conv.bias is None else conv.bias
    rows = made.rows(images)
    torch.testing.assert_close(made.shape.image(rows @ weight.T + bias, images), conv(images), atol=1e-5, rtol=1e-4)
    offset = 0 if made.bias is None else made.bias
    wanted = made.shape.image(made.to_operator("numpy")(rows) + offset, images)
    assert torch.equal(made(images), wanted)
    used = torch.tensor([0, weight.shape[1] - 1, weight.shape[1] // 2])
    assert torch.equal(made.shape.taps(images, used), rows[:, used])
    spread = images.contiguous(memory_format=torch.channels_last)
    for backend in ("numpy", "torch", "auto"):
        net = deploy(made, backend)
        torch.testing.assert_close(net(spread), wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(net(images[:1]), wanted[:1], atol=1e-5, rtol=1e-5)
        assert net(images[:0]).shape == (0, *wanted.shape[1:])
        larger = torch.randn(2, 4, 12, 11)
        torch.testing.assert_close(net(larger), made(larger), atol=1e-5, rtol=1e-5)
        assert net(images.double()).dtype == torch.float64
    torch.testing.assert_close(deploy(made, "torch")(images), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(deploy(made, "numpy")(images), wanted, atol=0, rtol=0)


def test_other_layouts_and_dtypes(linear):
    layer, rows = linear
    made = MaddnessLinear.from_linear(layer, rows, 5)
    whole = made(rows)
    assert torch.equal(made(rows.view(20, 30, 37)), whole.view(20, 30, 11))
    assert torch.equal(made(rows.T.contiguous().T), whole)
    assert torch.equal(made(rows[:1]), whole[:1])
    assert made(rows[:0]).shape == (0, 11)
    low = rows.bfloat16()
    assert made(low).dtype == torch.bfloat16
    assert torch.equal(made(low), made(low.float()).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(rows), whole)


@pytest.mark.parametrize(("trained", "share"), [("thresholds", 0.92), ("tables", 0.85)])
def test_each_part_learns_alone_from_shaken_thresholds(linear, trained, share):
    layer, rows = linear
    rows = rows[:300]
    made = MaddnessLinear.from_linear(layer, rows, 4)
    wanted = layer(rows).detach()
    shake = torch.randn(4, 15, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made.thresholds += 0.8 * shake * made.spread[:, [0, 1, 1, 2, 2, 2, 2, *[3] * 8]]
    optimizer = torch.optim.Adam([getattr(made, trained)], lr=2e-2)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = functional.mse_loss(made(rows), wanted)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < share * losses[0]


def test_dead_nodes_stay_dead_under_weight_decay():
    layer, rows = nn.Linear(4, 3), torch.ones(50, 4)
    made = MaddnessLinear.from_linear(layer, rows, 2)
    assert made.dead.all()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1, weight_decay=0.1, momentum=0.9)
    made(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    assert torch.isinf(made.split_values).all()
    assert all(parameter.isfinite().all() for parameter in made.parameters())
    assert not made.to_operator("numpy").encode(torch.randn(8, 4)).any()


@pytest.mark.parametrize("trains", ["tables", "prototypes"])
def test_round_trip_of_the_state(linear, trains):
    layer, rows = linear
    made = MaddnessLinear.from_linear(layer, rows, 5, trains=trains, temperature=0.7)
    buffer = io.BytesIO()
    torch.save(made.state_dict(), buffer)
    buffer.seek(0)
    other = MaddnessLinear(37, 11, 5, trains=trains)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(rows), made(rows))
    assert float(other.temperature) == pytest.approx(0.7)


def test_wrong_use_is_told(linear):
    layer, rows = linear
    with pytest.raises(UserError, match="columns"):
        MaddnessLinear.from_linear(layer, rows, 38)
    with pytest.raises(UserError, match="16 bits"):
        MaddnessLinear(2000, 4, 258)
    with pytest.raises(UserError, match="temperature"):
        MaddnessLinear(8, 4, 2, temperature=0.0)
    with pytest.raises(UserError, match="trains"):
        MaddnessLinear(8, 4, 2, trains="all")
    with pytest.raises(UserError, match="direct"):
        MaddnessLinear.from_linear(layer, rows, 5, trains="prototypes", hyper={"tables": "direct"})
    with pytest.raises(UserError, match="lut_bits"):
        MaddnessLinear.from_linear(layer, rows, 5, hyper={"lut_bits": 4})
    with pytest.raises(UserError, match="not finite"):
        MaddnessLinear.from_linear(layer, rows / 0, 5)
    with pytest.raises(UserError, match="37 columns"):
        MaddnessLinear.from_linear(layer, rows, 5)(rows[:, :36])
    with pytest.raises(UserError, match="groups=2"):
        MaddnessConv2d.from_conv(nn.Conv2d(4, 4, 3, groups=2), torch.randn(2, 4, 5, 5))
    with pytest.raises(UserError, match="reflect"):
        MaddnessConv2d.from_conv(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), torch.randn(2, 4, 5, 5))
    with pytest.raises(UserError, match="both sides"):
        MaddnessConv2d.from_conv(nn.Conv2d(4, 4, 2, padding="same"), torch.randn(2, 4, 5, 5))
    conv = MaddnessConv2d.from_conv(nn.Conv2d(4, 4, 3), torch.randn(20, 4, 5, 5))
    with pytest.raises(UserError, match="batch, 4"):
        conv(torch.randn(2, 3, 5, 5))


@pytest.mark.parametrize("shape", SHAPES)
def test_some_rows_are_every_nth_row(shape):
    made = MaddnessConv2d.like(nn.Conv2d(4, 5, **shape), 4)
    images = torch.randn(6, 4, 9, 8).to(memory_format=torch.channels_last)
    rows = made.rows(images)
    for wanted in (1, 7, 50, 10**6):
        assert torch.equal(made.some_rows(images, wanted), rows[:: max(len(rows) // wanted, 1) | 1])


@pytest.mark.parametrize("shape", SHAPES)
def test_split_columns_and_their_gradient_are_those_of_unfolded_rows(shape):
    made = MaddnessConv2d.like(nn.Conv2d(4, 5, **shape), 2)
    columns = torch.tensor([0, 3, 2, 1, 3, 3])
    one = torch.randn(6, 4, 9, 8).to(memory_format=torch.channels_last).requires_grad_()
    other = one.detach().clone().requires_grad_()
    found, wanted = made.shape.split(one, columns), made.rows(other)[:, columns]
    assert torch.equal(found, wanted)
    weights = torch.randn_like(wanted)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(one.grad, other.grad)
