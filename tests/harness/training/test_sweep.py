"""Sweeps over batch sizes: the family's members, rates in proportion to the batch, one file that resumes, the page."""

import json

import pytest

from harness import read_runs
from harness.errors import UserError
from harness.measure.training import executor
from harness.measure.training.plan import TrainRequest, build
from harness.record import store
from reports import batch_sweep
from reports.training import places


def asked(**fields):
    given = {"workloads": ("blobs",), "methods": ("toy-sgd", "toy-adam"), "seeds": 1, "batches": "all", "device": "cpu"}
    return TrainRequest(**{**given, **fields})


def rates(plan, method):
    return {p.workload.batch: next(a for a in p.arms if a.method == f"training.{method}").hyper for p in plan.parts}


def test_rates_follow_the_batch_and_say_so(toys):
    found = rates(build(asked()), "toy-sgd")
    assert {b: h.factory.get("lr", 0.1) for b, h in found.items()} == pytest.approx({32: 0.1, 64: 0.2, 512: 1.6})
    assert "lr" not in found[32].factory, "the named size keeps its own"
    assert found[512].sources["lr"] == "blobs times 16"
    assert found[512].evidence.startswith("rate: that of blobs (0.1) times 16")


def test_a_rate_from_the_command_line_is_that_of_the_named_size(toys):
    found = rates(build(asked(hyper=("toy-sgd.lr=0.3",), batches="32, 64")), "toy-sgd")
    assert {batch: hyper.factory["lr"] for batch, hyper in found.items()} == pytest.approx({32: 0.3, 64: 0.6})
    from_64 = rates(build(asked(workloads=("blobs-b64",), batches="32,64")), "toy-adam")
    assert {b: h.factory["lr"] for b, h in from_64.items() if b != 64} == pytest.approx({32: 0.005})
    own = rates(build(asked(lr_rule="recipe")), "toy-sgd")
    assert not any("lr" in hyper.factory for hyper in own.values())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"batches": "32,100"}, "blobs has no batch 100; it has 32, 64, 512"),
        ({"batches": "many"}, "--batches many: expected numbers"),
        ({"batches": ""}, "expected numbers"),
        ({"workloads": ("blobs-loss",)}, "one batch size alone, 32"),
        ({"workloads": ()}, "--batches: name one workload"),
        ({"workloads": ("blobs", "blobs-loss")}, "--batches: name one workload"),
        ({"lr_rule": "root"}, "--lr-rule root: expected linear or recipe"),
    ],
)
def test_mistakes_are_named(toys, fields, text):
    with pytest.raises(UserError) as caught:
        build(asked(**fields))
    assert text in str(caught.value)


def test_one_file_holds_the_sweep_resumes_and_gives_the_page(toys, tmp_path, monkeypatch):
    monkeypatch.setattr(executor.machine, "code", lambda: {"commit": "the same in both invocations"})

    class Stops(executor.Silent):
        """Stops after the first workload."""

        def end(self, label, status, text):
            if label.startswith("blobs "):
                self.count = getattr(self, "count", 0) + 1
                if self.count == 2:
                    raise KeyboardInterrupt

    request = asked(epochs=4)
    with pytest.raises(KeyboardInterrupt):
        executor.execute(build(request), tmp_path, "test", Stops())
    result = executor.execute(build(request), tmp_path, "test")
    assert result.resumed
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    frame = read_runs(result.path)
    rows = frame[frame["phase"] == "training"].drop_duplicates(["workload", "arm", "seed"])
    assert len(rows) == 6
    hyper = {
        row["workload"]: row["detail"]["hyper"].get("lr", 0.1)
        for _, row in rows.iterrows()
        if row["arm"].endswith("sgd")
    }
    assert hyper == pytest.approx({"blobs": 0.1, "blobs-b64": 0.2, "blobs-b512": 1.6})
    found = places(frame, store.read_headers(result.path))
    (board,) = batch_sweep.made(found)
    (table,) = board.sections[-1].tables
    assert len(table.rows) == 6, "every arm at every size"
    assert "3 batch sizes from 32 to 512" in board.lead
    assert board.sections[0].charts
    assert json.dumps(store.read_headers(result.path)[0]["plan"]["workloads"])
