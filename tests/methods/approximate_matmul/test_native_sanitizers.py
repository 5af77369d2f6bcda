"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer: random sizes in buffers of exactly that size.

Once with the levels of this processor and once with those of AVX-512 and AMX emulated; every level must give the scalar
level's codes and sums.
"""

import platform
import subprocess
from pathlib import Path

import pytest

from harness.errors import Unavailable
from methods.approximate_matmul.native import build

FLAGS = ["-std=c++17", "-Og", "-g1", "-pthread"]
FLAGS += ["-DAMM_INLINE_TREE=2"]  # small functions: minutes less to compile
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
EMULATED = ["-mavx2", "-mfma", '-DAMM_INTRINSICS="emulated.h"', "-Wno-psabi"]


def _compiler():
    try:
        return build.compiler()
    except Unavailable as error:
        pytest.skip(str(error))


def _works(flags, place):
    probe = place / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    program = str(place / "probe")
    trial = subprocess.run([*_compiler(), *flags, str(probe), "-o", program], capture_output=True, check=False)
    return not trial.returncode and not subprocess.run([program], capture_output=True, check=False).returncode


def _build(flags, place):
    sources = [str(build.folder() / name) for name in (*build.SOURCES, "sanitize.cpp")]
    command = [*_compiler(), *FLAGS, *flags, "-o", str(place / "kernels"), *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return str(place / "kernels")


def _run(program, rounds):
    done = subprocess.run([program, str(rounds)], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert " 0 failures" in done.stdout
    return done.stdout


def test_random_sizes_touch_nothing_outside_their_buffers(tmp_path):
    if not _works(SANITIZERS, tmp_path):
        pytest.skip("programs with sanitizers cannot be built or run here")
    _run(_build(SANITIZERS, tmp_path), 60)


def test_emulated_levels_equal_the_scalar_one_and_stay_inside_their_buffers(tmp_path):
    if platform.machine() not in ("x86_64", "AMD64") or " avx2 " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("the emulation needs AVX2")
    flags = SANITIZERS if _works(SANITIZERS, tmp_path) else []
    assert "levels up to 4," in _run(_build([*EMULATED, *flags], tmp_path), 24)
