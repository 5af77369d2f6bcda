import pytest
import torch
from torch import nn

from harness.errors import UnknownName
from suites.training import nets
from suites.training.nets.airbench import Airbench, patch_covariance
from suites.training.nets.gpt import CharGPT
from suites.training.nets.resnet import Basic, ResNetCifar
from suites.training.nets.t2t import T2TViT, sinusoids

SMALL_GPT = {"vocabulary": 98, "context": 64, "layers": 4, "heads": 4, "width": 128}
GPT = {"vocabulary": 98, "context": 256, "layers": 6, "heads": 6, "width": 384, "dropout": 0.2}


def _count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("digits-cnn", {}, 38_282),
        ("deep-linear", {}, 64 * 128 + 4 * 128 * 128 + 128 * 10),
        ("fashion-cnn", {}, 206_970),
        ("airbench", {}, 1_972_792),
        ("airbench", {"widths": (16, 32, 64)}, 76_280),
        ("resnet18-cifar", {}, 11_173_962),
        ("resnet32-cifar", {}, 464_154),
        ("resnet50", {}, 25_557_032),
        ("vgg16-bn", {}, 14_990_922),
        ("t2t-vit", {}, 4_024_010),
        # 12 width^2 + 13 width a block; patches, positions, the last norm and the head.
        ("vit", {}, 6 * (12 * 192**2 + 13 * 192) + 192 * (48 + 1 + 64 + 2 + 10) + 10),
        # (25 + 1) width + width^2 + width + 4 width a mixer; patches, their norm and the head.
        ("convmixer", {}, 8 * (256**2 + 31 * 256) + 256 * (12 + 1 + 2 + 10) + 10),
        # 12 width^2 + 2 width a block, two embeddings and the last norm; the output layer is the embedding.
        ("char-gpt", SMALL_GPT, 4 * (12 * 128**2 + 2 * 128) + 128 * (98 + 64) + 128),
        ("char-gpt", GPT, 6 * (12 * 384**2 + 2 * 384) + 384 * (98 + 256) + 384),
    ],
)
def test_parameter_counts(name, options, parameters):
    with torch.device("meta"):
        assert _count(nets.build(name, **options)) == parameters


@pytest.mark.parametrize(
    ("name", "options", "shape", "classes"),
    [
        ("digits-cnn", {}, (1, 8, 8), 10),
        ("deep-linear", {"inputs": 12, "width": 5, "depth": 3, "classes": 4}, (3, 2, 2), 4),
        ("fashion-cnn", {}, (1, 28, 28), 10),
        ("airbench", {"widths": (4, 8, 12)}, (3, 32, 32), 10),
        ("resnet18-cifar", {"widths": (4, 8, 12, 16), "classes": 7}, (3, 32, 32), 7),
        ("resnet32-cifar", {"depth": 8}, (3, 32, 32), 10),
        ("vit", {"side": 12, "patch": 4, "width": 12, "layers": 2, "heads": 3, "classes": 6}, (3, 12, 12), 6),
        ("convmixer", {"width": 6, "depth": 2, "kernel": 3, "classes": 5}, (3, 8, 8), 5),
        ("t2t-vit", {"side": 32, "layers": 2, "width": 32, "token_width": 8, "classes": 6}, (3, 32, 32), 6),
    ],
)
def test_logits_and_gradients(name, options, shape, classes):
    torch.manual_seed(0)
    model = nets.build(name, **options)
    logits = model(torch.randn(3, *shape))
    assert logits.shape == (3, classes)
    logits.square().sum().backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key


def test_unknown_networks_list_the_known_ones():
    with pytest.raises(UnknownName, match="vgg16-bn"):
        nets.build("vgg16")


def test_vgg_has_the_published_layers():
    with torch.device("meta"):
        model = nets.build("vgg16-bn")
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    rows = [module.in_channels * 9 + 1 for module in convolutions] + [module.in_features + 1 for module in linear]
    # Sizes of the input factors with their ones, as the randomized K-FAC experiments list them.
    assert rows == [28, 577, 577, 1153, 1153, *[2305] * 3, *[4609] * 5, 513, 513]


def test_the_padded_shortcut_keeps_every_second_pixel():
    block = Basic(4, 8, 2, padded=True)
    x = torch.randn(2, 4, 6, 6)
    short = block.shortcut(x)
    assert torch.equal(short[:, 2:6], x[:, :, ::2, ::2])
    assert short[:, :2].abs().max() == short[:, 6:].abs().max() == 0


def test_a_cifar_resnet_needs_six_n_plus_two_layers():
    with pytest.raises(ValueError, match="6 n"):
        ResNetCifar(depth=31)


def test_whitening_makes_patches_uncorrelated_and_is_frozen():
    torch.manual_seed(0)
    mixed = torch.randn(40, 3, 9, 9)
    images = mixed + 0.8 * mixed.roll(1, 2) + 0.5 * mixed.roll(1, 1)
    model = Airbench(widths=(4, 4, 4))
    model.whiten(images)
    assert not model.first.weight.requires_grad
    assert model.first.bias is not None
    assert model.first.bias.requires_grad
    out = model.first(images).double().permute(1, 0, 2, 3).flatten(1)
    half = out[:12]
    torch.testing.assert_close(half, -out[12:], atol=1e-5, rtol=0)
    second = half @ half.mT / half.shape[1]
    # Eigenvalues are regularized by 5e-4, so the second moment is a little under the identity.
    torch.testing.assert_close(second, torch.eye(12, dtype=torch.float64), atol=0.05, rtol=0)


def test_whitening_can_be_left_out():
    model = Airbench(widths=(4, 4, 4), whitening_images=0)
    before = model.first.weight.clone()
    model.whiten(torch.randn(4, 3, 8, 8))
    assert torch.equal(model.first.weight, before)
    assert model.first.weight.requires_grad


def test_patch_covariance_equals_the_loop():
    images = torch.randn(3, 2, 4, 5)
    rows = [images[n, :, i : i + 2, j : j + 2].flatten().double() for n in range(3) for i in range(3) for j in range(4)]
    stacked = torch.stack(rows)
    torch.testing.assert_close(patch_covariance(images), stacked.mT @ stacked / len(rows))


def test_airbench_starts_as_the_identity_on_the_first_channels():
    model = Airbench(widths=(30, 32, 32))
    weight = model.groups[0].conv1.weight
    x = torch.randn(1, 24, 5, 5)
    out = nn.functional.conv2d(x, weight, padding=1)
    torch.testing.assert_close(out[:, :24], x)


def test_the_transformer_is_causal():
    torch.manual_seed(0)
    model = CharGPT(vocabulary=11, context=8, layers=2, heads=2, width=16).eval()
    tokens = torch.randint(0, 11, (2, 8))
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    a, b = model(tokens), model(changed)
    torch.testing.assert_close(a[:, :5], b[:, :5])
    assert not torch.allclose(a[:, 5:], b[:, 5:])


def test_the_transformer_starts_uniform_and_shares_its_output_layer():
    torch.manual_seed(0)
    model = CharGPT(**SMALL_GPT).eval()
    tokens = torch.randint(0, 98, (4, 64))
    logits = model(tokens)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(0, 98, (256,)))
    assert loss.item() == pytest.approx(4.585, abs=0.15)
    assert not [name for name, _ in model.named_parameters() if "head" in name]


def test_dropout_only_while_training():
    model = CharGPT(vocabulary=11, context=8, layers=1, heads=2, width=16, dropout=0.5)
    tokens = torch.randint(0, 11, (2, 8))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_positions_of_the_vision_transformer():
    table = sinusoids(5, 6)
    assert table.shape == (1, 5, 6)
    assert table[0, 0].tolist() == [0, 1, 0, 1, 0, 1]
    assert float(table[0, 3, 2]) == pytest.approx(float(torch.sin(torch.tensor(3 * 10000 ** (-2 / 6)))))
    with pytest.raises(ValueError, match="16"):
        T2TViT(side=100)


def test_a_deep_linear_network_is_linear():
    torch.manual_seed(0)
    model = nets.build("deep-linear").double()
    a, b = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(2 * a - 3 * b), 2 * model(a) - 3 * model(b))
    product = torch.eye(64, dtype=torch.float64)
    for layer in model.layers:
        product = layer.weight @ product
    # Orthogonal layers keep all ten singular values of the product at one.
    assert torch.linalg.svdvals(product)[:10].min() > 0.05


def test_the_whitening_layer_keeps_its_precision_under_autocast():
    torch.manual_seed(0)
    images = torch.randn(64, 3, 1, 1) + 0.02 * torch.randn(64, 3, 32, 32)  # neighbours differ little
    model = Airbench(widths=(4, 4, 4))
    model.whiten(images)
    exact = model.whitened(images)
    assert exact.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        close, coarse = model.whitened(images), model.first(images)
        assert model(images).isfinite().all()
    assert close.dtype == torch.bfloat16
    size = exact.square().mean((0, 2, 3)).sqrt()
    errors = [((found.float() - exact).square().mean((0, 2, 3)).sqrt() / size).max() for found in (close, coarse)]
    assert errors[0] < 0.004 < 0.01 < errors[1]
