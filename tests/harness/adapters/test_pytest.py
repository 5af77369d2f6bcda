"""pytest-benchmark: registry cases with a gate, filled extra_info, reasons for failures and skips, plug-ins."""

import json
import os
import subprocess
import sys
from importlib import util

import pytest

from harness.adapters import cases
from harness.adapters import pytest as front
from harness.catalogue.protocol import PROTOCOL_VERSION
from harness.catalogue.registry import ROOT
from harness.errors import UnknownName, UserError

PROBLEM = "uniform-2000-float64-cpu"
needs_plugin = pytest.mark.skipif(
    util.find_spec("pytest_benchmark") is None, reason="pytest-benchmark is not installed"
)


def call(tmp_path, *arguments):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    # pytest-benchmark turns itself off when it sees pytest-xdist's variables
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    report = tmp_path / "benchmarks.json"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "suites/micro/bench_cases.py", "-p", "no:cacheprovider", "-rA",
         f"--benchmark-json={report}", *arguments],
        cwd=ROOT, env={**inherited, "PYTHONPATH": path, "COLUMNS": "300"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done, json.loads(report.read_text() or '{"benchmarks": []}')["benchmarks"]


@needs_plugin
def test_plugged_in_cases_are_timed_failed_or_skipped_with_a_reason(tmp_path, toy):
    toy("added", "wrong", "refuses", "late_cheat", "mutates")
    done, benchmarks = call(tmp_path, "-k", "toy and uniform-2000")
    assert done.returncode == 1, done.stdout + done.stderr
    timed = {b["extra_info"]["method"]: b for b in benchmarks}
    assert set(timed) == {"toy.added", "toy.plain"}, "no time of a wrong answer is stored"
    table = done.stdout.partition("Name (time in")[2].partition("Legend:")[0]
    assert "toy.added" in table
    assert "toy.late_cheat" not in table
    for name in ("added", "plain"):
        info = timed[f"toy.{name}"]["extra_info"]
        assert info["case"] == f"toy.{name}/{PROBLEM}"
        assert (info["task"], info["problem"], info["status"]) == ("toy", PROBLEM, "passed")
        assert info["errors"] == {"gap": [0.0, 0.0, 0.0]}
        assert info["threads"] >= 1
        assert info["device"]
        assert info["protocol"] == PROTOCOL_VERSION
        assert "torch" in info
        assert timed[f"toy.{name}"]["group"] == PROBLEM
        assert timed[f"toy.{name}"]["stats"]["rounds"] >= front.MIN_ROUNDS
    lines = done.stdout
    assert f"toy.wrong/{PROBLEM}: inaccurate: gap" in lines
    assert f"toy.mutates/{PROBLEM}: impure: the input was changed" in lines
    assert f"toy.late_cheat/{PROBLEM}: inaccurate" in lines, "the timed output is checked too"
    assert "only even lists, please" in lines
    assert "3 failed, 2 passed, 1 skipped" in lines


def test_cells_carry_the_reason_why_they_cannot_run(toy):
    toy("needs_cuda")
    found = {cell.id: cell for cell in cases.cells() if cell.suite == "toy"}
    assert found[f"toy.plain/{PROBLEM}"].skip is None
    assert list(found) == sorted(found, key=lambda case: (case.split("/")[1], case))
    reason = found[f"toy.needs_cuda/{PROBLEM}"].skip
    assert reason is None or "no NVIDIA device" in reason


def test_a_broken_plug_in_is_a_skipped_cell(plugin):
    plugin({"toy.plain": "toy_methods:PLAIN", "toy.gone": "no_such_module:METHOD"}, suites={"toy": "toy_task:SUITE"})
    assert "no_such_module" in cases.cell(f"toy.gone/{PROBLEM}").skip


def test_rounds_see_new_content_in_rotating_buffers(toy):
    toy()
    with cases.prepare(cases.cell(f"toy.plain/{PROBLEM}")) as ready:
        feed = front._Feed(ready)
        seen, buffers = [], []
        for _ in range(4):
            (buffer,), keywords = feed.next()
            assert keywords == {}
            assert buffer == feed.content
            seen.append(list(buffer))
            buffers.append(id(buffer))
    assert len({tuple(content) for content in seen}) == 4
    assert buffers[0] == buffers[2] != buffers[1] == buffers[3]
    assert sorted(seen[0]) == sorted(seen[3]), "as hard as the content it comes from"


def test_names_that_do_not_exist_are_clear_mistakes(toy, monkeypatch):
    toy()
    with pytest.raises(UnknownName, match=r"toy\.plain/uniform-2000"):
        cases.cell("toy.plain/uniform-2001-float64-cpu")
    monkeypatch.setenv(front.TIER_VARIABLE, "huge")
    with pytest.raises(UserError, match="quick, standard, full"):
        front.tier()
