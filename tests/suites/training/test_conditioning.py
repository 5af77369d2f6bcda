import math

import pytest
import torch
from torch import nn

from harness.catalogue.workload import Batch
from suites.training.conditioning import BANK, LARGEST, noise_accuracy, noise_bank, noisy, weight_spectra


def _with(*matrices):
    model = nn.Module()
    model.weights = nn.ParameterList(nn.Parameter(matrix) for matrix in matrices)
    return model


def test_spectra_are_geometric_means_over_the_matrices():
    model = _with(torch.diag(torch.tensor([8.0, 2.0, 1.0])), torch.diag(torch.tensor([9.0, 3.0, 3.0])), torch.ones(7))
    found = weight_spectra(model)
    assert found["weight_sigma_spread"] == pytest.approx(math.sqrt(4 * 3))
    assert found["weight_condition"] == pytest.approx(math.sqrt(8 * 3))


def test_convolutions_are_flattened_and_frozen_weights_left_out():
    conv = torch.zeros(2, 1, 1, 2)
    conv[0, 0, 0, 0], conv[1, 0, 0, 1] = 6.0, 2.0
    model = _with(conv, torch.diag(torch.tensor([100.0, 1.0])), torch.ones(1, 5))
    model.weights[1].requires_grad_(False)
    # The lower median of two values is the smaller one.
    assert weight_spectra(model) == pytest.approx({"weight_sigma_spread": 3.0, "weight_condition": 3.0})


def test_singular_weights_have_the_largest_condition_and_zero_ones_none_other():
    assert weight_spectra(_with(torch.diag(torch.tensor([1.0, 0.5, 0.0]))))["weight_condition"] == pytest.approx(
        LARGEST
    )
    assert math.isfinite(weight_spectra(_with(torch.zeros(3, 3)))["weight_condition"])
    assert weight_spectra(_with(torch.ones(4))) == {}


def test_noise_is_fixed_standard_and_does_not_depend_on_the_batch():
    sample = torch.zeros(3, 5, 7)
    bank = noise_bank(sample)
    assert bank.shape == (BANK, 3, 5, 7)
    assert torch.equal(bank, noise_bank(sample))
    assert abs(float(bank.mean())) < 0.02
    assert float(bank.std()) == pytest.approx(1, abs=0.02)
    images = torch.randn(300, 3, 5, 7)
    labels = torch.zeros(300, dtype=torch.int64)
    whole = next(noisy(iter([Batch(images, labels)]), 0.5, bank)).inputs
    parts = [Batch(images[i : i + 70], labels[i : i + 70]) for i in range(0, 300, 70)]
    assert torch.equal(torch.cat([batch.inputs for batch in noisy(iter(parts), 0.5, bank)]), whole)
    torch.testing.assert_close(whole[BANK:], images[BANK:] + 0.5 * bank[: 300 - BANK])


def test_noise_accuracy_calls_each_level():
    seen = []

    def evaluate(batches):
        seen.append(float(next(batches).inputs.std()))
        return {"accuracy": 0.25}

    found = noise_accuracy(evaluate, lambda: iter([Batch(torch.zeros(50, 1, 9, 9), torch.zeros(50))]))
    assert found == {"noise_accuracy_0.1": 0.25, "noise_accuracy_0.2": 0.25, "noise_accuracy_0.4": 0.25}
    assert seen == pytest.approx([0.1, 0.2, 0.4], rel=0.05)
