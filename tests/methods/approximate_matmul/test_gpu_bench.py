"""The GPU bench's own logic, without a GPU: jobs, children that fail, the table, the command line."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from methods.approximate_matmul.gpu import _bench as bench
from methods.approximate_matmul.gpu import _bench_arms as arms
from methods.approximate_matmul.gpu import _bench_children as children
from methods.approximate_matmul.gpu import model


def test_every_timed_shape_is_checked_first():
    for quick in (False, True):
        wanted = bench.jobs(bench.SHAPES, quick)
        warm = {(tuple(job["shape"]), job["codebooks"]) for job in wanted if job["kind"] == "warm"}
        assert warm == {((n, d, m), c) for n, d, m, codebooks in bench.SHAPES for c in codebooks}
        odd = [job for job in wanted if job["kind"] == "odd"]
        assert {job["dtype"] for job in odd} == {"float32", "bfloat16", "float16"}
        assert {job["layout"] for job in odd} == {"row", "feature"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the child would succeed")
def test_a_child_that_fails_is_told_and_the_rest_goes_on(tmp_path, capsys):
    odd = {"kind": "odd", "place": 0, "dtype": "float32", "layout": "row"}
    done = children.together(
        [odd, {"kind": "odd", "place": 0, "dtype": "no such dtype", "layout": "row"}], 60.0, tmp_path
    )
    assert len(done) == 2
    for _, found, why in done:
        assert found is None
        assert "exit status 1" in why
    assert any("no such dtype" in why for _, _, why in done)
    assert capsys.readouterr().out.count("FAILED") == 2


def test_a_child_that_hangs_is_ended(tmp_path, monkeypatch):
    def hang(job, folder, number, show):
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]), folder / f"{number}.json"

    monkeypatch.setattr(children, "spawn", hang)
    [(_, found, why)] = children.together([{"kind": "rates"}], 0.3, tmp_path)
    assert found is None
    assert why == "took over 0 s"
    assert children.alone({"kind": "rates"}, 0.3, tmp_path, 1) == (None, "took over 0 s")


SHAPES = [{"shape": [side, 4, 2], "codebooks": [2], "broken": []} for side in (1, 2, 3)]
RATES = {"bf16_flops": 1.0}


def scripted(monkeypatch, programs):
    """Timing children that write what they are told, one program after another; the jobs they got."""
    got = []

    def spawn(job, folder, number, show):
        target, program = folder / f"{number}.json", programs[len(got)]
        got.append(job)
        lines = ["import json, os, sys, time", f"target = {str(target)!r}"]
        lines += ["def save(x):", " open(target + 'p', 'w').write(json.dumps(x)); os.replace(target + 'p', target)"]
        return subprocess.Popen([sys.executable, "-c", "\n".join([*lines, program])]), target

    monkeypatch.setattr(children, "spawn", spawn)
    return got


def told(rates=RATES, begun=None, shapes=(), failed=None):
    made = [{"shape": shape} for shape in shapes]
    return f"save({ ({'rates': rates, 'begun': begun, 'shapes': made, 'failed': failed or {}})!r});"


def test_timing_goes_on_behind_the_shape_that_ended_its_child(monkeypatch, tmp_path):
    first = told(begun=[2, 4, 2], shapes=[[1, 4, 2]]) + "os._exit(9)"
    got = scripted(monkeypatch, [first, told(shapes=[[3, 4, 2]])])
    seen = []
    whole = children.timing(SHAPES, time.perf_counter() + 60, tmp_path, seen.append)
    assert [one["shape"] for one in whole["shapes"]] == [[1, 4, 2], [3, 4, 2]]
    assert whole["failed"] == {"2 x 4 x 2": "exit status 9"}
    assert [one["shape"] for one in got[1]["shapes"]] == [[3, 4, 2]]
    assert (got[0]["rates"], got[1]["rates"]) == (None, RATES), "rates are measured once"
    assert seen[-1] == whole


def test_a_device_that_dies_while_rates_are_measured_still_times_shapes(monkeypatch, tmp_path):
    got = scripted(monkeypatch, [told(rates=None, begun="rates") + "os._exit(1)", told(shapes=[[1, 4, 2]])])
    whole = children.timing(SHAPES, time.perf_counter() + 60, tmp_path, lambda news: None)
    assert whole["failed"] == {"rates": "exit status 1"}
    assert got[1]["rates"] == dataclasses.asdict(model.H100)
    assert len(whole["shapes"]) == 1


def test_a_child_that_cannot_start_is_not_tried_for_ever(monkeypatch, tmp_path):
    got = scripted(monkeypatch, ["os._exit(1)"])
    whole = children.timing(SHAPES, time.perf_counter() + 60, tmp_path, lambda news: None)
    assert len(got) == 1
    assert whole["failed"]["start"] == "exit status 1"


def test_the_budget_ends_timing_and_keeps_what_there_is(monkeypatch, tmp_path):
    scripted(monkeypatch, [told(begun=[2, 4, 2], shapes=[[1, 4, 2], [2, 4, 2]]) + "time.sleep(60)"])
    begin = time.perf_counter()
    whole = children.timing(SHAPES, begin + 2, tmp_path, lambda news: None)
    assert time.perf_counter() - begin < 20
    assert [one["shape"] for one in whole["shapes"]] == [[1, 4, 2], [2, 4, 2]]
    assert whole["failed"] == {"2 x 4 x 2": children.LATE, "3 x 4 x 2": children.LATE}


def test_checks_have_a_common_end(monkeypatch, tmp_path):
    monkeypatch.setattr(children.os, "cpu_count", lambda: 1)
    notes = []
    scripted(monkeypatch, ["time.sleep(60)"] * 4)
    done = children.together(
        [{"kind": "odd", "place": i} for i in range(4)], 1.0, tmp_path, lambda d: notes.append(len(d))
    )
    assert len(done) == 4
    assert all(found is None for _, found, _ in done)
    assert [why for _, _, why in done].count(children.LATE) == 2, "two ran, two never began"


def test_the_timing_child_writes_after_every_round_and_survives_a_shape(monkeypatch, tmp_path):
    states, target = [], tmp_path / "1.json"

    def measure(n, d, m, codebooks, rates, broken, each):
        states.append(json.loads(target.read_text()))
        if n == 2:
            raise RuntimeError("no such product")
        each({"shape": [n, d, m], "rounds": 1})
        states.append(json.loads(target.read_text()))
        return {"shape": [n, d, m], "rounds": 7, "us": {}}

    monkeypatch.setattr(arms, "rates", lambda: model.H100)
    monkeypatch.setattr(arms, "measure_shape", measure)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    bench.time_shapes({"rates": None, "shapes": SHAPES}, target)
    last = json.loads(target.read_text())
    assert [(one["shape"][0], one["rounds"]) for one in last["shapes"]] == [(1, 7), (3, 7)]
    assert last["failed"] == {"2 x 4 x 2": "RuntimeError: no such product"}
    assert last["begun"] is None
    assert states[0]["begun"] == [1, 4, 2]
    assert states[0]["rates"] == dataclasses.asdict(model.H100)
    assert states[1]["shapes"] == [{"shape": [1, 4, 2], "rounds": 1}], "a cut after one round keeps it"


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
