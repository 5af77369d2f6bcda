"""The library that an install builds: found first, never trusted blindly, never a reason for the install to fail."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import Unavailable
from methods.approximate_matmul.native import binding, build

ROOT = Path(__file__).resolve().parents[3]
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, build.COMPILERS)), reason="no C++ compiler")


@pytest.fixture
def fresh(monkeypatch):
    """The binding as in a new process; afterwards as it was."""
    monkeypatch.delenv("CXX", raising=False)
    loaded = binding._load.cache_info().currsize
    binding._load.cache_clear()
    yield
    binding._load.cache_clear()
    if loaded:
        monkeypatch.undo()
        binding._load()


@needs_compiler
def needs_setuptools() -> None:
    """Skip below 77, without importing it: it refuses a process whose distutils somebody has imported already."""
    try:
        found = int(importlib.metadata.version("setuptools").split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        found = 0
    if found < 77:
        pytest.skip(f"setuptools {found or 'missing'}, 77 is needed")


def test_an_install_leaves_one_library_and_says_which_compiler_made_it(monkeypatch, tmp_path, fresh):
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))
    for name in ("amm-0123.so", "amm-0123.json", "amm.h"):
        (tmp_path / name).write_text("old")
    made = build.install(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([made.name, made.with_suffix(".json").name, "amm.h"])
    assert made.name == build.installed_name()
    assert json.loads(made.with_suffix(".json").read_text())["compiler"] == build.version(build.compiler())
    assert made.stat().st_mode & 0o055 == 0o055, "what root installs, others must be able to load"
    monkeypatch.setattr(build, "installed", lambda: made)
    monkeypatch.setattr(build, "library", lambda: pytest.fail("compiled although the install had done so"))
    monkeypatch.setenv("PATH", "")
    assert Path(binding._load()._name) == made
    assert binding.describe()["built"] == "at install"


@needs_compiler
def test_a_library_that_does_not_load_is_replaced(monkeypatch, tmp_path, fresh):
    broken = tmp_path / "amm-broken.so"
    broken.write_text("not a library")
    monkeypatch.setattr(build, "installed", lambda: broken)
    assert binding._load().amm_abi() == binding._ABI
    assert binding.describe()["built"] == "at first use"


def test_a_library_of_other_sources_is_not_found(monkeypatch):
    before = build.installed_name()
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
    assert build.installed_name() != before
    assert build.installed() is None


def test_nothing_that_ships_is_tuned_to_the_machine_that_compiles():
    assert not [flag for flag in build.FLAGS if flag.startswith(("-march", "-mtune", "-mcpu", "-ffast-math"))]


def test_an_install_without_compiler_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(Unavailable, match=r"\$CXX"):
        build.install(tmp_path)


@pytest.mark.parametrize(("variable", "value", "said"), [
    ("CXX", "no-such-compiler", "native kernels not built ($CXX names 'no-such-compiler'"),
    ("SPEEDCLAIM_BUILD_KERNELS", "0", "native kernels left out"),
])  # fmt: skip
def test_the_build_step_never_breaks_the_install(tmp_path, variable, value, said):
    needs_setuptools()
    target = tmp_path / "lib"
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    done = subprocess.run(
        [*command, "build_py", "--build-lib", str(target)],
        cwd=ROOT, env=os.environ | {variable: value}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("speedclaim:")]
    assert len(told) == 1
    assert said in told[0]
    native = target / "methods/approximate_matmul/native"
    assert (native / "driver.cpp").exists(), "the sources go along, so that first use can build"
    assert not list(native.glob("*.so"))
