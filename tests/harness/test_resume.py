"""A killed run resumes where it was, and a finished one is never appended to."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from harness import read_runs
from harness.catalogue.registry import ROOT
from harness.measure import executor
from harness.measure.plan import Request, build
from harness.record import lines, store


def request(**fields):
    return Request(suites=("toy",), tier="quick", blocks=6, **fields)


class Killer:
    """A listener that interrupts after a number of steps."""

    def __init__(self, after):
        self.left = after

    def phase(self, title, total, done=0): ...

    def note(self, text): ...

    def step(self, text):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_an_interrupted_run_resumes_and_repeats_nothing(toy, warm_workers, tmp_path):
    toy("added", "nan")
    out = tmp_path / "out"
    for after in (3, 4, 9):
        try:
            executor.execute(build(request()), out, "test", Killer(after))
        except KeyboardInterrupt:
            continue
        raise AssertionError("was not interrupted")
    result = executor.execute(build(request()), out, "test")
    assert result.resumed
    assert [p.name for p in out.iterdir()] == [result.path.name]
    frame = read_runs(result.path)
    timed = frame[frame["metric"] == "op_s"]
    assert not timed.duplicated(["case", "block", "arm"]).any()
    assert timed.groupby(["problem", "arm"])["block"].nunique().eq(6).all()
    assert set(timed["arm"]) == {"toy.plain", "toy.plain#aa", "toy.added"}
    gates = frame[frame["phase"] == "gate"].drop_duplicates("run")
    assert not gates.duplicated("case").any()
    records = list(lines.read_lines(result.path))
    assert records[-1]["record"] == "end"
    assert sum(r["record"] == "header" for r in records) == 1


def test_a_run_beside_another_on_this_cpu_goes_on_with_a_warning_and_a_mark(toy, warm_workers, tmp_path, monkeypatch):
    from harness.measure.session import BESIDE, cpu_lock
    from harness.record import environment

    monkeypatch.setenv("SPEEDCLAIM_CACHE", str(tmp_path / "cache"))
    toy()
    alone = executor.execute(build(request()), tmp_path / "alone", "test")
    with cpu_lock(environment.collect("cpu")), pytest.warns(UserWarning, match=BESIDE):
        beside = executor.execute(build(request()), tmp_path / "beside", "test")
    [first], [second] = store.read_headers(alone.path), store.read_headers(beside.path)
    assert BESIDE not in first["environment"]["warnings"]
    assert second["environment"]["warnings"].count(BESIDE) == 1
    assert second["complete"]


def test_after_a_finished_file_a_new_one_starts(toy, tmp_path):
    toy()
    first = executor.execute(build(request()), tmp_path, "test")
    second = executor.execute(build(request()), tmp_path, "test")
    assert first.path != second.path
    assert not second.resumed


def test_another_plan_does_not_resume_the_file(toy, warm_workers, tmp_path):
    toy("added")
    with contextlib.suppress(KeyboardInterrupt):
        executor.execute(build(request()), tmp_path, "test", Killer(2))
    other = executor.execute(build(request(methods=("toy.added",))), tmp_path, "test")
    assert not other.resumed


COMMAND = """
from harness.cli import main
from harness.measure import executor
executor.machine.code = lambda: {"commit": "c", "diff": ""}  # whoever edits the tree now must not part the plans
main()
"""


def test_a_killed_process_leaves_a_valid_store_that_resumes(toy, warm, tmp_path):
    """SIGKILL to the parent at some moment after the first block record, then the same command again."""
    toy("added")
    out = tmp_path / "out"
    command = [sys.executable, "-c", COMMAND, "run", "--suite", "toy", "--tier", "quick", "--blocks", "8",
               "--out", str(out), "--json"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any('"phase":"block"' in p.read_text() for p in out.glob("*.jsonl")):
            break
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    file = next(out.glob("*.jsonl"))
    with file.open("a") as stream:
        stream.write('{"record":"run","run":"torn')
    done = warm.run(command, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    assert answer["resumed"] is True
    assert answer["file"] == str(file)
    timed = read_runs(file).query("metric == 'op_s'")
    assert timed.groupby(["problem", "arm"])["block"].nunique().eq(8).all()
    assert not timed.duplicated(["case", "block", "arm"]).any()


def test_discarded_blocks_are_replaced_by_fresh_ones(toy, warm_workers, tmp_path, monkeypatch):
    toy("added")
    plan = build(request())
    chosen = plan.suites[0].problems[0].id
    keep = executor._Executor._block_result

    def hot(self, part, block, message):
        if message["problem"] == chosen and block in (0, 6):
            message = {**message, "detail": {**message["detail"], "discarded": "thermal brake"}}
        keep(self, part, block, message)

    monkeypatch.setattr(executor._Executor, "_block_result", hot)
    result = executor.execute(plan, tmp_path, "test")
    frame = read_runs(result.path)
    assert store.discarded_blocks(result.path) == {chosen: {0, 6}}
    timed = frame[(frame["metric"] == "op_s") & frame["discarded"].isna()]
    counts = timed[timed["arm"] == "toy.added"].groupby("problem")["block"].nunique()
    assert counts[chosen] == 6
    assert counts.drop(chosen).eq(6).all()
    assert frame["block"].max() == 7
