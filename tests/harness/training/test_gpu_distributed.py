"""Several GPUs: the same weights as one, through NCCL."""

import pytest

from harness.record import nvidia

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(nvidia.visible() < 2, reason="needs two NVIDIA GPUs"),
]


def test_sgd_and_kfac_train_to_the_weights_of_one_gpu():
    from suites.scaling_bench import alike

    found = alike("cuda", 2)
    assert "error" not in found, found
    assert max(found.values()) < 1e-3
