"""FOP on a GPU against its float64 run on the CPU, and a step that waits for nothing."""

import pytest
import torch

from methods.fop import _bench

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.filterwarnings("ignore:.*leaves to"),
]


@pytest.mark.parametrize(("products", "limit"), [("float32", 1e-3), ("tf32", 2e-2), ("bfloat16", 1e-1)])
@pytest.mark.parametrize("arm", [name for name in _bench.ARMS if name != "forward and backward"])
def test_steps_equal_those_of_float64_on_the_cpu(arm, products, limit):
    options = {**_bench.COMMON, "product_dtype": products}
    if products == "bfloat16":
        options["inverse_dtype"] = "bfloat16"
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        assert _bench.error(arm, "cuda", options) < limit
    finally:
        torch.backends.cudnn.allow_tf32 = tf32


@pytest.mark.parametrize("arm", ["fop", "fop (one pass)"])
def test_a_step_without_a_refresh_does_not_wait_for_the_device(arm):
    model = _bench.net("small").cuda().to(memory_format=torch.channels_last)
    optimizer = _bench.made(arm, model, {**_bench.COMMON, "update_period": 100, "refresh_period": 100})
    x, y = _bench.data(32, "cuda")
    for _ in range(3):
        _bench.step(model, optimizer, x, y, half=False)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _bench.step(model, optimizer, x, y, half=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
