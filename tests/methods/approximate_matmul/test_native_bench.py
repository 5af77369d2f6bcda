"""The C++ kernels' bench on tiny sizes: checks first, failures apart, what it writes."""

from __future__ import annotations

import json
import os

import pytest

torch = pytest.importorskip("torch")

from methods.approximate_matmul.native import _bench_arms as arms
from methods.approximate_matmul.native import _bench_bound as bound
from methods.approximate_matmul.native import _bench_checks as checks
from methods.approximate_matmul.native import _bench_lines as lines
from methods.approximate_matmul.native import bench, binding

needs_kernels = pytest.mark.skipif(binding.available() is not None, reason="no native kernels here")


@needs_kernels
def test_answers_notice_a_wrong_kernel(monkeypatch):
    monkeypatch.setattr(checks, "SHAPES", ((33, 64, 5, 16),))
    lines = list(checks.answers("scalar"))
    assert len(lines) == 4 * 6
    assert all(line.startswith("right") for line in lines)
    true = binding.scan
    monkeypatch.setattr(binding, "scan", lambda *args, **options: true(*args, **options) + 1)
    lines = list(checks.answers("scalar"))
    scanned = ("sums", "columns:", "bytes", "averages")
    assert {line.split(" ")[0] for line in lines if any(word in line for word in scanned)} == {"WRONG"}


def test_only_a_level_that_is_wholly_right_is_timed():
    good, bad = ["right  x", "right  y"], ["right  x", "WRONG  y: 1 of 2 entries differ"]
    assert bench.usable({"scalar": good, "avx2": good, "avx512": bad}) == "avx2"
    assert bench.usable({"scalar": bad, "avx2": []}) is None


@pytest.mark.parametrize(("cores", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])])
def test_thread_counts(cores, counts):
    assert bench.thread_counts(cores) == counts


def test_an_arm_that_fails_is_told_and_the_others_are_timed(capsys):
    def broken():
        raise RuntimeError("no such kernel")

    found = arms.minima({"fp32 mm": lambda: None, "broken": broken}, 0.0)
    assert list(found) == ["fp32 mm"]
    assert "broken left out: RuntimeError: no such kernel" in capsys.readouterr().out


@needs_kernels
def test_a_measured_shape_has_rates_and_ratios():
    with torch.inference_mode():
        shape = arms.measure(64, 64, 8, 16, 0.0)
    assert shape["shape"] == [64, 64, 8]
    rows = shape["speedup"]["product rows"]
    fp32 = min(us for name, us in shape["us"].items() if name.startswith("fp32"))
    assert rows["fp32"] == pytest.approx(fp32 / shape["us"]["product rows"])
    assert rows["int8 dynamic"] > 0
    assert shape["lookups_per_s"]["scan u16"] == pytest.approx(64 * 16 * 8 / (shape["us"]["scan u16"] * 1e-6))
    assert "C=16" in arms.lines(shape)[0]
    json.dumps(shape)


@needs_kernels
def test_all_lines_of_a_report(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    level = binding.highest_level()
    with torch.inference_mode():
        rated = [arms.level_rates(level, 64, 64, 8, 16, 0.0), arms.level_rates("scalar", 64, 64, 8, 16, 0.0)]
        shape = arms.measure(64, 64, 8, 16, 0.0)
    facts = {**binding.describe(1), **bound.processor(), "cores": 2, "cores_apart": 2, "gigahertz": 3.0}
    facts |= {"level": "avx512vbmi", "memory_kept": True, "torch": "2"}
    rated[0]["level"] = "avx512vbmi"
    chosen = {"cpus": bound.apart()[:1], "counts": [1], "shape": [64, 64, 8], "codebooks": 16}
    rows = [{**row, "threads": 2, "speedup": dict.fromkeys(row["us"], 1.5)} for row in bench.scaling_rows(chosen, 0.0)]
    found = {"about": facts, "levels": rated, "shapes": [{**shape, "shape": [10000, 512, 100]}]}
    told = lines.everything({**found, "threads": [{**chosen, "rows": rows}]}, 10.0)
    assert any("of the bound: encode" in line for line in told)
    assert any("bounds at 3.00 GHz: product" in line for line in told)
    assert told[-1].startswith("goals: C=16 over _int_mm")
    assert told[-1].endswith("two threads 1.5 of 1.8 not met")
    assert bench.fastest(rated, "none") == "avx512vbmi"
    assert bench.fastest([], "none") == "none"


def test_bounds_are_the_arithmetic_of_the_readme():
    assert bound.product_us(10000, 100, 16, 3.0) == pytest.approx((65000 + 250000 + 156250) / 3e3)
    assert bound.product_us(10000, 100, 64, 3.0) == pytest.approx((260000 + 1000000 + 156250) / 3e3)
    assert bound.int8_us(10000, 512, 100, 3.0, {"amx_int8": True}) == pytest.approx(500000 / 3e3)
    assert bound.int8_us(10000, 512, 100, 3.0, {"avx512_vnni": True}) == pytest.approx(4000000 / 3e3)
    assert bound.int8_us(10000, 512, 100, 3.0, {}) is None


def test_threads_are_set_and_put_back(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = torch.get_num_threads()
    with arms.threads(2):
        assert torch.get_num_threads() == 2
        assert binding.default_threads() == 2
    assert torch.get_num_threads() == before
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_a_step_that_fails_is_written_and_the_rest_goes_on(tmp_path, capsys):
    report = bench.Report(str(tmp_path / "new"))
    report.attempt("first", lambda: 1 / 0)
    report.attempt("second", lambda: report.note(second=2))
    found = json.loads((tmp_path / "new" / "amm_native.json").read_text())
    assert "ZeroDivisionError" in found["failures"]["first"]
    assert found["second"] == 2
    assert "first: FAILED" in capsys.readouterr().out


def test_training_is_timed():
    assert checks.training_seconds(200, 16, 2) > 0
