"""The command ``spectrum``: averages, modes, the wide head, and a record that reads back."""

import fnmatch

import pytest
import torch
from torch import nn

import harness
from harness.catalogue import registry
from harness.errors import UserError
from harness.judge.claim import load_claims
from suites import spectrum
from suites.spectrum_run import Averages, modes, points, tail, widened


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_averages_are_bias_corrected_second_moments_of_single_samples():
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    averages = Averages(layer, [0.5])
    batches = [torch.randn(4, 3, dtype=torch.float64) for _ in range(3)]
    wanted_a, wanted_g, weight = torch.zeros(4, 4).double(), torch.zeros(2, 2).double(), 0.0
    for index, batch in enumerate(batches):
        averages.enabled = index != 1
        outputs = layer(batch)
        outputs.square().sum(1).mean().backward()
        if index == 1:
            continue
        single = [2 * layer(row).detach() for row in batch]  # d/dy |y|^2
        ones = torch.cat([batch, torch.ones(4, 1)], 1)
        wanted_a = 0.5 * wanted_a + 0.5 * sum(torch.outer(row, row) for row in ones) / 4
        wanted_g = 0.5 * wanted_g + 0.5 * sum(torch.outer(g, g) for g in single) / 4
        weight = 0.5 * weight + 0.5
    first, second = averages.eigenvalues(0.5)
    assert averages.count == 2
    assert torch.allclose(first, torch.linalg.eigvalsh(wanted_a / weight).flip(0), atol=1e-5)
    assert torch.allclose(second, torch.linalg.eigvalsh(wanted_g / weight).flip(0), rtol=1e-5)
    averages.close()
    layer(batches[0]).sum().backward()
    assert averages.count == 2


def test_modes_and_tail_count_from_the_largest_eigenvalue():
    values = 2.0 * torch.tensor([1.0, 0.5, 1 / 33, 0.03, 0.0])
    assert modes(values) == 3
    assert modes(values, 0.5) == 2
    assert tail(values) == 0.0
    assert tail(torch.linspace(1, 0, 441)) == pytest.approx(1 - 219 / 440)


def test_points_end_with_the_last_update_and_rise():
    assert points(200, 5)[0] == 20
    assert points(200, 5)[-1] == 200
    assert points(200, 5) == sorted(set(points(200, 5)))
    assert points(10, 1) == [10]
    assert points(10, 9)[-1] == 10


@pytest.mark.parametrize(("name", "shape"), [("digits-cnn", (2, 1, 8, 8)), ("fashion-cnn", (2, 1, 28, 28)),
                                             ("cifar10-vgg16bn", (2, 3, 32, 32))])  # fmt: skip
def test_the_head_is_wide_and_the_features_are_the_networks(name, shape):
    net = widened(registry.workload(name), 24)
    assert net.middle.weight.shape == (24, 24)
    assert net(torch.zeros(*shape)).shape == (2, 10)
    assert sum(p.numel() for n, p in net.named_parameters() if n.startswith("net.")) > 1000


def test_a_transformer_is_refused():
    with pytest.raises(UserError, match="fc1"):
        widened(registry.workload("digits-linear-fp32"), 24)


def test_the_command_writes_a_record_with_one_sample_a_seed(tmp_path, capsys):
    given = ["--widths", "16", "24", "--seeds", "2", "--updates", "12", "--points", "2", "--out", str(tmp_path)]
    assert spectrum.main([*given, "--device", "cpu", "--decays", "0.9"]) == 0
    runs = harness.read_runs(tmp_path)
    assert set(runs["problem"]) == {"digits_cnn_r90-16-float32-cpu", "digits_cnn_r90-24-float32-cpu"}
    assert (runs["status"] == "passed").all()
    assert set(runs["metric"]) == set(spectrum.METRICS)
    found = runs[runs["metric"] == "modes_a"]
    assert all(len(samples) == 2 for samples in found["samples"])
    assert all(1 <= value <= 25 for samples in found["samples"] for value in samples)
    detail = found.iloc[0]["detail"]
    assert detail["captures"] == 12
    assert len(detail["path"]) == 2
    assert detail["spectrum_a"][0] == [1, 1.0]
    assert "width 24, seed 1" in capsys.readouterr().out


def test_generated_data_are_no_evidence_about_the_workload(tmp_path):
    given = ["--widths", "16", "--seeds", "1", "--updates", "10", "--points", "1", "--decays", "0.95", "--synthetic"]
    assert spectrum.main([*given, "--device", "cpu", "--out", str(tmp_path)]) == 0
    (name,) = set(harness.read_runs(tmp_path)["problem"])
    assert name == "synthetic_digits_cnn_r95-16-float32-cpu"
    patterns = [p for claim in load_claims() if claim.task == "spectrum" for p in claim.problems]
    assert patterns
    assert not [p for p in patterns if fnmatch.fnmatchcase(name, p)]


@pytest.mark.parametrize(("given", "said"), [(["--decays", "1.0"], "--decays"), (["--seeds", "0"], "--seeds"),
                                             (["--workload", "nothing"], "nothing")])  # fmt: skip
def test_bad_input_is_told(given, said, capsys, tmp_path):
    assert spectrum.main([*given, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
