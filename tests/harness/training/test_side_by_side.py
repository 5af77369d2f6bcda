"""Runs that share a device: the same runs as one after the other, except for their times, which enter no verdict."""

from dataclasses import replace

import pytest

from harness import read_runs
from harness.errors import UserError
from harness.measure.training import executor
from harness.measure.training.listener import Silent
from harness.measure.training.plan import TrainRequest, build
from harness.measure.training.world import World
from harness.record import store
from harness.record.environment import hardware

ASKED = TrainRequest(
    workloads=("blobs",),
    methods=("toy-sgd", "toy-adam"),
    seeds=3,
    hyper=("epochs=3",),
    deadline_s=60.0,
    side_by_side=3,
)


def rows(path):
    frame = read_runs(path)
    return frame[frame["phase"] == "training"].drop_duplicates("run")


def test_they_are_the_same_runs_on_a_device_of_their_own_name(toys, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums over several threads round differently
    together = executor.execute(build(ASKED), tmp_path / "together", "test").path
    alone = executor.execute(build(replace(ASKED, side_by_side=1)), tmp_path / "alone", "test").path
    found = [{(r.arm, r.seed): r for r in rows(path).itertuples()} for path in (together, alone)]
    assert len(found[0]) == 9
    assert set(found[0]) == set(found[1])
    for key, one in found[0].items():
        other = found[1][key]
        assert one.detail["weights_sha256"] == other.detail["weights_sha256"]
        assert one.detail["side_by_side"] == 3
        assert "side_by_side" not in other.detail
    headers = [store.read_headers(path)[0] for path in (together, alone)]
    assert headers[0]["complete"]
    assert headers[0]["plan"]["side_by_side"] == 3
    names = [header["environment"]["device_name"] for header in headers]
    assert names[0] == names[1] + ", 3 runs at once"
    assert hardware(names[0]) == names[1]
    measured = read_runs(together)
    assert "stall" not in set(measured["metric"].dropna()), "others disturb what a stall is told from"
    assert "stall" in set(read_runs(alone)["metric"].dropna())


def test_a_death_and_a_hang_cost_their_own_run(toys, tmp_path):
    names = ("toy-sgd", "toy-dies", "toy-hangs")
    # Three at once get three times as long.
    asked = replace(ASKED, methods=names, seeds=1, deadline_s=2.0, hyper=("epochs=40",), full=True)
    found = rows(executor.execute(build(asked), tmp_path, "test").path).set_index("arm")["status"].to_dict()
    assert found.pop("training.toy-dies") == "error"
    assert found.pop("training.toy-hangs") == "timeout"
    assert set(found.values()) <= {"target_reached", "budget_exhausted"}


class Stops(Silent):
    """Ctrl-C in the middle."""

    def __init__(self):
        self.left = 4

    def progress(self, label, message):
        if message.get("what") == "training":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


def test_an_interruption_stops_all_and_the_same_plan_resumes(toys, tmp_path, monkeypatch):
    monkeypatch.setattr(executor.machine, "code", lambda: {"commit": "c", "diff": ""})
    asked = replace(
        ASKED,
        workloads=("blobs-long",),
        methods=("toy-slow", "toy-sgd"),
        seeds=2,
        hyper=("epochs=20",),
        block_updates=5,
        side_by_side=2,
    )
    with pytest.raises(KeyboardInterrupt):
        executor.execute(build(asked), tmp_path, "test", Stops())
    [path] = tmp_path.glob("*.jsonl")
    cut = rows(path)
    assert "interrupted" in set(cut["status"])
    assert "error" not in set(cut["status"])
    assert executor.execute(build(asked), tmp_path, "test").path == path
    found = rows(path)
    kept = found[found["status"] != "interrupted"]
    arms = ("training.toy-sgd", "training.toy-sgd#aa", "training.toy-slow")
    assert sorted(zip(kept["arm"], kept["seed"], strict=True)) == [(arm, seed) for arm in arms for seed in (0, 1)]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"side_by_side": 0}, "at least 1"),
        ({"budget_s": 9.0}, "goes with neither"),
        ({"world": World(nproc=2)}, "goes with neither"),
    ],
)
def test_what_does_not_go_together_is_refused(toys, fields, why):
    with pytest.raises(UserError, match=why):
        build(replace(ASKED, **fields))


def test_every_lane_has_its_share_of_threads_and_its_gpu(toys, monkeypatch):
    plan = build(replace(ASKED, side_by_side=4))
    monkeypatch.setattr(executor.machine, "threads", lambda: 8)
    assert executor.lane_environment(plan, 3) == {"OMP_NUM_THREADS": "2"}
    plan.device = "cuda"
    monkeypatch.setattr(executor.nvidia, "visible", lambda: 2)
    seen = [executor.lane_environment(plan, lane)["CUDA_VISIBLE_DEVICES"] for lane in range(4)]
    assert seen == ["0", "1", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    assert executor.lane_environment(plan, 1)["CUDA_VISIBLE_DEVICES"] == "3"
    assert executor.lane_environment(build(replace(ASKED, side_by_side=1)), 0) == {}
