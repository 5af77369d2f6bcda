"""Fixtures: a toy training plug-in, one run in this process, a whole invocation with workers."""

import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

HERE = Path(__file__).parent
NAMES = (
    *("sgd", "adam", "nan", "blows-up", "oom", "raises", "hangs", "dies", "slow", "impure", "hidden", "hooks"),
    *("refuses", "halves", "deaf", "cuda-only", "lonely-exit", "lonely-kill", "lonely-error"),
)
WORKLOADS = {
    "blobs": "BLOBS",
    "blobs-b64": "B64",
    "blobs-b512": "B512",
    "blobs-loss": "LOSS",
    "blobs-final": "FINAL",
    "blobs-wrong": "WRONG",
    "blobs-long": "LONG",
}


@pytest.fixture
def toys(plugin, warm_workers):
    """The toy workloads and methods, found through entry points; workers start warm."""
    from harness.measure.training import recipe

    points = {f"training.toy-{name}": f"toy_training:{name.upper().replace('-', '_')}" for name in NAMES}
    folder = plugin(points, workloads={name: f"toy_training:{attr}" for name, attr in WORKLOADS.items()})
    shutil.copy(HERE / "toy_training.py", folder)
    recipe._recipes.cache_clear()
    yield folder
    recipe._recipes.cache_clear()
    sys.modules.pop("toy_training", None)


@pytest.fixture
def run_one(toys, monkeypatch):
    """``run_one(method, workload, **fields of the spec)`` -> the run's outcome and the Run itself."""
    from harness.catalogue import registry
    from harness.measure.training import warmup
    from harness.measure.training.loop import Run
    from harness.measure.training.plan import TrainRequest, build
    from harness.measure.training_device import open_training

    monkeypatch.setattr(warmup, "STALL_MOST", 4)

    def call(method="sgd", workload="blobs", hyper=(), costs=None, model_params=None, **fields):
        from dataclasses import replace

        plan = build(
            TrainRequest(workloads=(workload,), methods=(f"toy-{method}",), seeds=1, hyper=tuple(hyper), full=True)
        )
        part = plan.parts[0]
        spec = replace(plan.spec(part, part.arms[0], 0), **fields)
        found = spec.found_workload()
        if model_params:
            found = replace(found, params={**found.params, **model_params})
        runtime = registry.resolve(found.runtime)
        run = Run(
            spec=spec,
            workload=found,
            runtime=runtime,
            data=runtime.data(found, "cpu", spec.validation),
            device=open_training("cpu", spec.trainer["precision"]),
            loss=lambda model, inputs, targets: runtime.loss(model(inputs), targets),
            costs=costs,
        )
        return run.run(), run

    return call
