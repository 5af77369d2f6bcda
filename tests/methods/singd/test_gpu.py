"""On a GPU: every structure against float64 on the CPU, no waiting in a period of steps, the state's bytes."""

import pytest
import torch

from methods.singd import _bench
from methods.singd.structures import STRUCTURES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize("dtype", list(_bench.ALLOWED), ids=str)
@pytest.mark.parametrize("name", STRUCTURES)
def test_structures(name, dtype):
    for d in (20, 95, 300):
        assert _bench.structures_error(name, dtype, "cuda", d) < _bench.ALLOWED[dtype]


@pytest.mark.parametrize("arm", _bench.ARMS)
def test_steps_and_waits(arm):
    assert _bench.steps_error(arm, "cuda") < _bench.ALLOWED[torch.float32]
    assert _bench.waits(arm, "cuda", {}, False) == "none"
    assert _bench.waits(arm, "cuda", {"preconditioner_dtype": "bfloat16"}, True) == "none"
