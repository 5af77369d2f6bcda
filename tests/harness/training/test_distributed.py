"""Several processes: the same weights as one, every rank's bytes in the record, and a clear end when one dies."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness import read_runs
from harness.errors import UserError
from harness.measure.training import executor
from harness.measure.training import world as worlds
from harness.measure.training.launch import _Failure, _Watch
from harness.measure.training.plan import TrainRequest, build
from harness.measure.training.world import World
from harness.record import store

ALIKE = Path(__file__).parent / "ranks_alike.py"
KFAC = "kfac-cholesky:lr=0.3,damping=0.1,clip=none,update_period=1,refresh_period=2"


def alike(warm, sizes, *texts, timeout=280):
    done = warm.run([sys.executable, str(ALIKE), json.dumps(sizes), *texts], timeout=timeout)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_weights_are_those_of_one_process(warm, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    fop = KFAC.replace("kfac-cholesky", "fop")
    singd = "fop-singd:lr=0.02,lr_cov=0.1,update_period=2"
    own = ("sgd:lr=0.3", "adamw:lr=0.02", "muon:lr=0.05", "singd-dense:lr=0.05", singd)
    texts = (*own, KFAC, f"{KFAC},sharding=owner", fop, f"{fop},sharding=owner")
    found = alike(warm, [2, 3, 4], *texts)
    for size in (2, 3, 4):
        for text in texts:
            one = found[f"{size} {text}"]
            assert set(one["status"]) == {"budget_exhausted"}, one
            assert one["moved"] > 1e-3, "the weights must have moved for their agreement to mean anything"
            assert one["apart"] < 1e-3, (size, text)
            assert one["between"] == 0.0, "ranks keep the same bits"
            assert one["loss"][1] == pytest.approx(one["loss"][0], rel=1e-4)
            assert one["accuracy"][1] == one["accuracy"][0], "evaluation is shared out and put together again"
            assert 0 < one["share"] < 1
            assert len(one["ranks"]) == size


def asked(**fields):
    given = {"workloads": ("blobs",), "methods": ("toy-sgd",), "seeds": 1, "hyper": ("epochs=3",), "deadline_s": 60.0}
    return TrainRequest(**{**given, "world": World(nproc=2), "device": "cpu", **fields})


def rows(path):
    frame = read_runs(path)
    return frame[frame["phase"] == "training"].drop_duplicates("run").set_index("arm")


def test_record_names_its_ranks_and_a_failure_everywhere_costs_one_run(toys, tmp_path):
    names = ("toy-sgd", "toy-halves", "toy-raises", "toy-refuses")
    result = executor.execute(build(asked(methods=names, hyper=("epochs=6",), full=True)), tmp_path, "test")
    found = rows(result.path)
    status = found["status"].to_dict()
    assert status.pop("training.toy-raises") == "error"
    assert status.pop("training.toy-refuses") == "unsupported"
    assert set(status.values()) <= {"budget_exhausted", "target_reached"}
    assert "no luck today" in found.loc["training.toy-raises", "reason"]
    header = store.read_headers(result.path)[0]
    assert header["plan"]["ranks"] | {"devices": []} == header["plan"]["ranks"]
    assert header["plan"]["ranks"]["world"] == 2
    assert header["plan"]["ranks"]["backend"] == "gloo"
    assert header["environment"]["device_name"].endswith("2 processes")
    detail = found.loc["training.toy-sgd", "detail"]
    assert detail["spec"]["world"] == 2
    assert [rank["rank"] for rank in detail["ranks"]] == [0, 1]
    assert detail["drift"] == 0.0
    frame = read_runs(result.path)
    mine = frame[frame["arm"] == "training.toy-sgd"].set_index("metric")
    assert len(mine.loc["rank_peak_host_bytes", "samples"]) == 2
    assert mine.loc["bucket_communication_s", "value"] > 0
    assert mine.loc["device_s", "value"] == pytest.approx(2 * mine.loc["elapsed_s", "value"])


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("lonely-exit", "rank 1 of 2: the process ended with exit code 7"),
        ("lonely-kill", "rank 1 of 2: the process died of SIGKILL"),
        ("lonely-error", "rank 1 of 2: ValueError: only I am unlucky"),
    ],
)
def test_a_rank_that_dies_ends_the_run_with_one_record(toys, tmp_path, method, text):
    found = rows(executor.execute(build(asked(methods=(f"toy-{method}",))), tmp_path, "test").path)
    assert len(found) == 1
    row = found.iloc[0]
    assert row["status"] == "error"
    assert text in row["reason"]


def test_a_killed_run_of_several_ranks_resumes(toys, tmp_path, monkeypatch):
    monkeypatch.setattr(executor.machine, "code", lambda: {"commit": "the same in both invocations"})

    class Stops(executor.Silent):
        """Stops a block after the one that saved, which no rank can have begun before all had saved."""

        def progress(self, label, message):
            if message.get("done", 0) >= 80:
                raise KeyboardInterrupt

    request = asked(hyper=("epochs=12",), full=True, checkpoint_updates=64, checkpoint_s=1e9)
    whole = rows(executor.execute(build(request), tmp_path / "whole", "test").path).iloc[0]
    with pytest.raises(KeyboardInterrupt):
        executor.execute(build(request), tmp_path / "cut", "test", Stops())
    parts = sorted(path.name for path in (tmp_path / "cut").rglob("*.pt*") if path.suffix != ".partial")
    assert [name.rpartition(".")[2] for name in parts] == ["pt", "rank1"]
    result = executor.execute(build(request), tmp_path / "cut", "test")
    again = rows(result.path).iloc[-1]
    assert again["detail"]["resumed"]
    assert again["detail"]["weights_sha256"] == whole["detail"]["weights_sha256"]
    assert not list((tmp_path / "cut").rglob("*.pt*"))


def test_impossible_worlds_are_refused(toys, monkeypatch):
    for world, text in (
        (World(nproc=0), "--nproc 0"),
        (World(nproc=2, nnodes=2), "--rendezvous HOST:PORT"),
        (World(nproc=2, nnodes=2, node_rank=2, rendezvous="a:1"), "--node-rank 2"),
        (World(nproc=2, nnodes=2, rendezvous="nowhere"), "--rendezvous nowhere"),
    ):
        with pytest.raises(UserError, match=text):
            build(asked(world=world))
    monkeypatch.setattr(worlds.os, "cpu_count", lambda: 2)
    World(nproc=8).check("cpu", 0)
    with pytest.raises(UserError, match="--nproc 9: this machine has 2 cores, so more than 8 processes"):
        World(nproc=9).check("cpu", 0)
    monkeypatch.setenv(worlds.LIMIT, "9")
    World(nproc=9).check("cpu", 0)
    monkeypatch.setenv(worlds.LIMIT, "many")
    with pytest.raises(UserError, match="SPEEDCLAIM_MAX_NPROC=many"):
        World(nproc=2).check("cpu", 0)
    monkeypatch.delenv(worlds.LIMIT)
    with pytest.raises(UserError, match="--nproc 99: this machine shows 4 CUDA devices"):
        World(nproc=99).check("cuda", 4)
    World(nproc=4).check("cuda", 4)
    with pytest.raises(UserError, match="--sync-batch-norm"):
        build(asked(world=World(), sync_batch_norm=True))


def test_the_first_own_failure_is_the_cause():
    watch = _Watch()
    watch.fail(_Failure(0, "error", "RuntimeError: Connection closed by peer", communication=True), 5.0)
    watch.fail(_Failure(2, "out_of_memory", "OutOfMemoryError", communication=False), 5.0)
    assert watch.cause().rank == 2
    watch.fail(_Failure(3, "error", "SIGSEGV", communication=False, died=True), 1.0)
    assert watch.cause().rank == 3


def test_machines_meet(toys, tmp_path):
    """Two machines of one process each, both of them here."""
    import socket
    import threading

    with socket.create_server(("127.0.0.1", 0)) as probe:
        meeting = f"127.0.0.1:{probe.getsockname()[1]}"
    worlds = [World(nnodes=2, node_rank=rank, rendezvous=meeting) for rank in (0, 1)]
    served = []
    other = threading.Thread(
        target=lambda: served.append(executor.follow(build(asked(world=worlds[1])), executor.Silent())), daemon=True
    )
    other.start()
    found = rows(executor.execute(build(asked(world=worlds[0])), tmp_path, "test").path)
    other.join(120)
    assert served == [1]
    assert found.iloc[0]["status"] in ("budget_exhausted", "target_reached")
    assert replace(worlds[0], nproc=4).size == 8


TOGETHER = """
import time
from harness.measure.training.together import together
def work(ranks):
    if ranks.rank == 1:
        raise ValueError("only I am unlucky")
    ranks.meet()
    time.sleep(300)
begin = time.monotonic()
try:
    together(2, work, wait_s=250.0)
except RuntimeError as error:
    print("only I am unlucky" in str(error) or "Connection" in str(error), time.monotonic() - begin < 200)
print(together(2, lambda ranks: ranks.size * 10 + ranks.rank))
"""


def test_ranks_of_a_check_end_together_when_one_fails(warm):
    done = warm.run([sys.executable, "-c", TOGETHER], timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["True", "True", "[20,", "21]"]


def test_ranks_leave_nvlink_multicast_off_unless_told(monkeypatch):
    from harness.measure.training.launch import surroundings

    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME")
    for name in (*names, "NCCL_NVLS_ENABLE"):
        monkeypatch.setenv(name, "1")
    surroundings(World(nproc=4), 2, 2)
    assert os.environ["NCCL_NVLS_ENABLE"] == "1", "whoever sets it decides"
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("2", "4")
    monkeypatch.delenv("NCCL_NVLS_ENABLE")
    surroundings(World(nproc=4), 2, 2)
    assert os.environ["NCCL_NVLS_ENABLE"] == "0"
