"""The GPU bench's own logic, without a GPU: jobs, children that fail, the table, the command line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from methods.approximate_matmul.gpu import _bench as bench
from methods.approximate_matmul.gpu import _bench_arms as arms
from methods.approximate_matmul.gpu import model


def test_every_timed_shape_is_checked_first():
    for quick in (False, True):
        shapes = bench.SHAPES[: bench.QUICK_SHAPES] if quick else bench.SHAPES
        wanted = bench.jobs(shapes, quick)
        warm = {(tuple(job["shape"]), job["codebooks"]) for job in wanted if job["kind"] == "warm"}
        assert warm == {((n, d, m), c) for n, d, m, codebooks in shapes for c in codebooks}
        odd = [job for job in wanted if job["kind"] == "odd"]
        assert {job["dtype"] for job in odd} == {"float32", "bfloat16", "float16"}
        assert {job["layout"] for job in odd} == {"row", "feature"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the child would succeed")
def test_a_child_that_fails_is_told_and_the_rest_goes_on(tmp_path, capsys):
    odd = {"kind": "odd", "place": 0, "dtype": "float32", "layout": "row"}
    done = bench.together([odd, {"kind": "odd", "place": 0, "dtype": "no such dtype", "layout": "row"}], 60.0, tmp_path)
    assert len(done) == 2
    for _, found, why in done:
        assert found is None
        assert "exit status 1" in why
    assert any("no such dtype" in why for _, _, why in done)
    assert capsys.readouterr().out.count("FAILED") == 2


def test_a_child_that_hangs_is_ended(tmp_path, monkeypatch):
    def hang(job, folder, number, show):
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]), folder / f"{number}.json"

    monkeypatch.setattr(bench, "spawn", hang)
    [(_, found, why)] = bench.together([{"kind": "rates"}], 0.3, tmp_path)
    assert found is None
    assert why == "took over 0 s"
    assert bench.alone({"kind": "rates"}, 0.3, tmp_path, 1) == (None, "took over 0 s")


def test_arms_that_did_not_run_are_left_out_and_wrong_ones_are_not():
    job = {"kind": "warm", "shape": [8, 4, 2], "codebooks": 16}
    lines = [
        "right  (8, 4) C=16 | encode row (0.1 s)",
        "FAILED (8, 4) C=16 | scan lut: RuntimeError: no: really",
        "WRONG  (8, 4) C=16 | scan onehot int8: 3 of 4 entries differ",
    ]
    broken = bench.broken_arms([(job, lines, ""), (job | {"codebooks": 64}, None, "exit status 1")])
    assert broken == {"[8, 4, 2]": ["C=16 scan lut"]}


def test_table_compares_with_the_fastest_product_of_a_kind():
    us = {
        "torch.mm bf16": 100.0,
        "torch._scaled_mm fp8": 60.0,
        "torch._scaled_mm fp8 fast": 50.0,
        "C=16 scan lut": 25.0,
    }
    shape = {"shape": [64, 32, 8], "us": us, "bound_us": dict.fromkeys(us, 5.0)}
    line = next(line for line in bench.table([shape]) if "scan lut" in line)
    assert line.split()[-5:] == ["25.0", "20%", "4.00x", "-", "2.00x"]
    assert " 2 " in line
    assert arms.best_dense(us) == {"bf16": 100.0, "fp8": 50.0}
    assert arms.kind_of("torch._int_mm") == "int8"
    assert arms.kind_of("C=16 scan lut") is None


@pytest.mark.parametrize("name", ["encode row", "encode feature", "scan lut", "scan onehot bf16", "fused row int8"])
def test_bounds_are_positive(name):
    assert arms.bound_of(name, model.Shape(n=1024, d=64, m=32, codebooks=8), model.H100) > 0


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="has a GPU")
def test_without_a_gpu_it_says_so():
    command = [sys.executable, "-m", "methods.approximate_matmul.gpu._bench", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "needs an NVIDIA GPU" in done.stdout
