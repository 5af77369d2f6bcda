"""Accuracies of the published NumPy program on features of a small network, met within 0.02.

Its figures for image filters are not asked for: they depend on which part of two photographs it took, and neither the
centres nor the upper left corners give them, with its Bolt as little as with its MADDNESS.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness import load
from harness.errors import Unavailable
from suites.amm import sources
from suites.approximate_matmul import SUITE

SLACK = 0.02
#: Loss of accuracy by codebooks on 512 features of a small network on the digits (0.990 exact there). The network is
#: our own, so that losses are compared; errors of other features than those cannot be.
FEATURES = {
    "maddness": {8: 0.030, 16: 0.020, 32: 0.010, 64: 0.004},
    "bolt": {8: 0.016, 16: 0.014, 32: 0.006, 64: -0.002},
}


@pytest.mark.parametrize("method", FEATURES)
def test_features_of_a_small_network(method: str) -> None:
    [problem] = [p for p in SUITE.problems if p.id == "digits_cnn_c16-355x512x10-float32-cpu"]
    try:
        found = sources.source(problem)
    except Unavailable as error:
        pytest.skip(str(error))
    assert found.bias is not None
    assert found.labels is not None
    train, rows, b = (torch.from_numpy(m) for m in (found.train, found.pool, found.b))
    exact = rows.double() @ b.double()
    right = float(np.mean((exact.numpy() + found.bias).argmax(1) == found.labels))
    for codebooks, loss in FEATURES[method].items():
        got = load(f"approximate_matmul.{method}")(codebooks=codebooks).fit(train, b)(rows)
        accuracy = float(np.mean((got.numpy() + found.bias).argmax(1) == found.labels))
        assert right - accuracy <= loss + SLACK, codebooks
