"""Whole invocations with worker processes: every arm and seed has its row, crashes cost one run, killed runs resume."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from harness import read_runs
from harness.catalogue.registry import ROOT
from harness.errors import UserError
from harness.measure.session import BESIDE, cpu_lock
from harness.measure.training import executor
from harness.measure.training.listener import Silent
from harness.measure.training.plan import TrainRequest, build
from harness.record import environment, store

ASKED = TrainRequest(
    workloads=("blobs",), methods=("toy-sgd", "toy-adam"), seeds=2, hyper=("epochs=3",), deadline_s=60.0
)


def rows(path):
    frame = read_runs(path)
    return frame[frame["phase"] == "training"].drop_duplicates("run")


def test_a_training_beside_another_run_on_this_cpu_is_marked(toys, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEEDCLAIM_CACHE", str(tmp_path / "cache"))
    asked = replace(ASKED, methods=("toy-sgd",), seeds=1)
    with cpu_lock(environment.collect("cpu")), pytest.warns(UserWarning, match=BESIDE):
        result = executor.execute(build(asked), tmp_path / "out", "test")
    assert BESIDE in store.read_headers(result.path)[0]["environment"]["warnings"]


@pytest.mark.parametrize(("seeds", "part", "alias"), [(1, False, False), (1, True, True), (2, False, True)])
def test_a_lone_seed_has_an_alias_where_it_is_a_part_of_a_plan(seeds, part, alias, toys):
    (planned,) = build(replace(ASKED, seeds=seeds, seed_start=4, part=part)).parts
    assert ("training.toy-sgd#aa" in {arm.name for arm in planned.arms}) == alias


class Stops(Silent):
    """A listener that interrupts at the given event."""

    def __init__(self, at, count=1):
        self.at, self.left = at, count

    def _count(self, event):
        if event == self.at:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    def progress(self, label, message):
        if message.get("what") == "training":
            self._count("progress")

    def end(self, label, status, text):
        self._count("end")


def test_seeds_are_blocks_and_the_baseline_has_an_alias(toys, tmp_path):
    result = executor.execute(build(ASKED), tmp_path, "test")
    found = rows(result.path)
    arms = {"training.toy-sgd", "training.toy-adam", "training.toy-sgd#aa"}
    assert set(zip(found["arm"], found["seed"], strict=True)) == {(arm, seed) for arm in arms for seed in (0, 1)}
    assert found["block"].tolist() == sorted(found["block"]), "a seed is finished before the next begins"
    assert set(found["workload"]) == {"blobs"}
    assert set(found["case"]) == {"training.toy-sgd/blobs", "training.toy-adam/blobs"}
    streams = {(row.arm, row.seed): row.detail["stream"] for row in found.itertuples()}
    assert streams["training.toy-sgd", 1] == 1
    assert streams["training.toy-sgd#aa", 1] == 1_000_004
    header = store.read_headers(result.path)[0]
    assert header["complete"]
    assert header["plan"]["workloads"][0]["name"] == "blobs"
    assert header["plan"]["training_protocol"] == 1
    assert {"training.toy-sgd", "training.toy-adam"} <= {m["name"] for m in header["methods"]}
    assert not (tmp_path / "checkpoints").exists()


def test_crashes_hangs_and_refusals_cost_their_own_run_only(toys, tmp_path):
    asked = replace(
        ASKED,
        methods=("toy-sgd", "toy-dies", "toy-hangs", "toy-refuses", "toy-cuda-only"),
        seeds=1,
        deadline_s=6.0,
        hyper=("epochs=6",),
    )
    found = rows(executor.execute(build(asked), tmp_path, "test").path).set_index("arm")
    status = found["status"].to_dict()
    assert status["training.toy-sgd"] in ("target_reached", "budget_exhausted")
    assert status["training.toy-dies"] == "error"
    assert "SIGABRT" in found["reason"]["training.toy-dies"]
    assert status["training.toy-hangs"] == "timeout"
    assert status["training.toy-refuses"] == status["training.toy-cuda-only"] == "unsupported"
    assert "CUDA" in found["reason"]["training.toy-cuda-only"]
    assert found["detail"]["training.toy-dies"]["hyper"]["epochs"] == 6
    assert not (tmp_path / "checkpoints").exists()


def test_ctrl_c_leaves_a_row_and_the_same_plan_resumes(toys, tmp_path, monkeypatch):
    monkeypatch.setattr(executor.machine, "code", lambda: {"commit": "c", "diff": ""})
    asked = replace(
        ASKED,
        workloads=("blobs-long",),
        methods=("toy-slow", "toy-sgd"),
        seeds=1,
        hyper=("epochs=20",),
        block_updates=5,
    )
    with pytest.raises(KeyboardInterrupt):
        executor.execute(build(asked), tmp_path, "test", Stops("progress", 2))
    [path] = tmp_path.glob("*.jsonl")
    before = rows(path)  # on a busy machine the first run may have ended before the second message came
    [cut] = before[before["status"] == "interrupted"].itertuples()
    assert "resumes" in cut.reason
    result = executor.execute(build(asked), tmp_path, "test")
    assert result.resumed
    assert result.path == path
    found = rows(path)
    kept = found[found["status"] != "interrupted"]
    assert sorted(kept["arm"]) == ["training.toy-sgd", "training.toy-slow"]
    assert executor.execute(build(asked), tmp_path, "test").path != path, "a finished file is never appended to"


def test_the_budget_leaves_seeds_out_and_says_so(toys, tmp_path):
    asked = replace(ASKED, methods=("toy-sgd",), seeds=200, budget_s=3.0)
    result = executor.execute(build(asked), tmp_path, "test")
    assert result.elapsed_s < 30
    frame = read_runs(result.path)
    planned = frame[frame["phase"] == "plan"]
    done = frame[frame["phase"] == "training"]["seed"].nunique()
    assert 0 < len(planned) <= 200 - done + 1
    assert set(planned["reason"]) == {"left out by the time budget"}


SCRIPT = """
import sys
from pathlib import Path
from harness.measure.training import executor
from harness.measure.training.plan import TrainRequest, build
executor.machine.code = lambda: {"commit": "c", "diff": ""}  # whoever edits the tree now must not part the plans
asked = TrainRequest(workloads=("blobs-long",), methods=("toy-slow",), seeds=1, hyper=("epochs=10",), block_updates=5,
                     checkpoint_updates=5)
print(executor.execute(build(asked), Path(sys.argv[1]), "test").path)
"""


def test_a_killed_run_ends_with_the_same_weights_as_an_uninterrupted_one(toys, warm, tmp_path):
    """SIGKILL at random moments while checkpoints are written, then the same again until it is done."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])}

    def start(out, way=warm):
        command = [sys.executable, "-c", SCRIPT, str(out)]
        return way.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    whole = start(tmp_path / "whole")
    cut = tmp_path / "cut"
    rng = random.Random(4)
    for way in (subprocess, warm):  # the first pair of processes really is one: the worker must die with its parent
        child = start(cut, way)
        deadline = time.monotonic() + 60
        seen = {p: p.stat().st_mtime_ns for p in cut.rglob("*.pt")}
        while time.monotonic() < deadline and child.poll() is None:
            now = {p: p.stat().st_mtime_ns for p in cut.rglob("*.pt")}
            if now and now != seen:
                break
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.1))
        child.send_signal(signal.SIGKILL)
        child.wait()
    child = start(cut)
    assert child.wait(timeout=120) == 0
    assert whole.wait(timeout=120) == 0
    [one] = rows(tmp_path / "whole").itertuples()
    [other] = rows(cut).itertuples()
    assert other.detail["resumed"]
    assert not one.detail["resumed"]
    assert one.detail["weights_sha256"] == other.detail["weights_sha256"]
    assert not list(cut.rglob("*.pt*"))


def test_a_plan_says_what_is_wrong(toys):
    bad = {
        "hyper": ({"hyper": ("lrr=1",)}, "no hyper-parameter 'lrr'.*Known: lr.*epochs"),
        "form": ({"hyper": ("lr",)}, "name=value"),
        "owner": ({"hyper": ("toy-nan.lr=1",)}, "training.toy-nan is not trained here"),
        "schedule": ({"hyper": ("schedule=saw",)}, "constant, linear"),
        "epochs": ({"epochs": -1.0}, "positive"),
        "precision": ({"precision": "fp8"}, "one of ieee"),
        "seeds": ({"seeds": 0}, "at least 1"),
        "budget": ({"budget_s": 0.0}, "positive"),
        "workload": ({"workloads": ("blob",)}, "Did you mean blobs"),
        "method": ({"methods": ("toy-sdg",)}, "Did you mean training.toy-sgd"),
        "until": ({"until": 0.7}, "blobs is watched for test_accuracy of 0.6, 0.9, 0.95"),
        "until the end": ({"workloads": ("blobs-final",), "until": 0.9}, "judged at the end"),
        "until and full": ({"until": 0.9, "full": True}, "contradict"),
        "tier": ({"workloads": (), "tier": "tiny"}, "one of quick"),
    }
    for fields, text in bad.values():
        with pytest.raises(UserError, match=text):
            build(replace(ASKED, **fields))


def test_data_that_is_missing_names_the_command_that_fetches_it(toys, monkeypatch):
    import toy_training

    from harness.catalogue import data

    monkeypatch.setattr(data, "status", lambda name: f"run speedclaim data fetch {name}")
    monkeypatch.setattr(toy_training, "BLOBS", replace(toy_training.BLOBS, data="blob-data"))
    with pytest.raises(UserError, match="blobs cannot be trained here: run speedclaim data fetch blob-data"):
        build(ASKED)
    assert build(replace(ASKED, synthetic=True)).parts


def test_recipes_stand_between_the_command_line_and_defaults(toys):
    from harness.measure.training import recipe

    package = toys / "toy_package"
    (package / "recipes").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "work.py").write_text("from toy_training import *\n")
    (package / "recipes" / "blobs.toml").write_text(
        '["training.toy-sgd"]\nlr = 0.3\nmomentum = 0.8\nepochs = 4\nevidence = "tried"\ntrials = 7\n'
    )
    points = toys / "toy-plugin-1.0.dist-info" / "entry_points.txt"
    points.write_text(points.read_text().replace("blobs = toy_training", "blobs = toy_package.work"))
    from harness.catalogue import registry

    registry.forget()
    recipe._recipes.cache_clear()
    try:
        plan = build(replace(ASKED, hyper=("toy-sgd.momentum=0.5", "toy-adam.lr=0.02")))
        [sgd, _, alias] = plan.parts[0].arms
        assert dict(sgd.hyper.factory) == {"lr": 0.3, "momentum": 0.5}
        assert sgd.hyper.trainer["epochs"] == 4
        assert sgd.hyper.sources["lr"] == "recipe"
        assert sgd.hyper.sources["momentum"] == "command line"
        assert sgd.hyper.sources["schedule"] == "default"
        assert sgd.hyper.evidence == "tried"
        assert alias.hyper == sgd.hyper
        spec = plan.spec(plan.parts[0], sgd, 0)
        assert spec.extra == {"evidence": "tried", "trials": 7}
        assert json.loads(json.dumps(spec.to_json()))["factory"]["lr"] == 0.3
    finally:
        for name in ("toy_package", "toy_package.work"):
            sys.modules.pop(name, None)


def test_workloads_share_the_budget_and_what_is_left_goes_to_those_cut_short(toys, tmp_path, monkeypatch):
    """On a clock of its own: each seed of the first workload takes 30 s, of the second 5 s; 100 s in all."""
    plan = build(replace(ASKED, workloads=("blobs-long", "blobs"), methods=("toy-sgd",), seeds=5, budget_s=100.0))
    made = executor.TrainExecutor(plan, tmp_path, "test", Silent())
    now = [0.0]
    order = []
    made.start, made.hash = 0.0, "x"

    def work(part, pending):
        cost = 30.0 if part.workload.name == "blobs-long" else 5.0
        order.append((part.workload.name, pending[0].seed))
        now[0] += cost
        made._seed_s[part.workload.name, pending[0].seed] = cost
        made.done.add((part.workload.name, pending[0].arm, pending[0].seed))

    monkeypatch.setattr(made, "_work", work)
    monkeypatch.setattr(executor.time, "monotonic", lambda: now[0])
    with store.Writer(tmp_path / "r.jsonl") as made.writer:
        made._train()
    assert order == [("blobs-long", 0), *(("blobs", seed) for seed in range(5)), ("blobs-long", 1)]
    assert now[0] <= 100.0
