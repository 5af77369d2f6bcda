"""What the scaling runs ask for: every combination once, whole refresh periods, one batch kept."""

import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest
import typer

from harness import cli_scale
from harness.errors import UserError
from harness.judge import scaling as judged
from harness.measure.training import scaling
from harness.measure.training.scaling import Asked, check, measure, planned, points, request
from suites.scaling_bench import METHODS, SHARDED, alike, asked

CPU = Asked(
    workload="digits-cnn",
    methods=("training.sgd", "training.kfac-cholesky"),
    sharded=("training.kfac-cholesky",),
    worlds=(1, 2, 4),
    per_rank=64,
    period=20,
    blocks=3,
    hyper=("kfac-cholesky.refresh_period=20",),
    device="cpu",
)


def test_points_are_every_combination_once():
    found = {(one.world, one.per_rank): one for one in points(CPU)}
    assert found[1, 64].modes == ("weak", "strong")
    assert found[4, 64].modes == ("weak",)
    assert found[4, 16].modes == ("strong",)
    assert found[2, 64].owned == ("training.kfac-cholesky",)
    assert found[1, 64].owned == (), "one process has every layer"
    assert len(found) == len(points(CPU)) == 5
    assert [one.modes[0] for one in points(CPU)] == ["weak"] * 3 + ["strong"] * 2, "weak scaling comes first"


def test_a_request_keeps_the_batch_and_evaluates_at_the_ends_only():
    point = next(one for one in points(CPU) if (one.world, one.per_rank) == (4, 16))
    plan = planned(CPU, point, 2)
    arms = {arm.name: arm for arm in plan.parts[0].arms}
    assert list(arms) == ["training.sgd", "training.kfac-cholesky", "training.kfac-cholesky#owner"]
    assert arms["training.kfac-cholesky"].hyper.factory["sharding"] == "none"
    spec = plan.spec(plan.parts[0], arms["training.kfac-cholesky#owner"], 0)
    workload = spec.found_workload()
    assert (workload.batch, spec.world, spec.seed, spec.block_updates) == (64, 4, 2, 20)
    assert spec.factory["sharding"] == "owner"
    assert spec.factory["refresh_period"] == 20
    updates = spec.trainer["epochs"] * workload.params["synthetic_images"] / workload.batch
    assert round(updates) == 60
    assert workload.eval_every > 10**15
    assert spec.extra["scaling"]["modes"] == ["strong"]
    assert plan.describe("")["ranks"]["world"] == 4
    assert plan.describe("")["kind"] == "scaling"


def test_the_gpu_script_asks_for_whole_refresh_periods():
    for quick in (True, False):
        one = asked(quick, "cuda", (1, 2), METHODS)
        assert one.per_rank == 2048
        assert f"kfac-cholesky.refresh_period={one.period}" in one.hyper
    brief = points(asked(True, "cuda", (1, 2), METHODS))
    (strong,) = [point for point in brief if point.modes == ("strong",)]
    assert (strong.methods, strong.owned) == (("training.sgd",), ("training.kfac-cholesky", "training.fop"))
    arms = planned(replace(CPU, methods=METHODS, sharded=SHARDED, brief=True), replace(strong, per_rank=8), 0)
    names = [arm.name for arm in arms.parts[0].arms]
    assert names == ["training.sgd", "training.kfac-cholesky#owner", "training.fop#owner"]


def test_no_point_begins_that_would_not_end_in_time(monkeypatch, tmp_path):
    clock, told, written = [0.0], [], []

    def execute(plan, out, command, listener):
        clock[0] += 30.0
        return SimpleNamespace(path=tmp_path / f"{len(written)}.jsonl")

    monkeypatch.setattr(scaling.executor, "execute", execute)
    monkeypatch.setattr(scaling.time, "monotonic", lambda: clock[0])
    asked_ = replace(CPU, seconds=100.0)
    files, failed = measure(asked_, tmp_path, "test", None, told.append, lambda a, b: written.append((len(a), len(b))))
    assert len(files) == 3
    assert len(failed) == 2
    assert all("10 s were left, and a point takes up to 30 s" in why for why in failed.values())
    assert written == [(1, 0), (2, 0), (3, 0)], "what there is is written behind each point"
    assert request(asked_, points(CPU)[0], 0, 70.0).budget_s == 70.0
    assert request(asked_, points(CPU)[0], 0).budget_s is None


def test_a_comparison_that_hangs_is_told(monkeypatch):
    def hangs(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hangs)
    assert alike("cpu", 2, 7.0) == {"error": "no answer within 7 s"}


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"workload": "nope"}, "unknown workload 'nope'"),
        ({"methods": ("nope",), "sharded": ()}, "unknown method 'training.nope'"),
        ({"rounds": 0}, "--rounds 0: expected at least 1"),
        ({"blocks": 1}, "--blocks 1: expected at least 2"),
        ({"period": 0}, "--period 0"),
        ({"per_rank": 0}, "--per-rank 0"),
        ({"sharded": ("nope",)}, "--sharded nope: expected one of the methods measured"),
        ({"precision": "fp7"}, "expected one of ieee"),
        ({"per_rank": 1}, "fewer samples than the"),
    ],
)
def test_what_no_point_can_survive_is_refused_before_anything_runs(wrong, text):
    with pytest.raises(UserError) as caught:
        check(replace(CPU, **wrong))
    assert text in str(caught.value)


def test_a_measurement_without_a_number_ends_with_code_1(monkeypatch, capsys):
    key = judged.Key(device="d", workload="w", method="training.sgd", sharding="none", mode="weak", per_rank=8, world=2)
    lost, good = judged.Row(key=key, reason="all ranks fell over"), judged.Row(key=key, step_s=0.1)
    for rows, code in (([lost], 1), ([lost, good], None), ([], None)):
        monkeypatch.setattr(cli_scale, "measure", lambda *_, found=rows: (found, []))
        if code is None:
            cli_scale.scale("digits-cnn", ["sgd"])
            continue
        with pytest.raises(typer.Exit) as ended:
            cli_scale.scale("digits-cnn", ["sgd"])
        assert ended.value.exit_code == code
        assert "no point was measured; the first says: all ranks fell over." in capsys.readouterr().err
