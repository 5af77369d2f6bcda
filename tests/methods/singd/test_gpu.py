"""On a GPU: every structure against float64 on the CPU, no waiting in a period of steps, the state's bytes."""

import pytest
import torch

from methods.singd import _bench_arms, _bench_checks
from methods.singd.structures import STRUCTURES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize("dtype", list(_bench_checks.ALLOWED), ids=str)
@pytest.mark.parametrize("name", STRUCTURES)
def test_structures(name, dtype):
    for d in (20, 95, 300):
        assert _bench_checks.structures_error(name, dtype, "cuda", d) < _bench_checks.ALLOWED[dtype]


@pytest.mark.parametrize("arm", _bench_arms.ARMS)
def test_steps_and_waits(arm):
    assert _bench_checks.steps_error(arm, "cuda") < _bench_checks.ALLOWED[torch.float32]
    assert _bench_checks.waits(arm, "cuda", {}, False) == "none"
    assert _bench_checks.waits(arm, "cuda", {"preconditioner_dtype": "bfloat16"}, True) == "none"


@pytest.mark.parametrize("arm", ["diagonal", "block30", "hierarchical15", "tril-toeplitz", "dense"])
def test_graphs_are_used_and_equal_eager_steps(arm, capsys):
    assert _bench_checks.graphs_error(arm, "cuda") < _bench_checks.ALLOWED[torch.float32]
    printed = capsys.readouterr().out
    assert "'failed': 0" in printed
    assert "'replayed': 0" not in printed
