"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer: random sizes in buffers of exactly that size."""

import subprocess

import pytest

from harness.errors import Unavailable
from methods.approximate_matmul.native import build

FLAGS = ["-std=c++17", "-O1", "-g1", "-pthread", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FLAGS += ["-DAMM_INLINE_TREE=2"]  # small functions: minutes less to compile


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    place = tmp_path_factory.mktemp("sanitize")
    try:
        command = build.compiler()
    except Unavailable as error:
        pytest.skip(str(error))
    probe = place / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    empty = place / "probe"
    trial = subprocess.run([*command, *FLAGS, str(probe), "-o", str(empty)], capture_output=True, check=False)
    if trial.returncode or subprocess.run([str(empty)], capture_output=True, check=False).returncode:
        pytest.skip(f"{command[0]} cannot build or run programs with sanitizers here")
    sources = [str(build.folder() / name) for name in (*build.SOURCES, "sanitize.cpp")]
    done = subprocess.run(
        [*command, *FLAGS, "-o", str(place / "kernels"), *sources], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return place / "kernels"


def test_random_sizes_touch_nothing_outside_their_buffers(program):
    done = subprocess.run([str(program), "60"], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert " 0 failures" in done.stdout
