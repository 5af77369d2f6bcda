"""Workers started before their jobs are known: what they do meanwhile, who gets them, and that one is enough."""

import gc
import json
import os
import sys
import threading

import pytest

from harness import read_runs
from harness.errors import UserError
from harness.measure import isolate
from harness.measure.isolate import Ended, Worker
from harness.measure.training import ahead, executor, probe
from harness.measure.training.plan import TrainRequest, build
from harness.measure.training.tune import tune
from harness.measure.worker import Lines

ASKED = {"workloads": ("blobs",), "methods": ("toy-sgd",), "seeds": 1, "deadline_s": 60.0}


@pytest.fixture
def started(monkeypatch):
    """What every worker process that begins was told to import."""
    found = []

    class Counted(isolate.Process):
        def __init__(self, environment=None, ahead=None):
            found.append(ahead)
            super().__init__(environment, ahead)

    monkeypatch.setattr(ahead, "Process", Counted)
    monkeypatch.setattr(isolate, "Process", Counted)
    return found


def test_lines_come_whole_however_they_were_written():
    read, write = os.pipe()
    lines = Lines(read)
    writer = threading.Thread(target=lambda: [os.write(write, part) for part in (b"on", b"e\ntwo\nth", b"ree")])
    writer.start()
    assert lines.read() == b"one"
    assert lines.read() == b"two"
    writer.join()
    os.close(write)
    assert [lines.read(), lines.read()] == [b"three", b""]
    os.close(read)


@pytest.mark.parametrize(
    ("kind", "job", "opened"),
    [
        ("train", {"kind": "train", "device": "cuda"}, True),
        ("train", {"kind": "train", "device": "cpu"}, False),
        ("train", {"kind": "refusals"}, False),
        ("ranks", {"kind": "train", "device": "cuda"}, False),
    ],
)
def test_the_device_is_opened_while_imports_go_on_and_only_for_a_job_that_trains_on_it(kind, job, opened, monkeypatch):
    events, importing = [], threading.Event()

    class Late:
        def read(self):
            assert importing.wait(10), "imports do not wait for the job"
            events.append("job")
            return json.dumps(job).encode()

    def imports(asked):
        assert asked == kind
        importing.set()

    monkeypatch.setattr(ahead, "imports", imports)
    monkeypatch.setattr(ahead, "open_context", lambda: events.append("open"))
    assert json.loads(ahead.first_job(kind, Late())) == job
    assert events == ["job", "open"][: 1 + opened], "never before the job, which is sent under the GPU's lock"
    monkeypatch.setattr(Late, "read", lambda self: b"")
    assert ahead.first_job(kind, Late()) == b"", "nobody wanted it"


def test_imports_are_out_of_the_collectors_way():
    before = gc.get_freeze_count()
    try:
        ahead.imports("train")
        assert gc.get_freeze_count() > before
        assert gc.isenabled()
        assert "torch._dynamo" in sys.modules, "the first optimizer of a run has nothing left to import"
    finally:
        gc.unfreeze()


def test_a_machine_without_a_driver_is_left_to_torch(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ahead.ctypes, "CDLL", missing)
    ahead.open_context()


def test_a_crew_hands_over_what_fits_and_leaves_nothing_behind(toys, started):
    with ahead.Crew() as crew:
        crew.start("train")
        crew.start("train")
        waiting = crew._waiting[0]
        assert crew.take("train") is waiting
        crew.give_back(waiting)
        other = crew.take("train", 0, {"OMP_NUM_THREADS": "1"})
        assert other is not waiting
        assert not waiting.alive(), "its threads are not those of the lane"
        other.close()
        crew.start("ranks")
        dead = crew._waiting[0]
        dead.kill()
        fresh = crew.take("ranks")
        assert fresh is not dead
        crew.give_back(fresh)
    assert not fresh.alive()
    assert started == ["train", "train", "ranks", "ranks"]


def test_one_process_answers_for_the_command_line_and_trains(toys, started, tmp_path):
    with ahead.Crew() as crew:
        crew.start("train")
        with pytest.raises(UserError, match=r"toy-sgd refuses lr='fast'"):
            probe.check(build(TrainRequest(**ASKED, hyper=("lr=fast", "epochs=2"))), crew)
        plan = build(TrainRequest(**ASKED, hyper=("lr=0.1", "epochs=2")))
        probe.check(plan, crew)
        path = executor.execute(plan, tmp_path, "test", crew=crew).path
    [row] = read_runs(path).drop_duplicates("run").itertuples()
    assert row.status in ("target_reached", "budget_exhausted")
    assert started == ["train"]


def test_a_factory_that_dies_over_its_values_is_left_to_the_run(toys, started):
    source = (toys / "toy_training.py").read_text()
    (toys / "toy_training.py").write_text(source + "\n\ndef sgd(model, *, lr=0.1):\n    os.abort()\n")
    plan = build(TrainRequest(**ASKED, hyper=("lr=0.2",)))
    with ahead.Crew() as crew:
        probe.check(plan, crew)
        assert crew._waiting[0].alive(), "it died in a child of the worker"
    assert started == ["train"]


def test_a_worker_takes_one_job_after_another(toys):
    with Worker(None, 60.0, process=isolate.Process(None, "train")) as worker:
        for lr in (0.1, "fast"):
            worker.give({"kind": "refusals", "asked": [["training.toy-sgd", {"lr": lr}]]}, last=lr == "fast")
            [message] = worker.messages()
            [answer] = message["answers"]
            assert (answer is None) == (lr == 0.1)
        [end] = worker.messages()
        assert isinstance(end, Ended), "the last job was the last"


def test_a_search_keeps_its_worker_until_it_dies(toys, started, tmp_path):
    pytest.importorskip("optuna")
    names = ("training.toy-sgd", "training.toy-dies")
    asked = TrainRequest(**{**ASKED, "methods": names}, full=True, validation=True, hyper=("epochs=8",))
    plan = build(asked)
    plan.phase = "tune"
    grid = {"lr": {"values": [0.01 * k for k in range(1, 8)]}}
    made = tune(plan, {names[0]: grid, names[1]: {"lr": {"values": [0.1, 0.2]}}}, 7, tmp_path, "test")
    assert {name: found.trials for name, found in made.found.items()} == {names[0]: 7, names[1]: 2}
    runs = read_runs(made.result.path).drop_duplicates("run")
    status = {name: set(runs[runs["arm"] == name]["status"]) for name in names}
    assert status[names[1]] == {"error"}
    assert status[names[0]] <= {"target_reached", "budget_exhausted"}
    assert len(runs) == 9
    fatal = runs["status"].tolist()[:-1].count("error")
    assert started == ["train"] * (1 + fatal), "a new one after a death, if anything is left to do"
