from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.errors import Unsupported
from methods.orthogonalize import compiled, newton_schulz


@pytest.fixture
def traced(monkeypatch):
    """torch.compile with the back end 'eager': traces the whole graph, generates no code."""
    real, made = torch.compile, []

    def compile_(body, **options):
        made.append(options)
        return real(body, backend="eager", **options)

    compiled._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", compile_)
    yield made
    compiled._compiled.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_traced_whole_equals_eager(make, traced, dtype):
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.06, torch.float16: 0.01}[dtype]
    for shape in ((8, 12), (12, 8), (2, 8, 12)):
        G = make["gaussian"](*shape).to(dtype)
        before = G.clone()
        for run, eager in (
            (compiled.ns_compiled, newton_schulz.ns_torch),
            (compiled.turbo_compiled, newton_schulz.turbo_torch),
        ):
            X = run(G)
            assert X.shape == G.shape
            assert X.dtype == dtype
            assert X.is_contiguous()
            assert torch.allclose(X.float(), eager(G).float(), atol=tolerance)
        assert torch.equal(G, before)
    assert len(traced) == 6
    assert all(options == {"dynamic": False, "fullgraph": True} for options in traced)


def test_one_compilation_per_layout_beyond_torchs_limit(make, traced):
    sizes = range(4, 16)  # twelve layouts: torch stops recompiling one code object after eight
    for _ in range(2):
        for n in sizes:
            assert compiled.ns_compiled(make["gaussian"](n, n + 1).float()).isfinite().all()
    assert len(traced) == len(sizes)


def test_edge_cases(make, traced):
    assert compiled.ns_compiled(torch.zeros(0, 4)).shape == (0, 4)
    assert not compiled.turbo_compiled(torch.zeros(3, 4)).any()
    assert compiled.turbo_compiled(torch.full((3, 4), torch.nan)).isnan().all()
    with pytest.raises(Unsupported):
        compiled.ns_compiled(torch.ones(3))


def test_missing_compiler_is_said_clearly(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    compiled._compiled.cache_clear()
    with pytest.raises(Unsupported, match=r"C\+\+ compiler"):
        compiled.ns_compiled(torch.ones(3, 5))


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_generated_code_equals_eager():
    """In a process of its own: the compiler loads setuptools, which minds what other tests have imported."""
    code = (
        "import torch; from methods.orthogonalize import compiled, newton_schulz; torch.manual_seed(0);"
        "G = torch.randn(24, 40);"
        "assert torch.allclose(compiled.turbo_compiled(G), newton_schulz.turbo_torch(G), atol=1e-4)"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
