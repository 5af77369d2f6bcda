"""``make clean`` removes what ``make`` and pip left in a checkout, and nothing else."""

import shutil
import subprocess

import pytest

from harness.catalogue.registry import ROOT

NATIVE = "methods/approximate_matmul/native"
BUILT = (
    *(".venv/bin/python", "build/lib/x.py", "speedclaim.egg-info/PKG-INFO", "reports/html/index.html"),
    *(".pytest_cache/x", ".mypy_cache/x", ".ruff_cache/x", ".import_linter_cache/x"),
    *("harness/__pycache__/cli.pyc", "suites/micro/__pycache__/speed.pyc"),
    *(f"{NATIVE}/amm-0123.so", f"{NATIVE}/amm-0123.json", f"{NATIVE}/.building-x1.so"),
)
KEPT = ("results/run.jsonl", f"{NATIVE}/build.py", f"{NATIVE}/scan.cpp", "reports/records/cpu/run.jsonl", "setup.py")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_clean_leaves_sources_and_results_alone(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (*BUILT, *KEPT):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"Makefile", *KEPT}


def test_names_of_built_kernels_are_those_that_clean_removes():
    pytest.importorskip("torch")
    from methods.approximate_matmul.native import build

    assert build.folder() == ROOT / NATIVE
    assert build.installed_name().startswith("amm-")
    assert build.installed_name().endswith(".so")
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {f"{NATIVE}/amm-*.so", f"{NATIVE}/amm-*.json"} <= set(ignored)
