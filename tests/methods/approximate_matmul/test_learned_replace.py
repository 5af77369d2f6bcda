"""Replacing the layers of whole networks: what is replaced, what is kept and why, and that it still can be trained."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.catalogue import data
from harness.catalogue.registry import resolve
from harness.errors import Unsupported, UserError
from methods.approximate_matmul.learned import (
    MaddnessConv2d,
    MaddnessLinear,
    Report,
    deploy,
    rebuild,
    renormalise,
    replace_layers,
)


class _Net(nn.Module):
    """The shape of the suite's digits network, registered in another order than it runs."""

    def __init__(self):
        super().__init__()
        self.fc2 = nn.Linear(32, 10)
        self.fc1 = nn.Linear(24 * 4 * 4, 32)
        self.conv2 = nn.Conv2d(16, 24, 3, padding=1)
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.unused = nn.Linear(2, 2)

    def forward(self, images):
        hidden = functional.max_pool2d(functional.relu(self.conv2(functional.relu(self.conv1(images)))), 2)
        return self.fc2(functional.relu(self.fc1(hidden.flatten(1))))


@pytest.fixture(scope="module")
def digits():
    """A trained network, training images and labels, test images and labels."""
    found = data.load("digits").arrays
    x, test_x = (torch.from_numpy(found[f"{s}_x"].copy()).permute(0, 3, 1, 2).float() / 16 for s in ("train", "test"))
    y, test_y = (torch.from_numpy(found[f"{s}_y"].copy()) for s in ("train", "test"))
    torch.manual_seed(0)
    net = _Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(300):
        rows = (torch.arange(64) + 64 * step) % len(x)
        optimizer.zero_grad()
        functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return net, (x, y), (test_x, test_y)


def _accuracy(net, pair):
    with torch.no_grad():
        return (net(pair[0]).argmax(1) == pair[1]).float().mean().item()


@pytest.fixture(scope="module")
def replaced(digits):
    net, (x, _), _ = digits
    other = copy.deepcopy(net).train()
    return other, replace_layers(other, list(x.split(250)), rows=6000)


def test_accuracy_is_kept_within_five_points(digits, replaced):
    net, _, test = digits
    exact = _accuracy(net, test)
    assert exact > 0.95
    assert _accuracy(replaced[0], test) > exact - 0.05


def test_what_was_done_is_reported(digits, replaced):
    net, report = replaced
    assert [(r.name, r.kind, r.inner, r.outer, r.codebooks) for r in report.replaced] == [
        ("conv2", "Conv2d", 144, 24, 16),
        ("fc1", "Linear", 384, 32, 42),
    ]
    assert {s.name: s.why for s in report.skipped} == {
        "conv1": "it is the first layer",
        "fc2": "it is the last layer",
        "unused": "no calibration batch reaches it as a module",
    }
    assert all(0 < r.nmse < 0.2 for r in report.replaced)
    assert 1000 < report.replaced[0].rows <= 6000
    assert isinstance(net.conv2, MaddnessConv2d)
    assert isinstance(net.fc1, MaddnessLinear)
    assert net.training
    assert all(module.training for module in net.modules())
    assert "conv2: Conv2d 144 x 24" in str(report)
    assert "fc2: kept, it is the last layer" in str(report)
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_later_layers_are_fitted_to_what_the_earlier_ones_now_give(digits, replaced):
    x = digits[1][0]
    net, report = replaced
    seen = []
    handle = net.fc1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net(x)
    handle.remove()
    exact = digits[0].fc1.weight.detach()
    product = seen[0] @ exact.T
    nmse = (net.fc1.to_operator("torch")(seen[0]) - product).square().sum() / product.square().sum()
    assert report.replaced[1].rows == len(x)
    assert float(nmse) == pytest.approx(report.replaced[1].nmse, rel=1e-3)


def test_a_few_updates_lower_the_training_loss(digits, replaced):
    _, (x, y), _ = digits
    net = copy.deepcopy(replaced[0])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def whole():
        with torch.no_grad():
            return functional.cross_entropy(net(x), y).item()

    before = whole()
    for step in range(16):
        rows = (torch.arange(128) + 128 * step) % len(x)
        optimizer.zero_grad()
        functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    assert whole() < 0.93 * before


def test_deployed_networks_give_the_same(digits, replaced):
    images = digits[2][0][:50]
    net = replaced[0]
    with torch.no_grad():
        wanted = net(images)
    assert torch.equal(deploy(net, "numpy")(images), wanted)
    # Another order of the sum can move a value across a threshold of the next layer, in few images.
    other = (deploy(net, "torch")(images) - wanted).abs().amax(1)
    assert (other < 1e-4).float().mean() >= 0.9
    assert isinstance(net.conv2, MaddnessConv2d)
    assert not list(deploy(net, "torch").conv2.parameters())


def test_round_trip_through_report_and_state(digits, replaced, tmp_path):
    net, report = replaced
    torch.save(net.state_dict(), tmp_path / "state.pt")
    stored = json.loads(json.dumps(report.to_json()))
    assert Report.from_json(stored) == report
    fresh = _Net()
    rebuild(fresh, stored)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    images = digits[2][0][:20]
    with torch.no_grad():
        assert torch.equal(fresh(images), net(images))
    with pytest.raises(UserError, match="conv2"):
        rebuild(fresh, report)


def test_it_is_found_by_name():
    assert resolve("methods.approximate_matmul.learned:replace_layers") is replace_layers
    with pytest.raises(AttributeError, match="nothing"):
        resolve("methods.approximate_matmul.learned:nothing")


def _sequence():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5), nn.Linear(5, 3))


def test_choices_of_layers_and_codebooks():
    rows = torch.randn(100, 6)
    net = _sequence()
    report = replace_layers(net, [rows], codebooks={"2": 4}, patch=2, skip=("last", "4"), lut_bits=None)
    assert [(r.name, r.codebooks) for r in report.replaced] == [("0", 3), ("2", 4)]
    assert {s.name: s.why for s in report.skipped} == {"4": "skip='4'", "5": "it is the last layer"}
    every = replace_layers(_sequence(), [rows], codebooks=2, skip=())
    assert [r.codebooks for r in every.replaced] == [2] * 4
    assert every.replaced[0].multiplies_per_lookup == 3.0


def test_a_module_used_twice_is_replaced_in_both_places():
    shared = nn.Linear(6, 6)
    net = nn.Sequential(nn.Linear(6, 6), shared, nn.ReLU(), shared, nn.Linear(6, 2))
    report = replace_layers(net, [torch.randn(60, 6)], codebooks=2)
    assert [r.name for r in report.replaced] == ["1"]
    assert net[1] is net[3]
    assert report.replaced[0].rows == 120


def test_unsupported_layers_are_an_error_or_listed():
    def build():
        torch.manual_seed(0)
        grouped = nn.Conv2d(4, 4, 3, groups=2, padding=1)
        return nn.Sequential(nn.Conv2d(1, 4, 3), grouped, nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2))

    images = torch.randn(40, 1, 6, 6)
    net = build()
    with pytest.raises(Unsupported, match=r"layer '1' cannot be replaced: it has groups=2.*skip"):
        replace_layers(net, [images])
    assert not any(isinstance(module, MaddnessConv2d) for module in net.modules())
    report = replace_layers(net, [images], on_unsupported="skip")
    assert [r.name for r in report.replaced] == ["2"]
    assert next(s.why for s in report.skipped if s.name == "1").startswith("it has groups=2")
    replace_layers(build(), [images], skip=("first", "last", "1"))


def test_tied_weights_are_not_torn_apart():
    net = _sequence()
    net[2].weight = net[4].weight = nn.Parameter(torch.randn(8, 8))
    net[5] = nn.Linear(8, 3)
    net[4].bias = nn.Parameter(torch.zeros(8))
    with pytest.raises(Unsupported, match="shares parameters with 4"):
        replace_layers(net, [torch.randn(50, 6)], codebooks=2)


def test_bad_calls_are_told():
    rows = torch.randn(50, 6)
    with pytest.raises(UserError, match="at least one calibration batch"):
        replace_layers(_sequence(), [])
    with pytest.raises(UserError, match="fits no layer"):
        replace_layers(_sequence(), [rows], skip=("conv*",))
    with pytest.raises(UserError, match="given for 9"):
        replace_layers(_sequence(), [rows], codebooks={"9": 2})
    with pytest.raises(UserError, match="nothing to replace"):
        replace_layers(nn.Sequential(nn.Linear(6, 2)), [rows])
    with pytest.raises(UserError, match="wrap it"):
        replace_layers(nn.Linear(6, 2), [rows])
    with pytest.raises(UserError, match="error or skip"):
        replace_layers(_sequence(), [rows], on_unsupported="warn")
    with pytest.raises(UserError, match="9 codebooks"):
        replace_layers(_sequence(), [rows], codebooks=9)
    with pytest.raises(UserError, match="positive"):
        replace_layers(_sequence(), [rows], patch=0)


def test_batch_norms_take_the_new_statistics():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    batches = [3 * torch.randn(40, 6) + 1 for _ in range(3)]
    assert renormalise(net, batches) == 1
    hidden = [net[0](batch).detach() for batch in batches]
    torch.testing.assert_close(net[1].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    torch.testing.assert_close(net[1].running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert net[1].momentum == 0.1
    assert net.training
    assert net[2].training
    with pytest.raises(UserError, match="at least one batch"):
        renormalise(net, [])


def test_a_convolution_of_more_channels_than_bytes_can_sum_gets_fewer_codebooks_unless_told():
    torch.manual_seed(0)
    images = torch.randn(4, 300, 6, 6)
    exact = nn.Conv2d(300, 5, 3, padding=1)

    def replaced(**more):
        net = nn.Sequential(copy.deepcopy(exact), nn.ReLU())
        (layer,) = replace_layers(net, [images], skip=(), **more).replaced
        return net, layer.codebooks

    net, count = replaced()
    assert count == 257
    assert torch.isfinite(net(images)).all()
    assert replaced(lut_bits=None)[1] == 300
    with pytest.raises(UserError, match="300 codebooks"):
        replaced(codebooks=300)
