from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from harness.catalogue.method import Cost, Method
from harness.catalogue.registry import resolve

ROOT = Path(__file__).resolve().parents[3]
POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["speedclaim.methods"]
MINE = {name: target for name, target in POINTS.items() if target.startswith("methods.orthogonalize.catalogue:")}


@pytest.mark.parametrize("name", MINE)
def test_entry_point_is_a_complete_descriptor(name):
    method = resolve(MINE[name])
    assert isinstance(method, Method)
    assert method.name == name
    assert method.source
    assert method.formula
    assert method.cost
    assert "torch" in method.needs
    assert callable(resolve(method.impl))
    assert callable(resolve(method.reference)) if method.reference else method.reference is None
    work = resolve(method.cost)((2, 6, 8), 4)
    assert isinstance(work, Cost)
    assert work.flops > 0
    assert work.bytes == 2 * 4 * 96


def test_all_descriptors_are_registered_and_torch_free():
    code = (
        "import sys, methods.orthogonalize.catalogue as c\n"
        "from harness.catalogue.method import Method\n"
        "assert 'torch' not in sys.modules\n"
        "print(*sorted(m.name for m in vars(c).values() if isinstance(m, Method)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == sorted(MINE)
