"""Every back-end on a GPU: right at the gate, and timed by every clock."""

import pytest
import torch

from harness.catalogue import registry
from harness.catalogue.suite import Problem
from harness.measure import gate, micro
from harness.measure.device import open_device
from suites.preconditioning import SUITE
from suites.preconditioning_runtime import RUNTIME

METHODS = sorted(name for name in registry.entries("methods") if name.startswith("preconditioning."))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("kind", ["refresh", "apply", "update"])
@pytest.mark.parametrize("name", METHODS)
def test_every_back_end_passes_and_can_be_timed(name, kind):
    params = {"damping": 0.01, "decay": 0.95}
    made = Problem(kind=kind, shape=(256, 513), dtype="float32", device="cuda", params=params)
    device = open_device("cuda", True, "ieee")
    method = registry.method(name)
    outcome = gate.check(method=method, runtime=RUNTIME, problem=made, device=device, seeds=2)
    if kind == "update" and name in ("preconditioning.brand", "preconditioning.seng"):
        assert outcome.status == "unsupported"
        return
    assert outcome.status == "passed", outcome.reason
    op = RUNTIME.bind(registry.load(name), made, method.hyper)
    timing = micro.time_arm(
        op=op, runtime=RUNTIME, problem=made, content=RUNTIME.content(made, 7), device=device, protocol=SUITE.protocol
    )
    assert min(timing.samples["op_s"][1]) > 0
    assert "op_graph_s" not in timing.samples
