"""The declarative side of the polar suite."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness.catalogue import registry
from harness.catalogue.suite import TIERS
from suites import polar, polar_inputs


def test_listing_imports_no_torch():
    code = "import sys, suites.polar; print([m for m in ('torch', 'triton', 'numpy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=registry.ROOT)
    assert found.stdout.strip() == "[]"


def test_registry_finds_the_suite_and_its_runtime():
    assert registry.suite("polar") is polar.SUITE
    runtime = registry.resolve(polar.TASK.runtime)
    for name in ("content", "vary", "buffer_like", "fill", "same", "snapshot", "bind", "malformed", "nonfinite"):
        assert callable(getattr(runtime, name))
    for name in ("oracle", "judge", "work_bytes", "work_flops"):
        assert callable(getattr(runtime, name))
    assert polar.SUITE.baseline == "polar.ns-torch"
    assert polar.SUITE.baseline in registry.entries("methods")
    assert polar.TASK.primary_error in polar.ERRORS


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tiers(device):
    tiers = {tier: polar.SUITE.tier(tier, (device,)) for tier in TIERS}
    assert tiers["quick"]
    assert set(map(id, tiers["quick"])) < set(map(id, tiers["standard"])) < set(map(id, tiers["full"]))
    # the budget drops problems from the end, so what quick needs comes first
    assert tiers["standard"][: len(tiers["quick"])] == tiers["quick"]
    assert any(problem.kind.startswith("grad_") for problem in tiers["quick"])


def test_ids_are_unique():
    ids = [problem.id for problem in polar.SUITE.problems]
    assert len(ids) == len(set(ids))


def test_every_problem_can_be_generated():
    for problem in polar.SUITE.problems:
        assert problem.dtype in polar_inputs.DTYPES
        if problem.kind in polar.GRADIENTS:
            stack = polar_inputs.gradients(problem.params["file"], problem.params["key"])
            assert tuple(stack.shape[1:]) == problem.shape
        else:
            assert problem.kind in polar_inputs.KINDS
            if problem.kind.startswith("logspec"):
                assert max(problem.shape) <= polar_inputs.SPECTRUM_LIMIT
            if problem.dtype == "float16":
                assert problem.kind == "gaussian"  # heavy tails leave float16's range


def test_published_grid_is_there():
    shapes = {
        p.shape for p in polar.SUITE.tier("standard", ("cuda",)) if p.dtype == "bfloat16" and p.kind == "gaussian"
    }
    assert {(128, n, n) for n in (512, 1024, 2048, 4096)} <= shapes
    assert {(n, n) for n in (512, 1024, 2048, 4096, 8192)} <= shapes
    assert {(768, 3072), (4096, 11008), (11008, 4096), (32, 1024, 1024), (12, 768, 3072), (100, 257)} <= shapes
