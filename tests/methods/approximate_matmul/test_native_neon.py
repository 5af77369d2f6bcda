"""The NEON level where this processor has none: cross-compiled and run by an emulator, against the scalar level."""

import platform
import shutil
import subprocess

import pytest

from methods.approximate_matmul.native import binding, build

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def test_neon_equals_the_scalar_level(tmp_path):
    if shutil.which(COMPILER) is None or shutil.which(EMULATOR) is None:
        pytest.skip(f"needs {COMPILER} and {EMULATOR}")
    sources = [str(build.folder() / name) for name in (*build.SOURCES, "sanitize.cpp")]
    flags = ["-O1", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-pthread", "-static"]
    command = [COMPILER, *flags, "-o", str(tmp_path / "kernels"), *sources]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    done = subprocess.run(
        [EMULATOR, str(tmp_path / "kernels"), "40"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    assert "levels up to 1, 0 failures" in done.stdout


def test_levels_belong_to_the_processors_family():
    arm = platform.machine().lower() in ("aarch64", "arm64")
    assert (("scalar", "neon") if arm else ("scalar", "avx2", "avx512", "avx512vbmi", "avx512amx")) == binding.LEVELS
    if binding.available() is None:
        assert binding.highest_level() in binding.LEVELS
